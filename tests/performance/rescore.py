"""Time to score 41,017 stored predictions of all fourteen benchmarks again, without a judge, on one core.

python -m tests.performance.rescore [FOLDER] [PROFILE ...]: writes the predictions into FOLDER (or a temporary one),
scores them in a process of its own as `ril score` does, and prints the seconds. The bar is 60 s; exit code 1 above it.
"""

import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stages.benchmarks.predictions import BenchmarkRecord, write_benchmark_record
from stages.benchmarks.registry import load_registry
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import PROFILES
from stages.benchmarks.scores import BenchmarkReply
from stages.benchmarks.spec import Spec

LIMIT = 60.0  # seconds
OPTIONS = ("a red car on the left", "two people in the background", "the second image", "a sign that nobody can read")
REASONS = "The picture shows a street with several people and a car, so the first option can be left out. " * 4


def samples_of(spec: Spec) -> list[Sample]:
    """As many rows as the published set has, with options, references and categories of its kind."""
    choose = random.Random(spec.id)
    samples = []
    while len(samples) < spec.expected:
        number = len(samples)
        options = dict(zip("ABCD", OPTIONS, strict=True))
        groups = dict.fromkeys(spec.groups, (f"group {number % 13}",))
        gold = choose.choice("ABCD")
        if spec.id.startswith("mmbench"):
            left = spec.expected - len(samples)
            for turn in range(min(4, left)):
                turned = dict(list(options.items())[: min(4, left)])
                index = str(number + turn * 1_000_000)
                samples.append(Sample(index, "What?", "A", turned, groups=groups, extra={"question": str(number)}))
            continue
        extra = {}
        if spec.id == "mathvista":
            extra = {"question_type": "multi_choice", "answer_type": "text", "precision": None, "answer_option": gold}
        if spec.id == "chartqa" or spec.judge == "grade":
            options, gold = {}, str(choose.randint(0, 3000))
        samples.append(Sample(str(number), "What is in the picture?", gold, options, groups=groups, extra=extra))
    return samples


def reply_to(sample: Sample, choose: random.Random) -> str:
    """Short answers, answers with reasons, and answers that no rule reads."""
    one = sample.gold if choose.random() < 0.6 else choose.choice("ABCD")
    return choose.choice(
        (one, f"{one}.", f"({one})", f"{REASONS}\nAnswer: {one}", f"{REASONS}The answer is {one}.", REASONS)
    )


def write_predictions(folder: Path) -> int:
    """Writes records of all published benchmarks; returns the number of replies."""
    count = 0
    for spec in load_registry().values():
        if not spec.column:
            continue
        samples, choose = samples_of(spec), random.Random(spec.id)
        replies = {
            sample.index: BenchmarkReply(sample.index, reply_to(sample, choose), completion_tokens=40)
            for sample in samples
        }
        write_benchmark_record(
            folder / spec.id, BenchmarkRecord(spec.id, {"source": "made up", "cot": "off"}, samples, replies, {})
        )
        count += len(replies)
    return count


def seconds_to_score(folder: Path, profiles: list[str]) -> tuple[float, str]:
    """Wall time of `ril score` on one core, start of Python included, and what it printed."""
    arguments = list(itertools.chain.from_iterable(("--profile", name) for name in profiles))
    command = [sys.executable, "-m", "flows.cli", "score", str(folder), *arguments]
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1):  # 1: MM-Vet has no score without a judge
        raise RuntimeError(done.stderr)
    return seconds, done.stdout


def main(arguments: list[str]) -> int:
    """Prints the seconds for each profile; 1 when our profile takes longer than the limit."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments[0] if arguments else temporary)
        count = write_predictions(folder)
        taken = {name: seconds_to_score(folder, [name]) for name in (arguments[1:] or PROFILES)}
    for name, (seconds, printed) in taken.items():
        print(f"{printed}\n{count} predictions, profile {name}: {seconds:.1f} s (limit {LIMIT:.0f})\n")
    return int(any(seconds > LIMIT for seconds, _ in taken.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
