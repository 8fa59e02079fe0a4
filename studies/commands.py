"""`ril experiments`: lists studies, runs them, and writes their pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flows.copies import check_copies
from flows.detach_output import detach_output
from flows.dvc import repro as dvc
from flows.dvc.locks import hold_study_lock
from flows.dvc.recorded import list_untracked
from flows.jobs import list_needed_jobs
from stages.config.params import validate_params
from stages.config.yaml import ParamsError
from stages.job.files import write_text
from stages.page.render import format_duration
from studies.campaign import Campaign, choose_swept_values
from studies.document import Page, render_html, render_markdown
from studies.page import make_page
from studies.records import StudyRecord, read_records
from studies.runs import COMPARED, Planner
from studies.study import Seeds, Study, check_budgets, find_alike, list_studies, read_study

RESULTS = Path("studies/results")
experiments_app = typer.Typer(
    help="Compare several settings over several seeds, one DVC experiment each.", no_args_is_help=True
)

StudyName = Annotated[str, typer.Argument(help="Name of a file in studies/, such as figure1.")]
ProfileOption = Annotated[
    str | None, typer.Option(help="Profile laid over the study, such as smoke; its results have their own folder.")
]
Results = Annotated[Path, typer.Option(help="Folder with the records of all studies.")]


@experiments_app.command("list")
def list_studies_command() -> None:
    """Lists the studies with their arms."""
    for name, title in list_studies(Path.cwd()).items():
        print(f"{name}: {title}\n    {', '.join(read_study(Path.cwd(), name).arms)}")


@experiments_app.command("run")
def run_study_command(
    study: StudyName,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of pairs of seeds of the study to use; default: all.")
    ] = None,
    world: Annotated[
        list[int], typer.Option(help="Only this data set (`world`); repeatable. Each machine can run its own.")
    ] = [],  # noqa: B006
    arm: Annotated[list[str], typer.Option(help="Only this arm; repeatable.")] = [],  # noqa: B006
    jobs: Annotated[
        int, typer.Option(min=1, help="Experiments at a time; a stage of the tiny profile uses one core.")
    ] = 1,
    sweep: Annotated[
        bool, typer.Option(help="First choose the swept value on validation; otherwise it is that of params.yaml.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would run, with an estimate of the time.")
    ] = False,
    limit_hours: Annotated[
        float, typer.Option(min=0.0, help="Stop everything after this many hours.")
    ] = dvc.LIMIT_HOURS,
    profile: ProfileOption = None,
    results: Results = RESULTS,
) -> None:
    """Runs what is not finished and writes the page. After a stop, the same command continues.

    Exit code 1 if a run failed.
    """
    root = Path.cwd()
    declared = read_study(root, study)
    if profile is None:
        check_budgets(root, declared)
    arms = _select_arms(declared, arm)
    repetitions = _select_seeds(declared, f"studies/{study}.yaml", seeds, world)
    if lost := list_untracked(root, "stages", "flows"):
        raise ParamsError(
            f"{', '.join(lost)}: untracked, but experiments run in a copy of the tracked files; add or remove it"
        )
    planner = Planner(root, declared, study, profile)
    wanted = StudyRequest(root, declared, planner, results / planner.name, arms, repetitions, sweep, jobs)
    if dry_run:
        wanted.show()
        return
    with hold_study_lock(root, planner.name):
        detach_output()
        code = wanted.run(limit_hours)
    if records := _read_compared(wanted.folder):
        print("\n".join(_write_page(make_study_page(root, study, records, wanted.folder), wanted.folder)))
    raise typer.Exit(code)


@dataclass(frozen=True)
class StudyRequest:
    """A request to `ril experiments run`: the sweep, if requested, then the comparison."""

    root: Path
    study: Study
    planner: Planner
    folder: Path  # of the study's records
    arms: list[str]
    seeds: list[Seeds]
    sweep: bool
    jobs: int

    def run(self, limit_hours: float) -> int:
        """Runs what is not finished, prints what failed, and returns the exit code."""
        tuning = self._plan_tuning()
        if code := self._carry_out(tuning, limit_hours):
            return code
        values = self._choose_values(tuning)
        lacking = [name for name in self.arms if self._is_swept(name) and name not in values]
        compared = self._plan_comparison([name for name in self.arms if name not in lacking], values)
        if code := self._carry_out(compared, limit_hours):
            return code
        for name in lacking:
            print(f"failed: {name}: no value of the sweep has a result on all tuning seeds")
        for name, reason in {**tuning.failed, **compared.failed}.items():
            print(f"failed: {name}: {reason}")
        whole = len(compared.runs)
        print(f"{whole - len(compared.failed)} of {whole} runs are in {self.folder}")
        return int(bool(lacking or tuning.failed or compared.failed))

    def show(self) -> None:
        """Prints every unfinished run with the stages that it would execute, and an estimate of the time."""
        tuning = self._plan_tuning()
        total, left = 0.0, 0
        for title, campaign in (
            ("sweep on validation", tuning),
            ("compared", self._plan_comparison(self.arms, self._choose_values(tuning))),
        ):
            print(f"{title}: {len(campaign.runs)} runs, {len(campaign.runs) - len(campaign.waiting)} finished")
            seen: set[str] = set()
            left += len(campaign.waiting)
            for run in campaign.waiting:
                new = [stage for stage in campaign.list_missing_stages(run) if run.stages[stage] not in seen]
                seen |= set(run.stages.values())
                print(f"  {run.label}: {', '.join(new) or 'nothing new'}")
            seconds = campaign.estimate_seconds_left()
            total += math.nan if seconds is None else seconds
        if not left:
            print(f"nothing left to run; all records are in {self.folder}")
        elif math.isnan(total):
            print(
                "no estimate: not every stage has been timed here; `make repro` or the first runs of a study time them"
            )
        else:
            print(
                f"about {format_duration(total)} with --jobs {self.jobs} (estimate from earlier times on this machine)"
            )

    def _plan_tuning(self) -> Campaign:
        return Campaign(
            self.root, self.planner.plan_tuning(self.arms) if self.sweep else [], self.folder, print, self.jobs
        )

    def _plan_comparison(self, arms: list[str], values: Mapping[str, Mapping[str, float]]) -> Campaign:
        return Campaign(
            self.root, self.planner.plan_comparison(arms, self.seeds, values), self.folder, print, self.jobs
        )

    def _is_swept(self, name: str) -> bool:
        return self.sweep and bool(self.study.sweep) and self.study.arms[name].trained

    def _choose_values(self, tuning: Campaign) -> dict[str, dict[str, float]]:
        """The swept value of each trained arm: the best on validation, or the only one there is."""
        only = {key: values[0] for key, values in self.study.sweep.items() if len(values) == 1}
        if only:
            return {name: only for name in self.arms if self._is_swept(name)}
        records = [record for record in map(tuning.find_record, tuning.runs) if record is not None]
        return choose_swept_values(records, len(self.study.tuning))

    def _carry_out(self, campaign: Campaign, limit_hours: float) -> int:
        campaign.adopt()
        for run in campaign.waiting:
            check_copies(self.root, list_needed_jobs(self.root, validate_params(run.values), run.targets))
        code = dvc.run_experiments(self.root, campaign, self.jobs, limit_hours)
        if code:
            print("stopped; finished runs are kept, and the same command continues")
        elif campaign.moved:
            raise ParamsError(
                f"{', '.join(campaign.moved)} changed after this command had read it; runs not started: "
                f"{len(campaign.waiting)}. Finished runs are kept; the same command continues with the changed files"
            )
        return code


def _select_arms(study: Study, wanted: list[str]) -> list[str]:
    for name in wanted:
        if name not in study.arms:
            raise ParamsError(f"no arm {name!r}; arms: {', '.join(study.arms)}")
    return [name for name in study.arms if not wanted or name in wanted]


def _select_seeds(study: Study, file: str, first: int | None, worlds: list[int]) -> list[Seeds]:
    """The first `first` pairs of seeds of the study (None: all), restricted to `worlds` unless it is empty."""
    if first is not None and first > (listed := len(study.seeds)):
        raise ParamsError(f"--seeds {first}, but {file} lists {listed} pairs of seeds; add some there")
    found = study.seeds[:first]
    for world in worlds:
        if world not in (there := [one.world for one in found]):
            raise ParamsError(
                f"--world {world}, but the worlds are {', '.join(map(str, dict.fromkeys(there)))} ({file})"
            )
    return [one for one in found if not worlds or one.world in worlds]


@experiments_app.command("report")
def report_command(study: StudyName, profile: ProfileOption = None, results: Results = RESULTS) -> None:
    """Writes the page of a study, as Markdown and as HTML, from its records."""
    folder = results / (study if profile is None else f"{study}-{profile}")
    records = _read_compared(folder)
    if not records:
        raise ParamsError(f"{folder} has no record of a compared arm; run: ril experiments run {study}")
    shown = make_study_page(Path.cwd(), study, records, folder)
    print("\n".join([*_write_page(shown, folder), *shown.findings]))


def _read_compared(folder: Path) -> list[StudyRecord]:
    """The records of a study; empty if no arm was compared."""
    records = read_records(folder)
    return records if any(record.purpose == COMPARED for record in records) else []


def make_study_page(root: Path, study: str, records: Sequence[StudyRecord], folder: Path) -> Page:
    """The page of a study, with those derived from it; their records are in the sibling folders of `folder`."""
    profile = folder.name.removeprefix(study)
    others = {
        name: (read_study(root, name), read_records(folder.with_name(f"{name}{profile}")))
        for name in find_alike(root, study)
    }
    return make_page(read_study(root, study), records, others)


def _write_page(shown: Page, folder: Path) -> list[str]:
    """Writes the page next to the folder of its records. Returns the names of the files."""
    files = {f"{folder}.md": render_markdown(shown), f"{folder}.html": render_html(shown)}
    for file, text in files.items():
        write_text(Path(file), text)
    return list(files)
