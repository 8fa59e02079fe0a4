"""All trackers of one run. Each has a thread: one that fails, hangs or is slow costs a warning, never the run."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stages.config.tracking import Tool
from stages.job.metric_names import STEP
from stages.trackers.dvclive_run import DvcliveRun
from stages.trackers.mlflow_run import MlflowRun
from stages.trackers.tracked_run import TrackedRun, Tracker
from stages.trackers.wandb_run import WandbRun

CURVE_RECORDS = ("history", "validation")  # records whose rows are numbers by step
SAMPLES = "samples"
CLOSE_SECONDS = 60.0  # that the end of a run waits for all trackers together
OPENERS: Mapping[Tool, Callable[[TrackedRun], Tracker]] = {
    "wandb": WandbRun,
    "mlflow": MlflowRun,
    "dvclive": DvcliveRun,
}
Records = Mapping[str, Sequence[Mapping[str, Any]]]


class Trackers:
    """Sends the rows of a loop to all trackers, from the first step on, also where the loop resumes.

    A resumed loop has the rows of all steps before it. A tracker gets them again in a run that replaces the earlier
    one: what was written after the last checkpoint would else be there twice.
    """

    def __init__(self, tools: Sequence[Tool], run: TrackedRun, tables: bool, say: Callable[[str], None]) -> None:
        """Opens the trackers of `tools` in threads; `tensorboard` is none of them."""
        self._tables = tables
        self._written = dict.fromkeys((*CURVE_RECORDS, SAMPLES), 0)
        self._threads = [_TrackerThread(tool, OPENERS[tool], run, say) for tool in tools if tool in OPENERS]

    def write(self, records: Records, images: Mapping[str, Sequence[bytes]]) -> None:
        """Sends the rows added since the last call; NaN and infinity too, None was not measured.

        When the student was validated, the sampled answers of the latest step are sent as a table with `images`, by
        question.
        """
        if not self._threads:
            return
        for name in CURVE_RECORDS:
            rows = records.get(name, ())
            for row in rows[self._written[name] :]:
                values = {key: value for key, value in row.items() if key != STEP and value is not None}
                self._send("log", row[STEP], values)
            if name == "validation" and len(rows) > self._written[name] and self._tables:
                self._send_samples(records.get(SAMPLES, ()), images)
            self._written[name] = len(rows)

    def close(self, finished: bool, seconds: float = CLOSE_SECONDS) -> None:
        """Ends all runs and waits for their threads, so many seconds at most."""
        for thread in self._threads:
            thread.send("close", finished)
        for thread in self._threads:
            thread.wait(max(0.0, seconds) / len(self._threads))

    def _send_samples(self, samples: Sequence[Mapping[str, Any]], images: Mapping[str, Sequence[bytes]]) -> None:
        latest = [row for row in samples if row[STEP] == samples[-1][STEP]]
        if latest and latest[0]["question_id"] in images:  # a resumed loop has no images of earlier steps
            pictures = [tuple(images.get(row["question_id"], ())) for row in latest]
            self._send("log_table", latest[0][STEP], latest, pictures)

    def _send(self, method: str, *arguments: Any) -> None:
        for thread in self._threads:
            thread.send(method, *arguments)


class _TrackerThread:
    """One tracker, whose errors of any kind end its curves with a warning."""

    def __init__(
        self, tool: Tool, opener: Callable[[TrackedRun], Tracker], run: TrackedRun, say: Callable[[str], None]
    ) -> None:
        self._tool, self._opener, self._run, self._say = tool, opener, run, say
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {tool}")
        self._thread.start()

    def send(self, method: str, *arguments: Any) -> None:
        """Queues a call; after a failure it is dropped."""
        if self._thread.is_alive():
            self._calls.put((method, arguments))

    def wait(self, seconds: float) -> None:
        """Waits for the end of the thread."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say(
                f"warning: tracker {self._tool} has not finished after {seconds:.0f} s; its curves may lack steps"
            )

    def _work(self) -> None:
        try:
            tracker, method = self._opener(self._run), ""
            while method != "close":
                method, arguments = self._calls.get()
                getattr(tracker, method)(*arguments)
        except ImportError as error:
            self._say(
                f"warning: no curves in {self._tool}: {error}; install the extra: pip install -e '.[{self._tool}]'"
            )
        except Exception as error:  # a tracker may raise whatever it likes; training goes on
            reason = " ".join(str(error).split())[:300]
            self._say(f"warning: no more curves in {self._tool}: {type(error).__name__}: {reason}; training goes on")
