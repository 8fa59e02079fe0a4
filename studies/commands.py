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
from studies.campaign import Campaign
from studies.document import Page, render_html, render_markdown
from studies.page import make_page
from studies.power import list_power
from studies.rates import (
    RATES,
    Chosen,
    choose_swept_values,
    commit_rates,
    is_committed,
    read_rates,
    resolve_values,
    write_rates,
)
from studies.records import StudyRecord, read_records
from studies.runs import COMPARED, Planner, Run
from studies.statistics import LEVEL
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
        list[int],
        typer.Option(
            help="Only this data set (`world`), compared or with --only-sweep; repeatable. For several machines."
        ),
    ] = [],  # noqa: B006
    arm: Annotated[list[str], typer.Option(help="Only this arm; repeatable.")] = [],  # noqa: B006
    jobs: Annotated[
        int, typer.Option(min=1, help="Experiments at a time; a stage of the tiny profile uses one core.")
    ] = 1,
    sweep: Annotated[
        bool, typer.Option(help="First choose the swept value on validation; otherwise it is that of params.yaml.")
    ] = True,
    only_sweep: Annotated[
        bool, typer.Option("--only-sweep", help="Run the sweep and write its choice; compare nothing.")
    ] = False,
    may_commit: Annotated[
        bool,
        typer.Option("--commit-rates", help="Commit the file with the choice of the sweep, which a study may require."),
    ] = False,
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
    listed = declared.tuning if only_sweep else declared.seeds
    repetitions = _select_seeds(listed, f"studies/{study}.yaml", seeds, world)
    if lost := list_untracked(root, "stages", "flows"):
        raise ParamsError(
            f"{', '.join(lost)}: untracked, but experiments run in a copy of the tracked files; add or remove it"
        )
    planner = Planner(root, declared, study, profile)
    choice = Choice(sweep, only_sweep, declared.frozen and profile is None, may_commit)
    wanted = StudyRequest(root, declared, planner, results / planner.name, arms, repetitions, choice, jobs)
    if dry_run:
        wanted.show()
        return
    with hold_study_lock(root, planner.name):
        detach_output()
        code = wanted.run(limit_hours)
    if records := read_study_records(study, declared, wanted.folder):
        print("\n".join(_write_page(make_study_page(root, study, records, wanted.folder), wanted.folder)))
    raise typer.Exit(code)


@dataclass(frozen=True)
class Choice:
    """How the swept values are chosen."""

    sweep: bool  # False: the values of params.yaml
    alone: bool  # no comparison afterwards
    frozen: bool  # the choice has to be in Git before the comparison
    may_commit: bool  # it may be committed here


