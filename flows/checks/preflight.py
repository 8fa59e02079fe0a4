"""What is missing for the stages that are about to run: all of it, before the first one starts.

`ril run` and forms ask before they start dvc. Under a plain `dvc repro`, each stage is a process of its own, and the
first one of a dvc asks for all that dvc is going to run. Only where something is missing is DVC asked which stages are
up to date: their needs do not count.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil

from flows.checks.finding import Finding, list_missing
from flows.checks.needs import LEFT_OPEN, check_needs
from flows.dvc.failed import DvcFailed
from flows.dvc.staleness import UP_TO_DATE, compare_stages
from flows.environment import store_folder
from flows.jobs import UnknownTarget, list_makers, list_needed_jobs, list_runs, open_job
from stages.config.params import Params, load_params
from stages.config.table import STAGES
from stages.job.files import write_text
from stages.job.job import Job

_CHECKED = "RIL_CHECKED"  # in the environment of dvc: who started it has looked
_VALUED = ("-n", "--name", "-S", "--set-param")  # arguments of dvc that a value follows


def find_missing(
    root: Path, params: Params, targets: Sequence[str] = (), *, single: bool = False, force: bool = False
) -> list[Finding]:
    """Returns what is missing for the stages of `targets` that will run with `params`, and for those before them.

    Without targets for the whole pipeline; `single` leaves out the stages before them; with `force` all of them run.
    Raises UnknownTarget.
    """
    jobs = list_needed_jobs(root, params, targets)
    if single:
        jobs = [job for job in jobs if {job.name, job.stage} & set(targets)]
    missing = list_missing(check_needs(root, params, jobs))
    if not missing or force:
        return missing
    running = _select_running(root, jobs)
    return [one for one in missing if running and (not one.stages or running & set(one.stages))]


def _select_running(root: Path, jobs: Sequence[Job]) -> set[str]:
    """The names of `jobs` that are out of date here, those with other parameters than params.yaml, and followers."""
    try:
        found = compare_stages(root, store_folder(root), code=False)
    except DvcFailed:  # no DVC here, which is among what is missing
        return {job.name for job in jobs}
    current = load_params(root / "params.yaml")
    running = set[str]()
    for job in jobs:  # in an order in which they can run
        own = job.name not in found or found[job.name].state != UP_TO_DATE or _differs(job, root, current)
        makers = {
            maker
            for path in job.paths
            if Path(path).parts[0] in ("data", "reports")
            for maker in list_makers(job, path)
        }
        if own or makers & running:
            running.add(job.name)
    return running


def _differs(job: Job, root: Path, current: Params) -> bool:
    try:
        now = open_job(job.stage, job.item, root, current)
    except UnknownTarget:
        return True
    return now.values != job.values or now.paths != job.paths


def format_missing(missing: Sequence[Finding]) -> str:
    """Returns the list of what is missing as lines: where, what, remedy."""
    lines = [f"{one.topic}: {one}{_name_stages(one)}" for one in missing]
    things = "1 thing is" if len(missing) == 1 else f"{len(missing)} things are"
    return "\n".join([f"nothing was started, {things} missing:", *lines, LEFT_OPEN])


def _name_stages(one: Finding) -> str:
    names = list(dict.fromkeys(name.partition("@")[0] for name in one.stages))
    return f" (for {', '.join(names)})" if names else ""


@contextmanager
def starting_checked() -> Iterator[None]:
    """For this block, a dvc that is started here needs no check: `find_missing` was asked."""
    os.environ[_CHECKED] = "1"
    try:
        yield
    finally:
        del os.environ[_CHECKED]


def check_first_start(root: Path) -> list[Finding]:
    """Returns what is missing for all that the dvc above this process is going to run; nothing unless it starts now.

    Of each dvc the first stage looks, and notes that in `.ril/checked`.
    """
    if os.environ.get(_CHECKED) or "DVC_STAGE" not in os.environ:
        return []
    above = _find_dvc()
    if above is None:
        return []
    process, words = above
    token = f"{process.pid} {process.create_time()}\n"
    noted = root / ".ril" / "checked"
    if noted.is_file() and noted.read_text(encoding="utf-8") == token:
        return []
    params = load_params(root / "params.yaml")
    flags = {"-s", "--single-item"} & set(words), {"-f", "--force"} & set(words)
    missing = find_missing(root, params, read_targets(words, params), single=bool(flags[0]), force=bool(flags[1]))
    if not missing:
        noted.parent.mkdir(parents=True, exist_ok=True)
        write_text(noted, token)
    return missing


def _find_dvc() -> tuple[psutil.Process, list[str]] | None:
    """The nearest process above this one that is dvc, with its command line."""
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            return None
        if any(Path(word).name == "dvc" for word in words[:3]):
            return process, words
    return None


def read_targets(words: Sequence[str], params: Params) -> list[str]:
    """Returns the stages that a command line of dvc names; none if it names none, or also runs what follows them."""
    if {"--downstream", "-p", "--pipeline", "-P", "--all-pipelines"} & set(words):
        return []
    known = {*list_runs(params), *STAGES}
    return [
        name for before, word in pairwise(words) if before not in _VALUED and (name := word.rpartition(":")[2]) in known
    ]
