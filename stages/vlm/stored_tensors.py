"""What a checkpoint's safetensors files hold, from their headers: names, shapes, formats; no value is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.vlm.contents import RefusedCheckpoint

_MOST_HEADER = 100 << 20  # bytes; the limit of the format
_POINTER = b"version https://git-lfs"
_AGAIN = "download the file again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    name: str
    shape: tuple[int, ...]
    format: str  # as safetensors names it: F32, BF16, F8_E4M3 ...
    file: str

    @property
    def values(self) -> int:
        """The number of its values."""
        count = 1
        for length in self.shape:
            count *= length
        return count


def read_stored_tensors(weights: Path) -> list[StoredTensor]:
    """Returns the tensors of the safetensors files in the folder itself.

    Raises RefusedCheckpoint when a file is a pointer of Git LFS, is cut off, or has no readable header.
    """
    return [tensor for file in sorted(weights.glob("*.safetensors")) for tensor in _read_header(file)]


def _read_header(file: Path) -> list[StoredTensor]:
    held = file.stat().st_size
    with file.open("rb") as stored:
        start = stored.read(len(_POINTER))
        if start == _POINTER:
            raise RefusedCheckpoint(
                f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder"
            )
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > min(_MOST_HEADER, held - 8):
            raise RefusedCheckpoint(f"{file} has {held:,} bytes and no whole header of safetensors; {_AGAIN}")
        stored.seek(8)
        try:
            header = json.loads(stored.read(length))
            tensors = [_make(name, entry, file) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RefusedCheckpoint(f"{file} has no readable header of safetensors; {_AGAIN}") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    needed = 8 + length + max(ends, default=0)
    if needed > held:
        raise RefusedCheckpoint(f"{file} is cut off: {held:,} of {needed:,} bytes; {_AGAIN}")
    return tensors


def _make(name: str, entry: Mapping[str, Any], file: Path) -> StoredTensor:
    first, end = (int(place) for place in entry["data_offsets"])
    if not 0 <= first <= end:
        raise ValueError(f"{name} lies from {first} to {end}")
    return StoredTensor(name, tuple(int(length) for length in entry["shape"]), str(entry["dtype"]), file.name)
