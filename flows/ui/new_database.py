"""The empty database of a new Prefect server, written from its schema in 0.1 s of CPU.

Prefect makes it in a hundred migrations, which take 6 to 8 s of CPU. `new_database.sql` is what they end with, for one
version of Prefect, that of the locks; any other version migrates as ever. After an update of Prefect:
`python -m flows.ui.new_database`.
"""

import asyncio
import importlib.metadata
import os
import sqlite3
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from flows.environment import prepare
from stages.job.files import write_text

SCHEMA = Path(__file__).with_suffix(".sql")
_FIRST_LINE = "-- what the migrations of prefect {version} (Apache-2.0) make; by python -m flows.ui.new_database\n"
_DATABASE = "prefect.db"  # in Prefect's folder, unless its settings name another one
_REVISION = "SELECT version_num FROM alembic_version"


def place_database(home: Path) -> None:
    """Writes the empty database to Prefect's folder `home`, unless it has one or the schema is of another version.

    One that another process makes meanwhile is left alone.
    """
    path = home / _DATABASE
    # a journal without a database is that of one that was moved away, and would be applied to the next
    taken = any(path.with_name(f"{_DATABASE}{end}").exists() for end in ("", "-wal", "-journal"))
    schema = SCHEMA.read_text(encoding="utf-8")
    if taken or not schema.startswith(_make_first_line()):
        return
    hidden = path.with_name(f".{_DATABASE}-{os.getpid()}")
    try:
        home.mkdir(parents=True, exist_ok=True)
        hidden.unlink(missing_ok=True)
        hidden.touch(mode=0o600)
        with closing(sqlite3.connect(hidden)) as made:
            made.executescript(f"BEGIN; {schema} COMMIT;")
        with suppress(FileExistsError):
            os.link(hidden, path)
    except (OSError, sqlite3.Error) as error:  # a full disk, or a file system without links: Prefect makes its own
        print(f"warning: no new database at {path}: {error}", file=sys.stderr)
    finally:
        hidden.unlink(missing_ok=True)


def read_schema(database: Path) -> list[str]:
    """Returns the statements that make an equal empty database, in order, each in one line."""
    with closing(sqlite3.connect(database)) as made:
        found = made.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
        ((revision,),) = made.execute(_REVISION).fetchall()
    statements = [" ".join(statement.split()) for (statement,) in found]
    return [*statements, f"INSERT INTO alembic_version VALUES ('{revision}')"]


def migrate(home: Path) -> Path:
    """Lets Prefect make a database in `home`, in this process, which must not have imported Prefect; returns it."""
    path = home / "new.db"
    os.environ |= {"PREFECT_HOME": str(home), "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{path}"}
    prepare()
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    return path


def _make_first_line() -> str:
    return _FIRST_LINE.format(version=importlib.metadata.version("prefect"))


def main() -> None:
    """Writes the schema that Prefect's migrations make."""
    with tempfile.TemporaryDirectory() as folder:
        statements = read_schema(migrate(Path(folder)))
    write_text(SCHEMA, _make_first_line() + "".join(f"{one};\n" for one in statements))
    print(f"{SCHEMA}: {len(statements)} statements")


if __name__ == "__main__":
    main()
