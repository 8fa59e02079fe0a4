"""What DVC remembers of files that it has hashed, so that they are not read a second time.

`dvc repro` hashes the dependencies of a stage before it starts it, and keeps the md5 of each file with its inode,
length and modification time. A file of which these are the same has the md5 that DVC will record when the stage ends.
"""

import os
import sqlite3
import stat
from collections.abc import Sequence
from pathlib import Path


def read_known_md5s(root: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Returns the md5 of those `files` that DVC has hashed as they are now.

    Nothing is known where other users could write to DVC's memory, or where it can't be read.
    """
    from dvc.exceptions import DvcException
    from dvc.fs import LocalFileSystem
    from dvc.repo import Repo

    found: dict[Path, str] = {}
    try:
        with Repo(str(root)) as repo:
            if repo.site_cache_dir and _is_private(Path(repo.site_cache_dir)):
                rows = repo.state.get_many([str(file) for file in files], LocalFileSystem(), {})
                found = {Path(path): known.value for path, _, known in rows if known and known.name == "md5"}
    except (DvcException, sqlite3.Error, OSError):  # DVC itself says what is wrong with it; here the files are read
        return {}
    return found


def _is_private(folder: Path) -> bool:
    """Whether no other user can enter it: DVC makes it with mode 0777, in one that `use_private_state` has closed."""
    for part in (folder, folder.parent, folder.parent.parent):
        status = part.stat()
        if status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077:
            return True
    return False
