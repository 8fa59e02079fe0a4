"""Users' files: questions, images, data sets of the hub, benchmarks."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.checks.finding import TO_DOWNLOAD, Finding, make_missing
from flows.copies import list_user_paths
from flows.watched_files import Unwatchable, refuse_unwatchable
from stages.benchmarks.registry import find_benchmark
from stages.benchmarks.sources import describe_remedy, has_files
from stages.config.params import Params
from stages.job.hub import HubError, allows_downloads
from stages.job.job import Job

_KEYS = {"questions": ("questions.path", "questions.images"), "evaluate": ("evaluate.folder",)}


def check_user_files(params: Params, jobs: Sequence[Job]) -> Iterator[Finding]:
    """Yields users' files that stages read and that are not there, or that DVC can't watch."""
    for path, names in _list_paths(jobs).items():
        place, key = jobs[0].project / path, _find_key(params, path)  # what a copy lacks is told with its own remedy
        if not place.exists():
            yield Finding("data", "missing", key, f"{path} is not there", f"put it there, or correct {key}", names)
            continue
        try:
            refuse_unwatchable([place])
        except Unwatchable as error:
            yield make_missing("data", key, str(error).splitlines()[0], names)
    runs = [job.name for job in jobs]
    if "questions" in runs:
        yield from _check_sources(params)
    yield from _check_benchmarks(params, jobs)


def _list_paths(jobs: Sequence[Job]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for job in jobs:
        for path in list_user_paths(job):
            found[path] = (*found.get(path, ()), job.name)
    return found


def _find_key(params: Params, path: str) -> str:
    for key in (key for keys in _KEYS.values() for key in keys):
        block, _, field = key.partition(".")
        if getattr(getattr(params, block), field) == path:
            return key
    return "world"


def _check_sources(params: Params) -> Iterator[Finding]:
    hub = None
    for number, source in enumerate(params.questions.sources):
        key = f"questions.sources[{number}].{'path' if source.path else 'hub'}"
        if source.path is not None and not Path(source.path).exists():
            yield Finding(
                "data", "missing", key, f"{source.path} is not there", f"put it there, or correct {key}", ("questions",)
            )
        elif source.hub is not None and not allows_downloads():
            hub = hub or importlib.import_module("stages.corpora.containers.hub")
            try:
                hub.find_hub_snapshot(source)
            except (HubError, ValueError) as error:
                yield make_missing("data", key, error, ("questions",))
        elif source.hub is not None:
            yield Finding("data", "note", key, f"{source.hub}: {TO_DOWNLOAD}", "", ("questions",))


def _check_benchmarks(params: Params, jobs: Sequence[Job]) -> Iterator[Finding]:
    names = tuple(job.name for job in jobs if job.stage == "evaluate")
    if not names:
        return
    folder = jobs[0].project / params.evaluate.folder
    for name in params.evaluate.benchmarks:
        spec = find_benchmark(name) if not name.startswith("tiny_") else None
        if spec is None or not folder.is_dir() or has_files(spec, folder):
            continue
        if allows_downloads():
            yield Finding("data", "note", name, f"no file in {params.evaluate.folder}: {TO_DOWNLOAD}", "", names)
        else:
            yield Finding(
                "data",
                "missing",
                "evaluate.benchmarks",
                f"{name} has no file in {params.evaluate.folder}",
                describe_remedy(spec),
                names,
            )
