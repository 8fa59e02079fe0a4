"""A `ril run` as a flow run: folder and environment for the journals of its stages, and the process that reads them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from flows.run_journal import JOURNALS, RUN, TAGS, open_journal
from flows.run_tags import list_run_tags
from flows.ui.access import NoServer
from flows.ui.run_recorder import journal_folder
from stages.engines.supervisor import signal_on_parent_death

_END_SECONDS = 30.0  # for the end to be told; the first server of a project makes its database before
_SAY_SECONDS = 4.0
_LOOK_SECONDS = 0.1
_KILL_SECONDS = 10.0
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


@contextmanager
def show_run(root: Path, targets: Sequence[str], show_link: bool) -> Iterator[Callable[[int], None]]:
    """For this block the stages that dvc starts keep journals, which another process shows in the Prefect UI.

    Yields a function that takes the exit code of the run. That process prints where to look: the link with the key if
    `show_link`. Where no journal can be kept, the run goes on without: a line says so.
    """
    kept = ExitStack()
    try:
        folder = journal_folder(root) / f"{time.time_ns()}-{os.getpid()}"
        folder.mkdir(parents=True, mode=0o700)
        tags = [f"run-{folder.name}", *list_run_tags(root)]
        name = " ".join(["ril run", *targets])
        journal = kept.enter_context(open_journal(folder / RUN, stage="", item=None, name=name, tags=tags))
    except (NoServer, OSError) as error:
        print(f"warning: the Prefect UI does not show this run: {error}", file=sys.stderr)
        yield lambda _: None
        return
    os.environ |= {JOURNALS: str(folder), TAGS: json.dumps(tags)}
    recorder, codes = _start_recorder(root, folder, show_link), list[int]()
    try:
        yield codes.append
    finally:
        for variable in (JOURNALS, TAGS):
            del os.environ[variable]
        journal.write("end", state=_name_state(codes), text=f"exit code {codes[0]}" if codes else "")
        kept.close()
        _end_recorder(recorder)


def _name_state(codes: Sequence[int]) -> str:
    if not codes:
        return "failed"
    return "stopped" if codes[0] in _STOPPED else "failed" if codes[0] else "completed"


def _start_recorder(root: Path, folder: Path, show_link: bool) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "flows.ui.run_recorder", str(folder)]
    return subprocess.Popen(
        [*words, "--show-link"] if show_link else words,
        cwd=root,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the run; this process tells its end
        preexec_fn=partial(signal_on_parent_death, signal.SIGTERM),
    )


def _end_recorder(recorder: "subprocess.Popen[bytes]") -> None:
    """Waits until the end of the run was told; Ctrl-C ends the wait."""
    begun = time.monotonic()
    said = stopped = False
    while recorder.poll() is None and not stopped and time.monotonic() - begun < _END_SECONDS:
        if not said and time.monotonic() - begun > _SAY_SECONDS:
            said = True
            print("telling the Prefect server of this run; Ctrl-C leaves it to the next run", file=sys.stderr)
        try:
            time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            stopped = True
    if recorder.poll() is None:
        print(
            "warning: the Prefect UI does not show all of this run: no time to tell; a later run will", file=sys.stderr
        )
    for number in (signal.SIGTERM, signal.SIGKILL):
        recorder.send_signal(number)  # nothing when it has ended
        with suppress(subprocess.TimeoutExpired):
            recorder.wait(_KILL_SECONDS)
            return
