"""A process that goes on when whoever reads its output has died, or the disk that takes it is full."""

import atexit
import contextlib
import errno
import os
import sys
import threading

_LAST_SECONDS = 5.0  # for what is on its way when the process ends


def detach_output() -> None:
    """From now on what this process writes to standard output and error arrives as before, and is dropped once nobody
    reads it, and while the disk that it goes to is full.

    Else a broken pipe or a full disk ends the process at its next line: Prefect's console answers a broken pipe with
    SystemExit, so that a killed `ril serve` or worker would take along the run that it had started, and `ril run` would
    leave its dvc behind.
    """
    for descriptor in (1, 2):
        given = os.dup(descriptor)
        reading, writing = os.pipe()
        os.dup2(writing, descriptor)
        os.close(writing)
        carrier = threading.Thread(target=_copy_output, args=(reading, given), daemon=True, name=f"output {descriptor}")
        carrier.start()
        atexit.register(_restore_output, descriptor, given, carrier)


def _copy_output(reading: int, given: int) -> None:
    """Copies until the last writer has closed; a full disk loses what it does not take."""
    heard = True
    while data := os.read(reading, 65536):
        while heard and data:
            try:
                data = data[os.write(given, data) :]
            except OSError as error:  # whatever it is: if nobody emptied the pipe, the process would stand still
                heard, data = error.errno == errno.ENOSPC, b""


def _restore_output(descriptor: int, given: int, carrier: threading.Thread) -> None:
    """Gives the descriptor back, which closes the pipe, and waits for what is in it."""
    with contextlib.suppress(BrokenPipeError):
        (sys.stdout if descriptor == 1 else sys.stderr).flush()
    os.dup2(given, descriptor)
    carrier.join(_LAST_SECONDS)
