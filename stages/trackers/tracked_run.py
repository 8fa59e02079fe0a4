"""What a tracker is told about a run, and what every tracker can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """One run of a training stage. Its name is that of the stage in DVC and of the flow run in Prefect."""

    name: str  # such as "ril"
    id: str  # by stage and fingerprint: a resumed run has the same
    project: str
    group: str | None  # DVC's experiment
    settings: Mapping[str, Any]  # the parameters that DVC records for the stage, by dotted key
    store: Path  # folder of all runs of all trackers
    root: Path  # the project's folder
    mlflow_uri: str | None = None


class Tracker(Protocol):
    """A run in one tool. What an earlier run of the same id has written is replaced when it is opened."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of one step."""

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[bytes]]) -> None:
        """Writes sampled answers, each with the image files of its question."""

    def close(self, finished: bool) -> None:
        """Ends the run; `finished` is False when training did not come to its end."""
