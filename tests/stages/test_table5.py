"""Table 5 of the paper as studies: every arm is one line of parameters, fits each profile, and changes what is trained.

The loop runs in the smoke profile with the real trainer and discriminator; engines are scripted, and the models are
tiny checkpoints with random weights.
"""

import csv
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from flows.profile import list_profiles, read_profile
from stages import discriminator, ril, warm_start
from stages.config.params import validate_params
from stages.config.yaml import ParamsError, merge_params
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.corpora.scoring import is_correct
from stages.engines.engine import Answer, Request
from stages.job.files import read_shards, write_shards
from stages.job.hashes import hash_file, hash_json
from stages.job.job import Job
from stages.loop import models
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import Reader, load_network, load_reader
from studies.study import make_values, read_study

TABLES = [f"table5{letter}" for letter in "abcde"]
MakeJob = Callable[[str, Mapping[str, Any]], Job]
Tiny = Callable[[str], Checkpoint]
# Names of weights that each arm of Table 5c leaves as they are.
FROZEN = {
    "no_embedding": "embed_tokens",
    "no_attention": "self_attn",
    "no_ffn_gate": "gate_proj",
    "no_ffn_up": "up_proj",
    "no_ffn_down": "down_proj",
    "no_layer_norm": "norm",
    "no_head": "lm_head",
}

# In three steps it learns to tell texts apart; with the rates of params.yaml, or negatives, it says the same to all.
FAST_DISCRIMINATOR = {
    "discriminator": {"learning_rate": 1e-2, "negatives": 0},
    "ril": {"discriminator_learning_rate": 1e-2},
}


class ScriptedStudent:
    """Answers with a number that follows from the request's seed, every second time with steps."""

    def __init__(self, reader: Reader) -> None:
        self._chat = reader.chat

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for number, request in enumerate(requests):
            texts = [f"{'3:1,8:2. ' * (n % 2)}{(request.seed + n) % 7}" for n in range(request.n)]
            ids = [tuple(self._chat.encode_response(text)) for text in texts]
            pairs = enumerate(zip(texts, ids, strict=True))
            yield number, [Answer(n, text, own, "stop", 9, len(own)) for n, (text, own) in pairs]

    def update_weights(self, named: Any) -> int:
        return sum(value.nbytes for value in dict(named).values())

    def close(self) -> None:
        pass