@dataclass(frozen=True)
class StudyRequest:
    """A request to `ril experiments run`: the sweep, if requested, then the comparison."""

    root: Path
    study: Study
    planner: Planner
    folder: Path  # of the study's records
    arms: list[str]
    seeds: list[Seeds]  # of the comparison; of the sweep where nothing is compared
    choice: Choice
    jobs: int

    def run(self, limit_hours: float) -> int:
        """Runs what is not finished, prints what failed, and returns the exit code.

        Raises ParamsError when the choice of the sweep has to be committed first.
        """
        tuning = self._plan_tuning()
        if code := self._carry_out(tuning, limit_hours):
            return code
        for name, reason in tuning.failed.items():
            print(f"failed: {name}: {reason}")
        if self._has_sweep:
            path = write_rates(self.folder, self.study, self._read_tuning())
            print(f"the choice of the sweep is in {path}")
            if self.choice.frozen and not self.choice.alone:
                commit_rates(self.root, path, self.choice.may_commit)
        if self.choice.alone:
            return int(bool(tuning.failed))
        values = self._choose_values()
        lacking = [name for name in self._own_arms if self._is_swept(name) and name not in values]
        compared = self._plan_comparison([name for name in self._own_arms if name not in lacking], values)
        if code := self._carry_out(compared, limit_hours):
            return code
        for name in lacking:
            print(f"failed: {name}: no value of the sweep has a result on all tuning seeds")
        for name, reason in compared.failed.items():
            print(f"failed: {name}: {reason}")
        whole = len(compared.runs)
        print(f"{whole - len(compared.failed)} of {whole} runs are in {self.folder}")
        return int(bool(lacking or tuning.failed or compared.failed))

    def show(self) -> None:
        """Prints every unfinished run with the stages that it would execute, and an estimate of the time."""
        total, left = 0.0, 0
        values = self._choose_values(missing_ok=True)
        for title, campaign in (
            ("sweep on validation", self._plan_tuning()),
            ("compared", self._plan_comparison(self._own_arms, values)),
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

    @property
    def _own_arms(self) -> list[str]:
        """The arms that are run here, not taken from another study."""
        return [name for name in self.arms if name not in self.study.borrowed]

    @property
    def _has_sweep(self) -> bool:
        return self.choice.sweep and any(len(values) > 1 for values in self.study.sweep.values())

    def _plan_tuning(self) -> Campaign:
        """The sweep of the arms whose choice is not committed; with --only-sweep, of all."""
        if not self.choice.sweep:
            return self._make_campaign([])
        if self.choice.alone:
            return self._make_campaign(self.planner.plan_tuning(self.arms, self.seeds))
        settled = self._list_settled() if self.choice.frozen else set()
        arms = [name for name in self.arms if name not in settled]
        return self._make_campaign(self.planner.plan_tuning(arms, self.study.tuning))

    def _list_settled(self) -> set[str]:
        """The arms for which Git has the value that the records choose, made with these parameters and this code.

        A run of their sweep that is missing is not made for the comparison, which may go on on another machine.
        """
        path = self.folder / RATES
        if not is_committed(self.root, path):
            return set()
        committed, chosen = read_rates(self.folder), choose_swept_values(self._read_tuning(), self.study)
        return {name for name, values in committed.items() if chosen.get(name) == values}

    def _plan_comparison(self, arms: list[str], values: Mapping[str, Mapping[str, float]]) -> Campaign:
        return self._make_campaign([] if self.choice.alone else self.planner.plan_comparison(arms, self.seeds, values))

    def _make_campaign(self, runs: Sequence[Run]) -> Campaign:
        return Campaign(self.root, runs, self.folder, print, self.jobs)

    def _read_tuning(self) -> list[StudyRecord]:
        """The records of the sweep of all arms that these parameters and this code made."""
        whole = self._make_campaign(self.planner.plan_tuning(list(self.study.arms), self.study.tuning))
        return [record for record in map(whole.find_record, whole.runs) if record is not None]

    def _is_swept(self, name: str) -> bool:
        return self.choice.sweep and self.study.is_swept(name)

    def _choose_values(self, missing_ok: bool = False) -> Chosen:
        """The swept value of each trained arm: that of another study, the only one, or the best on validation.

        Raises ParamsError when the other study has chosen none yet, unless `missing_ok`.
        """
        only = {key: values[0] for key, values in self.study.sweep.items() if len(values) == 1}
        if not self.choice.sweep:
            return {}
        if self.study.rates_of is not None:
            folder = find_sibling(self.folder, self.planner.study, self.study.rates_of)
            there = (folder / RATES).is_file() or not missing_ok
            return resolve_values(self.study, read_rates(folder)) if there else {}
        if only:
            return {name: only for name in self.arms if self._is_swept(name)}
        return resolve_values(self.study, choose_swept_values(self._read_tuning(), self.study))

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


def _select_seeds(listed: list[Seeds], file: str, first: int | None, worlds: list[int]) -> list[Seeds]:
    """The first `first` of the listed pairs of seeds (None: all), restricted to `worlds` unless it is empty."""
    if first is not None and first > len(listed):
        raise ParamsError(f"--seeds {first}, but {file} lists {len(listed)} pairs of seeds; add some there")
    found = listed[:first]
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
    records = read_study_records(study, read_study(Path.cwd(), study), folder)
    if not records:
        raise ParamsError(f"{folder} has no record of a compared arm; run: ril experiments run {study}")
    shown = make_study_page(Path.cwd(), study, records, folder)
    print("\n".join([*_write_page(shown, folder), *shown.findings]))


@experiments_app.command("power")
def power_command(
    study: StudyName,
    difference: Annotated[float, typer.Option(min=0.1, max=100.0, help="Points of accuracy to be seen.")] = 5.0,
    results: Results = RESULTS,
) -> None:
    """Says from the records of the sweep what the comparison can see, and how many data sets it needs."""
    declared, folder = read_study(Path.cwd(), study), results / study
    records = read_records(folder)
    chosen = resolve_values(declared, choose_swept_values(records, declared))
    rows = list(list_power(declared, records, chosen, difference / 100))
    if not rows:
        raise ParamsError(f"{folder} has no two tuning worlds of a primary difference; run the sweep first")
    level = LEVEL / len(declared.primary)
    print(f"level {level:.3g} (5 % by Holm's strictest step), power 80 %, {len(declared.seeds)} data sets planned")
    for row in rows:
        needed = "more than 1,000" if row.needed is None else str(row.needed)
        print(
            f"{row.first} - {row.second}: {100 * row.mean:+.1f} points on {row.worlds} tuning worlds, standard "
            f"deviation {100 * row.deviation:.1f}; detectable {100 * row.detectable:.1f}; data sets for "
            f"{difference:g} points: {needed}"
        )


def find_sibling(folder: Path, own: str, other: str) -> Path:
    """The folder of the records of study `other` beside that of study `own`, under the same profile."""
    return folder.with_name(f"{other}{folder.name.removeprefix(own)}")


def read_study_records(name: str, study: Study, folder: Path) -> list[StudyRecord]:
    """The records of the seeds of a study, with those that it takes from others; empty if no arm was compared."""
    seeds = {(one.world, one.seed) for one in study.seeds}
    known = seeds | {(one.world, one.seed) for one in study.tuning}
    own = [one for one in read_records(folder) if (one.world, one.seed) in known and one.arm not in study.borrowed]
    if not any(one.purpose == COMPARED for one in own):
        return []
    taken = [
        one
        for other, arms in study.take.items()
        for one in read_records(find_sibling(folder, name, other))
        if one.purpose == COMPARED and one.arm in arms and (one.world, one.seed) in seeds
    ]
    return [*own, *taken]


def check_same_code(records: Sequence[StudyRecord]) -> None:
    """Raises ParamsError when a stage of the compared records was made by more than one code."""
    made: dict[str, dict[str, str]] = {}
    for one in records:
        if one.purpose == COMPARED:
            for stage, code in one.code.items():
                made.setdefault(stage, {}).setdefault(code, f"{one.study}/{one.name}")
    if mixed := [(stage, list(found.values())) for stage, found in made.items() if len(found) > 1]:
        stage, (first, second, *_) = mixed[0]
        raise ParamsError(
            f"{', '.join(stage for stage, _ in mixed)}: records were made by other code, {stage} of {first} and of "
            f"{second}; run the studies again, so that all have the same code"
        )


def check_same_weights(records: Sequence[StudyRecord]) -> None:
    """Raises ParamsError when compared runs of one data set have other weights of what they share.

    Another kind of machine rounds differently, and the students that come out are other ones.
    """
    made: dict[tuple[int, str, str], dict[str, str]] = {}
    for one in records:
        if one.purpose == COMPARED:
            for stage, digest in one.weights.items():
                made.setdefault((one.world, stage, one.stages[stage]), {}).setdefault(digest, f"{one.study}/{one.name}")
    if mixed := [(at, list(found.values())) for at, found in made.items() if len(found) > 1]:
        (world, stage, _), (first, second, *_) = mixed[0]
        raise ParamsError(
            f"world {world}: {stage} of {first} and of {second} has other weights, though code and parameters are "
            "equal, as on another kind of machine; run all arms of a data set on one, after removing its records"
        )


def make_study_page(root: Path, study: str, records: Sequence[StudyRecord], folder: Path) -> Page:
    """The page of a study, with those derived from it; their records are in the sibling folders of `folder`.

    Raises ParamsError where the comparison of a study with a protocol would mix records that other code made, or one
    data set's of different machines.
    """
    declared = {name: read_study(root, name) for name in [study, *find_alike(root, study)]}
    others = {
        name: (one, read_study_records(name, one, find_sibling(folder, study, name)))
        for name, one in declared.items()
        if name != study
    }
    if declared[study].frozen or declared[study].take:
        check_same_code(records)
        check_same_weights(records)
    return make_page(declared[study], records, others)


def _write_page(shown: Page, folder: Path) -> list[str]:
    """Writes the page next to the folder of its records. Returns the names of the files."""
    files = {f"{folder}.md": render_markdown(shown), f"{folder}.html": render_html(shown)}
    for file, text in files.items():
        write_text(Path(file), text)
    return list(files)
