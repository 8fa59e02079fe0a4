"""Weights on their way to an engine as files: in memory-backed storage where there is room, else on the disk.

Nothing is flushed to a device (no fsync): the file is read once, on this machine, and removed. A new file is written in
each step; between steps it takes no room.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from stages.engines.weight_buckets import BUCKET_BYTES, iter_buckets
from stages.job.host_memory import measure_free_memory
from stages.job.lock_files import make_native_lock

if TYPE_CHECKING:
    from torch import Tensor

# A tmpfs on every Linux; 64 MB in a container of Docker, unless it says otherwise.
MEMORY = Path("/dev/shm")  # nosec B108: folders in it are private (opening_storage)
RESERVE = 2 << 30  # bytes of memory that stay free beside the file: the engine's own buffers, other processes
SaveAdapter = Callable[[Path], None]  # writes an adapter in peft's format to the folder `adapter` of a folder
_PREFIX = "ril-weights-"
_LOCK = "owner.lock"
_YOUNG_SECONDS = 3600.0  # a folder without a lock may be one whose owner is about to take it


def choose_storage(size: int) -> Path:
    """Returns the folder for files of `size` bytes: /dev/shm if it and the memory have room, else the temporary one."""
    writable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    if writable and min(shutil.disk_usage(MEMORY).free, measure_free_memory()) >= size + RESERVE:
        return MEMORY
    return Path(tempfile.gettempdir())


@contextmanager
def opening_storage(size: int, scratch: Path | None = None, shared: Path | None = None) -> Iterator[Path]:
    """Yields a new folder for `size` bytes that only this user can enter; it is removed with the block.

    It is in `shared` if that is given, else where `choose_storage` says. If this process is killed before, a server's
    supervisor follows the link in `scratch`, the folder that it removes; without one `remove_leftovers` finds that
    nobody holds the folder's lock any more.
    """
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=shared or choose_storage(size)))
    link = None if scratch is None else scratch / folder.name
    try:
        with make_native_lock(folder / _LOCK):
            if link is not None:
                link.symlink_to(folder)
            yield folder
    finally:
        if link is not None:
            link.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(shared: Path | None = None) -> None:
    """Removes the folders of this user's processes that were killed while an engine loaded new weights.

    Looks in the places of `choose_storage`, and in `shared`.
    """
    for root in {MEMORY, Path(tempfile.gettempdir()), shared or MEMORY}:
        for folder in root.glob(f"{_PREFIX}*"):
            with suppress(FileNotFoundError):  # its owner removes it meanwhile
                if stat.S_ISDIR(folder.lstat().st_mode) and folder.lstat().st_uid == os.geteuid():
                    _remove_ownerless(folder)


def _remove_ownerless(folder: Path) -> None:
    lock = folder / _LOCK
    if not lock.exists():
        if time.time() - folder.stat().st_mtime > _YOUNG_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(Timeout), make_native_lock(lock).acquire(blocking=False):  # Timeout: its owner lives
        shutil.rmtree(folder, ignore_errors=True)


class ServedAdapter:
    """The files of the adapter that an engine serves.

    They stay until the next one is loaded: vLLM reads them again when it has dropped the adapter meanwhile.
    """

    def __init__(self, scratch: Path | None = None, shared: Path | None = None) -> None:
        """`scratch` and `shared` are those of `opening_storage`."""
        self._scratch, self._shared = scratch, shared
        self._files = ExitStack()
        self.served = False

    def replace(self, save: SaveAdapter, size: int, load: Callable[[Path], None]) -> int:
        """Lets `save` write an adapter of about `size` bytes, calls `load` with its folder; returns the bytes."""
        from stages.vlm.lora import ADAPTER

        with ExitStack() as stack:
            folder = stack.enter_context(opening_storage(size, self._scratch, self._shared))
            save(folder)
            load(folder / ADAPTER)
            self._files.close()
            self._files = stack.pop_all()
        self.served = True
        return sum(file.stat().st_size for file in (folder / ADAPTER).iterdir())

    def close(self) -> None:
        """Removes the files."""
        self._files.close()


def write_weights(folder: Path, named: "Iterable[tuple[str, Tensor]]", limit: int = BUCKET_BYTES) -> int:
    """Writes a model's tensors to `folder` as safetensors files of at most `limit` bytes; returns the bytes of weights.

    A larger tensor has a file of its own. Only one file's tensors are in memory at a time, if `named` makes them so.
    """
    from safetensors.torch import save_file

    content = 0
    for number, bucket in enumerate(iter_buckets(named, limit)):
        seen: set[int] = set()
        tensors = {}
        for name, tensor in bucket.tensors:
            shared = tensor.data_ptr() in seen  # a tied head; safetensors refuses shared memory
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().clone() if shared else tensor.detach().contiguous()
        save_file(tensors, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        content += bucket.content
    return content
