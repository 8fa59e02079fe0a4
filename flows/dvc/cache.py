"""DVC's cache: where it is, and whether it holds what dvc.lock says. DVC goes on when a file did not get there.

With a full disk `dvc repro` and `dvc exp run` print "failed to transfer", write dvc.lock and end with 0 (DVC 3.67); the
result of an experiment is then nowhere, because its copy is removed.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEPT = ("data", "reports/report/index.html")  # outs that DVC's cache keeps; metrics and plots are Git's
_SHOWN = 5  # outs that a message names


@dataclass(frozen=True)
class Cache:
    """DVC's cache of one project."""

    folder: Path
    links: tuple[str, ...]  # how an out is linked to it, the first that works

    @property
    def moves(self) -> bool:
        """Whether DVC links an out into the cache instead of copying it, where both are on one disk."""
        return self.links[:1] == ("hardlink",)

    def find_file(self, md5: str) -> Path:
        """Where the cache keeps the file or the list of a folder (".dir") with this md5."""
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def holds(self, out: Mapping[str, Any]) -> bool:
        """Whether all of an out of dvc.lock is there, by the number and the lengths of its files."""
        md5s = [str(out["md5"])]
        if md5s[0].endswith(".dir"):
            listing = self.find_file(md5s[0])
            if not listing.is_file():
                return False
            md5s = [str(row["md5"]) for row in json.loads(listing.read_bytes())]
        files = [self.find_file(md5) for md5 in md5s]
        return all(file.is_file() for file in files) and sum(file.stat().st_size for file in files) == out.get("size")


def read_cache(root: Path) -> Cache:
    """The cache of the project at `root`, as DVC's configuration has it: that of the machine, the user, the project.

    DVC's library takes half a second to be imported; each stage asks this.
    """
    from configobj import ConfigObj

    folder, links = root / ".dvc" / "cache", "reflink,copy"  # DVC's own
    for file in list_config_files(root):
        section = ConfigObj(str(file), list_values=False).get("cache", {}) if file.is_file() else {}
        links = section.get("type", links)
        folder = file.parent / section["dir"] if "dir" in section else folder
    return Cache(Path(os.path.normpath(folder)), tuple(part.strip() for part in links.strip("\"'").split(",")))


def list_config_files(root: Path) -> list[Path]:
    """The files of DVC's configuration for the project at `root`, present or not; a later one has precedence."""
    from dvc.dirs import global_config_dir, system_config_dir

    machine, user = Path(system_config_dir()) / "config", Path(global_config_dir()) / "config"
    return [machine, user, root / ".dvc" / "config", root / ".dvc" / "config.local"]


def list_lost_outs(root: Path, stages: Mapping[str, Any], targets: Collection[str] = ()) -> list[str]:
    """Outs that the entries `stages` of a dvc.lock record and the cache of the project at `root` does not hold.

    With `targets` only those of these stages and of all before them.
    """
    cache = read_cache(root)
    wanted = _select_entries(stages, targets)
    outs = {out["path"]: out for name in wanted for out in stages[name].get("outs", ())}
    return [path for path, out in outs.items() if any(map(Path(path).is_relative_to, KEPT)) and not cache.holds(out)]


def explain_lost_outs(root: Path, lost: Sequence[str], remedy: str) -> str:
    """One line about outs that did not get into the cache."""
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    what = "is" if len(lost) == 1 else "are"
    named = f"{', '.join(lost[:_SHOWN])}{more} {what}"
    return f"{named} not in DVC's cache ({read_cache(root).folder}): the disk is full or can't be written; {remedy}"


def _select_entries(stages: Mapping[str, Any], targets: Collection[str]) -> list[str]:
    """The entries of dvc.lock for `targets` and for what they were made from; all without targets."""
    makers = {out["path"]: name for name, entry in stages.items() for out in entry.get("outs", ())}
    left = [name for name in stages if not targets or {name, name.split("@")[0]} & set(targets)]
    found = list[str]()
    while left:
        name = left.pop()
        if name not in found:
            found.append(name)
            read = [dep["path"] for dep in stages[name].get("deps", ())]
            left += [makers[out] for out in makers if any(_overlap(out, path) for path in read)]
    return found


def _overlap(one: str, other: str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)
