"""The processes of a round: found by a variable in their environment, which children inherit."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "RIL_CHAOS_ROUND"


@dataclass(frozen=True)
class RoundProcess:
    """One process of a round."""

    pid: int
    command: str
    stage: str  # what DVC_STAGE says, or ""

    def is_alive(self) -> bool:
        """Whether it still runs; one that waits for its parent to collect it does not."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"

    def describe(self) -> str:
        """Stage and role: dvc, ril, stage, rank, engine, or the first words of the command."""
        words = self.command.split()
        roles = {"flows.cli": "ril", "flows.run": "stage", "dvc": "dvc", "torch": "rank", "vllm": "engine"}
        roles |= {"VLLM::": "engine", "multiprocessing": "worker", "supervisor": "keeper"}
        role = next((role for text, role in roles.items() if text in self.command), " ".join(words[:2])[:40])
        return f"{self.stage} {role}".strip()


def list_processes(mark: str) -> list[RoundProcess]:
    """All living processes of the round that `mark` names."""
    return [process for process in _read_processes(mark) if process.is_alive()]


def await_end(mark: str, seconds: float) -> list[RoundProcess]:
    """Waits until no process of the round is left, at most `seconds`; those that are."""
    limit = time.monotonic() + seconds
    while (left := list_processes(mark)) and time.monotonic() < limit:
        time.sleep(0.2)
    return left


def _read_processes(mark: str) -> Iterator[RoundProcess]:
    wanted = f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        folder = Path(entry.path)
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted in variables:
            stage = next((item[10:].decode() for item in variables if item.startswith(b"DVC_STAGE=")), "")
            yield RoundProcess(int(entry.name), command, stage)
