"""Journals of a `ril run` as flow runs: what stages wrote (`flows/run_journal.py`), told to a Prefect server.

The run is a flow run, each stage one inside it, each long loop of a stage a task run with a progress bar. Prefect's own
client makes them; nothing is run by Prefect, so nothing is tried again by it: what can be tried again, an endpoint, is
tried again by the stage.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, Task, flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate, LogCreate
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed, Running

from flows.artifact_cells import make_artifact_key
from flows.catalog import stage_flow
from flows.run_journal import RUN, has_ended, list_stage_journals
from stages.config.table import STAGES
from stages.job.files import write_text

KILLED = "Its process was killed; what it had done is kept"
_STATES: Mapping[str, Any] = {"completed": Completed, "failed": Failed, "stopped": Cancelled, "killed": Crashed}
_LONG_SECONDS = 2.0  # a loop that takes less is no task run: its line in the log says it
_MOST_BYTES = 2**20  # of a journal that are told at once
_INFO = 20  # the level of a line of a log


@dataclass
class Part:
    """A loop of a stage that has begun."""

    begun: float
    task_run: str = ""
    percent: float | None = None


@dataclass
class RecordState:
    """What the server has of one journal; kept beside it, so that another process can go on."""

    offset: int = 0
    flow_run: str = ""
    placeholder: str = ""  # the task run that stands for it in the run that it belongs to
    parts: dict[str, Part] = field(default_factory=dict)
    count: int = 0  # of task runs
    artifacts: dict[str, str] = field(default_factory=dict)
    begun: float = 0.0  # when its process says that it began; the server's times are those of the telling
    outcome: list[str] = field(default_factory=list)  # how it ended, and a text; empty while it runs
    ended: bool = False


class FlowRecord:
    """One journal and its flow run."""

    def __init__(self, client: SyncPrefectClient, path: Path, parent: "FlowRecord | None") -> None:
        """`parent` is the record of the run that the stage belongs to."""
        self._client, self._path, self._parent = client, path, parent
        self._kept = path.with_suffix(".json")
        self.state = _read_state(self._kept)

    def tell_new(self) -> None:
        """Tells the server what is new, but for the end.

        Raises what the client raises when the server is gone: the same is told again later.
        """
        more = not self.state.ended
        while more:
            with self._path.open("rb") as file:
                file.seek(self.state.offset)
                text = file.read(_MOST_BYTES)
            whole = text[: text.rfind(b"\n") + 1]
            more = len(text) == _MOST_BYTES and bool(whole)
            if whole:
                self._tell_events([json.loads(line) for line in whole.splitlines()])
                self.state.offset += len(whole)
                self._keep()

    def tell_end(self) -> None:
        """Ends the flow run, and parts that are open, if its process has said so or was killed."""
        if self.state.ended or not self.state.flow_run:
            return
        if not self.state.outcome:
            if not has_ended(self._path):
                return
            self.tell_new()  # what it has written before its lock was free
        kind, text = self.state.outcome or ["killed", KILLED]
        for title in list(self.state.parts):
            self._end_part(title, ok=False)
        self._client.set_flow_run_state(self.state.flow_run, _STATES[kind](message=text), force=True)
        if self.state.placeholder:
            self._client.set_task_run_state(UUID(self.state.placeholder), _STATES[kind](message=text), force=True)
        self.state.ended = True
        self._keep()

    def add_placeholder(self, name: str) -> str:
        """A task run of this flow run that stands for another one inside it."""
        return self._make_task_run(name)

    def _keep(self) -> None:
        write_text(self._kept, json.dumps(asdict(self.state)))

    def _tell_events(self, events: list[dict[str, Any]]) -> None:
        """One request for all lines, and for each bar and table the last value only."""
        lines = [event for event in events if event["event"] == "line"]
        latest = {event["title"]: event for event in events if event["event"] == "latest"}
        for event in events:
            kind, now = event["event"], event["time"]
            if kind == "start":
                self._begin(event)
            elif kind == "part":
                self.state.parts[event["title"]] = Part(now)
            elif kind == "bar" and event["title"] in self.state.parts:
                self.state.parts[event["title"]].percent = event["percent"]
            elif kind == "part-end":
                part = self.state.parts[event["title"]]
                if now - part.begun >= _LONG_SECONDS:
                    self._show_part(event["title"], part)
                self._end_part(event["title"], event["ok"])
            elif kind == "table":
                self._put_artifact("table", event["title"], json.dumps(event["rows"]), anew=True)
            elif kind == "end":
                took = f"{now - self.state.begun:.1f} s from {datetime.fromtimestamp(self.state.begun, UTC):%F %T} UTC"
                self.state.outcome = [event["state"], f"{event['text'] or event['state']}; {took}"]
        if lines:
            self._client.create_logs([self._make_log(line) for line in lines])
        for title, event in latest.items():
            self._put_artifact("table", title, json.dumps(event["rows"]))
        for title, part in self.state.parts.items():
            if events[-1]["time"] - part.begun >= _LONG_SECONDS:
                self._show_part(title, part)

    def _begin(self, event: Mapping[str, Any]) -> None:
        """Makes the flow run, with the tags of the run that it belongs to."""
        if self.state.flow_run:
            return
        placeholder = None
        if self._parent is not None and self._parent.state.flow_run:
            placeholder = self.state.placeholder = self._parent.add_placeholder(event["name"])
        self.state.begun, stage, item = event["time"], event["stage"], event["item"]
        made = self._client.create_flow_run(
            _make_flow(stage),
            name=event["name"],
            parameters={"item": item} if item else {},
            tags=event["tags"],
            parent_task_run_id=UUID(placeholder) if placeholder else None,
        )
        self._client.set_flow_run_state(made.id, Running(), force=True)
        self.state.flow_run = str(made.id)

    def _make_task_run(self, name: str) -> str:
        self.state.count += 1
        made = self._client.create_task_run(
            _make_task(name), UUID(self.state.flow_run), str(self.state.count), name=name
        )
        self._client.set_task_run_state(made.id, Running(), force=True)
        return str(made.id)

    def _show_part(self, title: str, part: Part) -> None:
        if not part.task_run:
            part.task_run = self._make_task_run(title)
        if part.percent is not None:
            self._put_artifact("progress", title, part.percent, task_run=part.task_run)

    def _end_part(self, title: str, ok: bool) -> None:
        part = self.state.parts.pop(title)
        if part.task_run:
            state: State[Any] = Completed() if ok else Failed(message="the loop did not end")
            self._client.set_task_run_state(UUID(part.task_run), state, force=True)
            self.state.artifacts.pop(title, None)  # the next loop of this name has a bar of its own

    def _put_artifact(self, kind: str, title: str, data: Any, *, task_run: str = "", anew: bool = False) -> None:
        known = None if anew else self.state.artifacts.get(title)
        if known is not None:
            self._client.update_artifact(UUID(known), ArtifactUpdate(data=data))
            return
        made = self._client.create_artifact(
            ArtifactCreate(
                key=make_artifact_key(title),
                type=kind,
                description=title,
                data=data,
                flow_run_id=UUID(self.state.flow_run),
                task_run_id=UUID(task_run) if task_run else None,
            )
        )
        self.state.artifacts[title] = str(made.id)

    def _make_log(self, line: Mapping[str, Any]) -> LogCreate:
        when: Any = datetime.fromtimestamp(line["time"], UTC)
        return LogCreate(
            name="ril", level=_INFO, message=line["text"], timestamp=when, flow_run_id=UUID(self.state.flow_run)
        )


class RunRecords:
    """The journals of a `ril run` in one folder, and their flow runs."""

    def __init__(self, client: SyncPrefectClient, folder: Path) -> None:
        """Takes up what another process has told before."""
        self._client, self._folder = client, folder
        self._run = FlowRecord(client, folder / RUN, None)
        self._stages: dict[Path, FlowRecord] = {}

    def tell(self) -> bool:
        """Tells all that is new; whether all journals have ended. Raises what the client raises without a server."""
        try:
            self._run.tell_new()
            for path in list_stage_journals(self._folder):
                self._stages.setdefault(path, FlowRecord(self._client, path, self._run)).tell_new()
            records = [*self._stages.values(), self._run]
            for record in records:
                record.tell_end()
            return all(record.state.ended for record in records)
        except ObjectNotFound:  # the server has another database than before: all is told anew
            for path in self._folder.glob("*.json"):
                path.unlink()
            self.__init__(self._client, self._folder)  # type: ignore[misc]
            return False


def _read_state(path: Path) -> RecordState:
    if not path.is_file():
        return RecordState()
    kept = json.loads(path.read_text(encoding="utf-8"))
    return RecordState(**{**kept, "parts": {title: Part(**values) for title, values in kept["parts"].items()}})


def _make_flow(stage: str) -> Flow[..., Any]:
    """The flow of a stage; that of a `ril run` for the empty name."""
    if stage:
        return stage_flow(STAGES[stage], _refuse)
    return flow(name="ril-run", description="One `ril run`: the stages that were out of date.")(_refuse)


def _make_task(name: str) -> Task[..., Any]:
    return task(name=name)(_refuse)


def _refuse(*names: object) -> None:
    raise RuntimeError("this run is a record of what another process did")
