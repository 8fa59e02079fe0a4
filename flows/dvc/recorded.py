"""Experiments as DVC recorded them, and what Git knows of the files that they were made from."""

import tempfile
from pathlib import Path

from flows.dvc.experiments import find_experiment_commit
from flows.git import read_git_lines, run_git


class RecordedExperiment:
    """An experiment as dvc recorded it: files of its Git commit, and outs that are in the cache."""

    def __init__(self, root: Path, revision: str) -> None:
        from dvc.api import DVCFileSystem

        self._root = root
        self.revision = revision
        self.baseline = read_git_lines(root, "rev-parse", f"{revision}^")[0]  # the commit that it was started from
        self._files = DVCFileSystem(str(root), rev=revision)

    def list_changes(self, since: str, *paths: str) -> list[str]:
        """Files below `paths` in which it differs from `since`, a commit or a snapshot."""
        return list_differing_files(self._root, since, self.revision, *paths)

    def read_text(self, path: str) -> str:
        """The text file at `path`. Raises FileNotFoundError when the experiment has none."""
        return str(self._files.read_text(path))

    def fetch(self, path: str, into: Path) -> Path:
        """Copies the file or folder at `path` to `into`, and returns that. Raises FileNotFoundError when it isn't
        there.
        """
        self._files.get(path, str(into), recursive=True)
        return into


def list_untracked(root: Path, *paths: str) -> list[str]:
    """Files below `paths` that Git does not know: a temporary copy has none of them. Raises GitError."""
    return read_git_lines(root, "ls-files", "--others", "--exclude-standard", "--", *paths)


def find_recorded(root: Path, name: str) -> RecordedExperiment | None:
    """Experiment `name`, whatever commit it was started from; None when none of that name was recorded.

    Raises GitError.
    """
    revision = find_experiment_commit(root, name)
    return None if revision is None else RecordedExperiment(root, revision)


def take_snapshot(root: Path, *paths: str) -> str:
    """The Git tree of the files below `paths` as they are now, changed ones included; HEAD, index and files stay as
    they are.

    Raises GitError.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        run_git(root, "read-tree", "HEAD", environment=own)
        run_git(root, "add", "--all", "--", *paths, environment=own)
        return read_git_lines(root, "write-tree", environment=own)[0]


def list_differing_files(root: Path, one: str, other: str, *paths: str) -> list[str]:
    """Names of the files below `paths` that differ between two commits or snapshots. Raises GitError."""
    return read_git_lines(root, "diff", "--name-only", one, other, "--", *paths)
