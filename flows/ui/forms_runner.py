"""The process of `ril serve` that gives the forms to the server and runs what they ask for.

It is a process of its own so that `ril serve` can cancel what runs before this one ends: Prefect's runner kills its
runs when it is told to end, and dvc would stay behind.
"""

import argparse
import asyncio
import contextlib
import hashlib
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.ui.access import read_access
from flows.ui.deployments import Startable, describe_comparison, describe_form
from flows.ui.forms import Form, make_forms
from flows.ui.run_recorder import record_leftovers
from stages.config.yaml import ParamsError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment

REPORT = "RIL_REPORT_URL"  # in the environment of runs: the address of the report
_LOOK_SECONDS = 2.0  # between looks at params.yaml


def make_project_tag(root: Path) -> str:
    """The tag of this checkout's forms, which tells it from others on one server: its folder and a part of a hash."""
    name = re.sub(r"[^\w-]", "_", root.name, flags=re.ASCII)
    return f"{name}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"


def make_deployment(root: Path, form: Form, suffix: str = "") -> "RunnerDeployment":
    """The form as Prefect knows it: a deployment of `flows/ui/trigger.py::start` with the form's fields and values.

    Its name ends with `suffix`.
    """
    from prefect.utilities.callables import ParameterSchema

    made = _make_deployment(root, describe_form(str(root), form), form.stage, suffix)
    made._parameter_openapi_schema = ParameterSchema.model_validate({"required": [], **form.schema})
    return made


def make_comparison_deployment(root: Path, suffix: str = "") -> "RunnerDeployment":
    """The form `compare` as Prefect knows it: a deployment of `flows/ui/compare.py::compare_experiments`."""
    made = _make_deployment(root, describe_comparison(str(root)), "compare", suffix)
    made._parameter_openapi_schema.properties.pop("root", None)
    return made


def _make_deployment(root: Path, described: Startable, flow: str, suffix: str) -> "RunnerDeployment":
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    limited = None
    if described.limit is not None:  # a second click on the same form waits in the UI until the first run has ended
        limited = ConcurrencyLimitConfig(limit=described.limit, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    made = RunnerDeployment.from_flow(
        _name_flow(flow),
        name=described.name + suffix,
        description=described.description,
        parameters=described.parameters,
        tags=[*described.tags, make_project_tag(root)],
        concurrency_limit=limited,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.entrypoint = described.entrypoint
    return made


def _name_flow(stage: str) -> "Flow[..., Any]":
    from flows.ui.compare import compare_experiments
    from flows.ui.trigger import start

    return (compare_experiments if stage == "compare" else start).with_options(name=f"run-{stage}")


def run_forms(root: Path, suffix: str, limit: int) -> None:
    """Runs what the forms ask for, at most `limit` at a time, until this process is told to end."""
    from prefect.runner import Runner

    asked = make_forms(root)
    threading.Thread(target=_follow_params, args=(root, suffix), daemon=True).start()
    if not suffix:  # the project's own server
        threading.Thread(target=_tell_leftovers, args=(root,), daemon=True).start()
    runner = Runner(pause_on_shutdown=False, limit=limit)
    for form in asked:
        _register(runner, make_deployment(root, form, suffix), _name_flow(form.stage))
    _register(runner, make_comparison_deployment(root, suffix), _name_flow("compare"))
    print(f"ready: {len(asked) + 1} forms are being served", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # how `ril serve` ends it
        asyncio.run(runner.start())


def _tell_leftovers(root: Path) -> None:
    """Shows the runs of `ril run` that were killed, or had no server."""
    if (access := read_access(root)) is not None:
        record_leftovers(root, access)


def _register(runner: Any, deployment: "RunnerDeployment", flow: "Flow[..., Any]") -> None:
    """Adds the form. Its runs, and hooks about them, use `flow` as it is here: pull steps, entry point and path that
    somebody gives to the deployment on the server are never looked at.
    """
    runner._deployment_registry.register_flow(runner.add_deployment(deployment), flow)


def _follow_params(root: Path, suffix: str) -> None:
    """Gives the forms new values whenever params.yaml has changed; a file that can't be used leaves them as they
    are.
    """
    path = root / "params.yaml"
    seen = path.stat().st_mtime_ns
    while True:
        time.sleep(_LOOK_SECONDS)
        now = path.stat().st_mtime_ns if path.is_file() else seen
        if now == seen:
            continue
        seen = now
        try:
            for form in make_forms(root):
                make_deployment(root, form, suffix).apply()
            print("params.yaml has changed; the forms hold its values", flush=True)
        except ParamsError as error:
            print(f"params.yaml has changed and can't be used; the forms stay as they were: {error}", file=sys.stderr)


def main() -> None:
    """Runs the forms of the project in this folder."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.ui.forms_runner", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--suffix", default="", help="what the names of the forms end with")
    parser.add_argument("--limit", required=True, type=int, help="runs at a time")
    told = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born with it ignored
    run_forms(Path.cwd(), told.suffix, told.limit)


if __name__ == "__main__":
    main()
