"""Runs training stages of a student of 67 M weights on this machine and compares what they took with `ril plan`.

    python -m tests.performance.plan_measured --folder /tmp/measured [--only CASE] [--compare]

Each case changes `runtime`, precision or adapters and runs real stages as `dvc repro` does, in processes of their own.
Measured are the largest memory of the first process (VmHWM), the bytes of a checkpoint, of outs and store, answers,
tokens, and seconds beside those that follow from `ril plan --measure`, which runs first. The weights are drawn at
random; other models are tiny. What processes free goes back to the system at once, so that memory is what is allocated;
`--own-heap` leaves the heap as users have it. `--compare` makes the tables again from the figures in the folder. Exit
code 1 if memory or bytes are more than 10 % off, an exact count is not met, or a time is outside what is predicted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
PREPARED = ("model@student", "model@qwen2_5_vl", "model@internvl3", "model@judge", "questions", "selection")
ANSWERED = ("teacher@qwen2_5_vl", "teacher@internvl3", "verdict@qwen2_5_vl", "verdict@internvl3", "pool", "rollout")
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes from which on glibc maps each block for itself
TRAINING = ("warm_start", "discriminator", "ril")
ANSWERING = "answers"  # what rows of ANSWERED have as their case


class Case(NamedTuple):
    """One set of settings, and the stages that are run with it."""

    name: str
    stages: tuple[str, ...]
    changes: Mapping[str, Any]


def _zero(stage: int, ranks: int = 1, **more: Any) -> dict[str, Any]:
    return {"runtime": {"zero_stage": stage, "processes": ranks, **more}}


_LORA = {"rank": 16, "alpha": 32.0}
_ADAPTERS = {
    "warm_start": {"lora": _LORA, "freeze_vision": True},
    "discriminator": {"lora": _LORA},
    "ril": {"lora": _LORA},
}
CASES = {
    "fp32": (
        Case("ZeRO 0", TRAINING, _zero(0)),
        Case("ZeRO 0, checkpoints", ("warm_start",), _zero(0, checkpoint_minutes=0.0)),
        Case("ZeRO 3, 2 ranks", ("warm_start", "discriminator"), _zero(3, 2)),
        Case("ZeRO 0, LoRA", TRAINING, {**_zero(0), **_ADAPTERS}),
        Case("ZeRO 2", TRAINING, _zero(2)),  # after adapters: the loop reads what stage discriminator left
        Case("ZeRO 1", ("warm_start",), _zero(1)),
    ),
    "bf16": (
        Case("ZeRO 2", ("warm_start",), _zero(2)),
        Case("ZeRO 2, LoRA", ("warm_start",), {**_zero(2), **_ADAPTERS}),
        Case("ZeRO 3, 2 ranks", ("warm_start",), _zero(3, 2)),
    ),
}
UNTRAINED = {"vision_steps": 0, "reading_steps": 0, "steps": 0, "warmup_steps": 0}
STUDENT = {**UNTRAINED, "hidden_size": 1024, "layers": 7, "heads": 16}
SHORT = {"max_tokens": 16}
PACK = 256  # tokens, the context: three or four questions fill one
ANY = {"max_empty_share": 1.0, "max_same_share": 1.0, "max_reject_share": 1.0}
BASIS: dict[str, Any] = {
    "models": {name: {"build": UNTRAINED} for name in ("qwen2_5_vl", "internvl3", "judge")},
    "questions": {"splits": {"warm_start": 24, "imitation": 100, "validation": 2, "test": 2}},
    "warm_start": {"steps": 3, "rows_per_step": 8, "tokens_per_pack": PACK},
    "teachers": {name: {"responses": 2, "sampling": SHORT, **ANY} for name in ("qwen2_5_vl", "internvl3")},
    "pool": {"truncated": "keep"},
    "verdict": {"exam": False, "max_failed_share": 1.0, "max_tokens": 16},
    "rollout": {"responses": 2, "sampling": SHORT, **ANY},
    "discriminator": {
        "steps": 3,
        "questions_per_step": 4,
        "responses_per_side": 2,
        "min_logit_spread": 0.0,
        "degenerate": "learned",
        "tokens_per_pack": PACK,
    },
    "ril": {
        "steps": 3,
        "questions_per_step": 4,
        "group": 2,
        "answer_by": "parsing",  # a judge with drawn weights gives no verdict, and then nothing is trained
        "warmup_steps": 0,
        "sampling": SHORT,
        "tokens_per_pack": PACK,
    },
}


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `values` with `changes` laid over."""
    from stages.config.yaml import merge_params

    return merge_params(dict(values), dict(changes))


