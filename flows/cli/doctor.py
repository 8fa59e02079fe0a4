"""`ril doctor`: everything that is missing on this machine, at once, with what to do about it."""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.checks.finding import TO_DOWNLOAD, Finding, format_findings, list_missing, make_missing, wants_colours
from flows.checks.folders import describe_disks
from flows.checks.gpus import describe_gpus
from flows.checks.machine import check_clock, check_open_files, check_packages, check_python, check_shared_memory
from flows.checks.models import check_tokenizer, find_weights
from flows.checks.needs import check_needs
from flows.checks.network import check_hub, check_prefect, check_proxies
from flows.cli.data_source import DataError, open_data, pick_rows
from flows.cli.version import describe_commit
from flows.environment import find_project, store_folder
from flows.jobs import list_needed_jobs
from flows.ui.ports import find_holder
from stages.config.engines import VllmServer
from stages.config.params import Params, load_params
from stages.config.yaml import ParamsError
from stages.corpora.adapters import UnusableRow, convert_rows
from stages.corpora.source import SourceRow, UnusableData
from stages.job.hub import allows_downloads
from stages.page.provenance import list_versions

doctor_app = typer.Typer()
_MODEL_SECONDS = 12.0  # for the contents of checkpoints
_ROW_SECONDS = 5.0
_FIRST_ROWS, _DRAWN_ROWS = 20, 180
_SERVE_PORT = 4200
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|AUTH|CREDENTIAL", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_ABSOLUTE = re.compile(r"(?<![\w.~:/])/(?:[^\s/:;,'\"()]+/)+(?=[^\s/:;,'\"()]+/[^\s/:;,'\"()]+)")


@doctor_app.command("doctor")
def run_doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it as JSON for a bug report: paths shortened, no secrets.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only what is missing.")] = False,
) -> None:
    """Looks at all that the stages of params.yaml need, and says what is missing and what to do. Changes nothing.

    The exit code is 1 if something is missing.
    """
    root = Path.cwd()
    found = list(examine_machine(root))
    missing = list_missing(found)
    if as_json:
        print(json.dumps(describe(root, found), indent=2))
    else:
        shown = missing if quiet else list(dict.fromkeys(found))
        print("\n".join(format_findings(shown, wants_colours(sys.stdout.isatty()))))
        print(f"{len(missing)} missing" if missing else "nothing is missing")
    raise typer.Exit(int(bool(missing)))


def examine_machine(root: Path) -> Iterator[Finding]:
    """Yields everything that is looked at, machine first."""
    yield check_python()
    yield check_packages(Path(__file__).resolve().parents[2])
    yield check_shared_memory()
    yield check_open_files()
    yield check_clock(root)
    yield from describe_gpus()
    yield from describe_disks(root, store_folder(root))
    yield from check_proxies()
    try:
        params = load_params(root / "params.yaml")
    except ParamsError as error:
        yield from (make_missing("params", "", line) for line in str(error).splitlines())
        return
    yield from check_prefect(params, find_project(root) / ".ril" / "prefect")
    yield from check_ports(params)
    jobs = list_needed_jobs(root, params)
    needs = check_needs(root, params, jobs, _MODEL_SECONDS)
    yield from needs
    yield check_hub(needed=any(TO_DOWNLOAD in one.what for one in needs))
    yield from _check_tokenizers(root, params)
    if not any(one.topic == "data" and one.state == "missing" for one in needs):
        yield from _check_rows(root, params)


def check_ports(params: Params) -> Iterator[Finding]:
    """Yields whether the ports of servers that stages start are free, and that of `ril serve`."""
    for key, _, engine in params.runtime.iter_engines():
        if isinstance(engine, VllmServer) and engine.port is not None and not engine.urls:
            for port in range(engine.port, engine.port + (engine.replicas or 1)):
                if (holder := find_holder("127.0.0.1", port)) is not None:
                    yield Finding(
                        "port", "missing", f"{key}.port", f"{port} is taken by {holder}", "end it, or take another"
                    )
    holder = find_holder("127.0.0.1", _SERVE_PORT)
    if holder is None:
        yield Finding("port", "fine", str(_SERVE_PORT), "is free for ril serve")
    else:
        yield Finding("port", "note", str(_SERVE_PORT), f"is taken by {holder}", "ril serve --port takes another")


def _check_tokenizers(root: Path, params: Params) -> Iterator[Finding]:
    for name, model in params.models.items():
        if model.endpoint is not None:
            continue
        weights: Path | Finding = root / "data" / "model" / name if model.build else find_weights(name, model, root)
        if isinstance(weights, Path) and (weights / "config.json").is_file():
            if model.build is None:
                yield Finding("model", "fine", f"models.{name}", f"{weights} is whole, by names, lengths and headers")
            yield check_tokenizer(name, weights)


def _check_rows(root: Path, params: Params) -> Iterator[Finding]:
    """The first and random rows of the data, as stage `questions` reads them."""
    if any(source.hub for source in params.questions.sources) and allows_downloads():
        yield Finding("rows", "note", "questions.sources", "rows of the hub are not read here", "ril data check does")
        return
    end, read, bad = time.monotonic() + _ROW_SECONDS, 0, list[str]()
    try:
        data = open_data(None, params, root)
        picked: Iterator[tuple[int, SourceRow]] = islice(enumerate(data.rows()), _FIRST_ROWS)
        if params.questions.kind != "world":  # that draws a picture for each row that is passed over
            picked = chain(picked, pick_rows(data, _DRAWN_ROWS, params.seed))
        for checked in convert_rows(picked, data.questions):
            read += 1
            if isinstance(checked.found, UnusableRow):
                bad.append(str(checked.found.reason))
            if time.monotonic() > end:
                break
    except (UnusableData, DataError) as error:
        yield make_missing("rows", "questions", str(error).splitlines()[0], ("questions",))
        return
    if read == len(bad):
        why = f"none of {read} rows is usable: {bad[0] if bad else 'there is none'}"
        yield Finding("rows", "missing", "questions", why, "see ril data check", ("questions",))
    elif bad:
        yield Finding(
            "rows", "note", "questions", f"{len(bad)} of {read} rows are not usable: {bad[0]}", "see ril data check"
        )
    else:
        yield Finding("rows", "fine", "questions", f"{read} rows of {data.title} are usable")


def describe(root: Path, found: list[Finding]) -> dict[str, Any]:
    """Returns everything as JSON values that can be shown to others."""
    values = {
        "commit": describe_commit(),
        "platform": platform.platform(),
        "versions": dict(list_versions()),
        "missing": len(list_missing(found)),
        "found": [asdict(one) for one in dict.fromkeys(found)],
    }
    return {key: redact(value, root, os.environ) for key, value in values.items()}


def redact(value: Any, root: Path, environ: Mapping[str, str]) -> Any:
    """Returns `value` with secrets and logins left out of its texts, and with paths shortened.

    The project's folder becomes `.`, the user's `~`; of other paths the last two parts stay.
    """
    if isinstance(value, Mapping):
        return {key: redact(inner, root, environ) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, root, environ) for inner in value]
    if not isinstance(value, str):
        return value
    for name, secret in environ.items():
        if len(secret) >= 6 and _SECRET.search(name):
            value = value.replace(secret, f"[{name}]")
    value = _LOGIN.sub("", value)
    for folder, short in ((str(root), "."), (str(Path.home()), "~")):
        if folder != "/":
            value = re.sub(rf"{re.escape(folder)}(?=/|$|\W)", short, value)
    return _ABSOLUTE.sub(".../", value)
