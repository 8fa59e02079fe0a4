"""Writes docs/mutants.md from logs of tests/mutants/run.py.

python -m tests.mutants.run --log LOG ; python -m tests.mutants.page LOG > docs/mutants.md
"""

import json
import sys
from pathlib import Path

from tests.mutants.run import Trial
from tests.mutants.table import FAULTS

WIDEST = 118  # characters of a line, without its indentation
HEAD = """# Mutants

{count} deliberate faults over `stages/` and `flows/`, each with a test that fails when it is there.
`tests/mutants/table.py` holds them; `python -m tests.mutants.run` puts them into a copy of the checkout one at a time
and fails when one is not noticed. CI tries ten that the commit draws (`--draw 10 --commit HASH`). This page is written
by `python -m tests.mutants.page LOG` from the log of a run of all ({minutes} minutes). Seconds are those of a fault's
tests up to the first that fails.
"""


def read_trials(logs: list[Path]) -> dict[str, Trial]:
    """Returns the last trial of each fault in the logs, by what the fault is: numbers change with the table."""
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return {line.pop("what"): Trial(**line) for line in lines}


def format_page(trials: dict[str, Trial]) -> str:
    """Returns the page: the faults by file, each with what saw it."""
    parts = [HEAD.format(count=len(FAULTS), minutes=round(sum(one.seconds for one in trials.values()) / 60))]
    for file in dict.fromkeys(fault.file for fault in FAULTS):
        parts.append(f"\n## {file}\n\n")
        for number, fault in enumerate(FAULTS, 1):
            if fault.file == file:
                trial = trials.get(fault.what, Trial(number, "not tried", "", 0.0))
                seen = f"`{trial.test.partition('[')[0]}`" if trial.outcome == "killed" else trial.outcome
                if len(seen) > WIDEST:
                    seen = seen.replace("::", "`,\n  `")
                parts.append(f"- {fault.what} ({number}, {trial.seconds:.0f} s):\n  {seen}\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(format_page(read_trials([Path(log) for log in sys.argv[1:]])))
