"""A project in which realistic checkpoints go through the pipeline: a copy of this one, with its own parameters."""

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from stages.config.yaml import merge_params, read_yaml

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "blue", "green")
SIZES = ((64, 64), (640, 480), (300, 900), (28, 28), (420, 60), (1024, 768))  # width, height in pixels
SPLITS = {"warm_start": 8, "imitation": 8, "validation": 4, "test": 4}
_WATCHED = "stages/model.py"  # what profiles without a built model name
_EMPTY = {"max_empty_share": 1.0}  # drawn weights may end an answer at its first token
_ANY = {**_EMPTY, "max_same_share": 1.0, "max_reject_share": 1.0}
_ALL_LORA = {"rank": 4, "alpha": 8.0}


def describe_family(name: str) -> str:
    """Returns the family of a published name; internvl3 for one that has none, so that it is refused."""
    if name.startswith("Qwen3-VL"):
        return "qwen3_vl"
    if "-VL-" in name:
        return "qwen2_5_vl"
    return "text" if name.startswith(("Qwen2.5-", "SmolLM2-")) else "internvl3"


def make_params(student: Path, teachers: Mapping[str, Path], judge: Path) -> dict[str, Any]:
    """Returns what is laid over params.yaml: every stage with few questions and steps, all models in bf16.

    `teachers` are folders of checkpoints by id; without any, the student is the teacher `itself`.
    """
    sampling = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.0, "max_tokens": 32}
    places = {"student": student, **teachers, "judge": judge}
    asked = {name: name for name in teachers} or {"itself": "student"}
    models: dict[str, Any] = {"qwen2_5_vl": None, "internvl3": None}
    models |= {
        name: {
            "family": describe_family(folder.name),
            "path": str(folder),
            "precision": "bf16",
            "context_tokens": 1024,
            "build": None,
        }
        for name, folder in places.items()
    }
    models["judge"]["verify"] = False  # the others are what is tried; it costs two more starts
    few = {"steps": 2, "tokens_per_pack": 2048, "warmup_steps": 0}
    return {
        "world": {"code": _WATCHED, "builds": _WATCHED},
        "models": models,
        "questions": {
            "kind": "sources",
            "path": "datasets",
            "images": "datasets",
            "sources": [{"path": "datasets/rows.jsonl"}],
            "splits": SPLITS,
        },
        "warm_start": {**few, "rows_per_step": 4, "learning_rate": 1e-4, "final_learning_rate": 1e-5},
        "selection": {"teacher": next(iter(teachers), "student")},
        "teachers": {
            **dict.fromkeys(("qwen2_5_vl", "internvl3")),
            **{name: {"model": model, "responses": 4, "sampling": sampling, **_ANY} for name, model in asked.items()},
        },
        "verdict": {"model": "judge", "max_tokens": 128, "constrained": True, "max_failed_share": 1.0, "exam": False},
        "pool": {"teachers": list(asked), "truncated": "keep", **_EMPTY, "max_same_share": 1.0},
        "rollout": {"responses": 4, "sampling": sampling, **_ANY},
        "discriminator": {**few, "questions_per_step": 2, "responses_per_side": 2, "alarm_steps": 1},
        "ril": {**few, "questions_per_step": 2, "group": 2, "validation_every": 2, "sampling": sampling, **_EMPTY},
        "evaluate": {"benchmarks": [], "folder": _WATCHED, "max_tokens": 16, "shuffled_images": False},
        "evaluations": {
            "base": {"checkpoint": "data/model/student", "title": "Base student"},
            "warm_start": {"checkpoint": "data/warm_start", "title": "Warm-started student"},
            "ril": {"checkpoint": "data/ril/model", "title": "RIL student"},
            **dict.fromkeys(("qwen2_5_vl", "internvl3")),
        },
        "runtime": {"engines": {name: {"kind": "vllm", "sequences": 8} for name in places}},
    }


