"""Experiments as DVC recorded them, and what Git knows of the files that they were made from."""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.dvc.repro import Refused

_ASK_SECONDS = 600.0  # Git hashes what changed; nothing in a project's code takes longer


class Finished:
    """An experiment as dvc recorded it: files of its Git commit, and outs that are in the cache."""

    def __init__(self, root: Path, revision: str) -> None:
        from dvc.api import DVCFileSystem

        self._root = root
        self.revision = revision
        self.baseline = _git(root, ["rev-parse", f"{revision}^"]).strip()  # the commit that it was started from
        self._files = DVCFileSystem(str(root), rev=revision)

    def changed(self, since: str, *paths: str) -> list[str]:
        """Files below `paths` in which it differs from `since`, a commit or a snapshot."""
        return differing(self._root, since, self.revision, *paths)

    def text(self, path: str) -> str:
        """The text file at `path`. Raises FileNotFoundError when the experiment has none."""
        return str(self._files.read_text(path))

    def fetch(self, path: str, into: Path) -> Path:
        """Copies the file or folder at `path` to `into`, and returns that. Raises FileNotFoundError when it isn't
        there.
        """
        self._files.get(path, str(into), recursive=True)
        return into


def untracked(root: Path, *paths: str) -> list[str]:
    """Files below `paths` that Git does not know: a temporary copy has none of them. Raises Refused when Git fails."""
    return _git(root, ["ls-files", "--others", "--exclude-standard", "--", *paths]).splitlines()


def finished(root: Path, name: str) -> Finished | None:
    """Experiment `name`, whatever commit it was started from; None when none of that name was recorded.

    Raises Refused when Git fails.
    """
    found = _git(root, ["for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}"]).split()
    return Finished(root, found[-1]) if found else None


def snapshot(root: Path, *paths: str) -> str:
    """The Git tree of the files below `paths` as they are now, changed ones included; HEAD, index and files stay as
    they are.

    Raises Refused when Git fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(root, ["read-tree", "HEAD"], own)
        _git(root, ["add", "--all", "--", *paths], own)
        return _git(root, ["write-tree"], own).strip()


def differing(root: Path, one: str, other: str, *paths: str) -> list[str]:
    """Names of the files below `paths` that differ between two commits or snapshots. Raises Refused when Git fails."""
    return _git(root, ["diff", "--name-only", one, other, "--", *paths]).splitlines()


def _git(root: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    command, environment = ["git", *arguments], {**os.environ, **(environment or {})}
    answer = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=_ASK_SECONDS)
    if answer.returncode:
        raise Refused(f"git {' '.join(arguments)}: {' '.join(answer.stderr.split())}")
    return answer.stdout
