"""Writes the measured tables of README.md and docs/architecture.md from the reports of a run.

    python docs/measured.py --project . --seconds 1020

--seconds is the wall time of the whole `make repro`, after installation.
"""

import argparse
import re
from pathlib import Path

from flows.lockfile import read_locked_stages
from stages.config.params import load_params
from stages.job.files import read_json, write_text

BLOCK = re.compile(r"<!-- measured -->\n.*?<!-- /measured -->", re.DOTALL)


def format_scores(project: Path) -> str:
    """Table of the accuracy of every model, with its standard error, and with shuffled images."""
    params = load_params(project / "params.yaml")
    lines = ["| model | accuracy | shuffled images |", "|---|---|---|"]
    for name, evaluation in params.evaluations.items():
        found = read_json(project / "reports" / "evaluate" / name / "metrics.json")
        accuracy = f"{100 * found['accuracy']:.1f} ± {100 * found['standard_error']:.1f}"
        lines.append(f"| {evaluation.title} | {accuracy} | {100 * found['accuracy_shuffled']:.1f} |")
    return "\n".join(lines)


def format_times(project: Path) -> str:
    """Table of the seconds of every stage and of its longest parts, in the order in which DVC ran them."""
    lines = ["| stage | seconds | longest parts |", "|---|---|---|"]
    stages = read_locked_stages(project)
    for target in stages:
        timing = project / "reports" / target.replace("@", "/") / "timing.json"
        if timing.exists():
            found = read_json(timing)
            longest = sorted(found["parts"].items(), key=lambda part: -part[1])[:4]
            lines.append(
                f"| {target} | {found['seconds']:.0f} | {', '.join(f'{part} {s:.0f}' for part, s in longest)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Rewrites both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--project", type=Path, default=Path(), help="folder of the run")
    parser.add_argument("--seconds", type=float, required=True, help="wall time of the whole run")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parent
    minutes = f"\n\nWall time of `make repro` after installation: {arguments.seconds / 60:.1f} minutes on two cores."
    for path, table in (
        (here.parent / "README.md", format_scores(arguments.project)),
        (here / "architecture.md", format_times(arguments.project)),
    ):
        block = f"<!-- measured -->\n{table}{minutes}\n<!-- /measured -->"
        write_text(path, BLOCK.sub(lambda _, block=block: block, path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
