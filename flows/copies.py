"""Copies of a project in which DVC runs experiments (`--temp`, `--queue`, forms, studies), and what they lack.

A copy holds what Git tracks, changed files included, and what DVC keeps. Users' paths that are relative mean the
project's folder wherever a stage runs; a path that a copy can't have is named before anything starts.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from flows.code_record import is_code
from flows.environment import find_project
from flows.git import run_git
from stages.config.yaml import ParamsError
from stages.job.job import Job

_MADE = {("data",), ("reports",)}  # folders of stages
_LINK_MODE = "120000"  # of a symbolic link in Git's index
_LINKS = 40  # in one path, as Linux allows


class AbsentInCopy(ParamsError):
    """Users' files that an experiment's copy does not have; a line for each, with the remedy."""


def list_user_paths(job: Job) -> list[str]:
    """Paths of users' files that DVC watches for the job, as params.yaml has them."""
    return [
        path for path in job.paths if Path(path).parts[:1] not in _MADE and not (Path(path).parts and is_code(path))
    ]


def check_copies(root: Path, jobs: Iterable[Job]) -> None:
    """Raises AbsentInCopy for users' files of `jobs` that are in the project at `root` but not in a copy of it.

    For a copy at `root` it says what that one lacks. Raises GitError where there is no repository.
    """
    if lines := list_absences(root, jobs):
        raise AbsentInCopy("\n".join(lines))


def list_absences(root: Path, jobs: Iterable[Job]) -> list[str]:
    """The same as lines, one for each path."""
    paths = {path: job.name for job in jobs for path in list_user_paths(job)}
    relative = {path: name for path, name in paths.items() if not Path(path).is_absolute()}
    if not relative:
        return []  # no Git is asked for nothing
    tracked = TrackedFiles(root)
    found = {path: tracked.explain_absence(path) for path in relative}
    return [f"{path} of stage {relative[path]} {line}" for path, line in found.items() if line]


class TrackedFiles:
    """What Git and DVC know of users' files in the checkout at `root`. Raises GitError where there is no repository."""

    def __init__(self, root: Path) -> None:
        self._root, self._project = root.resolve(), find_project(root.resolve()).resolve()
        self._files = [self._root / name for name in _list_names(self._root, "--cached", "--", "*.dvc")]
        self._kept = [out for file in self._files for out in _list_outs(file)]

    def explain_absence(self, path: str) -> str:
        """Why no copy of the project has the relative `path`, and what to do; "" where one has it.

        A path that is not in the project either is left to the stage.
        """
        there = Path(os.path.normpath(self._project / path))
        here = Path(os.path.normpath(self._root / path))
        if not os.path.lexists(there):
            return ""
        why = self._find_reason(here, _LINKS) if self._root == self._project else self._look_in_copy(here)
        if not why:
            return ""
        remedy = f"give its absolute path in params.yaml ({there.resolve()})"
        if there.is_relative_to(self._project):
            short = there.relative_to(self._project).parts[0]
            remedy += f", or put it under DVC: dvc add {short} && git add {short}.dvc .gitignore"
        return f"{why}, and experiments run in copies without it; {remedy}"

    def _look_in_copy(self, path: Path) -> str:
        kept = any(path.is_relative_to(out) for out in self._kept)  # DVC checks out what its targets need
        return "" if kept or (path.exists() and path.is_relative_to(self._root)) else "is not in this experiment's copy"

    def _find_reason(self, path: Path, links: int) -> str:
        if not path.is_relative_to(self._root):
            return "lies outside the project's folder"
        if any(path.is_relative_to(out) for out in self._kept):
            return ""
        inside = path.relative_to(self._root)
        for part in reversed((inside, *inside.parents)):
            link = self._root / part
            if part.parts and link.is_symlink():
                if not _list_names(self._root, "--cached", "--", str(part)):
                    return f"goes through the link {part}, which Git does not track"
                target = link.readlink()
                if target.is_absolute():
                    return ""
                rest = Path(os.path.normpath(link.parent / target / inside.relative_to(part)))
                return self._find_reason(rest, links - 1) if links else "is a chain of links"
        new = [self._root / name for name in _list_names(self._root, "--others", "--", str(inside))]
        if unknown := [file for file in new if not any(file.is_relative_to(out) for out in self._kept)]:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            for place in (path, *path.parents):
                if Path(f"{place}.dvc").is_file() and place.is_relative_to(self._root):
                    return f"is kept by {place.name}.dvc, which Git does not track (git add it)"
            return f"is not tracked by Git or DVC ({unknown[0].relative_to(self._root)}{more})"
        return self._find_broken_link(inside)

    def _find_broken_link(self, inside: Path) -> str:
        """Why a link in the folder `inside` would lead nowhere in a copy; "" when none does."""
        for line in run_git(self._root, "ls-files", "--stage", "-z", "--", str(inside)).decode().split("\0"):
            about, _, name = line.partition("\t")
            if about.startswith(_LINK_MODE):
                target = (self._root / name).readlink()
                if not target.is_absolute() and not Path(
                    os.path.normpath((self._root / name).parent / target)
                ).is_relative_to(self._root):
                    return f"holds the link {name}, which leads out of the project's folder"
        return ""


def _list_names(root: Path, *arguments: str) -> list[str]:
    """Names that `git ls-files` prints, relative to `root`."""
    return [
        name
        for name in run_git(root, "ls-files", "-z", *arguments).decode(errors="surrogateescape").split("\0")
        if name
    ]


def _list_outs(file: Path) -> Sequence[Path]:
    """What the .dvc file keeps; nothing when it can't be read: DVC says what is wrong with it."""
    if not file.is_file():
        return []
    told = yaml.safe_load(file.read_bytes())
    outs = told.get("outs") if isinstance(told, dict) else None
    folder = file.parent.resolve() / str(told.get("wdir", ".") if isinstance(told, dict) else ".")
    return [
        Path(os.path.normpath(folder / one["path"])) for one in outs or [] if isinstance(one, dict) and "path" in one
    ]
