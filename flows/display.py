"""Progress in the Prefect UI: bars as progress artifacts, tables as table artifacts, lines as logs of the flow run."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler

from flows.artifact_cells import make_artifact_key, simplify_rows, transpose_steps
from stages.job.progress import Progress

_LATEST_SECONDS = 30.0
_UPDATE_SECONDS = 3.0  # one update is a request of some 20 ms


class FlowProgress(Progress):
    """Tells the console and the server; after the first failure of the server, only the console."""

    def __init__(self) -> None:
        self._connected = True
        self._bars: dict[str, UUID] = {}
        self._tables: dict[str, UUID] = {}
        self._updated: dict[str, float] = {}

    def say(self, text: str) -> None:
        """A log line of the flow run, which Prefect prints on the console too."""
        if self._connected:
            get_run_logger().info(text)
        else:
            super().say(text)

    def on_advance(self, description: str, count: int, total: int | None) -> None:
        """Moves the bar in the UI, at most every few seconds and at the end."""
        now = time.monotonic()
        soon = now - self._updated.get(description, float("-inf")) < _UPDATE_SECONDS
        if not self._connected or not total or (soon and count < total):
            return
        self._updated[description] = now
        self._tell(lambda: self._move(description, 100.0 * min(count / total, 1.0)))

    def show_table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table on the console and as an artifact."""
        super().show_table(title, rows)
        if self._connected and rows:
            cells = simplify_rows(rows)
            self._tell(lambda: create_table_artifact(table=cells, key=make_artifact_key(title), description=title))

    def show_latest(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The newest rows as one table that changes in place, at most every half minute."""
        now = time.monotonic()
        if not self._connected or not rows or now - self._updated.get(title, float("-inf")) < _LATEST_SECONDS:
            return
        self._updated[title] = now
        self._tell(lambda: self._replace(title, transpose_steps(rows)))

    def _replace(self, title: str, cells: list[dict[str, Any]]) -> None:
        if title in self._tables:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._tables[title], ArtifactUpdate(data=json.dumps(cells)))
            return
        artifact = create_table_artifact(table=cells, key=make_artifact_key(title), description=title)
        if isinstance(artifact, UUID):
            self._tables[title] = artifact

    def _move(self, description: str, percent: float) -> None:
        if description in self._bars:
            update_progress_artifact(artifact_id=self._bars[description], progress=percent)
            return
        artifact = create_progress_artifact(
            progress=percent, key=make_artifact_key(description), description=description
        )
        if isinstance(artifact, UUID):
            self._bars[description] = artifact

    def _tell(self, request: Callable[[], object]) -> None:
        try:
            request()
        except Exception as error:  # whatever the server does, the work goes on
            self._connected = False
            mute_prefect()
            print(f"warning: lost the Prefect server ({type(error).__name__}); going on without it", file=sys.stderr)


def mute_prefect() -> None:
    """Stops Prefect's own log lines, here and to the server; tracebacks about a lost server help nobody."""
    for name, logger in logging.Logger.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "prefect":
            logger.handlers = [each for each in logger.handlers if not isinstance(each, APILogHandler)]
            logger.setLevel(logging.CRITICAL + 1)