class ScriptedJudge:
    """Finds an answer correct or wrong by a hash of what it reads."""

    def __init__(self) -> None:
        self.chat = SimpleNamespace(encode_prompt=lambda messages, images: [0] * 10)
        self.checkpoint = SimpleNamespace(context_tokens=512)

    def iter_outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        for number, request in enumerate(requests):
            verdict = int(hash_json([dict(one) for one in request.messages])[:2], 16) % 2
            yield number, [Answer(0, f"<answer>{verdict}</answer>", (1,), "stop", 10, 1)]

    def close(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which engines the loop has started; all of them are scripted."""
    found: list[str] = []

    def start_student(checkpoint: Checkpoint, *_: Any) -> ScriptedStudent:
        found.append("student")
        return ScriptedStudent(load_reader(checkpoint))

    monkeypatch.setattr(models, "start_trainable", start_student)
    monkeypatch.setattr(models, "start_engine", lambda *_: found.append("judge") or ScriptedJudge())
    return found


def arms_of(root: Path, table: str) -> dict[str, dict[str, Any]]:
    return {name: arm.params for name, arm in read_study(root, table).arms.items()}


# --- parameters -----------------------------------------------------------------------------------------------------


def test_the_arms_are_those_of_the_paper(root: Path) -> None:
    found = {
        table: [validate_params(make_values(root, study, arm, study.seeds[0])) for arm in study.arms.values()]
        for table in TABLES
        for study in [read_study(root, table)]
    }
    assert [one.ril.inner_updates for one in found["table5a"]] == [1, 2, 4, 6, 8, 10, 12]
    assert sorted(one.ril.kl_weight for one in found["table5b"]) == [0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0]
    parts = ("embedding", "attention", "ffn_gate", "ffn_up", "ffn_down", "layer_norm", "head")
    frozen = [(), *((part,) for part in parts), ()]
    assert [one.ril.frozen_parts for one in found["table5c"]] == frozen
    assert [one.ril.freeze_vision for one in found["table5c"]] == [True] * 8 + [False]
    assert [one.objective.discriminator_update for one in found["table5d"]] == ["none", "frozen", "before_scoring"]
    rewards = [(one.objective.answer_weight, one.objective.answer_by, one.warm_start.steps) for one in found["table5e"]]
    assert rewards == [(0, "judge", 60), (1, "parsing", 60), (1, "judge", 60), (1, "judge", 0)]


@pytest.mark.parametrize("table", TABLES)
def test_every_arm_fits_every_profile_and_one_arm_is_the_papers(root: Path, table: str) -> None:
    study = read_study(root, table)
    for profile in [None, *(name for name in list_profiles(root) if name != "recommended")]:
        if table == "table5c" and str(profile).startswith("lora"):  # its arms freeze parts, which adapters do anyway
            with pytest.raises(ParamsError, match="lora freezes all parts of the model, but frozen_parts is"):
                make_values(root, study, study.arms["no_embedding"], study.seeds[0], profile)
            continue
        values = [make_values(root, study, arm, study.seeds[0], profile) for arm in study.arms.values()]
        assert len({hash_json(one) for one in values}) == len(study.arms)
        assert sum(not arm.params for arm in study.arms.values()) == 1


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_every_arm_runs_in_the_smoke_profile_and_trains_another_student(
    root: Path, tmp_path: Path, tiny: Tiny, loop_project: MakeJob, started: list[str], table: str
) -> None:
    smoke = merge_params(read_profile(root, "smoke"), FAST_DISCRIMINATOR)
    start = load_file(tiny("qwen2_5_vl").folder / "model.safetensors")
    if table == "table5e":
        give_warm_start_questions(tmp_path, tiny)
    discriminator.run(loop_project("discriminator", smoke))
    trained: dict[str, str] = {}
    for name, changed in arms_of(root, table).items():
        overlay = merge_params(smoke, changed)
        started.clear()
        if table == "table5e":
            warm_start.run(loop_project("warm_start", overlay))
        job = loop_project("ril", overlay)
        ril.run(job)
        trained[name] = hash_file(job.out / "model" / "model.safetensors")
        with (job.reports / "history.csv").open() as handle:
            history = list(csv.DictReader(handle))
        assert len(history) == 3
        samples = read_shards(job.out / "samples").to_pylist()
        assert ("judge" in started) == (name not in ("no_answer_reward", "parsing"))
        if table == "table5a":
            assert ("ratio/last" in history[0]) == (name != "mu_1")
        if table == "table5c":
            check_parts(start, load_file(job.out / "model" / "model.safetensors"), name)
        if table == "table5d":
            assert ("disc/loss" in history[0]) == (name == "updated")
            assert all((row["logit"] is None) == (name == "none") for row in samples)
        if name == "parsing":
            assert {row["source"] for row in samples} > {"student"}
            assert all(row["answer"] == is_correct(row["response"], row["question_id"][1:]) for row in samples)
        if name == "without_sft":
            assert hash_file(tmp_path / "data/warm_start/model.safetensors") == hash_file(
                tmp_path / "data/model/student/model.safetensors"
            )
    assert len(set(trained.values())) == len(trained), trained


def give_warm_start_questions(project: Path, tiny: Tiny) -> None:
    """A base student, and questions with a target for its warm start."""
    shutil.copytree(tiny("qwen2_5_vl").folder, project / "data" / "model" / "student")
    buffer = io.BytesIO()
    Image.new("RGB", (84, 84), (90, 0, 0)).save(buffer, "PNG")
    messages = [{"role": "user", "content": "<image>What is the sum?"}, {"role": "assistant", "content": "3:3,8:11."}]
    rows = [make_canonical_row(f"w{n}", [buffer.getvalue()], messages, "11", "test", "sum") for n in range(4)]
    write_shards(project / "data" / "questions" / "warm_start", rows, QUESTION_SCHEMA)


def check_parts(start: Mapping[str, Any], end: Mapping[str, Any], name: str) -> None:
    """Only the part that the arm leaves out, and the vision tower, have the weights of the start."""
    for key, weights in end.items():
        same = bool((weights == start[key]).all())
        if "visual" in key:
            assert name == "with_vision" or same, key
        else:
            assert same == (name in FROZEN and FROZEN[name] in key), (name, key)
    assert name != "with_vision" or any("visual" in key and (end[key] != start[key]).any() for key in end)


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["embedding", "head"])
def test_one_half_of_a_tied_matrix_is_not_frozen_alone(tiny: Tiny, part: str) -> None:
    reader = load_reader(tiny("qwen2_5_vl"))
    network = load_network(tiny("qwen2_5_vl"), reader)
    network.model.lm_head.weight = network.text.embed_tokens.weight  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=rf"ril\.frozen_parts is {part}, but embedding and head .* name both or none"):
        network.freeze_parts([part])
    network.freeze_parts(["embedding", "head"])
    assert not network.head.weight.requires_grad


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl3"])
def test_every_part_is_there_in_every_family(tiny: Tiny, family: str) -> None:
    """All parts together are the whole language model."""
    network = load_network(tiny(family), load_reader(tiny(family)))
    network.freeze_parts(["embedding", "attention", "ffn_gate", "ffn_up", "ffn_down", "layer_norm", "head"])
    assert not any(parameter.requires_grad for parameter in [*network.text.parameters(), network.head.weight])