def make_project(folder: Path, precision: str) -> None:
    """Makes a project with the code of this checkout, and runs the stages that training reads."""
    (folder / ".ril").mkdir(parents=True)
    for part in ("stages", "flows", "studies"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "dvc.yaml", folder / "dvc.yaml")
    write_params(folder, precision, {})
    for target in PREPARED:
        run_stage(folder, target)


def write_params(folder: Path, precision: str, changes: Mapping[str, Any]) -> None:
    """Writes params.yaml of a case."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    student = {"models": {"student": {"precision": precision, "build": STUDENT}}}
    bounds = {"ril": {"max_empty_share": 1.0, "validation_every": 100}}
    values = merge(merge(merge(merge(values, BASIS), student), bounds), changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def run_stage(folder: Path, target: str) -> float:
    """Runs one stage in a process of its own and returns its seconds."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "RIL_"))}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    command = [sys.executable, "-m", "flows.run", *target.split("@")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{target} failed in {folder}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.monotonic() - began


@contextmanager
def watching(store: Path) -> Iterator[list[int]]:
    """Yields a list that gets the bytes of the largest complete checkpoint that was in `store`."""
    found, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for done in store.rglob("step_*/DONE"):
                try:
                    found[0] = max(found[0], measure_folder(done.parent))
                except FileNotFoundError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def measure_folder(folder: Path) -> int:
    """Returns the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def calibrate(folder: Path, kept: Path) -> None:
    """Puts what `ril plan --measure` finds on this machine into the store of the project; measures it once."""
    if not kept.exists():
        from flows.estimate.calibrate import calibrate as measure_machine  # each part in a process of its own

        measure_machine(kept, print)
    shutil.copytree(kept, folder / ".ril", dirs_exist_ok=True)


def measure(root: Path, only: str) -> None:
    """Runs every case that has no figures yet and appends them to `root`/measured.jsonl."""
    figures = root / "measured.jsonl"
    known = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()] if figures.exists() else []
    done = {(row["precision"], row["case"], row["stage"]) for row in known}
    for precision, cases in CASES.items():
        folder = root / precision
        if not folder.exists():
            make_project(folder, precision)
            calibrate(folder, root / "calibration")
        for case in cases:
            if only and only not in f"{precision} {case.name}":
                continue
            write_params(folder, precision, case.changes)
            for stage in case.stages:
                if (precision, case.name, stage) in done:
                    continue
                if stage == "discriminator" and not (folder / "data" / "rollout").exists():
                    for target in ANSWERED:
                        note(figures, {"precision": precision, "case": ANSWERING, **watch_stage(folder, target)})
                note(figures, {"precision": precision, "case": case.name, **watch_stage(folder, stage)})


def watch_stage(folder: Path, target: str) -> dict[str, Any]:
    """Runs one stage and returns what it took: timing.json, seconds, bytes of a checkpoint, its out, new answers."""
    place = Path(*target.split("@"))
    stored = measure_folder(folder / ".ril/responses") + measure_folder(folder / ".ril/verdicts")
    with watching(folder / ".ril") as checkpoint:
        seconds = run_stage(folder, target)
    grown = measure_folder(folder / ".ril/responses") + measure_folder(folder / ".ril/verdicts") - stored
    timing = json.loads((folder / "reports" / place / "timing.json").read_text(encoding="utf-8"))
    out = measure_folder(folder / "data" / place)
    return {
        "stage": target,
        "seconds": seconds,
        "timing": timing,
        "checkpoint": checkpoint[0],
        "out": out,
        "store": grown,
    }


def note(figures: Path, row: Mapping[str, Any]) -> None:
    """Appends a row and prints how much memory it took."""
    memory = row["timing"]["took"]["peak_host_bytes"] / 1e6
    print(row["precision"], row["case"], row["stage"], f"{memory:.0f} MB, {row['seconds']:.0f} s", flush=True)
    with figures.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    """Measures and compares."""
    from tests.performance.plan_compared import compare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where projects and figures are kept")
    parser.add_argument("--only", default="", help="part of a case's precision and name")
    parser.add_argument("--compare", action="store_true", help="only make the table again")
    parser.add_argument("--own-heap", action="store_true", help="leave glibc's heap as it is")
    given = parser.parse_args()
    os.environ.update({} if given.own_heap else GIVEN_BACK)
    if not given.compare:
        measure(given.folder, given.only)
    sys.exit(int(not compare(given.folder)))


if __name__ == "__main__":
    main()
