"""ASCII terminals: every command prints its help, and texts of models with any character."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

import click
import pytest
import typer

from flows import run
from flows.cli.main import app, main
from flows.environment import print_any_text
from stages.config.table import STAGES


def list_commands() -> Iterator[tuple[str, ...]]:
    def walk(command: click.Command, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield names
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*names, name))

    yield from walk(typer.main.get_command(app), ())


def run_on_ascii_terminal(command: Callable[[], object]) -> tuple[object, str]:
    """What `command` returns, or the code with which it ends the process, and what it prints."""
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with redirect_stdout(written), redirect_stderr(written):
        try:
            code = command()
        except SystemExit as ended:
            code = ended.code
    return code, written.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]


@pytest.mark.parametrize("names", list_commands(), ids=" ".join)
def test_help_of_every_command_is_printed(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ril", *names, "--help"])
    code, said = run_on_ascii_terminal(main)
    assert code == 0
    assert "--help" in said


@pytest.mark.parametrize("stage", [*STAGES, ""])
def test_help_of_every_stage_is_printed(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # SIGPIPE ends a process that prints help, not this one
    code, said = run_on_ascii_terminal(lambda: run.main([*filter(None, [stage]), "--help"]))
    assert code == 0
    assert (f"dvc repro {stage}" if stage else "usage") in said


def test_benchmarks_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ril", "benchmarks"])
    code, said = run_on_ascii_terminal(main)
    assert code == 0
    assert "\\u2013" in said


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_text_is_printed(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    print_any_text()
    print("a\ud800b \u00a7 \u202e \U0001f600")
    assert b"a\\ud800b" in written.getvalue()


def test_a_real_ascii_terminal(root: object, call: Callable[..., tuple[int, str, str]]) -> None:
    told = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code, out, err = call(root, "flows.run", "ril", "--help", **told)
    assert (code, err) == (0, "")
    assert "\\xa7" in out
