"""A training step of ours against TRL's GRPOTrainer on the same questions, answers and rewards, step by step in turn.

    tests/performance/against_trl/environment.sh FOLDER      # once: TRL in an environment of its own
    OMP_NUM_THREADS=1 python tests/performance/update_vs_trl.py --trl FOLDER/bin/python [--growth] [--json FILE]

Each side is a process of its own that loads the same files (against_trl/fixture.py) and makes one step when told to;
the two never run at the same time. Before anything is timed, both make one step from the same weights (answers of all
lengths, beta 0 and 0.01) and every parameter must agree (C13). A step is all there is without generation: decoding and
processing of images, prompts, reference pass, forward, backward, optimizer. Printed are CPU seconds of the process
(other programs on the machine disturb them little), medians over the steps after two to warm up; peak memory; floating
point operations as torch counts them. Ends with 1 when a bar is missed.

Without Triton, hence on every CPU, TRL's head scores prompt tokens too. A third worker lets it score answers only, as
it does on GPUs; both are printed, and the bars hold for TRL as it is.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from against_trl.fixture import Shape, write_fixture
from against_trl.pipe import Worker

HERE = Path(__file__).parent / "against_trl"
BARS = {64: 3.0, 256: 5.0}  # how many times faster at this many image tokens
TOLERANCE = 1e-5  # of a parameter after a step that moves parameters by up to the learning rate, 1e-4
WARM_UP = 2
LONG = 512  # tokens of an answer


@contextmanager
def sides(shape: Shape, trl: str, *, both_heads: bool, sdpa: bool = False) -> Iterator[dict[str, Worker]]:
    """The workers on one shape, by name: ours, trl and, with `both_heads`, TRL with its head on answers only.

    With `sdpa` also ours with `runtime.group_attention: sdpa`.
    """
    folder = Path(tempfile.mkdtemp(prefix="ril-vs-trl-"))
    workers: dict[str, Worker] = {}
    try:
        write_fixture(folder / "fixture", shape)
        fixture = str(folder / "fixture")
        commands = {
            "ours": [sys.executable, str(HERE / "ours.py"), fixture, "auto"],
            "trl": [trl, str(HERE / "theirs.py"), fixture],
        }
        if sdpa:
            commands["ours, sdpa"] = [*commands["ours"][:-1], "sdpa"]
        if both_heads:
            commands["trl, head on answers"] = [*commands["trl"], "--head-on-answers"]
        for name, command in commands.items():
            workers[name] = Worker(name, command)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()
        shutil.rmtree(folder)


def largest_difference(workers: dict[str, Worker], shape: Shape) -> float:
    """Largest difference of any parameter between ours and TRL's after one step.

    Raises AssertionError when a side trained nothing, or the two have not the same parameters.
    """
    from safetensors.torch import load_file

    states = []
    for name in ("ours", "trl"):
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "before", Path(folder) / "after"
            workers[name].ask("dump", str(before))
            workers[name].ask("step")
            workers[name].ask("dump", str(after))
            start, end = load_file(before), load_file(after)
        moved = max(float((end[key] - start[key]).abs().max()) for key in start)
        assert moved > 0.9 * shape.learning_rate, f"{name} moved no parameter by more than {moved}"
        assert all(bool((end[key] == start[key]).all()) for key in start if "visual" in key), (
            f"{name} trained the vision tower"
        )
        states.append(end)
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max()) for key in ours)


@dataclass(frozen=True)
class Measured:
    """Medians over the steps of one side."""

    seconds: float
    parts: dict[str, float]
    peak: float  # MiB, whole process
    grown: float  # MiB above what the process held before the step
    flops: int


def measured(workers: dict[str, Worker], repeats: int) -> dict[str, Measured]:
    """Steps of all sides in turn."""
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for number in range(WARM_UP + repeats):
        for name, worker in workers.items():
            answer = worker.ask("step")
            if number >= WARM_UP:
                steps[name].append(answer)
    flops = {name: int(worker.ask("count")["flops"]) for name, worker in workers.items()}
    return {
        name: Measured(
            statistics.median(step["seconds"] for step in taken),
            {part: statistics.median(step["parts"].get(part, 0.0) for step in taken) for part in taken[0]["parts"]},
            max(step["peak"] for step in taken),
            max(step["grown"] for step in taken),
            flops[name],
        )
        for name, taken in steps.items()
    }


def conform(shape: Shape, trl: str) -> None:
    """C13 on this shape with answers of all lengths, for beta 0 and 0.01."""
    for weight in (0.0, 0.01):
        ragged = replace(shape, ragged=True, kl_weight=weight)
        with sides(ragged, trl, both_heads=False) as workers:
            difference = largest_difference(workers, ragged)
        print(
            f"  beta {weight}: largest difference of a parameter after one step {difference:.1e} (allowed "
            f"{TOLERANCE:.0e})"
        )
        assert difference <= TOLERANCE, "ours and TRL's parameters differ; nothing is timed"


def compare(shape: Shape, trl: str, repeats: int, *, both_heads: bool = True) -> dict[str, Measured]:
    """Measures one shape and prints it; long answers also with one mask a group."""
    with sides(shape, trl, both_heads=both_heads, sdpa=shape.length >= LONG) as workers:
        found = measured(workers, repeats)
    ours = found["ours"]
    for name, side in found.items():
        parts = ", ".join(
            f"{part} {seconds * 1e3:.0f}" for part, seconds in sorted(side.parts.items(), key=lambda p: -p[1])
        )
        print(
            f"  {name:22} {side.seconds * 1e3:7.0f} ms CPU = {side.seconds / ours.seconds:5.2f} x ours; peak "
            f"{side.peak:.0f} MiB "
            f"(+{side.grown:.0f} in the step); {side.flops / 1e9:.1f} GFLOP = {side.flops / ours.flops:.2f} x; "
            f"ms: {parts}"
        )
    return found


ONE = Shape(questions=1)
GROWTH = (
    *(replace(ONE, rows=rows) for rows in (4, 8, 16)),
    *(replace(ONE, image_tokens=tokens) for tokens in (16, 256)),
    *(replace(ONE, length=length) for length in (8, 128, LONG)),
)


def main() -> None:
    """Compares, prints, ends with 1 when a bar is missed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trl", required=True, help="python of the environment with TRL")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument(
        "--image-tokens", type=int, nargs="*", default=list(BARS), choices=list(BARS), help="which of the bars"
    )
    options.add_argument(
        "--growth", action="store_true", help="only how the gain grows with 2G, image tokens and answer length"
    )
    options.add_argument("--json", type=Path, help="file for all figures")
    given = options.parse_args()
    every: dict[str, Any] = {}
    missed = []
    for shape in GROWTH if given.growth else [Shape(image_tokens=tokens) for tokens in given.image_tokens]:
        print(shape.name, flush=True)
        if not given.growth:
            conform(shape, given.trl)
        found = compare(shape, given.trl, given.repeats, both_heads=not given.growth)
        every[shape.name] = {name: side.__dict__ for name, side in found.items()}
        faster = found["trl"].seconds / found["ours"].seconds
        if not given.growth and faster < BARS[shape.image_tokens]:
            missed.append(f"{shape.name}: {faster:.2f} x, the bar is {BARS[shape.image_tokens]} x")
        if not given.growth and found["ours"].peak > found["trl"].peak:
            missed.append(
                f"{shape.name}: peak memory {found['ours'].peak:.0f} MiB, TRL's is {found['trl'].peak:.0f} MiB"
            )
    if given.json:
        given.json.write_text(json.dumps(every, indent=1))
    for line in missed:
        print("MISSED", line)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
