"""Writes what the rounds in a log came to as Markdown: hits by stage and fault, then each round.

python -m tests.chaos.page docs/chaos.jsonl > docs/chaos.md
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.chaos.rounds import Hit, Round

FAULTS = ("SIGKILL", "SIGTERM", "SIGSTOP", "disk full", "clock moved", "no network")
WIDTH = 120  # of a line in docs/
HEAD = """# Chaos: the rounds on record

Written by `python -m tests.chaos.page docs/chaos.jsonl`; `python -m tests.chaos.run --help` says what a round is.
Projects: the smoke profile (`single`), and with two training processes and the judge on a vLLM server (`ranks`).
"""


def read_rounds(log: Path) -> list[Round]:
    """The rounds of a log that `tests.chaos.run --log` has written, by number."""
    rounds = [Round(**json.loads(line)) for line in log.read_text().splitlines()]
    for each in rounds:
        each.hits = [Hit(**hit) for hit in each.hits]  # type: ignore[arg-type]
    return sorted(rounds, key=lambda each: each.number)


def describe_rounds(rounds: Sequence[Round]) -> str:
    """The page."""
    hits = Counter((name_stage(hit, each), name_fault(hit)) for each in rounds for hit in each.hits)
    roles = Counter((name_role(hit), name_fault(hit)) for each in rounds for hit in each.hits)
    failed = [each for each in rounds if each.wrong]
    found = (
        f"{len(rounds)} rounds, {sum(hits.values())} hits, {sum(each.attempts for each in rounds)} attempts, "
        f"{sum(each.seconds for each in rounds) / 60:.0f} minutes; {len(failed)} rounds failed, "
        f"{sum(each.tracebacks for each in rounds)} tracebacks."
    )
    stages = sorted({stage.split("@")[0] for each in rounds for stage in each.stages})
    parts = [HEAD, found, "", "Hits by the stage that ran or was hit, and by what was hit:", ""]
    parts += [*tabulate("stage", [*stages, "between stages"], hits), ""]
    parts += [*tabulate("process", sorted({role for role, _ in roles}), roles), "", "Each round:", ""]
    parts += [line for each in rounds for line in describe_round(each)]
    return "\n".join(parts) + "\n"


def tabulate(title: str, names: Iterable[str], hits: Counter[tuple[str, str]]) -> Iterator[str]:
    """The lines of a table: a row a name, a column a fault."""
    yield f"| {title} | {' | '.join(FAULTS)} | all |"
    yield "|---" * (len(FAULTS) + 2) + "|"
    for name in names:
        counts = [hits[name, fault] for fault in FAULTS]
        yield f"| {name} | {' | '.join(str(count or '') for count in counts)} | {sum(counts)} |"


def describe_round(played: Round) -> Iterator[str]:
    """A line for a round, and one for each of its hits with the line that was printed last."""
    verdict = "; ".join(played.wrong) or "as undisturbed"
    yield (
        f"- {played.number}, {played.project}, {' '.join(played.stages)}: {played.attempts} attempts, "
        f"{played.seconds:.0f} s, {verdict}"
    )
    for hit in played.hits:
        told = f"  - {hit.after:.1f} s, {hit.fault}; {hit.process}; "
        yield f"{told}`{hit.phase.replace('`', '')[: WIDTH - len(told) - 2]}`"


def name_fault(hit: Hit) -> str:
    """What kind of fault it was."""
    return next((fault for fault in FAULTS if hit.fault.startswith(fault)), hit.fault)


def name_stage(hit: Hit, played: Round) -> str:
    """The stage of the process that was hit, else the one whose output came last, else the round's only one."""
    for text in (hit.process, hit.phase):
        for stage in played.stages:
            if stage in text or f"flows.run {stage.split('@')[0]}" in text:
                return stage.split("@")[0]
    return played.stages[0].split("@")[0] if len(played.stages) == 1 else "between stages"


def name_role(hit: Hit) -> str:
    """Which kind of process was hit: ril, dvc, stage, rank, engine, keeper, worker."""
    return re.sub(r"^\S+@?\S* (?=\w+$)", "", hit.process)


if __name__ == "__main__":
    sys.stdout.write(describe_rounds(read_rounds(Path(sys.argv[1]))))
