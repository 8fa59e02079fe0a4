"""The experiments that DVC keeps in Git, each as a commit under refs/exps. Nothing else reads that."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.git import GitError, read_git_lines, run_git
from flows.lockfile import parse_locked_stages, read_locked_outs
from stages.job.repository import RecordedRun, Repository

METRICS_FILE, PARAMS_FILE = "reports/report/metrics.json", "params.yaml"
MOST = 40  # experiments that are read: the newest; more on one page would be no comparison but a list
_TRACKED_ONLY = ("--porcelain", "--untracked-files=no")
_WATCHED = ("stages", "flows", "params.yaml", "dvc.yaml")  # whose state `Repository.code` tells


def read_repository(root: Path) -> Repository:
    """What the repository of the project at `root` holds; an empty one where there is no Git or no repository.

    A temporary experiment has a checkout of its own; the experiments are those of the checkout that it came from.
    """
    code, runs = "", list[RecordedRun]()
    with suppress(GitError):
        (commit,) = read_git_lines(root, "rev-parse", "--short=12", "HEAD")
        code = f"{commit}+" if run_git(root, "status", *_TRACKED_ONLY, "--", *_WATCHED) else commit
    with suppress(GitError):
        runs = list(_iter_recorded_runs(Path(os.environ.get("DVC_ROOT", root))))
    return Repository(code, os.environ.get("DVC_EXP_NAME", ""), runs, read_locked_outs(root))


def find_experiment_commit(root: Path, name: str) -> str | None:
    """The commit of experiment `name`, whatever commit it was started from; None when none of that name was recorded.

    Raises GitError.
    """
    found = [commit for experiment, commit in _iter_experiments(root) if experiment == name]
    return found[0] if found else None


def read_locked_stages_at(root: Path, commit: str) -> dict[str, Any]:
    """The entries of dvc.lock in `commit`; none when it has no dvc.lock."""
    (text,) = _read_texts(root, [f"{commit}:./dvc.lock"])
    return parse_locked_stages(text.encode())


def _iter_experiments(root: Path) -> Iterator[tuple[str, str]]:
    """Name and commit of each experiment, the newest first."""
    form = "--format=%(objectname) %(refname)"
    for line in read_git_lines(root, "for-each-ref", "--sort=-committerdate", form, "refs/exps"):
        commit, _, ref = line.partition(" ")
        parts = ref.split("/")  # refs/exps/<2 digits>/<38 digits>/<name>; DVC's own bookkeeping has other forms
        if len(parts) == 5 and len(parts[2]) == 2 and len(parts[3]) == 38:
            yield parts[4], commit


def _iter_recorded_runs(root: Path) -> Iterator[RecordedRun]:
    (head,) = read_git_lines(root, "rev-parse", "HEAD")
    commits = [("HEAD", head), *_iter_experiments(root)][: MOST + 1]
    texts = iter(
        _read_texts(root, [f"{commit}:./{file}" for _, commit in commits for file in (METRICS_FILE, PARAMS_FILE)])
    )
    for name, commit in commits:
        yield RecordedRun(name, commit, metrics=next(texts), params=next(texts))


def _read_texts(root: Path, names: Sequence[str]) -> list[str]:
    """The texts of these files in Git, in one call; "" for one that is not there."""
    rest = run_git(root, "cat-file", "--batch", given="".join(f"{name}\n" for name in names).encode())
    texts = []
    for _ in names:
        head, _, rest = rest.partition(b"\n")
        if head.endswith(b" missing") or not head:
            texts.append("")
            continue
        length = int(head.rpartition(b" ")[2])
        texts.append(rest[:length].decode(errors="replace"))
        rest = rest[length + 1 :]
    return texts
