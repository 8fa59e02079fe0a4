"""Other experiments of this repository, with their metrics and parameters.

They are no input of the stage: the list is that of the time when the page was made; `dvc repro -f -s report` updates
it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.yaml import flatten, parse_yaml
from stages.job.job import Job
from stages.job.repository import Repository

SHOWN_CHANGES = 6  # changed parameters of one experiment that are named
THIS = "this run"


@dataclass(frozen=True)
class ExperimentSummary:
    """A run of the pipeline with its summary, as `stages/page/summary.py` made it."""

    name: str
    commit: str  # the first digits; empty for this run
    objective: str
    teachers: str
    changed: tuple[str, ...]  # "key: value" for the parameters that differ from this run's
    summary: Mapping[str, Any]

    @property
    def here(self) -> bool:
        """Whether it is the run that the page is about."""
        return not self.commit


@dataclass(frozen=True)
class ExperimentList:
    """What there is to compare."""

    experiments: Sequence[ExperimentSummary]  # this run first, then the newest first
    left_out: int  # experiments without a summary: older than it, or stopped before their report


def find_experiments(job: Job, summary: Mapping[str, Any], repository: Repository) -> ExperimentList:
    """This run and every other experiment of the repository; this run alone where there is no Git repository.

    An experiment whose parameters and summary equal those of this run is this run and gives it its name.
    """
    own = flatten(job.values)
    name, others, left_out = repository.experiment or THIS, [], 0
    for run in repository.runs:
        there = json.loads(run.metrics).get("summary") if run.metrics else None
        if not there:
            left_out += run.name != "HEAD"
            continue
        theirs = flatten(parse_yaml(run.params, f"{run.name}: params.yaml")) if run.params else {}
        changed = tuple(f"{key}: {value}" for key, value in theirs.items() if key in own and own[key] != value)
        if changed or there != dict(summary):
            others.append(
                ExperimentSummary(run.name, run.commit[:8], *read_method(own | theirs), shorten_changes(changed), there)
            )
        elif run.name != "HEAD":
            name = run.name
    return ExperimentList([ExperimentSummary(name, "", *read_method(own), (), summary), *others], left_out)


def read_method(params: Mapping[str, Any]) -> tuple[str, str]:
    """The objective and the teachers of a run with these parameters: what tells the paper's rows apart."""
    return str(params["ril.objective"]), ", ".join(params["pool.teachers"])


def shorten_changes(changed: Sequence[str]) -> tuple[str, ...]:
    """The first of the changes, and how many more there are."""
    more = len(changed) - SHOWN_CHANGES
    return (*changed[:SHOWN_CHANGES], f"and {more} more") if more > 0 else tuple(changed)
