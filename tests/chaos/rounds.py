"""One round: some stages of a finished project run again from an empty store, are hit, and are finished."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.chaos.faults import FAULTS, FULL, LOSS, Page
from tests.chaos.processes import MARK, await_end, list_processes

ATTEMPTS = 6  # a run that was hit may fail, and be hit once more; the fifth is left in peace
RUN_SECONDS = 420.0  # of one attempt; the slowest stage of the smoke profile takes 40 s
END_SECONDS = 45.0  # dvc gives a stage 30 s to end
STAGE_SHARE = 0.7  # of the hits; the rest goes to any process, `ril run` and dvc among them
# A stage of the smoke profile takes 5 to 40 s: moments are drawn up to the second number, per stage, most often near
# the first one, when also a short stage is at work.
STAGE_SECONDS = (5.0, 20.0)
LEFT_OUT = shutil.ignore_patterns(".ril", ".venv", "__pycache__", "runs")
# What libraries keep in the temporary folder for their next start, without a fault too.
KEPT_TEMPORARY = ("torchinductor", "vllm-instance-id", "sweep.lock")
UNFINISHED = re.compile(r"\.partial|\.tmp|^tmp[a-z0-9_]{6,}$|^vllm_dist_")


@dataclass
class Hit:
    """One fault: when it came, after the start of the attempt, and what it did to whom."""

    after: float
    fault: str
    process: str
    phase: str  # the last line that was printed before

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.after:.1f} s: {self.fault}; {self.process}; {self.phase}"


@dataclass
class Round:
    """What a round did and what did not hold afterwards."""

    number: int
    project: str  # the name of its folder
    stages: list[str]
    hits: list[Hit] = field(default_factory=list)
    attempts: int = 0
    tracebacks: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Project:
    """A finished project of which each round gets a copy."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock: Mapping[str, Any] = read_lock(root)
        self.files = set(list_files(root))

    def list_stages(self) -> list[str]:
        """The stages in the order in which dvc.lock has them, which is one in which they can run."""
        return list(self.lock)

    def copy(self, folder: Path, stages: Sequence[str]) -> Path:
        """The project in `folder`, with nothing left of what `stages` made; a store is not copied."""
        copied = folder / "project"
        shutil.copytree(self.root, copied, symlinks=True, ignore=LEFT_OUT)
        content = yaml.safe_load((copied / "dvc.lock").read_text())
        for stage in stages:
            for out in content["stages"].pop(stage)["outs"]:
                place = copied / out["path"]
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        (copied / "dvc.lock").write_text(yaml.safe_dump(content, sort_keys=False))
        return copied


def play(project: Project, folder: Path, number: int, stages: Sequence[str], faults: int) -> Round:
    """Plays round `number`: removes what `stages` made, runs what is missing, hits it `faults` times, finishes, checks.

    What is drawn is a function of `number`; what the operating system does at that moment is not.
    """
    rng = random.Random(number)
    played = Round(number, project.root.name, list(stages))
    begin = time.monotonic()
    root = project.copy(folder, stages)
    stage_run = StageRun(root, folder, played)
    for attempt in range(ATTEMPTS):
        played.attempts += 1
        due = faults if attempt == 0 else 0 if attempt == ATTEMPTS - 1 else rng.choice((0, 0, 1))
        moments = sorted(_draw_moment(rng, len(stages)) for _ in range(due))
        if stage_run.attempt(moments, rng) == 0:
            break
    else:
        played.wrong.append(f"not finished after {ATTEMPTS} attempts")
    played.wrong += find_wrong(project, root, folder)
    played.seconds = time.monotonic() - begin
    return played


