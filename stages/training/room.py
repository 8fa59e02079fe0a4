"""Room on the disk for checkpoints: checked before one is written, explained when it was not enough."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.job.failure import Failure, find_full_disk

_ALMOST_NOTHING = (
    1 << 20
)  # bytes free after a failed write that mean a full disk; torch's archive writer says no reason


def measure_folder(folder: Path) -> int:
    """Returns the bytes of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def format_bytes(count: int) -> str:
    """Returns `count` in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def measure_free(folder: Path) -> int:
    """Returns the bytes that this user may still write to the disk of `folder`."""
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def explain_full_disk(folder: Path, describe_kept: Callable[[], str]) -> Iterator[None]:
    """Turns the error of a write to a full disk into a Failure of one line; other errors pass unchanged."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:  # DeepSpeed, torch and safetensors raise errors of their own kinds
        if find_full_disk(error) is None and measure_free(folder) > _ALMOST_NOTHING:
            raise
        raise make_no_room(folder, describe_kept()) from error


def make_no_room(folder: Path, kept: str, needed: int = 0) -> Failure:
    """Returns the failure of a checkpoint for which there is no room."""
    wanted = f"about {format_bytes(needed)} needed, " if needed else ""
    return Failure(
        f"no room for a checkpoint in {folder} ({wanted}{format_bytes(measure_free(folder))} free); {kept}; "
        "make room, or set RIL_STORE to another disk, and run it again"
    )
