"""The `ril` command: what a person does around the pipeline. `ril --help` lists everything."""

import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from flows import profile
from flows.chat.candidates import ChatError
from flows.checks.preflight import find_missing, format_missing, starting_checked
from flows.cli import score as scoring
from flows.cli import status as staleness
from flows.cli.chat import chat_app
from flows.cli.data import data_app
from flows.cli.data_source import DataError
from flows.cli.demo import demo_app
from flows.cli.doctor import doctor_app
from flows.cli.explain import explain_run
from flows.cli.plan import plan_app
from flows.cli.publish import publish_app
from flows.cli.rewards import RewardError, rewards_app
from flows.cli.serve_model import serve_model_app
from flows.cli.store import StoreError, store_app
from flows.cli.version import print_version
from flows.detach_output import detach_output
from flows.dvc import repro as dvc
from flows.dvc.locks import StudyRunning
from flows.dvc.private_state import SharedState
from flows.environment import prepare, prepare_patiently, print_any_text
from flows.git import GitError
from flows.jobs import list_runs
from flows.launcher import running_on
from flows.publish.facts import PublishError
from flows.room import explain_write_error
from flows.ui.access import NoServer
from flows.ui.recorded_run import show_run
from flows.ui.serve import serve_forms as serve_forms
from flows.watched_files import Unwatchable, refuse_unwatchable
from stages.benchmarks.registry import register
from stages.benchmarks.sample import BenchmarkError
from stages.config.params import load_params
from stages.config.table import STAGES
from stages.config.yaml import ParamsError
from stages.corpora.source import UnusableData
from stages.engines.engine import EngineError
from stages.tiny.benchmarks.specs import SPECS
from studies.commands import experiments_app
from studies.statistics import Unpaired

# Errors whose message is one line for each mistake; any other is a fault of ours and keeps its traceback.
WRITTEN_FOR_USERS = (
    *(ParamsError, StoreError, BenchmarkError, NoServer, StudyRunning, Unpaired),
    *(Unwatchable, GitError, SharedState, dvc.NestedRun, dvc.DvcFailed),
    *(DataError, UnusableData, RewardError, PublishError, ChatError, EngineError),
)
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
params_app = typer.Typer(help="Look at params.yaml.", no_args_is_help=True)
app.add_typer(params_app, name="params")
app.add_typer(store_app, name="store")
app.add_typer(data_app, name="data")
app.add_typer(rewards_app, name="rewards")
app.add_typer(experiments_app, name="experiments")
app.add_typer(scoring.score_app)
app.add_typer(staleness.status_app)
app.add_typer(doctor_app)
app.add_typer(plan_app)
app.add_typer(publish_app)
app.add_typer(chat_app)
app.add_typer(demo_app)
app.add_typer(serve_model_app)


@app.callback()
def set_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Show versions and commit, and exit."),
    ] = False,
) -> None:
    """Reinforcement and imitation learning for vision-language models, as a DVC pipeline. Run it in its folder."""


def complete_stage(_context: typer.Context, _argument: object, incomplete: str) -> list[str]:
    """The stages and items that begin with `incomplete`, for the shell.

    Of `teacher@in` bash passes three words and replaces the last two, so that `@internvl3` is what it wants.
    """
    try:
        names = list_runs(load_params(Path.cwd() / "params.yaml"))
    except ParamsError:
        names = tuple(STAGES)
    words = os.environ.get("COMP_WORDS", "").split()
    if "@" in words[-2:]:
        stage, _, part = " ".join(words[-3:]).rpartition(" @")
        stage = stage.split()[-1]
        return [name.removeprefix(stage) for name in names if name.startswith(f"{stage}@{part.strip()}")]
    return [name for name in names if name.startswith(incomplete)]


app.add_typer(plan_app)


