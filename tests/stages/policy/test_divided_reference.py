"""A reference that is sharded or in host memory gives the log-probabilities of a whole one, also to a rank without
packs.
"""

import gc
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.config.deepspeed import DeepSpeedKeys, ZeroKeys
from stages.config.objective import PAPER
from stages.config.ril import Ril
from stages.config.runtime import ReferencePlace, Runtime
from stages.config.sampling import Sampling
from stages.groups.pack import Group
from stages.groups.response import STUDENT, Response
from stages.loop.models import shard_reference
from stages.policy.batch import RewardedGroup
from stages.policy.policy import Policy
from stages.policy.rewards import score_groups
from stages.training.passes import PaddingGroups
from stages.training.ranks import get_ranks
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from stages.vlm.reader import Reader, load_network, load_reader
from tests.stages.training.spawned import run_ranks

# By default ZeRO 3 divides parameters of 100,000 values and more, which these models do not have.
KEYS = DeepSpeedKeys(zero_optimization=ZeroKeys(stage3_param_persistence_threshold=100))
FULL = replace(PAPER, kl="full")  # its head is used in the student's passes, outside those of the reference
BLOCK = {"steps": 2, "learning_rate": 1e-3, "tokens_per_pack": 160, "sampling": Sampling(max_tokens=64)}
LIMIT = 300  # seconds until ranks count as hung


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((56, 84)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def make_groups(reader: Reader) -> list[RewardedGroup]:
    """Three questions of two answers each; the second one has an image."""
    answers = []
    for number in range(3):
        texts = [f"the sum is {number}", f"{number} and {number + 2}"]
        sources = (STUDENT, "teacher")
        answers.append(
            [
                Response(source, text, tuple(reader.chat.encode_response(text)), "stop", place)
                for place, (source, text) in enumerate(zip(sources, texts, strict=True))
            ]
        )
    asked = [("<image>" if number == 1 else "") + f"What is the sum of {number} and 2?" for number in range(3)]
    images = [[picture()] if number == 1 else [] for number in range(3)]
    prompts = reader.make_prompts(
        [([{"role": "user", "content": text}], its) for text, its in zip(asked, images, strict=True)]
    )
    scored = score_groups(answers, [0.5, -0.5] * 3)
    return [RewardedGroup(prompt, tuple(its)) for prompt, its in zip(prompts, scored, strict=True)]


def make_policy(checkpoint: Checkpoint, place: ReferencePlace, zero: Any, block: Ril) -> tuple[Policy, Reader]:
    reader = load_reader(checkpoint)
    runtime = Runtime(zero_stage=zero, reference=place, deepspeed=KEYS)
    reference = load_network(checkpoint, reader)
    reference.model.requires_grad_(False)
    with torch.no_grad():
        reference.head.weight.mul_(0.02)
    shards = shard_reference(reference, runtime, FULL)
    student = load_network(checkpoint, reader)
    with torch.no_grad():
        student.head.weight.mul_(0.02)
    if block.freeze_vision:
        student.freeze_vision()
    trainer = Trainer(student.model, block, runtime)
    return Policy(student, reference, trainer, block, FULL, PaddingGroups(reader), shards), reader


def describe(checkpoint: Checkpoint, place: ReferencePlace, zero: int, frozen: bool) -> dict[str, Any]:
    """Log-probabilities of the first rank's answers, and the losses of two updates; the second rank has no question."""
    policy, reader = make_policy(checkpoint, place, zero, Ril(**BLOCK, freeze_vision=frozen))  # type: ignore[arg-type]
    groups = make_groups(reader) if get_ranks().first else []
    plain = [Group(one.prompt, tuple(row.response.token_ids for row in one.responses)) for one in groups]
    caches = policy.cache_reference(plain)
    held = sum(one.numel() for one in policy.reference.model.parameters())
    return {
        "log_probs": [values for cache in caches for values in cache.log_probs.values()],
        "losses": [policy.update(groups, 1e-3)["loss"] for _ in range(2)],
        "held": held,
    }


def describe_all(cases: Sequence[tuple[str, int, bool]], folder: str) -> None:
    gc.freeze()
    found = {}
    for path, zero, frozen in cases:
        for place in ("replicated", "sharded", "offloaded"):
            seen = describe(open_checkpoint(Path(path)), place, zero, frozen)  # type: ignore[arg-type]
            found[path, zero, frozen, place] = seen
    if get_ranks().first:
        torch.save(found, f"{folder}/found.pt")


def check(seen: dict[str, Any], whole: dict[str, Any]) -> None:
    assert len(whole["log_probs"]) == 6
    for ours, theirs in zip(seen["log_probs"], whole["log_probs"], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert whole["losses"][0] != whole["losses"][1]
    assert seen["losses"] == pytest.approx(whole["losses"], abs=1e-6)


@pytest.mark.slow
def test_log_probs_of_a_divided_reference(tiny: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    qwen, internvl = (str(tiny(family).folder) for family in ("qwen2_5_vl", "internvl3"))
    cases = [(qwen, 0, True), (qwen, 3, False), (internvl, 3, True)]
    run_ranks(describe_all, 2, tmp_path, (cases, str(tmp_path)), LIMIT)
    found = torch.load(tmp_path / "found.pt")
    for (path, zero, frozen, place), seen in found.items():
        whole = found[path, zero, frozen, "replicated"]
        check(seen, whole)
        # Between passes a rank holds small parameters whole, of all others a placeholder.
        assert (seen["held"] < 0.1 * whole["held"]) == (place != "replicated")


def test_one_process_has_its_reference_in_host_memory(tiny: Callable[[str], Checkpoint], process_group: Any) -> None:
    checkpoint = tiny("qwen2_5_vl")
    whole = describe(checkpoint, "replicated", 0, True)
    check(describe(checkpoint, "offloaded", 0, True), whole)
    check(describe(checkpoint, "offloaded", 2, False), describe(checkpoint, "replicated", 2, False))
    policy, _ = make_policy(checkpoint, "sharded", 0, Ril(**BLOCK))  # type: ignore[arg-type]
    assert policy.shards is None, "one process has nothing to divide"
