"""From `params.yaml` and the table of stages to the job that a stage gets: what it declares, and nothing else."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flows.dvc.experiments import read_repository
from flows.environment import find_project, store_folder
from stages.config.budget import find_budget
from stages.config.params import Params
from stages.config.table import STAGES
from stages.job.job import Job
from stages.job.progress import Progress
from stages.job.spending import Spending


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
    run = f"{stage}@{item}" if item else stage
    store = store_folder(root)
    key, caps = find_budget(params.budget, run)
    return Job(
        definition=declared,
        item=item,
        root=root,
        project=find_project(root),
        store=store,
        given={key: _find_value(params, key) for key in (text.format(item=item) for text in declared.params)},
        paths=(
            *(text.format(item=item, params=params, block=block) for text in declared.inputs),
            *(text.format(name) for text, key in declared.listed for name in getattr(params, key)),
        ),
        runtime=params.runtime,
        tracking=params.tracking,
        runs=list_runs(params),
        progress=Progress(),
        spending=Spending(store / "spent" / f"{run}.jsonl", key, caps.model_dump(exclude_none=True)),
        experiment=os.environ.get("DVC_EXP_NAME", ""),
        repository=partial(read_repository, root),
    )


def list_runs(params: Params) -> tuple[str, ...]:
    """Every run of the pipeline as DVC names it, in order: `model@student`, ..., `questions`, ..., `report`."""
    runs: list[str] = []
    for stage in STAGES.values():
        runs += [f"{stage.name}@{item}" for item in getattr(params, stage.items)] if stage.items else [stage.name]
    return tuple(runs)


def list_makers(job: Job, path: str) -> list[str]:
    """The targets that make the input `path` of `job`; a folder of several outs has several."""
    target = job.find_maker(path)
    return [run for run in job.runs if run == target or run.startswith(f"{target}@")]


def list_needed_jobs(root: Path, params: Params, targets: Sequence[str] = ()) -> list[Job]:
    """The jobs of `targets` and of all stages before them; of the whole pipeline without targets.

    A target is a run, or the name of a stage with several (`teacher`). Raises UnknownTarget.
    """
    runs = list_runs(params)
    left = [run for run in runs if not targets or {run, run.split("@")[0]} & set(targets)]
    found: dict[str, Job] = {}
    while left:
        name = left.pop()
        if name not in found:
            stage, _, item = name.partition("@")
            found[name] = job = open_job(stage, item or None, root, params)
            for path in job.paths:
                if Path(path).parts[0] in ("data", "reports"):
                    left += list_makers(job, path)
    return [found[name] for name in runs if name in found]


def _find_value(params: Params, key: str) -> Any:
    """The value at a dotted key; entries of plural blocks are keys of a mapping."""
    found: Any = params
    for part in key.split("."):
        found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    return found