class StageRun:
    """The runs of one round: a folder, an environment with a mark, and what each attempt printed."""

    def __init__(self, root: Path, folder: Path, played: Round) -> None:
        self.root, self.folder, self.played = root, folder, played
        self.page = Page(folder, folder)
        self.mark = uuid.uuid4().hex
        temporary = folder / "tmp"
        temporary.mkdir()
        self.environment = {**os.environ, **self.page.describe_environment(), MARK: self.mark}
        self.environment |= {"RIL_STORE": str(folder / "store"), "TMPDIR": str(temporary), "PYTHONPATH": str(root)}

    def attempt(self, moments: Sequence[float], rng: random.Random) -> int:
        """Runs what is out of date with a fault at each moment (seconds after the start); the exit code.

        A process that outlives the run by more than END_SECONDS, or a run that takes RUN_SECONDS, is a fault of ours.
        """
        log = self.folder / f"attempt{self.played.attempts}.log"
        command = [sys.executable, "-m", "flows.cli", "run", "--no-server", "--jobs", rng.choice(("1", "2"))]
        begin = time.monotonic()
        with log.open("wb") as output:
            running = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        for moment in moments:
            if _wait(running, begin + moment - time.monotonic()) is None:
                self.hit(moment, log, rng)
        code = _wait(running, RUN_SECONDS)
        self.page.set(FULL, 0)
        self.page.set(LOSS, 0)
        if code is None:
            self.played.wrong.append(f"attempt {self.played.attempts} still ran after {RUN_SECONDS:.0f} s")
        # What was killed with SIGKILL tells nobody: its dvc ends its work, and the next run waits for it.
        alone = code == -signal.SIGKILL
        self.end_rest(0 if code is None else RUN_SECONDS if alone else END_SECONDS)
        code = running.wait(END_SECONDS)
        self.played.tracebacks += log.read_text(errors="replace").count("Traceback (most recent call last)")
        return code

    def hit(self, moment: float, log: Path, rng: random.Random) -> None:
        """Draws a fault and a process, and lets it happen."""
        processes = list_processes(self.mark)
        if not processes:
            return
        of_stages = [process for process in processes if process.stage]
        chosen = rng.choice(of_stages if of_stages and rng.random() < STAGE_SHARE else processes)
        phase = _read_last_line(log)
        fault = rng.choice(FAULTS)
        try:
            done = fault(chosen, self.page, rng)
        except ProcessLookupError:
            done = f"{fault.__name__} of a process that had just ended"
        self.played.hits.append(Hit(moment, done, chosen.describe(), phase))

    def end_rest(self, seconds: float) -> None:
        """Waits until no process of this round is left; those that are, after `seconds`, are named and killed."""
        left = await_end(self.mark, seconds)
        if left and seconds:
            self.played.wrong.append(f"left {seconds:.0f} s after the end: {[each.describe() for each in left]}")
        for each in left:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)


def find_wrong(project: Project, root: Path, folder: Path) -> list[str]:
    """What does not hold after a round: outs, what is up to date, the store, locks, files that nobody needs."""
    wrong = [f"{name} has other bytes" for name in compare_outs(project.lock, read_lock(root))]
    again = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=root, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    if again.returncode or "Running stage" in again.stdout:
        wrong.append(f"a second dvc repro ran something: {again.stdout[-300:]}{again.stderr[-300:]}")
    if twice := [key for key, times in Counter(list_answers(folder / "store")).items() if times > 1]:
        wrong.append(f"{len(twice)} answers are in the store twice")
    if held := json.loads((root / ".dvc/tmp/rwlock").read_text() or "{}"):
        wrong.append(f"dvc's lock is held: {held}")
    if other := sorted(set(list_files(root)) ^ project.files):
        wrong.append(f"other files than without a fault: {other[:5]}")
    home = folder / "tmp" / f"ril-{os.getuid()}"  # stays; what stages put into it goes with them
    places = [*(folder / "tmp").iterdir(), *(home.iterdir() if home.is_dir() else ())]
    temporary = [each.name for each in places if each != home and not each.name.startswith(KEPT_TEMPORARY)]
    temporary += [
        str(each.relative_to(folder)) for each in (folder / "store").rglob("*") if UNFINISHED.search(each.name)
    ]
    if temporary:
        wrong.append(f"temporary files are left: {sorted(temporary)[:5]}")
    return wrong


def read_lock(root: Path) -> dict[str, Any]:
    """The stages of dvc.lock."""
    return dict(yaml.safe_load((root / "dvc.lock").read_text())["stages"])


def compare_outs(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The outs whose hashes differ, and stages that are not there."""
    there = {name for name, entry in found.items() if "outs" in entry}
    names = [f"stage {name}" for name in expected if name not in there]
    for name in set(expected) & there:
        hashes = {out["path"]: out["md5"] for out in found[name]["outs"]}
        names += [out["path"] for out in expected[name]["outs"] if hashes.get(out["path"]) != out["md5"]]
    return sorted(names)


def list_answers(store: Path) -> Iterator[str]:
    """The key of each answer in the store, as often as it is there."""
    for segment in sorted(store.glob("responses/*/*.parquet")):
        for key in pq.read_table(segment, columns=["key"])["key"].to_pylist():
            yield f"{segment.parent.name}/{key}"


def list_files(root: Path) -> Iterator[str]:
    """The files of outs and reports, relative to the project; wall times and logs are not among them."""
    for part in ("data", "reports"):
        for file in sorted((root / part).rglob("*")):
            if file.is_file():
                yield str(file.relative_to(root))


def _draw_moment(rng: random.Random, stages: int) -> float:
    likely, last = STAGE_SECONDS
    return rng.triangular(0, last * stages, likely * stages)


def _wait(running: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return running.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None


def _read_last_line(log: Path) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", log.read_text(errors="replace")) if line.strip()]
    return lines[-1][:100] if lines else "nothing printed yet"
