"""From `params.yaml` and the table of stages to the job that a stage gets: what it declares, and nothing else."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flows.dvc.experiments import read_repository
from flows.environment import store_folder
from stages.config.params import Params
from stages.config.table import STAGES
from stages.job.job import Job
from stages.job.progress import Progress


class UnknownTarget(ValueError):
    """A stage or an item that does not exist; the message lists those that do."""


def open_job(stage: str, item: str | None, root: Path, params: Params) -> Job:
    """The job of one run of `stage` in the project at `root`; raises UnknownTarget when there is no such run."""
    if stage not in STAGES:
        raise UnknownTarget(f"no stage {stage!r}; stages: {', '.join(STAGES)}")
    declared = STAGES[stage]
    plural = declared.items
    known: Mapping[str, Any] = getattr(params, plural) if plural else {}
    if plural and item is None:
        raise UnknownTarget(f"stage {stage} has one run an entry of `{plural}`; say which: {', '.join(known)}")
    if plural and item not in known:
        raise UnknownTarget(f"no {item!r} in `{plural}` of params.yaml; entries: {', '.join(known)}")
    if not plural and item is not None:
        raise UnknownTarget(f"stage {stage} has no items; leave out {item!r}")
    block = known[item] if item else None
    return Job(
        definition=declared,
        item=item,
        root=root,
        store=store_folder(root),
        given={key: _find_value(params, key) for key in (text.format(item=item) for text in declared.params)},
        paths=tuple(text.format(item=item, params=params, block=block) for text in declared.inputs),
        runtime=params.runtime,
        runs=list_runs(params),
        progress=Progress(),
        repository=partial(read_repository, root),
    )


def list_runs(params: Params) -> tuple[str, ...]:
    """Every run of the pipeline as DVC names it, in order: `model@student`, ..., `questions`, ..., `report`."""
    runs: list[str] = []
    for stage in STAGES.values():
        runs += [f"{stage.name}@{item}" for item in getattr(params, stage.items)] if stage.items else [stage.name]
    return tuple(runs)


def _find_value(params: Params, key: str) -> Any:
    """The value at a dotted key; entries of plural blocks are keys of a mapping."""
    found: Any = params
    for part in key.split("."):
        found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    return found
