"""The inputs of the conformance tests: drawn once, written to golden/cases.npz, read by every oracle and by our
tests.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"
ROWS, WIDTH = 8, 16  # a group of 4 + 4 rows; also Dr.GRPO's constant
SEEDS = range(5)
CLIPS = {"paper": (0.2, 0.2), "higher": (0.2, 0.28)}
BETA = 0.01
CAP = 2.0  # of rollout weights
Array = NDArray[np.float64]


def losses(seed: int) -> dict[str, Array]:
    """One batch: log-probabilities, advantages of both signs, ragged rows, one of length 1 and one fully masked."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, WIDTH + 1, ROWS)
    lengths[3], lengths[5] = 1, 0
    log_probs = -3 * draw.random((ROWS, WIDTH))
    return {
        "log_probs": log_probs,
        "old": log_probs
        + 0.6 * draw.standard_normal((ROWS, WIDTH)),  # ratios from 0.2 to 5: far outside the clip range
        "reference": log_probs + 0.7 * np.clip(draw.standard_normal((ROWS, WIDTH)), -2.5, 2.5),
        "engine": log_probs + 0.6 * draw.standard_normal((ROWS, WIDTH)),
        "advantages": draw.standard_normal(ROWS),
        "mask": (np.arange(WIDTH)[None] < lengths[:, None]).astype(float),
    }


def groups() -> dict[str, Array]:
    """Three groups of 4 + 4 rows, interleaved: rewards in {0, 1, 2} and the group of each row."""
    draw = np.random.default_rng(100)
    index = np.tile(np.arange(3), 8)
    draw.shuffle(index)
    return {"rewards": draw.integers(0, 3, 24).astype(float), "index": index.astype(float)}


def gaps() -> Array:
    """reference - policy from 1e-6 to 30, both signs."""
    sizes = np.array([1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0, 20.0, 30.0])
    return np.concatenate([sizes, -sizes])


def head() -> dict[str, Array]:
    """Hidden states, head weights, targets and what the gradients are weighted with."""
    draw = np.random.default_rng(200)
    return {
        "hidden": draw.standard_normal((37, 16)),
        "weight": 0.5 * draw.standard_normal((151, 16)),
        "targets": draw.integers(0, 151, 37).astype(float),
        "slopes": draw.standard_normal(37),
    }


def pairs() -> dict[str, Array]:
    """Logits of student and of teacher texts of one question."""
    draw = np.random.default_rng(300)
    return {"student": 2 * draw.standard_normal(4), "teacher": 2 * draw.standard_normal(4)}


def drawn() -> dict[str, Array]:
    """All of them under flat names."""
    found = {f"losses{seed}/{name}": value for seed in SEEDS for name, value in losses(seed).items()}
    for name, parts in (("groups", groups()), ("head", head()), ("pairs", pairs())):
        found |= {f"{name}/{part}": value for part, value in parts.items()}
    return {**found, "gaps": gaps()}


def read(name: str) -> dict[str, Array]:
    """golden/<name>.npz as a dictionary."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def batch(stored: dict[str, Array], seed: int) -> dict[str, Array]:
    """One batch of `losses` from the stored cases."""
    return {key.split("/")[1]: value for key, value in stored.items() if key.startswith(f"losses{seed}/")}
