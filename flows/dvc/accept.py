"""Taking a result as it is after a change of code that does not concern it: dvc.lock gets the new hashes of code.

Nothing else of the entry changes, and nothing but code is read. DVC's own command for this, `dvc commit --force`, asks
no questions and hashes all outs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.code_record import Accepted, WatchedCode, add_accepted, is_code, write_code_record
from flows.dvc.repro import DvcFailed
from flows.dvc.staleness import (
    FOLLOWS,
    NEVER_RUN,
    UP_TO_DATE,
    StageStatus,
    compare_stages_in,
    open_project,
    reports_folder,
    select_stages,
)

if TYPE_CHECKING:
    from dvc.repo import Repo

_SHOWN = 5  # changes that a refusal lists


def accept_stages(root: Path, store: Path, targets: Sequence[str], because: str = "") -> list[StageStatus]:
    """Brings dvc.lock up to date for the code of `targets`; without targets for all stages changed in words only.

    What other changes of code do to a result is for people to say: they pass only with a reason, which is kept. All
    targets are checked before anything is written. A stage that is up to date is left alone.

    Returns the stages that were accepted, as they were before. Raises DvcFailed, with a line for each stage that can't
    be accepted.
    """
    with open_project(root) as repo:
        found = select_stages(compare_stages_in(repo, root, store), targets)
        if targets:
            if lines := [f"{one.name}: {line}" for one in found if (line := _find_objection(one, because))]:
                raise DvcFailed("\n".join(lines))
            found = [one for one in found if one.code_only]
        else:
            found = [one for one in found if one.words_only]
        if found:
            _record(repo, root, store, found, because)
        return found


def _find_objection(one: StageStatus, because: str) -> str:
    """Why a stage can't be accepted; "" when it can."""
    if one.state == NEVER_RUN:
        return "has never run, so there is nothing to accept"
    if one.state in (UP_TO_DATE, FOLLOWS):
        return ""
    if not one.code_only:
        other = [*map(str, one.parameters), *map(str, one.inputs)]
        other += [*(f"{path} {what}" for path, what in one.outs.items()), *(["its command"] if one.command else [])]
        return f"not only its code changed: {'; '.join(other)}"
    if because or one.words_only:
        return ""
    told = "; ".join(shorten(one.changed))
    return f"not only words changed: {told}. Run it again, or say why its result still stands: --because"


def shorten(changes: Sequence[str]) -> list[str]:
    """The first of `changes`, and how many more there are."""
    more = len(changes) - _SHOWN
    return [*changes[:_SHOWN], *([f"{more} more (ril status)"] if more > 0 else [])]


def _record(repo: "Repo", root: Path, store: Path, found: Sequence[StageStatus], because: str) -> None:
    """Writes the new state of code, reasons first: an interruption leaves a stage stale, never accepted in silence."""
    from dvc.rwlock import rwlock

    stages = {stage.name: stage for stage in repo.index.stages if stage.name in {one.name for one in found}}
    outs = [out.fs_path for stage in stages.values() for out in stage.outs]
    with rwlock(repo.tmp_dir, repo.fs, "ril accept", [], outs, repo.config["core"].get("hardlink_lock", False)):
        for one in found:
            code = [dep for dep in stages[one.name].deps if is_code(dep.def_path)]
            now = WatchedCode(root, one.name.split("@")[0], [dep.def_path for dep in code])
            reports = reports_folder(root, one.name)
            if not one.words_only:
                add_accepted(reports, Accepted(because, one.changed, now.digest))
            write_code_record(now.record(), reports, store)
            for dep in code:
                dep.save()
        # In one go: dvc reads and writes the whole file each time, 0.8 s for 20 stages.
        next(iter(stages.values())).dvcfile.dump_stages(list(stages.values()), update_pipeline=False)
        for one in found:
            if one.words_only:  # for a later return to this state; the run cache must know no result of changed code
                repo.stage_cache.save(stages[one.name])
