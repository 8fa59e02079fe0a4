"""Runs a folder of hostile inputs through the commands that users run and says what came of each.

    python -m tests.cases.run FOLDER [--code CHECKOUT] [--only NAME ...] [--json FILE] [--before FILE]

FOLDER has one folder a kind, and in it one folder a case:

    params/<case>/params.yaml                  ril params check
    questions/<case>, data/<case>              python -m flows.run questions
    score/<case>                               ril score
    store/<case>                               ril store verify
    reply_hang, reply_overflow                 ril score
    <a name in PLAYED>                         the test that plays it

`--code` runs another checkout, `--json` keeps the outcomes and `--before` lays such a file beside the new ones. An
outcome is wrong if it has a traceback, takes longer than its limit, or ends with a code that no command of ours has.
Exit code 1 if an outcome is wrong.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 60.0
TEST_SECONDS = 1200.0  # of a test that plays a case; the slowest takes 3 minutes on two quiet cores
SPLITS = {"warm_start": 3, "imitation": 3, "validation": 3, "test": 3}
CODES = (0, 1, 2)
# Cases that are not inputs of one command: they need two processes, a browser, a full disk or another user.
PLAYED = {
    "dvc_id_injection": "tests/flows/test_ids.py",
    "is_correct": "tests/stages/benchmarks/test_scoring.py",
    "letter_then_explanation": "tests/stages/benchmarks/test_ours.py::test_choice",
    "lmms_target_mismatch": "tests/stages/benchmarks/test_exchange.py::test_a_target_that_contradicts_the_row",
    "low_disk_checkpoint": "tests/stages/training/test_room.py",
    "memory": "tests/fuzz/test_llava.py::test_memory_does_not_grow_with_the_file",
    "nan_training": "tests/stages/training/test_guard.py",
    "r1_answer_tags": "tests/stages/benchmarks/test_ours.py::test_choice",
    "relative_store": "tests/flows/test_copies.py::test_the_store_of_an_experiment_is_that_of_the_project",
    "serve_ctrl_c": "tests/flows/test_serve_end.py",
    "serve_proxy": "tests/flows/test_serve_start.py::test_loopback_is_asked_without_a_proxy_and_with_the_key",
    "serve_rce": "tests/flows/test_serve_attack.py",
    "serve_two_checkouts": (
        "tests/flows/test_serve_start.py::test_forms_of_two_checkouts_on_one_server_have_names_of_their_own"
    ),
    "shared_store_training": "tests/flows/test_training_owner.py",
    "store_permissions": (
        "tests/stages/responses/test_permissions.py::test_a_store_of_somebody_else_is_refused_before_anything_is_paid"
    ),
    "user_data_in_experiment": "tests/flows/test_copies.py::test_data_that_a_copy_lacks_is_named_with_the_remedy",
    "weights_replaced": "tests/stages/vlm/test_identity.py",
}
# What DVC watches of the tiny world has moved since some cases were written.
MOVED = (
    (rb'(path"?: "?)stages/corpora', rb"\1stages/tiny/world_rows.py"),
    (rb'(images"?: "?)stages/corpora', rb"\1stages/tiny/world"),
    (rb'(folder"?: "?)stages/benchmarks', rb"\1stages/tiny/benchmarks"),
)


@dataclass(frozen=True)
class Outcome:
    """What a command did with one case."""

    case: str
    result: str  # accepted, refused, passed, failed, traceback, hang, or the code of a signal
    seconds: float
    line: str  # the first line that says why

    def is_wrong(self) -> bool:
        """Whether no user should see that."""
        return self.result not in ("accepted", "refused", "passed")


class Runner:
    """A project in a temporary folder, with the code of a checkout."""

    def __init__(self, code: Path, folder: Path) -> None:
        self.code, self.folder = code, folder
        names = subprocess.run(["git", "ls-files", "-z"], cwd=code, capture_output=True, check=True, timeout=60).stdout
        self.project = folder / "project"
        for name in filter(None, names.decode().split("\0")):
            (self.project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(code / name, self.project / name)
        self.params = (self.project / "params.yaml").read_bytes()

    def run(self, case: str, arguments: list[str]) -> Outcome:
        """Runs a module of the checkout in the project."""
        environment = {**os.environ, "PYTHONPATH": str(self.project), "DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}
        environment |= {"RIL_STORE": str(self.folder / "store")}
        begin = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", *arguments],
                cwd=self.project,
                env=environment,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return Outcome(case, "hang", LIMIT_SECONDS, "")
        text = (done.stderr + b"\n" + done.stdout).decode(errors="replace")
        return Outcome(case, judge(done.returncode, text), round(time.monotonic() - begin, 1), find_line(text))

    def check_params(self, folder: Path) -> Outcome:
        """`ril params check` with the case's params.yaml."""
        content = (folder / "params.yaml").read_bytes()
        for pattern, present in MOVED if (self.project / "stages/tiny/world_rows.py").exists() else ():
            content = re.sub(pattern, present, content)
        (self.project / "params.yaml").write_bytes(content)
        return self.run(f"params/{folder.name}", ["flows.cli", "params", "check"])

    def read_questions(self, folder: Path) -> Outcome:
        """The stage `questions` with the case's block, or one that fits what lies there."""
        copied = self.folder / folder.parent.name / folder.name
        shutil.copytree(folder, copied, symlinks=True)
        block = folder / "questions_block.yaml"
        questions = yaml.safe_load(block.read_text())["questions"] if block.exists() else choose_block(copied)
        for key in ("path", "images"):
            questions[key] = str(copied / questions[key])
        params = yaml.safe_load(self.params)
        params["questions"] = questions
        (self.project / "params.yaml").write_text(yaml.safe_dump(params))
        shutil.rmtree(self.project / "data/questions", ignore_errors=True)
        return self.run(f"{folder.parent.name}/{folder.name}", ["flows.run", "questions"])

    def score(self, folder: Path) -> Outcome:
        """`ril score` of the case's folder."""
        name = folder.name if folder.name.startswith("reply_") else f"score/{folder.name}"
        return self.run(name, ["flows.cli", "score", str(folder)])

    def play(self, folder: Path) -> Outcome:
        """The test that plays the case, in the checkout itself."""
        begin = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", PLAYED[folder.name]]
        done = subprocess.run(command, cwd=self.code, capture_output=True, text=True, timeout=TEST_SECONDS)
        seconds = round(time.monotonic() - begin, 1)
        return Outcome(folder.name, "failed" if done.returncode else "passed", seconds, done.stdout.splitlines()[-1])

    def verify_store(self, folder: Path) -> Outcome:
        """`ril store verify` of the case's store."""
        return self.run(f"store/{folder.name}", ["flows.cli", "store", "verify", "--store", str(folder)])


