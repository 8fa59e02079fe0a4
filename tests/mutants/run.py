"""Puts one fault at a time into a copy of the checkout and runs the tests that should see it.

    python -m tests.mutants.run [--only 3,17] [--draw 10 --commit HASH] [--jobs 1] [--log FILE] [--limit 300]

Prints a line a fault: killed (by which test, after how many seconds), SURVIVED, or why it was not tried. First the same
tests run without a fault, since a test that fails anyway sees nothing. Exit code 1 unless every fault is killed. With
--draw, the commit decides which faults are tried, so that a red run can be repeated. The table is
tests/mutants/table.py.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.copies import FAILED, PASSED, STOPPED, copy_checkout, import_libraries, replacing, run_tests
from tests.mutants.table import FAULTS, Fault

SECONDS = 300.0  # for the tests of one fault; the longest takes a tenth


@dataclass(frozen=True)
class Trial:
    """What became of one fault."""

    number: int  # from 1, in the order of the table
    outcome: str  # "killed", "SURVIVED", or why the tests say nothing
    test: str  # that failed
    seconds: float

    def describe(self) -> str:
        """A line with the fault and what saw it."""
        fault = FAULTS[self.number - 1]
        by = f" by {self.test}" if self.test else ""
        return f"{self.number:3} {self.seconds:5.1f} s  {self.outcome}  {fault.file}: {fault.what}{by}"


def draw_faults(count: int, commit: str) -> list[int]:
    """Returns the numbers of `count` different faults, ascending; a function of the commit."""
    return sorted(random.Random(commit).sample(range(1, len(FAULTS) + 1), count))


def try_fault(folder: Path, number: int, limit: float) -> Trial:
    """Puts one fault into the copy in `folder`, runs its tests and takes it out again."""
    fault = FAULTS[number - 1]
    try:
        with replacing(folder / fault.file, fault.text, fault.replacement):
            ended = run_tests(folder, fault.tests, limit)
    except ValueError as error:
        return Trial(number, f"DOES NOT APPLY: {error}", "", 0.0)
    told = {PASSED: "SURVIVED", FAILED: "killed", STOPPED: f"STOPPED after {limit:.0f} s"}
    return Trial(number, told.get(ended.code, f"NOT RUN, pytest ended with {ended.code}"), ended.failed, ended.seconds)


def find_failing(folder: Path, faults: Sequence[Fault], limit: float) -> str:
    """Returns a test of these faults that fails without a fault, "" if there is none."""
    tests = sorted({test for fault in faults for test in fault.tests})
    ended = run_tests(folder, tests, limit * len(tests))
    return "" if ended.code == PASSED else ended.failed or f"pytest ended with {ended.code}"


def try_faults(numbers: Sequence[int], jobs: int, limit: float, work: Path) -> Iterator[Trial]:
    """Yields the trial of each fault, in order; each of `jobs` processes has a copy of its own."""
    folders = [work / f"copy{job}" for job in range(jobs)]
    for folder in folders[1:]:
        copy_checkout(folder)
    if jobs == 1:
        for number in numbers:
            yield try_fault(folders[0], number, limit)
        return
    context = multiprocessing.get_context("fork")
    free = context.SimpleQueue()
    for folder in folders:
        free.put(folder)
    with context.Pool(jobs, _take_folder, (free,)) as pool:
        yield from pool.imap(_try_in_own_folder, [(number, limit) for number in numbers])


def _take_folder(free: "multiprocessing.SimpleQueue[Path]") -> None:
    global _folder
    _folder = free.get()


def _try_in_own_folder(asked: tuple[int, float]) -> Trial:
    return try_fault(_folder, *asked)


_folder: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries the faults that were asked for, or all of them; 1 unless all are killed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default="", help="numbers of faults, separated by commas")
    parser.add_argument("--draw", type=int, default=0, help="so many faults, drawn by --commit")
    parser.add_argument("--commit", default="", help="what decides the draw")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a copy of the checkout")
    parser.add_argument("--limit", type=float, default=SECONDS, help="seconds for the tests of one fault")
    parser.add_argument("--log", type=Path, help="a file that gets one JSON line a fault")
    options = parser.parse_args(arguments)
    numbers = [int(one) for one in options.only.split(",") if one] or list(range(1, len(FAULTS) + 1))
    if options.draw:
        numbers = draw_faults(options.draw, options.commit)
    import_libraries()
    trials = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        work = Path(temporary)
        copy_checkout(work / "copy0")
        if failing := find_failing(work / "copy0", [FAULTS[number - 1] for number in numbers], options.limit):
            print(f"without a fault: {failing} fails\n{(work / 'copy0.log').read_text()[-2000:]}")
            return 1
        for trial in try_faults(numbers, options.jobs, options.limit, work):
            print(trial.describe(), flush=True)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps({**asdict(trial), "what": FAULTS[trial.number - 1].what}) + "\n")
            trials.append(trial)
    left = [trial.number for trial in trials if trial.outcome != "killed"]
    print(f"{len(trials)} faults, {len(trials) - len(left)} killed" + (f"; left: {left}" if left else ""))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
