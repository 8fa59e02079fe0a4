"""The empty database of a new Prefect server is what Prefect's own migrations make, and replaces none."""

import importlib.metadata
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from flows.ui import own_server
from flows.ui.new_database import SCHEMA, place_database, read_schema


def sort_schema(database: Path) -> list[list[str]]:
    """Its statements, without order: that of constraints in a table differs from one migration to the next."""
    return sorted(sorted(re.split(", | \\)$", statement)) for statement in read_schema(database))


@pytest.mark.prefect
def test_it_is_what_the_migrations_of_this_prefect_make(tmp_path: Path) -> None:
    """If this fails, Prefect is another version: `python -m flows.ui.new_database` writes the schema anew."""
    program = (
        "import sys; from pathlib import Path; from flows.ui.new_database import migrate; migrate(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    place_database(tmp_path / "home")
    placed = tmp_path / "home" / "prefect.db"
    assert sort_schema(placed) == sort_schema(tmp_path / "new.db")
    assert len(read_schema(placed)) > 150
    assert placed.stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "home").iterdir()) == [placed]


@pytest.mark.parametrize("name", ["prefect.db", "prefect.db-wal", "prefect.db-journal"])
def test_what_is_there_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    place_database(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_another_prefect_migrates_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "3.7.999")
    place_database(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_written_is_left_to_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    place_database(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert f"warning: no new database at {tmp_path / 'prefect.db'}: " in capsys.readouterr().err


def test_the_schema_is_of_the_locked_prefect(root: Path) -> None:
    (locked,) = re.findall(r"^prefect==(\S+)", (root / "requirements" / "cpu.txt").read_text(), re.M)
    assert f"prefect {locked} " in SCHEMA.read_text().splitlines()[0]


def test_rows_get_their_ids_from_it(tmp_path: Path) -> None:
    place_database(tmp_path)
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as made:
        made.execute("INSERT INTO flow (name) VALUES ('one')")
        ((number, tags),) = made.execute("SELECT id, tags FROM flow").fetchall()
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", number)
    assert tags == "[]"


def test_a_project_has_it_before_its_first_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "PREFECT_HOME": str(tmp_path / "home")})
    monkeypatch.setattr(own_server, "claim_port", lambda *_: None)
    monkeypatch.setattr(own_server, "run_server", lambda *_: nullcontext())
    with own_server.open_server(tmp_path, "127.0.0.1", 4200) as access:
        assert len(read_schema(access.home / "prefect.db")) > 150
