"""`ril status`: why a stage is out of date. `ril accept`: taking its result as it is."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from flows.closure import find_unlisted_files
from flows.digest import CodeChange
from flows.dvc.accept import accept_stages, shorten
from flows.dvc.cache import explain_lost_outs, list_lost_outs
from flows.dvc.orphans import list_kept_results, list_orphans
from flows.dvc.repro import DvcFailed
from flows.dvc.staleness import FOLLOWS, NEVER_RUN, STALE, UP_TO_DATE, StageStatus, compare_stages, select_stages
from flows.environment import store_folder
from flows.lockfile import read_locked_stages
from stages.config.table import STAGES

status_app = typer.Typer()
_FILES_SHOWN = 12  # of changed code, a stage; --json lists all


@status_app.command("status")
def status_command(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Stages such as `ril` or `teacher@internvl3`; none: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Says why each stage is out of date: which parameters, inputs and functions changed. Runs nothing."""
    root = Path.cwd()
    found = select_stages(compare_stages(root, store_folder(root)), stages or [])
    if not found:
        raise DvcFailed("dvc.yaml has no stages; restore it with: git checkout dvc.yaml")
    if as_json:
        print(json.dumps([{**asdict(one), "words_only": one.words_only} for one in found], indent=2, default=str))
        return
    width = max(len(one.name) for one in found)
    for one in found:
        print("\n".join(format_stage(one, width)))
    print(_format_summary(found))
    if lost := [path for path in list_lost_outs(root, read_locked_stages(root)) if (root / path).exists()]:
        print(f"warning: {explain_lost_outs(root, lost, 'make room, then: ril run')}")
    for line in [*map(str, list_orphans(root)), *map(_format_kept, list_kept_results(root))]:
        print(line)
    if missing := sorted({file for name in STAGES for file in find_unlisted_files(root, name)}):
        print(f"dvc.yaml does not list {', '.join(missing)} for a stage that reaches it; run: python -m flows.closure")


@status_app.command("accept")
def accept(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Stages such as `ril` or `teacher@internvl3`, or `teacher` for all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All stages whose code changed in words only.")] = False,
    because: Annotated[
        str, typer.Option(help="Why a result still stands after a change of code that is more than words.")
    ] = "",
) -> None:
    """Takes the results of stages as they are after a change of code, so that they do not run again.

    Comments, docstrings, help texts and formatting pass by themselves. Other changes need --because; the reason is kept
    in Git and shown in the report. Parameters and inputs that changed are never accepted.
    """
    if bool(stages) == every:
        raise typer.BadParameter("name stages, or give --all", param_hint="STAGES")
    if every and because:
        raise typer.BadParameter("name the stages that the reason is about", param_hint="--because")
    root = Path.cwd()
    done = accept_stages(root, store_folder(root), stages or [], because)
    for one in done:
        print(f"{one.name}: accepted, {'; '.join(shorten(one.changed)) or 'words only'}")
    print("to keep this: git add dvc.lock reports" if done else "nothing to accept")


def format_stage(one: StageStatus, width: int) -> list[str]:
    """The lines about one stage, with its name in `width` characters."""
    name = one.name.ljust(width)
    if one.state == FOLLOWS:
        return [f"{name}  follows {', '.join(one.follows)}"]
    if one.state != STALE:
        return [f"{name}  {one.state}"]
    if one.words_only:
        return [f"{name}  stale in words only"]
    return [f"{name}  stale", *(f"    {kind.ljust(9)}  {line}" for kind, line in _list_reasons(one))]


def _list_reasons(one: StageStatus) -> list[tuple[str, str]]:
    rows = [("parameter", str(change)) for change in one.parameters]
    rows += [("input", str(change)) for change in one.inputs]
    rows += [("result", f"{path} {what}") for path, what in one.outs.items()]
    rows += [("command", "dvc.yaml starts it in another way")] if one.command else []
    if one.code is None:
        rows.append(
            ("code", f"{', '.join(one.files)} changed; what in them is not known (no record of the code before)")
        )
    elif one.files and not one.code:
        rows.append(("code", "words only"))
    else:
        by_file = [(file, list(of)) for file, of in groupby(one.code, key=lambda change: change.file)]
        rows += [("code", f"{file}: {_format_changes(of)}") for file, of in by_file[:_FILES_SHOWN]]
        if len(by_file) > _FILES_SHOWN:
            rows.append(("code", f"and {len(by_file) - _FILES_SHOWN} more files (--json)"))
    return rows


def _format_changes(changes: Sequence[CodeChange]) -> str:
    return ", ".join(f"{change.name} {change.what}" if change.name else change.what for change in changes)


def _format_kept(folder: Path) -> str:
    return f"experiment {folder.name}: its result did not fit into DVC's cache and is in {folder}; rm -r it when done"


def _format_summary(found: Sequence[StageStatus]) -> str:
    counts = {state: sum(one.state == state for one in found) for state in (UP_TO_DATE, STALE, FOLLOWS, NEVER_RUN)}
    words = sum(one.words_only for one in found)
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{told}; {words} in words only, which `ril accept --all` takes as they are" if words else told