def choose_block(folder: Path) -> dict[str, Any]:
    """The block `questions` for a case that has none."""
    if (folder / "q.json").exists():
        return {"kind": "llava", "path": "q.json", "images": ".", "splits": SPLITS}
    return {"kind": "rows", "path": ".", "images": ".", "splits": SPLITS}


def judge(code: int, text: str) -> str:
    """One word for an exit code and what was printed."""
    if "Traceback (most recent call last)" in text:
        return "traceback"
    if code not in CODES:
        return f"code {code}"
    return "refused" if code else "accepted"


def find_line(text: str) -> str:
    """The line with the reason: the first that says `error`, else the last one printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"error|\w*(Error|Exception)\b", line)]
    return (said or lines[-1:] or [""])[0][:160]


def run_cases(folder: Path, code: Path, only: list[str]) -> Iterator[Outcome]:
    """The outcome of each case below `folder`."""
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(code, Path(name))
        kinds: dict[str, Callable[[Path], Outcome]] = {
            "params": runner.check_params,
            "questions": runner.read_questions,
            "data": runner.read_questions,
            "score": runner.score,
            "store": runner.verify_store,
        }
        for kind, play in kinds.items():
            for case in sorted(path for path in (folder / kind).glob("*") if path.is_dir()):
                if not only or case.name in only or kind in only:
                    (runner.project / "params.yaml").write_bytes(runner.params)
                    yield play(case)
        for case in sorted(path for path in folder.iterdir() if path.name in PLAYED or path.name.startswith("reply_")):
            if not only or case.name in only:
                yield (runner.play if case.name in PLAYED else runner.score)(case)


def main() -> int:
    """Prints a line a case and a summary; 1 if an outcome is wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout to run")
    parser.add_argument("--only", nargs="*", default=[], help="names of kinds or cases")
    parser.add_argument("--json", type=Path, help="a file for the outcomes")
    parser.add_argument("--before", type=Path, help="outcomes of another checkout, to print beside these")
    options = parser.parse_args()
    before = {each["case"]: each["result"] for each in json.loads(options.before.read_text())} if options.before else {}
    outcomes = []
    for outcome in run_cases(options.folder.resolve(), options.code.resolve(), options.only):
        outcomes.append(outcome)
        was = f"{before.get(outcome.case, ''):10s} " if before else ""
        print(f"{outcome.case:45s} {was}{outcome.result:10s} {outcome.seconds:5.1f} s  {outcome.line}", flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
    wrong = [outcome.case for outcome in outcomes if outcome.is_wrong()]
    print(f"{len(outcomes)} cases, {len(wrong)} with a traceback, a hang or a foreign exit code: {' '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
