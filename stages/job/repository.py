"""The project's Git and DVC state as plain values: the runner of a stage reads it, the report shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RecordedRun:
    """A run of the pipeline recorded in a commit: HEAD or an experiment."""

    name: str  # "HEAD", or the experiment's name
    commit: str
    metrics: str  # text of reports/report/metrics.json; "" if the commit has none
    params: str  # text of params.yaml; "" if the commit has none


@dataclass(frozen=True)
class RecordedOut:
    """A file or folder as recorded in dvc.lock."""

    md5: str  # for a folder with the suffix ".dir"
    length: int  # total bytes
    files: int


@dataclass(frozen=True)
class Repository:
    """The project's Git repository and its dvc.lock; empty if there is none."""

    code: str = ""  # the checked-out commit, with "+" if tracked files differ from it
    experiment: str = ""  # name of the running experiment; "" for a run in the workspace
    runs: Sequence[RecordedRun] = ()  # HEAD, then the experiments, newest first
    outs: Mapping[str, RecordedOut] = field(default_factory=dict)  # by path, relative to the project
