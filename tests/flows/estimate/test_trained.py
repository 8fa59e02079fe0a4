"""The real `Trainer` holds as many bytes as the estimate says: states, gradients, DeepSpeed's buckets, activations.

Tensors are counted as they are made, so a buffer counts whole although nothing is written to it. The figures at 67 M
weights and more, as memory of the process: `python -m tests.performance.memory_coefficients`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.training.ranks import get_ranks
from tests.flows.estimate.traces import AliveBytes
from tests.gpu.shapes import Shape
from tests.performance.memory_coefficients import ALLOWED, PHASES, Case, Figures, make_steps, predict
from tests.stages.training.spawned import run_ranks

VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
SHAPE = Shape("tiny", 256, 4, 4, 2, 1024, 512, tied=True, vision=VISION)
TOKENS = 512
# With DeepSpeed's own bucket of 1 GB nothing else would matter at this size.
BUCKET = {
    "deepspeed": {"zero_optimization": {"reduce_bucket_size": 1_500_000, "stage3_max_live_parameters": 1_000_000}}
}
CASES = (
    Case("ZeRO 1, which works as 2", 1, {"zero_stage": 1, **BUCKET}),
    Case("ZeRO 2", 1, {"zero_stage": 2, **BUCKET}),
    Case("ZeRO 2, checkpointing", 1, {"zero_stage": 2, "gradient_checkpointing": True, **BUCKET}),
    Case("LoRA, DeepSpeed's bucket", 1, {"zero_stage": 2, "gradient_checkpointing": True}, lora=True),
)


def count(case: Case) -> Figures:
    """Bytes of this process's tensors in the second step."""
    found: Figures = {}
    now = "load"
    with AliveBytes("cpu") as alive:
        for coming in make_steps(case, SHAPE, TOKENS):
            found[now] = alive.peak
            if coming == "at rest":
                found[coming] = alive.now
            alive.peak, now = alive.now, coming
    return {phase: found[phase] for phase in PHASES}


def compare(case: Case, found: Figures, allowed: float) -> None:
    said = predict(case, SHAPE, TOKENS, touched=False)
    print(case.name, {phase: f"{found[phase] / 1e6:.1f}, {said[phase] / 1e6:.1f} MB" for phase in PHASES})
    assert said == {phase: pytest.approx(found[phase], rel=allowed) for phase in PHASES}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_rank_holds_what_the_estimate_says(case: Case) -> None:
    compare(case, count(case), ALLOWED)


def count_rank(case: Case, path: str) -> None:
    found = count(case)
    if get_ranks().first:
        Path(path).write_text(json.dumps(found))


@pytest.mark.slow
def test_ranks_hold_their_part(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"zero_stage": 3, "gradient_checkpointing": True, **BUCKET}
    case = Case("ZeRO 3, 2 ranks", 2, settings)
    run_ranks(count_rank, 2, tmp_path, (case, str(tmp_path / "found.json")), 200.0)
    compare(case, json.loads((tmp_path / "found.json").read_text()), ALLOWED)
