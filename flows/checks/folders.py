"""Folders that are written to: by stages, by DVC, by the hub's cache; their disks, and how DVC links results."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.checks.finding import Finding, State, make_missing
from flows.dvc.cache import read_cache
from flows.room import NoRoom, check_folders
from stages.job.hub import allows_downloads
from stages.job.job import Job

_LOW = 10 << 30  # bytes free below which a line says so; `ril plan` calculates what a run needs


def check_writing(jobs: Sequence[Job]) -> Iterator[Finding]:
    """Yields what can't be written to: folders of results, the store, DVC's cache, and the hub's with downloads."""
    lines: dict[str, list[str]] = {}
    for job in jobs:
        try:
            check_folders(job, by_dvc=True)
        except NoRoom as error:
            for line in str(error).splitlines():
                lines.setdefault(line, []).append(job.name)
    for line, names in lines.items():
        yield make_missing("folder", "", line, names)
    if allows_downloads() and (fault := _find_cache_fault()):
        yield make_missing("folder", "HF_HOME", fault)


def find_hub_cache() -> Path:
    """Returns the folder of the hub's downloads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _find_cache_fault() -> str:
    cache = find_hub_cache()
    there = next(place for place in (cache, *cache.parents) if place.exists())
    return (
        ""
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        else f"{there} can't be written; set HF_HOME to a folder of yours"
    )


def describe_disks(root: Path, store: Path) -> Iterator[Finding]:
    """Yields free space where results, answers and downloads go; one line a disk."""
    cache = read_cache(root)
    seen: dict[int, list[str]] = {}
    places: dict[int, Path] = {}
    for title, folder in (
        ("project", root),
        ("store", store),
        ("cache of DVC", cache.folder),
        ("cache of the hub", find_hub_cache()),
    ):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        device = there.stat().st_dev
        seen.setdefault(device, []).append(title)
        places.setdefault(device, there)
    for device, titles in seen.items():
        free = shutil.disk_usage(places[device]).free
        state: State = "note" if free < _LOW else "fine"
        yield Finding(
            "disk",
            state,
            str(places[device]),
            f"{free / 1e9:,.1f} GB free ({', '.join(titles)})",
            "ril plan says what a run needs" if state == "note" else "",
        )
    together = next(iter(seen.values()))
    apart = cache.links[:1] == ("hardlink",) and "cache of DVC" not in together
    yield Finding(
        "cache",
        "note" if apart else "fine",
        str(cache.folder),
        f"link types {', '.join(cache.links)}",
        "the project is on another disk, so results are copied" if apart else "",
    )
