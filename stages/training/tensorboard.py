"""TensorBoard curves of a training stage, in addition to the CSV that it writes at the end.

    tensorboard --logdir .ril/tensorboard

Event files contain wall times, so they are not stage outputs: they are kept in the store, by stage and fingerprint,
which also preserves those of experiments in temporary folders. tensorboardX writes them; TensorBoard is optional.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.job.metric_names import STEP

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

EVENT_FOLDER = "tensorboard"
CURVE_RECORDS = ("history", "validation")  # records whose rows are numbers by step
FLUSH_SECONDS = 10


class TensorBoardWriter:
    """Writes the event file of one loop. Scalars have the names of the CSV columns.

    It writes in the caller's thread: tensorboardX's own SummaryWriter does so in a second one, which ends at the first
    failed write, and then waits without end for a queue that nobody empties. Curves are no result, so a folder that is
    not writable or full costs a warning.
    """

    def __init__(
        self,
        folder: Path | None,
        records: Mapping[str, Sequence[Mapping[str, Any]]],
        first: int,
        say: Callable[[str], None] = print,
    ) -> None:
        """Resumes after `first` steps, whose rows are in `records`; later steps of an earlier run are purged.

        If `folder` is None, nothing is written.
        """
        self._written = {name: len(records.get(name, ())) for name in CURVE_RECORDS}
        self._folder, self._say = folder, say
        self._writer: EventsWriter | None = None
        self._flushed = time.monotonic()
        if folder is not None:
            with self._warning():
                self._writer = self._open(folder, first)

    def _open(self, folder: Path, first: int) -> "EventsWriter":
        if not first:
            shutil.rmtree(folder, ignore_errors=True)
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # without the suffix, two runs that start in the same second write to the same file
        writer = EventsWriter(str(folder / "events"), f".{first}")
        if first:
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(wall_time=time.time(), step=first + 1, session_log=start))
        return writer

    def write(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Writes the rows added since the last call, NaN and infinity too; None was not measured."""
        with self._warning():
            self._write(records)

    def _write(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        if self._writer is None:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name in CURVE_RECORDS:
            rows = records.get(name, ())
            for row in rows[self._written[name] :]:
                for key, value in row.items():
                    if key != STEP and value is not None:
                        event = Event(wall_time=time.time(), step=row[STEP], summary=scalar(key, value))
                        self._writer.write_event(event)
            self._written[name] = len(rows)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the event file."""
        with self._warning():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        """For this block an error of the file system ends the curves with a warning, not training."""
        try:
            yield
        except OSError as error:
            self._writer = None
            self._say(f"warning: no more curves for TensorBoard in {self._folder}: {error.strerror}; training goes on")
