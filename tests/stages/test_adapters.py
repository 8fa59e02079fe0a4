"""The stages that train, with adapters, one after the other on what the one before wrote, with real vLLM."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from stages import discriminator, ril, warm_start
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.job.files import write_shards
from stages.job.hashes import hash_file
from stages.job.job import Job
from stages.vlm.checkpoint import Checkpoint, open_verified
from stages.vlm.reader import FAMILIES, load_network, load_reader
from tests.conftest import SEEING
from tests.stages.rollout_fixtures import picture

LORA = {"lora": {"rank": 4, "alpha": 8.0}}
OVERLAY: dict[str, Any] = {
    "warm_start": {"steps": 3, "rows_per_step": 2, "learning_rate": 1e-2, "final_learning_rate": 1e-3}
    | {"freeze_vision": True, **LORA},
    "discriminator": {"learning_rate": 1e-2, "sees": "question_and_image", **LORA},
    # Enough answers of teachers to a question that their verdicts differ; the judge says nothing of the student's.
    # Logits of these models are in the tens: at a rate of 1e-2 the second step of Qwen3-VL is e^44 off its reference.
    "ril": {"learning_rate": 2e-3, "discriminator_learning_rate": 1e-2, "group": 6, "steps": 3, **LORA},
}


def hash_files(folder: Path) -> dict[str, str]:
    return {str(file): hash_file(file) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEING)
def test_every_stage_takes_what_the_one_before_wrote(
    family: str, tiny: Callable[[str], Checkpoint], loop_project: Callable[[str, Mapping[str, Any]], Job]
) -> None:
    """Each base keeps its bytes, and the exported adapter on it is the merged model that the stage wrote.

    The engine of the loop gets merged weights for one family, adapters for the other.
    """
    job = loop_project("warm_start", OVERLAY)
    data = job.root / "data"
    shutil.rmtree(data / "warm_start")
    shutil.copytree(tiny(family).folder, data / "model" / "student")
    rows = []
    for number in range(4):
        turns = [("user", f"<image>What is the sum of the digits {number}?"), ("assistant", f"3:3, so {number}")]
        said = [{"role": role, "content": text} for role, text in turns]
        rows.append(make_canonical_row(f"w{number}", [picture()], said, str(number), "test", "sum"))
    write_shards(data / "questions" / "warm_start", rows, QUESTION_SCHEMA)
    start = hash_files(data / "model" / "student")
    warm_start.run(job)
    warmed = hash_files(data / "warm_start")
    discriminator.run(loop_project("discriminator", OVERLAY))
    served = family == "internvl3"
    loop = loop_project("ril", OVERLAY | ({"runtime": {"weight_transfer": "adapter"}} if served else {}))
    ril.run(loop)
    sent, whole = loop._measured["bytes_to_engine"], (data / "ril" / "model" / "model.safetensors").stat().st_size
    assert (sent < whole / 4) is served
    assert hash_files(data / "model" / "student") == start
    assert hash_files(data / "warm_start") == warmed

    critic = load_file(data / "discriminator" / "discriminator.safetensors")
    assert len(critic) == 2 * 7 * 2 + 2  # layers, linear layers, matrices; the score head
    for base, made in (("model/student", "warm_start"), ("warm_start", "ril/model")):
        checkpoint = open_verified(data / made, job.store)
        wanted = load_network(checkpoint, load_reader(checkpoint)).model.state_dict()
        plain = FAMILIES[family].load_model(data / base, torch.float32)
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        adapted = peft.PeftModel.from_pretrained(plain, str(data / made / "adapter"))
        merged = adapted.merge_and_unload().state_dict()
        assert all(torch.allclose(merged[name], value, rtol=1e-6, atol=1e-7) for name, value in wanted.items())
        assert sum(not torch.equal(wanted[name], value) for name, value in before.items()) == 14
