"""`ril experiments`: what there is, running it, and the page about it."""

from pathlib import Path
from typing import Annotated

import typer

from flows import dvc
from flows.experiments.campaign import Campaign, chosen
from flows.experiments.page import as_html, as_markdown, page
from flows.experiments.records import read_records
from flows.experiments.runs import Planner
from flows.experiments.study import Study, check_budgets, read_study, studies
from stages.job import ParamsError
from stages.job.files import write_text
from stages.page.render import duration

RESULTS = Path("docs/results")
experiments_app = typer.Typer(help="Compare several settings over several seeds, one DVC experiment each.", no_args_is_help=True)

StudyName = Annotated[str, typer.Argument(help="Name of a file in experiments/, such as figure1.")]
Profile = Annotated[
    str | None, typer.Option(help="A profile that is laid over the study, such as smoke; it has results of its own.")
]
Results = Annotated[Path, typer.Option(help="Folder with the records of all studies.")]


@experiments_app.command("list")
def list_command() -> None:
    """The studies in experiments/ with their arms."""
    for name, title in studies(Path.cwd()).items():
        print(f"{name}: {title}\n    {', '.join(read_study(Path.cwd(), name).arms)}")


@experiments_app.command("run")
def run(
    study: StudyName,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many of the study's pairs of seeds; without it all.")] = None,
    arm: Annotated[list[str], typer.Option(help="Only this arm; can be given several times.")] = [],  # noqa: B006
    jobs: Annotated[int, typer.Option(min=1, help="Experiments at a time; a stage of the tiny profile keeps one core busy.")] = 1,
    sweep: Annotated[bool, typer.Option(help="Choose the swept value on validation first; else it is as in params.yaml.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run, and how long it may take.")] = False,
    limit_hours: Annotated[float, typer.Option(min=0.0, help="Stop everything after this many hours.")] = dvc.LIMIT_HOURS,
    profile: Profile = None,
    results: Results = RESULTS,
) -> None:
    """Runs what is not finished yet; the same command goes on after a stop. Exit code 1 when a run failed."""
    root = Path.cwd()
    declared = read_study(root, study)
    if profile is None:
        check_budgets(root, declared)
    arms = _arms(declared, arm)
    if seeds is not None and seeds > (listed := len(declared.seeds)):
        raise ParamsError(f"--seeds {seeds}, but experiments/{study}.yaml lists {listed} pairs of seeds; add some there")
    if lost := dvc.untracked(root, "stages", "flows"):
        raise ParamsError(f"{', '.join(lost)}: unknown to Git, and experiments run in a copy of what Git knows; add or remove it")
    planner = Planner(root, declared, study, profile)
    folder = results / planner.name
    tuning = Campaign(root, planner.tuning(arms) if sweep else [], folder, print, jobs)
    if dry_run:
        _show(planner, declared, tuning, arms, seeds, sweep, folder, jobs)
    elif code := _run(planner, declared, tuning, arms, seeds, sweep, folder, jobs, limit_hours):
        raise typer.Exit(code)


def _run(
    planner: Planner,
    study: Study,
    tuning: Campaign,
    arms: list[str],
    seeds: int | None,
    sweep: bool,
    folder: Path,
    jobs: int,
    limit_hours: float,
) -> int:
    """Sweep, choice, comparison; the exit code."""
    if code := _carried_out(tuning, jobs, limit_hours):
        return code
    values = _values(study, tuning, sweep)
    lacking = [name for name in arms if sweep and study.sweep and study.arms[name].trained and name not in values]
    runs = planner.compared([name for name in arms if name not in lacking], study.seeds[:seeds], values)
    compared = Campaign(Path.cwd(), runs, folder, print, jobs)
    if code := _carried_out(compared, jobs, limit_hours):
        return code
    for name in lacking:
        print(f"failed: {name}: no value of the sweep has run on all tuning seeds, so none was chosen")
    for name, reason in {**tuning.failed, **compared.failed}.items():
        print(f"failed: {name}: {reason}")
    print(f"{len(runs) - len(compared.failed)} of {len(runs)} runs are in {folder}; the page: ril experiments report")
    return int(bool(lacking or tuning.failed or compared.failed))


def _arms(study: Study, wanted: list[str]) -> list[str]:
    for name in wanted:
        if name not in study.arms:
            raise ParamsError(f"no arm {name!r}; arms: {', '.join(study.arms)}")
    return [name for name in study.arms if not wanted or name in wanted]


def _carried_out(campaign: Campaign, jobs: int, limit_hours: float) -> int:
    campaign.adopt()
    code = dvc.experiments(Path.cwd(), campaign, jobs, limit_hours)
    if code:
        print("stopped; what is finished stays, and the same command goes on")
    return code


def _values(study: Study, tuning: Campaign, sweep: bool) -> dict[str, dict[str, float]]:
    """The swept value of each trained arm: the best on validation, or the only one there is."""
    only = {key: values[0] for key, values in study.sweep.items() if len(values) == 1}
    if only and sweep:
        return {name: only for name, arm in study.arms.items() if arm.trained}
    records = [record for record in map(tuning.record, tuning.runs) if record is not None]
    return chosen(records, len(study.tuning))


def _show(
    planner: Planner, study: Study, tuning: Campaign, arms: list[str], seeds: int | None, sweep: bool, folder: Path, jobs: int
) -> None:
    values = _values(study, tuning, sweep)
    compared = Campaign(Path.cwd(), planner.compared(arms, study.seeds[:seeds], values), folder, print, jobs)
    total = 0.0
    for title, campaign in (("sweep on validation", tuning), ("compared", compared)):
        print(f"{title}: {len(campaign.runs)} runs, {len(campaign.runs) - len(campaign.waiting)} finished")
        seen: set[str] = set()
        for one in campaign.waiting:
            new = [stage for stage in campaign.todo(one) if one.stages[stage] not in seen]
            seen |= set(one.stages.values())
            swept = "".join(f", {key} {value:g}" for key, value in one.swept.items())
            print(f"  {one.arm} ({one.seeds}{swept}): {', '.join(new) or 'nothing new'}")
        seconds = campaign.seconds_left()
        total = float("nan") if seconds is None else total + seconds
    if total == total:
        print(f"about {duration(total)} with --jobs {jobs}, by the times that stages took here before (an estimate)")
    else:
        print("no estimate: not every stage was timed here yet; `make repro`, or the first runs of a study, time them")


@experiments_app.command("report")
def report(study: StudyName, profile: Profile = None, results: Results = RESULTS) -> None:
    """Writes the page about a study, as Markdown and as HTML, from its records alone."""
    full = study if profile is None else f"{study}-{profile}"
    shown = page(read_study(Path.cwd(), study), read_records(results / full))
    for suffix, text in (("md", as_markdown(shown)), ("html", as_html(shown))):
        write_text(results / f"{full}.{suffix}", text)
        print(results / f"{full}.{suffix}")
    print("\n".join(shown.findings))
