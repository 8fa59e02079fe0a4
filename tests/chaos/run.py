"""Disturbs the pipeline at random moments, lets it finish, and compares with a run that nobody disturbed.

    python -m tests.chaos.run --project FOLDER [--rounds 100] [--first 0] [--most 2] [--faults 1] [--jobs 1]
                            [--log FILE]

FOLDER holds a finished run, of the smoke profile as a rule; it is only read. Each round works on a copy: one or
two stages, each stage in turn, lose their outs, the copy gets an empty store, and `ril run` makes what is missing.
Meanwhile a process drawn at random is killed or stopped, the disk is full, the clock jumps or the network is gone.
Then it runs until it is finished. Held: outs with the same md5, a second `dvc repro` runs nothing, no answer is in the
store twice, no process, lock or temporary file is left. Exit code 1 when anything differs; the folder of that round
is kept.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.chaos.rounds import Project, Round, play


def draw_stages(names: list[str], number: int, most: int) -> list[str]:
    """The stages of round `number`: each in turn, with up to `most` - 1 of those after it."""
    at = number % len(names)
    return names[at : at + random.Random(number).randint(1, most)]


def describe_round(played: Round) -> str:
    """A line for the round and one for each hit."""
    verdict = "; ".join(played.wrong) or "as undisturbed"
    first = f"round {played.number}, {' '.join(played.stages)}, {played.attempts} attempts, {played.seconds:.0f} s"
    return "\n".join([f"{first}: {verdict}", *(f"    {hit.describe()}" for hit in played.hits)])


def main() -> int:
    """Prints each round and a summary; 1 when anything differed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--project", type=Path, required=True, help="a finished run; it is only read")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first round: the seed of what is drawn")
    parser.add_argument("--most", type=int, default=2, help="at most so many stages a round")
    parser.add_argument("--faults", type=int, default=1, help="faults in the first attempt of each round")
    parser.add_argument("--jobs", type=int, default=1, help="rounds at a time; they share nothing but the machine")
    parser.add_argument("--log", type=Path, help="a file that gets one JSON line a round")
    options = parser.parse_args()
    project = Project(options.project.resolve())

    def play_one(number: int) -> tuple[Path, Round]:
        folder = Path(tempfile.mkdtemp(prefix=f"chaos{number}-"))
        stages = draw_stages(project.list_stages(), number, options.most)
        return folder, play(project, folder, number, stages, options.faults)

    failures, hits, tracebacks = 0, Counter[str](), 0
    pool = ThreadPoolExecutor(options.jobs)
    for folder, played in pool.map(play_one, range(options.first, options.first + options.rounds)):
        print(describe_round(played), flush=True)
        if options.log:
            with options.log.open("a") as log:
                log.write(json.dumps(asdict(played)) + "\n")
        hits.update(hit.fault.split(" for ")[0].split(" by ")[0] for hit in played.hits)
        tracebacks += played.tracebacks
        failures += bool(played.wrong)
        if played.wrong:
            print(f"    kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    summary = ", ".join(f"{fault} {times}" for fault, times in sorted(hits.items()))
    print(f"{options.rounds} rounds, {failures} failures, {tracebacks} tracebacks; {summary}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
