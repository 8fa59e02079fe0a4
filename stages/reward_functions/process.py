"""One worker process, as its parent sees it: calls with a time limit, whatever the function does."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.own_rewards import Reward
from stages.reward_functions.worker import write_frame

CODE = Path(__file__).resolve().parents[2]  # the folder of the package `stages`
LOAD_SECONDS = 120.0  # to start Python and import the user's file
LOOK_SECONDS = 0.2  # between looks whether the process is still there
LONGEST_REPLY = 1 << 16  # bytes
KEPT_OUTPUT = 200  # characters of what a call printed


@dataclass(frozen=True)
class CallOutcome:
    """What one call gave: a number, None from the function, or the reason of a failure."""

    value: float | None = None
    failure: str | None = None  # "returned None" is none: the function said itself that it does not know
    printed: str = ""  # the start of what it printed


class WorkerEnded(Exception):
    """The process ended, or was ended, in a call; the message says how."""


class WorkerProcess:
    """A process with all functions of `ril.rewards`; it is started anew after a call that it does not survive."""

    def __init__(self, root: Path, rewards: Sequence[Reward]) -> None:
        """Starts nothing yet; paths of `rewards` are relative to `root`."""
        self._root, self._rewards = root, rewards
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._printed = bytearray()

    def call(self, number: int, request: Mapping[str, Any]) -> CallOutcome:
        """Returns what function `number` gives for a request; a failure of any kind is an outcome."""
        seconds = self._rewards[number].seconds
        self._printed.clear()
        try:
            if self._process is None:
                self.start()
            reply = self._ask({**request, "number": number}, seconds)
        except WorkerEnded as error:
            self.close()
            return CallOutcome(failure=str(error), printed=self._show_printed())
        if (failure := reply.get("failed")) and "left a process" in failure:
            self.close()  # with what was left
        return CallOutcome(reply.get("value"), failure, self._show_printed())

    def start(self) -> list[tuple[str, ...]]:
        """Starts the process and loads all functions; returns what each takes.

        Raises WorkerEnded with the reason where one cannot be loaded.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "stages.reward_functions.worker", str(theirs.fileno())]
        path = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            self._process = subprocess.Popen(
                command,
                cwd=self._root,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._socket = ours
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        return [self._load(number, reward) for number, reward in enumerate(self._rewards)]

    def _load(self, number: int, reward: Reward) -> tuple[str, ...]:
        file = None if reward.file is None else str(self._root / reward.file)
        load = {"load": number, "file": file, "function": reward.function, "arguments": reward.arguments}
        try:
            reply = self._ask(load, LOAD_SECONDS)
        except WorkerEnded as error:
            raise WorkerEnded(f"{reward.use} was not loaded: its file {error}") from error
        if failure := reply.get("failed"):
            raise WorkerEnded(f"{reward.use} was not loaded: {failure}")
        return tuple(reply["taken"])

    def kill(self) -> None:
        """Kills the process and all that it has started in its session; a call in another thread then ends."""
        if (process := self._process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process and all that it has started in its session, and frees what it took."""
        if self._process is None:
            return
        self.kill()
        self._process.wait()
        self._read_output()
        for stream in (self._process.stdout, self._socket):
            if stream is not None:
                stream.close()
        self._process = self._socket = None

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self._socket is not None
        deadline = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            write_frame(self._socket, json.dumps(request).encode())
        except TimeoutError as error:
            raise WorkerEnded(f"took longer than {seconds:g} s") from error
        except OSError as error:
            raise WorkerEnded(self._explain_end()) from error
        content = self._await_reply(deadline, seconds)
        self._read_output()
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError) as error:
            raise WorkerEnded("wrote into the connection of its process") from error

    def _await_reply(self, deadline: float, seconds: float) -> bytes:
        """Returns the content of the reply; reads what is printed meanwhile, so that no pipe fills up."""
        assert self._process is not None
        assert self._socket is not None
        content, output = bytearray(), self._process.stdout
        self._socket.setblocking(False)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerEnded(f"took longer than {seconds:g} s")
            waiting = [self._socket.fileno(), *([output.fileno()] if output else [])]
            ready, _, _ = select.select(waiting, [], [], min(left, LOOK_SECONDS))
            if output is not None and output.fileno() in ready and not self._read_output():
                output = None  # closed by the function
            if self._socket.fileno() in ready:
                try:
                    chunk = self._socket.recv(LONGEST_REPLY)
                except ConnectionError:
                    chunk = b""
                content += chunk
                if not chunk or len(content) > LONGEST_REPLY:
                    raise WorkerEnded(self._explain_end())
                if len(content) >= 8 and len(content) >= 8 + int.from_bytes(content[:8], "big"):
                    return bytes(content[8:])
            elif self._process.poll() is not None:  # a process that it has started may hold the socket
                raise WorkerEnded(self._explain_end())

    def _explain_end(self) -> str:
        """Returns how the process ended; it is given a second to end after its socket is closed."""
        assert self._process is not None
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed the connection of its process"
        return f"its process was killed by signal {-code}" if code < 0 else f"ended its process with code {code}"

    def _read_output(self) -> bool:
        """Reads what was printed; returns False at the end of the pipe."""
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._printed += chunk[: 4 * KEPT_OUTPUT - len(self._printed)]

    def _show_printed(self) -> str:
        return " ".join(self._printed.decode("utf-8", "replace").split())[:KEPT_OUTPUT]
