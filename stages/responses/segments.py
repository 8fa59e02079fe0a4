"""Segments: immutable parquet files of answers, published atomically, in an order that does not depend on clocks.

A segment's name is `<order>-<home>.parquet`. Of two answers with one key, the one in the smaller order counts. A writer
claims the next free order by linking its finished file to that name, which fails if the name is taken. Therefore orders
appear one after another, and no later segment can precede one that was already served. `home` is a random id of the
folder, so that files of two folders never have the same name. A compacted segment
(`<order>-<home>-c<last>-<random>.parquet`) takes the position of the first segment that it replaces; `last` is the
largest order among them. Orders and names are never reused, because a slow reader or a second compaction may still hold
the old ones.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.job.bounded import UnusableFile, read_bounded
from stages.job.files import make_folder, share_with_group, sync_file, sync_folder
from stages.responses.space import explain_unwritable

LAST = 10**20 - 1  # order of files without one in their name
_NUMBERED = 10**19  # writers count from the largest order below this; nanoseconds of the first format reach it in 2286
_NAME = re.compile(r"(\d{20})-[0-9a-f]{8}(?:-c(\d{20})-[0-9a-f]{8})?\.parquet")
_HOME = re.compile("[0-9a-f]{8}")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True)
class Segment:
    """One file, described by its name."""

    path: Path
    order: int
    last: int  # largest order that this file replaces; 0 if its name has none
    compacted: bool

    @property
    def precedence(self) -> tuple[int, bool, str]:
        """Sort key, smallest first: of two answers with one key, the first counts."""
        return self.order, not self.compacted, self.path.name


def parse_segment(path: Path) -> Segment:
    """Returns the segment at `path`; a file with another name format sorts after all others."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        return Segment(path, LAST, 0, compacted=False)
    return Segment(path, int(named[1]), int(named[2] or named[1]), compacted=named[2] is not None)


def list_segments(folder: Path) -> list[Segment]:
    """Returns the segments in `folder`, sorted by precedence.

    Lists the folder again until nothing vanishes between two listings: a listing during the end of a compaction may
    lack both the old segments and the new one.
    """
    found = _list_names(folder)
    while found - (again := _list_names(folder)):
        found = again
    return sorted((parse_segment(folder / name) for name in again), key=lambda segment: segment.precedence)


def _list_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if path.suffix == ".parquet" and not path.name.startswith(".")}


@contextmanager
def open_scratch(folder: Path) -> Iterator[Path]:
    """Yields a path in `folder` for a file that readers ignore, and removes the file afterwards if it exists."""
    make_folder(folder)
    path = folder / f".{secrets.token_hex(8)}.partial"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def publish(folder: Path, write: Callable[[Path], None]) -> Segment:
    """Writes one segment by `write` and gives it the next order; on return it is on disk and visible.

    Raises UnusableStore, which names the folder and the remedy, if the segment cannot be written; then nothing is
    visible.
    """
    try:
        with open_scratch(folder) as temporary:
            write(temporary)
            sync_file(temporary)
            share_with_group(temporary)
            path = _link_next(temporary, folder)
    except OSError as error:
        raise explain_unwritable(folder, error) from error
    sync_folder(folder)
    return parse_segment(path)


def publish_for(folder: Path, temporary: Path, replaced: Sequence[Segment]) -> Segment:
    """Publishes the finished file `temporary` as a compacted segment in the position of the replaced segments."""
    sync_file(temporary)
    share_with_group(temporary)
    order, last = replaced[0].order, max(segment.last for segment in replaced)
    path = folder / f"{order:020d}-{_read_folder_id(folder)}-c{last:020d}-{secrets.token_hex(4)}.parquet"
    temporary.rename(path)
    sync_folder(folder)
    return parse_segment(path)


def _link_next(temporary: Path, folder: Path) -> Path:
    """Links `temporary` to the first free name after all existing segments.

    Segments with orders that no writer gives (a file named by hand) are passed over, and a taken name is never tried
    twice: a name of the last order there is can't stop the writers.
    """
    home, last = _read_folder_id(folder), 0
    while True:
        numbered = (segment.last for segment in list_segments(folder) if segment.last < _NUMBERED)
        last = max(last, *numbered, 0) + 1
        path = folder / f"{last:020d}-{home}.parquet"
        claimed = _claim_name(temporary, path)
        if claimed is None:  # two concurrent writers may get the same order here; then names decide
            path = path.with_name(f"{path.name[:20]}-{secrets.token_hex(4)}.parquet")
            temporary.rename(path)
        if claimed is not False:
            return path


def _claim_name(temporary: Path, path: Path) -> bool | None:
    """Links the file to `path`; returns False if it is taken, None without hard links (object storage, FUSE)."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return None
        raise
    return True


def _read_folder_id(folder: Path) -> str:
    """Returns eight hex digits unique to this folder, not to its copies: stored in a file named after its inode.

    If that file holds something else, all writers of this folder take a hash of the inode instead.
    """
    number = folder.stat().st_ino
    file = folder / f".home-{number}"
    if not os.path.lexists(file):
        with open_scratch(folder) as temporary:
            temporary.write_text(secrets.token_hex(4))
            sync_file(temporary)
            share_with_group(temporary)
            if _claim_name(temporary, file) is None:
                temporary.rename(file)
    try:
        found = read_bounded(file, max_bytes=8)
    except UnusableFile:
        found = ""
    return found if _HOME.fullmatch(found) else hashlib.sha256(str(number).encode()).hexdigest()[:8]
