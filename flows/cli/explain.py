"""`ril run --explain`: what would run and why, without running it."""

from collections.abc import Sequence
from pathlib import Path

from flows.cli.status import format_stage
from flows.dvc.staleness import UP_TO_DATE, StageStatus, compare_stages
from flows.environment import store_folder
from flows.jobs import list_needed_jobs
from stages.config.params import Params


def explain_run(root: Path, params: Params, targets: Sequence[str], *, single: bool, force: bool) -> list[str]:
    """Returns lines: each stage that `ril run` would run with its reasons, then how many there are."""
    jobs = list_needed_jobs(root, params, targets)
    names = [job.name for job in jobs if not single or {job.name, job.stage} & set(targets)]
    found = compare_stages(root, store_folder(root))
    chosen = [found.get(name, StageStatus(name)) for name in names]
    running = [one for one in chosen if force or one.state != UP_TO_DATE]
    width = max((len(one.name) for one in running), default=0)
    lines = [line for one in running for line in format_stage(one, width)]
    forced = " (--force)" if force else ""
    return [*lines, f"{len(running)} of {len(chosen)} stages would run{forced}"]
