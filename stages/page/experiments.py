"""Other experiments of this repository: DVC keeps each as a commit under refs/exps, with its metrics and parameters.

They are no input of the stage: the list is that of the time when the page was made; `dvc repro -f -s report` updates
it.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.yaml import parse_yaml
from stages.job.job import Job

METRICS, PARAMS = "reports/report/metrics.json", "params.yaml"
MOST = 40  # experiments on one page: the newest; more would be no comparison but a list
SHOWN_CHANGES = 6  # changed parameters of one experiment that are named
GIT_SECONDS = 30  # for any one call of git
THIS = "this run"


@dataclass(frozen=True)
class Experiment:
    """A run of the pipeline with its summary, as `stages/page/summary.py` made it."""

    name: str
    commit: str  # the first digits; empty for this run
    objective: str
    teachers: str
    changed: tuple[str, ...]  # "key: value" for the parameters that differ from this run's
    summary: Mapping[str, Any]

    @property
    def here(self) -> bool:
        """Whether it is the run that the page is about."""
        return not self.commit


@dataclass(frozen=True)
class Found:
    """What there is to compare."""

    experiments: Sequence[Experiment]  # this run first, then the newest first
    left_out: int  # experiments without a summary: older than it, or stopped before their report


def found(job: Job, summary: Mapping[str, Any]) -> Found:
    """This run and every other experiment of the repository; this run alone where there is no Git repository.

    An experiment whose parameters and summary equal those of this run is this run and gives it its name.
    """
    own = flat(job.values)
    name, others, left_out = os.environ.get("DVC_EXP_NAME") or THIS, [], 0
    for label, commit, metrics, params in recorded(home(job)):
        there = json.loads(metrics).get("summary") if metrics else None
        if not there:
            left_out += label != "HEAD"
            continue
        theirs = flat(parse_yaml(params, f"{label}: {PARAMS}")) if params else {}
        changed = tuple(f"{key}: {value}" for key, value in theirs.items() if key in own and own[key] != value)
        if changed or there != dict(summary):
            others.append(Experiment(label, commit[:8], *method(own | theirs), shortened(changed), there))
        elif label != "HEAD":
            name = label
    return Found([Experiment(name, "", *method(own), (), summary), *others], left_out)


def method(params: Mapping[str, Any]) -> tuple[str, str]:
    """The objective and the teachers of a run with these parameters: what tells the paper's rows apart."""
    return str(params["ril.objective"]), ", ".join(params["pool.teachers"])


def home(job: Job) -> Path:
    """The checkout whose Git repository has the experiments: of a temporary experiment that is not its own folder."""
    return Path(os.environ.get("DVC_ROOT", job.root))


def recorded(project: Path) -> Iterator[tuple[str, str, str, str]]:
    """Name, commit, text of the summary and of params.yaml of HEAD and of each experiment; "" for a file that is not
    there.
    """
    commits = [("HEAD", commit) for commit in git(project, "rev-parse", "--verify", "--quiet", "HEAD").decode().split()]
    listed = git(
        project, "for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps"
    ).decode()
    for line in listed.splitlines():
        commit, _, ref = line.partition(" ")
        parts = ref.split("/")  # refs/exps/<2 digits>/<38 digits>/<name>; DVC's own bookkeeping has other forms
        if len(parts) == 5 and len(parts[2]) == 2 and len(parts[3]) == 38:
            commits.append((parts[4], commit))
    commits = commits[: MOST + 1]
    texts = iter(blobs(project, [f"{commit}:./{file}" for _, commit in commits for file in (METRICS, PARAMS)]))
    for name, commit in commits:
        yield name, commit, next(texts), next(texts)


def blobs(project: Path, names: Sequence[str]) -> list[str]:
    """The texts of these files in Git, in one call; "" for one that is not there."""
    rest = git(project, "cat-file", "--batch", said="".join(f"{name}\n" for name in names))
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


def git(project: Path, *arguments: str, said: str = "") -> bytes:
    """What git prints; nothing where there is no git, no repository or no such thing."""
    program = shutil.which("git")
    if program is None:
        return b""
    command = [program, "-C", str(project), *arguments]
    done = subprocess.run(command, input=said.encode(), capture_output=True, timeout=GIT_SECONDS, check=False)
    return done.stdout if done.returncode == 0 else b""


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The tree's leaves by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = f"{above}{key}"
        leaves |= flat(value, f"{inner}.") if isinstance(value, Mapping) else {inner: value}
    return leaves


def shortened(changed: Sequence[str]) -> tuple[str, ...]:
    """The first of the changes, and how many more there are."""
    more = len(changed) - SHOWN_CHANGES
    return (*changed[:SHOWN_CHANGES], f"and {more} more") if more > 0 else tuple(changed)
