"""The driver's side of a worker process: starts it, gives orders, reads answers."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
STARTED_WITHIN, ANSWERED_WITHIN = 300, 300  # seconds


class Worker:
    """A worker process of either side."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        self._read(STARTED_WITHIN)

    def ask(self, *order: str) -> dict[str, Any]:
        """The answer to an order.

        Raises RuntimeError with what the worker wrote last when it ends, TimeoutError when it says nothing for minutes.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(order) + "\n")
        self._process.stdin.flush()
        return self._read(ANSWERED_WITHIN)

    def _read(self, seconds: float) -> dict[str, Any]:
        import select

        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"{self.name} said nothing for {seconds} s")
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} ended:\n{self._errors.read().decode(errors='replace')[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)
