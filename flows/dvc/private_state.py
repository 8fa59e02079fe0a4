"""A private place for DVC's memory of hashes, which it loads as pickles.

DVC keeps it in /var/tmp/dvc with mode 0777 for all users of a machine, so that one could have code of his run by the
dvc of another. Here each user has a folder of his own there: on the local disk, because DVC's databases do not go
together with network file systems. A relative path does not work: DVC opens it from several folders (measured).
"""

import os
import shutil
import stat
from collections.abc import MutableMapping
from pathlib import Path

from flows.dvc.cache import list_config_files

_VARIABLE, _KEY = "DVC_SITE_CACHE_DIR", "site_cache_dir"
PLACE = Path("/var/tmp")  # nosec B108: DVC's own place; the folder in it is made with mode 0700 and checked


class SharedState(RuntimeError):
    """The place of DVC's memory belongs to another user; the message says what to do."""


def use_private_state(root: Path, environ: MutableMapping[str, str], place: Path = PLACE) -> None:
    """Makes dvc in the project at `root` use a folder that only this user can write to, from now on and in shells.

    It is written to .dvc/config.local, which Git does not track, and to `environ` for processes started from here.
    Whatever the user has chosen in `environ` or in DVC's configuration stays. Raises SharedState.
    """
    if not (root / ".dvc").is_dir() or _VARIABLE in environ:
        return
    from configobj import ConfigObj

    *files, own = list_config_files(root)
    local = ConfigObj(str(own), list_values=False)
    sections = [ConfigObj(str(file), list_values=False).get("core", {}) for file in files if file.is_file()]
    chosen = next((one[_KEY] for one in (local.get("core", {}), *reversed(sections)) if _KEY in one), "")
    folder = place / f"dvc-{os.geteuid()}"
    if chosen and not (Path(chosen).parent == place and Path(chosen).name.startswith("dvc-")):
        return
    _make_private(folder)
    environ[_VARIABLE] = str(folder)
    if chosen != str(folder):
        local.setdefault("core", {})[_KEY] = str(folder)
        new = own.with_name(f".{own.name}.{os.getpid()}.partial")
        with new.open("wb") as file:
            local.write(file)
        new.replace(own)


def _make_private(folder: Path) -> None:
    """Makes `folder` and in it the one that DVC would make for everybody; empties what others could have written to."""
    for part in (folder, folder / "repo"):
        try:
            part.mkdir(mode=0o700)
        except FileExistsError:
            found = part.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise SharedState(
                    f"{part} is not a folder of this user, and DVC would load what is in it; remove it, or choose "
                    f"another place: export {_VARIABLE}=FOLDER"
                ) from None
            if found.st_mode & 0o022:
                shutil.rmtree(part)  # hashes only: DVC computes them again
                part.mkdir(mode=0o700)
