"""The harnesses' answers to the cases, kept so that tests need no harness. One xz file of JSON lines a harness.

Made anew with: python -m tests.stages.benchmarks.parity.golden ENVIRONMENTS

ENVIRONMENTS is a folder for two virtual environments; they are made when they are not there, and never this project's
own: ms-vlmeval 0.0.20 and lmms-eval 0.7.3 without their dependencies, beside the few packages that their scoring
modules import.
"""

import json
import lzma
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.stages.benchmarks.parity import cases
from tests.stages.benchmarks.parity.rules import OURS

HERE = Path(__file__).parent
PACKAGES = {
    "vlmeval": ("ms-vlmeval==0.0.20", ("numpy", "pandas", "validators", "huggingface_hub", "sty", "pillow")),
    "lmms": (
        "lmms-eval==0.7.3",
        ("loguru", "numpy", "pandas", "pyyaml", "pillow", "requests", "Levenshtein", "aiohttp", "openai"),
    ),
}
LIMIT = 1800  # seconds for one harness or one installation


def golden(harness: str) -> dict[str, dict[str, Any]]:
    """A harness's answers by rule, with the digest of the cases that it saw."""
    with lzma.open(HERE / "golden" / f"{harness}.jsonl.xz", "rt", encoding="utf-8") as handle:
        lines = [json.loads(line) for line in handle]
    return {line["rule"]: line for line in lines}


def ours(rule: str, case: dict[str, Any]) -> Any:
    """Our answer, as JSON holds it."""
    value = OURS[rule](case)
    return list(value) if isinstance(value, tuple) else value


def excused(rule: str, case: dict[str, Any]) -> bool:
    """Where the harness is not followed: a judge that says "nan" makes its average nan; here such a judge has
    failed.
    """
    return rule == "vlmeval_grade" and case["reply"] == "nan"


def disagreements(
    rule: str, made: Iterable[dict[str, Any]], answers: list[Any]
) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Cases of `made` with the harness's answer and ours, where they differ; as they are found."""
    told = ((case, theirs, ours(rule, case)) for case, theirs in zip(made, answers, strict=True))
    return ((case, theirs, mine) for case, theirs, mine in told if theirs != mine and not excused(rule, case))


def parsed_share(answers: list[Any]) -> float:
    """Share of cases to which the harness has an answer."""
    return sum((answer[0] if isinstance(answer, list) else answer) is not None for answer in answers) / len(answers)


def python_of(harness: str, environments: Path) -> Path:
    """The interpreter of a harness's environment, which is made when it is not there."""
    python = environments / harness / "bin" / "python"
    if not python.exists():
        package, needed = PACKAGES[harness]
        subprocess.run([sys.executable, "-m", "venv", str(environments / harness)], check=True, timeout=LIMIT)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", package], check=True, timeout=LIMIT)
        subprocess.run([*pip, *needed], check=True, timeout=LIMIT)
    return python


def main(environments: Path) -> int:
    """Asks both harnesses, writes the golden files, prints a line a rule; 1 when a rule disagrees or parses too
    little.
    """
    wrong = 0
    (HERE / "golden").mkdir(exist_ok=True)
    for harness in PACKAGES:
        out = environments / f"{harness}.jsonl"
        command = [str(python_of(harness, environments)), str(HERE / "harnesses.py"), harness, str(out)]
        subprocess.run(command, check=True, timeout=LIMIT)
        (HERE / "golden" / f"{harness}.jsonl.xz").write_bytes(lzma.compress(out.read_bytes(), preset=9))
        for rule, line in golden(harness).items():
            differ, share = list(disagreements(rule, cases.cases(rule), line["answers"])), parsed_share(line["answers"])
            wrong += bool(differ) or share < 0.7
            print(
                f"{rule:30} {len(line['answers']):6} cases  {share:6.1%} parsed  {len(differ)} disagreements",
                *differ[:1],
            )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