def make_lora_params() -> dict[str, Any]:
    """Returns what is laid over these so that adapters are trained; the tower has none, so it stays as it is."""
    lora = {"lora": _ALL_LORA}
    return {"warm_start": {**lora, "freeze_vision": True}, "discriminator": lora, "ril": lora}


def make_two_rank_params() -> dict[str, Any]:
    """Returns what is laid over these so that two processes train, each with a part of all states and weights."""
    return {"runtime": {"processes": 2, "zero_stage": 3}}


def write_questions(folder: Path, seed: int = 3) -> None:
    """Writes rows.jsonl and its images: shapes on noise in several sizes; every fifth question has no image."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    rows = []
    for number in range(sum(SPLITS.values()) + 8):
        colour, shape = draw.choice(COLOURS), draw.choice(("circle", "square"))
        row = {"id": f"q{number}", "question": "What colour is the shape?", "answer": f"The {shape} is {colour}."}
        if number % 5 == 4:
            row["question"] = f"What is {number} + {number + 1}?"
            row["answer"] = str(2 * number + 1)
        else:
            row["image"] = f"{number}.png"
            _draw_shape(SIZES[number % len(SIZES)], colour, shape, draw).save(folder / row["image"])
        rows.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _draw_shape(size: tuple[int, int], colour: str, shape: str, draw: random.Random) -> Image.Image:
    noise = Image.frombytes("RGB", (16, 16), draw.randbytes(3 * 16 * 16)).resize(size)
    pen = ImageDraw.Draw(noise)
    box = (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=colour)
    return noise


@dataclass(frozen=True)
class StageRun:
    """One stage of the pipeline, run once."""

    target: str
    code: int  # exit code
    seconds: float
    peak_gib: float  # resident memory of the largest process
    said: str  # stdout and stderr

    @property
    def last_line(self) -> str:
        """The last line that the stage said."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Project:
    """A copy of this project's files, in Git, with parameters of its own."""

    def __init__(self, folder: Path, params: Mapping[str, Any]) -> None:
        self.folder = folder
        listed = _call(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        write_questions(folder / "datasets")
        (folder / "dvc.lock").unlink(missing_ok=True)
        self.lay_over(params)
        _call(folder, "git", "init", "--quiet")
        _call(folder, "git", "add", "--all")
        _call(folder, "git", *("-c", "user.name=test", "-c", "user.email=test@localhost"), "commit", "-qm", "copy")

    def lay_over(self, params: Mapping[str, Any]) -> None:
        """Changes params.yaml; a value of None removes its key."""
        file = self.folder / "params.yaml"
        file.write_text(yaml.safe_dump(merge_params(read_yaml(file), params), sort_keys=False), encoding="utf-8")

    def run_stage(self, target: str, seconds: float = 900) -> StageRun:
        """Runs one stage as DVC would; a target is a stage or stage@item."""
        return self.call(target, [sys.executable, "-m", "flows.run", *target.split("@")], seconds)

    def run_pipeline(self, seconds: float = 1800) -> StageRun:
        """Runs all stages with `dvc repro`."""
        return self.call("all", ["dvc", "repro"], seconds)

    def call(self, target: str, command: list[str], seconds: float) -> StageRun:
        """Runs a command in the project; one that takes longer than `seconds` is ended."""
        environment = {key: value for key, value in os.environ.items() if key not in ("DVC_STAGE", "DVC_ROOT")}
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))  # its own code first
        environment |= {"PYTHONPATH": path, "RIL_STORE": str(self.folder / ".ril/store")}
        began = time.monotonic()
        log = self.folder / f".log-{target.replace('@', '-')}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["timeout", "--kill-after=20", str(seconds), *command],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        process.returncode = code
        said = log.read_text(encoding="utf-8", errors="replace")
        return StageRun(target, code, time.monotonic() - began, _gib(usage), said)


def _gib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 2**20  # Linux counts in KiB


def _call(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300).stdout
