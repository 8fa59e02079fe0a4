"""Files of fragments: each rank writes what it holds, and reads the ranges that it needs from the files of all.

    <folder>/rank_00000_00000.safetensors    tensors `weight <parameter>`, `exp_avg <parameter>`, ...; in the header,
                                             where each parameter's range starts and AdamW's count of updates

safetensors hold numbers only: nothing that another user of a shared store has put there can run.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.job.failure import Failure
from stages.job.files import sync_file
from stages.training.fragments import VALUES, Fragment

FILE_BYTES = 2**30  # of a file, more for one large parameter: bounds the host memory that writing needs
_RANGES = "ranges"  # key of the header


class _Stored(NamedTuple):
    """A range of a parameter in an open file."""

    file: Any
    start: int
    stop: int
    updates: float


def write_fragments(folder: Path, fragments: Iterable[Fragment], rank: int) -> None:
    """Writes fragments to new files in `folder`, onto the disk; the files of all ranks together are the state."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(split_fragments(fragments)):
        ranges = {one.name: [one.start, float(one.updates)] for one in part}
        tensors = {f"{kind} {one.name}": one.values[kind] for one in part for kind in VALUES}
        path = folder / f"rank_{rank:05d}_{number:05d}.safetensors"
        save_file(tensors, path, {_RANGES: json.dumps(ranges, allow_nan=False)})
        sync_file(path)  # here, as on a network file system no other machine can


def read_fragments(folder: Path, fragments: Sequence[Fragment]) -> None:
    """Copies what any number of ranks have written under any ZeRO stage into `fragments`.

    Raises Failure when a file is damaged, or a range of a parameter is in none.
    """
    with ExitStack() as stack:
        try:
            stored = _index(folder, stack)
            for one in fragments:
                _read_one(folder, one, stored[one.name])
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise Failure(
                f"{folder} is no training state that this project wrote, or it is damaged, and is not loaded: {error}; "
                "delete its folder, or set RIL_FRESH=1 to restart"
            ) from error


def split_fragments(fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    """Yields the fragments of each file, in order."""
    part, size = list[Fragment](), 0
    for one in fragments:
        if part and size + one.bytes > FILE_BYTES:
            yield part
            part, size = [], 0
        part.append(one)
        size += one.bytes
    if part:
        yield part


def _index(folder: Path, stack: ExitStack) -> dict[str, list[_Stored]]:
    found = defaultdict[str, list[_Stored]](list)
    for path in sorted(folder.glob("rank_*.safetensors")):
        file = stack.enter_context(safe_open(path, "pt"))  # type: ignore[no-untyped-call]
        for name, (start, updates) in json.loads((file.metadata() or {})[_RANGES]).items():
            (length,) = file.get_slice(f"{VALUES[0]} {name}").get_shape()
            found[name].append(_Stored(file, start, start + length, updates))
    return found


def _read_one(folder: Path, fragment: Fragment, stored: Sequence[_Stored]) -> None:
    stop, there = fragment.start + fragment.length, 0
    for one in stored:
        first, last = max(one.start, fragment.start), min(one.stop, stop)
        if first >= last:
            continue
        for kind in VALUES:
            piece = one.file.get_slice(f"{kind} {fragment.name}")[first - one.start : last - one.start]
            fragment.values[kind][first - fragment.start : last - fragment.start].copy_(piece)
        # A flat tensor has one count; a parameter that had no gradient in some updates without ZeRO may have had less.
        fragment.updates.fill_(max(float(fragment.updates), one.updates))
        there += last - first
    if there != fragment.length:
        raise ValueError(f"{there} of {fragment.length} values of {fragment.name} are in its files")