@app.command("profile")
def profile_command(
    name: Annotated[str | None, typer.Argument(help="Profile to apply; without one, the profiles are listed.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Only show what would change.")] = False,
    as_experiment: Annotated[
        bool, typer.Option("--as-experiment", help="Only print it as `dvc exp run -S` arguments.")
    ] = False,
) -> None:
    """Lays profiles/NAME.yaml or examples/NAME/params.yaml over params.yaml, in place; comments stay.

    `git checkout params.yaml` takes it back.
    """
    root = Path.cwd()
    if name is None:
        known = profile.list_profiles(root)
        for found, sentence in known.items():
            print(f"{found.ljust(max(map(len, known)))}  {sentence}")
        return
    if as_experiment:
        arguments = profile.format_overrides(profile.find_changes(root, name))
        print("dvc exp run " + " ".join(f"-S {shlex.quote(argument)}" for argument in arguments))
        return
    found_changes = profile.find_changes(root, name) if show else profile.apply_profile(root, name)
    for change in found_changes:
        print(change)
    verb = "would change" if show else "changed"
    keys = "1 key" if len(found_changes) == 1 else f"{len(found_changes)} keys"
    print(f"params.yaml: {keys} {verb}" if found_changes else f"params.yaml is as profile {name} says")


@app.command("run")
def run_command(
    stages: Annotated[
        list[str] | None,
        typer.Argument(help="Stages such as `ril` or `teacher@internvl3`; none: all.", shell_complete=complete_stage),
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Leave out the stages before the named ones.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run even when nothing changed.")] = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="How many stages run at a time; each starts when what it needs is done.")
    ] = 1,
    limit_hours: Annotated[
        float, typer.Option(min=0.0, help="Stop everything after this many hours.")
    ] = dvc.LIMIT_HOURS,
    explain: Annotated[bool, typer.Option("--explain", help="Only print what would run, and why.")] = False,
    server: Annotated[
        bool,
        typer.Option(
            "--server/--no-server", help="Show the run in the Prefect UI: a server on loopback, for as long as it runs."
        ),
    ] = True,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="local|slurm", help="Where stages run, in place of runtime.launcher.kind."),
    ] = None,
) -> None:
    """Runs what is out of date, as `dvc repro` does; Ctrl-C ends every process of the running stage.

    Looks before it starts anything: what is missing is one list, and the exit code is 2.
    """
    for target in stages or []:
        if target.split("@")[0] not in STAGES:
            raise ParamsError(f"no stage {target!r}; stages: {', '.join(STAGES)}")
    with running_on(on):
        root = Path.cwd()
        params = load_params(root / "params.yaml")
        watched = (params.questions.path, params.questions.images, params.evaluate.folder, params.ril.reward_code)
        refuse_unwatchable(path for path in map(root.joinpath, watched) if os.path.lexists(path))
        if explain:
            print("\n".join(explain_run(root, params, stages or [], single=only, force=force)))
        if missing := find_missing(root, params, stages or [], single=only, force=force):
            print(f"error: {format_missing(missing)}", file=sys.stderr)
            raise typer.Exit(2)
        if explain:
            return
        targets, terminal = dvc.Targets(stages or [], only, force), sys.stderr.isatty()
        detach_output()
        shown = server and not os.environ.get("PREFECT_API_URL")  # stages are flow runs on that server themselves
        with starting_checked(), show_run(root, targets.names, terminal) if shown else nullcontext(_forget) as end_run:
            code = dvc.run_repro(root, targets, jobs=jobs, limit_hours=limit_hours)
            end_run(code)
        raise typer.Exit(code)


def _forget(code: int) -> None:
    """Nobody is told the exit code."""


@app.command("serve")
def serve_command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than this machine's own is open to everybody.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect UI.")] = 4200,
    report_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port that shows reports/; 0 takes a free one.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time; others wait in the UI.")] = 4,
) -> None:
    """Starts the Prefect UI with a form for each stage and runs what the forms ask for, until Ctrl-C."""
    serve_forms(Path.cwd(), host, port, report_port, limit)


@params_app.command("check")
def check_params() -> None:
    """Says whether params.yaml is valid; each mistake is a line with the key, the value and the remedy."""
    load_params(Path.cwd() / "params.yaml")
    print("params.yaml is valid")


def main() -> None:
    """Entry point of `ril`; user errors are lines and exit code 2, without a traceback."""
    print_any_text()
    register(SPECS)
    prepare_patiently() if sys.argv[1:2] == ["serve"] else prepare()
    try:
        app()
    except WRITTEN_FOR_USERS as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not (told := explain_write_error(error)):
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
