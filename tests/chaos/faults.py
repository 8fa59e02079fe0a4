"""What goes wrong in a round: a process is killed or stopped, the disk is full, the clock jumps, the network is gone.

The last three are made by `faults.c`, which is compiled when first needed and preloaded into each process of the round.
"""

import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.chaos.processes import RoundProcess

SOURCE = Path(__file__).with_name("faults.c")
DAY_NS = 86_400 * 10**9
FULL, LOSS, CLOCK, FAILURES = range(4)  # the integers of the page


class Page:
    """The switches that the processes of a round read (faults.c)."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.file = folder / "page"
        self.file.write_bytes(bytes(32))
        self.library = compile_faults(folder)
        self.project = project

    def describe_environment(self) -> Mapping[str, str]:
        """The variables that make a process read this page."""
        return {
            "LD_PRELOAD": str(self.library),
            "RIL_CHAOS_PAGE": str(self.file),
            "RIL_CHAOS_FOLDER": str(self.project),
        }

    def set(self, place: int, value: int) -> None:
        """Switches a fault on or off in all processes of the round."""
        with self.file.open("r+b") as page:
            page.seek(8 * place)
            page.write(struct.pack("<q", value))

    def count_failures(self) -> int:
        """How many calls have failed so far."""
        return int(struct.unpack("<4q", self.file.read_bytes())[FAILURES])


def compile_faults(folder: Path) -> Path:
    """The library with the faults, made in `folder` by gcc."""
    library = folder / "faults.so"
    if not library.exists():
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("gcc is needed to make tests/chaos/faults.c; install it: apt-get install gcc")
        made = library.with_suffix(".partial")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        made.rename(library)
    return library


def kill(process: RoundProcess, _page: Page, _rng: random.Random) -> str:
    """SIGKILL."""
    os.kill(process.pid, signal.SIGKILL)
    return "SIGKILL"


def terminate(process: RoundProcess, _page: Page, _rng: random.Random) -> str:
    """SIGTERM."""
    os.kill(process.pid, signal.SIGTERM)
    return "SIGTERM"


def stop(process: RoundProcess, _page: Page, rng: random.Random) -> str:
    """SIGSTOP, and SIGCONT some seconds later."""
    seconds = rng.uniform(1, 8)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGCONT)
    return f"SIGSTOP for {seconds:.1f} s"


def fill_disk(_process: RoundProcess, page: Page, rng: random.Random) -> str:
    """Writing below the project fails for some seconds."""
    return _switch(page, FULL, "disk full", rng.uniform(1, 10))


def cut_network(_process: RoundProcess, page: Page, rng: random.Random) -> str:
    """TCP fails for some seconds."""
    return _switch(page, LOSS, "no network", rng.uniform(1, 10))


def move_clock(_process: RoundProcess, page: Page, rng: random.Random) -> str:
    """The time of day jumps by up to 400 days, back or ahead, and stays there."""
    days = rng.choice((-400.0, -1.0, -0.05, 0.05, 1.0, 400.0)) * rng.uniform(0.5, 1)
    page.set(CLOCK, int(days * DAY_NS))
    return f"clock moved by {days:+.2f} days"


def _switch(page: Page, place: int, title: str, seconds: float) -> str:
    before = page.count_failures()
    page.set(place, 1)
    time.sleep(seconds)
    page.set(place, 0)
    return f"{title} for {seconds:.1f} s, {page.count_failures() - before} calls failed"


Fault = Callable[[RoundProcess, Page, random.Random], str]
FAULTS: tuple[Fault, ...] = (kill, kill, kill, terminate, stop, fill_disk, move_clock, cut_network)  # kill: most often
