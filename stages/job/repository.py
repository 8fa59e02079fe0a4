"""What Git and DVC know of the project, as plain values: whoever runs a stage reads it, the report shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RecordedRun:
    """A run of the pipeline that a commit holds: that of HEAD, or an experiment."""

    name: str  # "HEAD", or the experiment's name
    commit: str
    metrics: str  # text of reports/report/metrics.json; "" where the commit has none
    params: str  # text of params.yaml; "" where the commit has none


@dataclass(frozen=True)
class RecordedOut:
    """A file or folder as dvc.lock has it."""

    md5: str  # of a folder with the suffix ".dir"
    length: int  # bytes in all
    files: int


@dataclass(frozen=True)
class Repository:
    """The project's Git repository and its dvc.lock; empty where there is none."""

    code: str = ""  # the commit that is checked out, with "+" where tracked files differ from it
    experiment: str = ""  # name of the experiment that runs now; "" for a run in the workspace
    runs: Sequence[RecordedRun] = ()  # HEAD, then the experiments, the newest first
    outs: Mapping[str, RecordedOut] = field(default_factory=dict)  # by path, relative to the project
