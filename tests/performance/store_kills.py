"""Kills the teacher stage at moments spread over its whole run, finishes it, and compares with a run that nobody
disturbed.

    python -m tests.performance.store_kills [--kills 30] [--engine fake|vllm] [--seed 0]

Each trial has a fresh store: a run is killed by SIGKILL, then the stage runs again to its end. Held: every answer whose
write had returned is in the final parquet once; the store holds no answer twice; the final parquet has the bytes of the
undisturbed run. A line a trial says which phase was hit. With `--engine fake` answers are a function of prompt and seed
and a segment takes 60 ms, so that hundreds of moments can be tried; with `vllm` it is the real engine, and answers have
the lognormal lengths of teacher_vs_vllm.py. Exit code 1 when anything differs.
"""

import argparse
import hashlib
import itertools
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SEGMENT_ANSWERS = 128
OPEN = 12  # requests that the fake engine works on
QUESTIONS, SAMPLES = 120, 8
CONTEXT_TOKENS = 256
LIMIT_SECONDS = 300.0


class FakeEngine:
    """Answers as a function of prompt and seed; `salt` makes those of two processes differ."""

    name, version = "fake", "1"

    def __init__(self, salt: str = "", seconds: float = 0.06) -> None:
        self.salt, self.seconds = salt, seconds

    def iter_outcomes(self, requests: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Finishes requests out of order, with at most OPEN of them taken."""
        from stages.engines.engine import Answer

        waiting, opened = enumerate(requests), []
        while opened := [*opened, *itertools.islice(waiting, OPEN - len(opened))]:
            index, request = opened.pop(hash(opened[0][1].seed) % len(opened))
            time.sleep(self.seconds * request.n / SEGMENT_ANSWERS)
            words = [hashlib.sha256(f"{request.seed + i}{self.salt}".encode()).hexdigest() for i in range(request.n)]
            yield index, [Answer(i, word, tuple(word.encode()), "stop", 9, 64) for i, word in enumerate(words)]

    def close(self) -> None:
        """Nothing is held."""


def prepared(project: Path, engine: str) -> None:
    """A project with a model and questions: everything that a run reads."""
    from stages.config.build import Build
    from stages.corpora.kept_questions import write_kept_questions
    from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
    from stages.job.files import write_shards
    from stages.tiny.builds.shapes import build_tiny
    from stages.vlm.checkpoint import write_card

    folder = project / "data/model/internvl3"
    folder.mkdir(parents=True)
    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=64, layers=1, heads=2, vision_hidden_size=32, vision_layers=1
    )
    _, network = build_tiny("qwen2_5", build, ["What is 1 + 1?"], CONTEXT_TOKENS, 0, folder)
    if engine == "vllm":
        network.head.weight.data.mul_(40)
        network.model.save_pretrained(folder)
    else:
        network.model.config.save_pretrained(folder)
        (folder / "model.safetensors").touch()  # a checkpoint without weights is refused
    write_card(folder, "qwen2_5", "fp32", CONTEXT_TOKENS)
    turns = [[{"role": "user", "content": f"What is {index} + 1?"}] for index in range(QUESTIONS)]
    rows = [make_canonical_row(f"q{index}", [], turn, "1", "test", "sum") for index, turn in enumerate(turns)]
    write_shards(project / "data/questions/imitation", rows, QUESTION_SCHEMA)
    write_kept_questions(project / "data/selection/kept", "imitation", [row["id"] for row in rows])


def run_stage(project: str, store: str, log: str, engine: str, salt: str = "") -> None:
    """The stage in this process, with its phases and the keys of written answers appended to `log`."""
    os.environ["RIL_STORE"] = store
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from flows.environment import prepare

    prepare()
    from flows.jobs import open_job
    from stages import teacher
    from stages.config.params import validate_params
    from stages.config.yaml import merge_params, read_yaml
    from stages.responses import answers, projection, window
    from stages.responses.requested import RequestedAnswers
    from stages.responses.store import Store

    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(text: str) -> None:
        os.write(handle, f"{text}\n".encode())

    def phase(owner: Any, name: str, title: str) -> None:
        original = getattr(owner, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            note(f"phase {title}")
            result = original(*arguments, **named)
            note("phase between")
            return result

        setattr(owner, name, noted)

    original_append = Store.append

    def append(self: Store, rows: Sequence[Any]) -> None:
        note("phase writing a segment")
        original_append(self, rows)
        note("stored " + " ".join(row.key for row in rows))
        note("phase generating")

    Store.append = append  # type: ignore[method-assign]
    window.SEGMENT_ANSWERS = SEGMENT_ANSWERS
    phase(RequestedAnswers, "find_stored", "looking up keys")
    phase(projection, "write_projection", "writing the projection")
    phase(projection, "write_rejects", "writing reports")
    phase(answers.AnswerSession, "_generate_all", "generating")
    if engine == "fake":
        original_of = answers.AnswerSession.open

        def of(*arguments: Any, **named: Any) -> Any:
            return original_of(*arguments, **{**named, "start": lambda *_: FakeEngine(salt)})

        answers.AnswerSession.open = of  # type: ignore[method-assign, assignment]
    else:
        from tests.performance.teacher_vs_vllm import force_lengths

        force_lengths()
    root = Path(__file__).resolve().parents[2]
    few = {"responses": SAMPLES, "sampling": {"max_tokens": 16}}
    values = merge_params(read_yaml(root / "params.yaml"), {"teachers": {"internvl3": few}})
    note("phase reading")
    teacher.run(open_job("teacher", "internvl3", Path(project), validate_params(values)))
    note("phase done")


def digest(project: Path) -> str:
    """Hash of the bytes of the stage's out and metrics."""
    files = [
        *sorted((project / "data/teacher/internvl3").iterdir()),
        project / "reports/teacher/internvl3/metrics.json",
    ]
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def found_wrong(project: Path, store: Path, log: Path, expected: str) -> list[str]:
    """What does not hold after a trial."""
    import pyarrow.parquet as pq

    wrong = [] if digest(project) == expected else ["the final files differ from those of the undisturbed run"]
    tables = [pq.read_table(file) for file in sorted((project / "data/teacher/internvl3").iterdir())]
    out = [key for table in tables for key in table["response_key"].to_pylist()]
    acknowledged = set(written(log))
    if lost := acknowledged - set(out):
        wrong.append(f"{len(lost)} answers that were written are not in the final parquet")
    if len(out) != len(set(out)) or len(out) != QUESTIONS * SAMPLES:
        wrong.append(f"{len(out)} rows, {len(set(out))} keys in the final parquet")
    kept = [key for file in store.rglob("*.parquet") for key in pq.read_table(file)["key"].to_pylist()]
    if len(kept) != len(set(kept)):
        wrong.append(f"{len(kept) - len(set(kept))} answers were paid for twice")
    return wrong


def written(log: Path) -> list[str]:
    """Keys whose write had returned."""
    return [key for line in _lines(log) if line.startswith("stored ") for key in line.split()[1:]]


class Trials:
    """One project, many runs, each in a process of its own that a clean server forked."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder, self.engine, self.number = folder, engine, 0
        self.seconds, self.events = 0.0, 0
        self.context = multiprocessing.get_context("forkserver")
        preload = ["stages.teacher", "stages.responses.projection", "stages.vlm"]
        self.context.set_forkserver_preload([*preload, *(["vllm"] if engine == "vllm" else [])])
        self.project = folder / "project"
        self.finish(self.context.Process(target=prepared, args=(self.project, engine)))

    def fresh(self) -> tuple[Path, Path]:
        """An empty store and a log."""
        self.number += 1
        return self.folder / f"store{self.number}", self.folder / f"log{self.number}"

    def process(self, store: Path, log: Path, project: Path | None = None, salt: str = "") -> Any:
        """A run, not started."""
        arguments = (str(project or self.project), str(store), str(log), self.engine, salt)
        return self.context.Process(target=run_stage, args=arguments)

    def finish(self, process: Any) -> float:
        """Runs a process to its end; seconds."""
        begin = time.monotonic()
        process.start()
        process.join(LIMIT_SECONDS)
        assert process.exitcode == 0, f"exit code {process.exitcode}"
        return time.monotonic() - begin

    def undisturbed(self) -> str:
        """Runs twice without a kill (the first start of all is slower); hash of what comes out."""
        self.finish(self.process(*self.fresh()))
        store, log = self.fresh()
        self.seconds = self.finish(self.process(store, log))
        self.events = len(log.read_text().splitlines())
        return digest(self.project)

    def killed(self, part: float, choose: random.Random) -> tuple[str, list[Path]]:
        """Starts a run, kills it when `part` of its events have happened and a random moment has passed; which phase
        that hit.

        Events, not seconds: on a busy machine a run may take twice as long as the one before.
        """
        store, log = self.fresh()
        process = self.process(store, log)
        process.start()
        limit = time.monotonic() + LIMIT_SECONDS
        while len(_lines(log)) < int(part * self.events) and process.is_alive() and time.monotonic() < limit:
            time.sleep(0.0005)
        process.join(choose.uniform(0, 2 * self.seconds / self.events))
        over = process.exitcode is not None
        process.kill()
        process.join(LIMIT_SECONDS)
        phases = [line for line in _lines(log) if line.startswith("phase ")]
        return "after the end" if over else phases[-1][6:] if phases else "starting", [store, log]


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def main() -> int:
    """Prints a line a trial and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--engine", choices=["fake", "vllm"], default="fake")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    failures = 0
    hit: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        trials = Trials(Path(name), options.engine)
        expected = trials.undisturbed()
        print(
            f"undisturbed: {QUESTIONS * SAMPLES} answers in segments of {SEGMENT_ANSWERS}, {trials.seconds:.2f} s",
            flush=True,
        )
        for number in range(options.kills):
            part = (number + choose.random()) / options.kills
            phase, (store, log) = trials.killed(part, choose)
            stored = len(written(log))
            trials.finish(trials.process(store, log))
            wrong = found_wrong(trials.project, store, log, expected)
            failures += bool(wrong)
            hit[phase] = hit.get(phase, 0) + 1
            verdict = "; ".join(wrong) or "as undisturbed"
            print(
                f"kill {number + 1:2d} at {part:4.0%} of the events, {phase}, {stored} answers written: {verdict}",
                flush=True,
            )
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(hit.items()))
    print(f"{options.kills} kills, {failures} failures; phases hit: {phases}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
