"""Who may use the Prefect server of `ril serve`: a key made at its start, in a file that only its user can read."""

import os
import re
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

from flows.ui.login import make_link
from flows.ui.prefect_server import list_host_names

_KEY_BYTES = 24  # 192 bits
_VARIABLES = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")


@dataclass(frozen=True)
class Access:
    """Address and key of a project's own server."""

    url: str  # of the API
    key: str
    home: Path  # Prefect's folder: database, profiles

    def describe_client(self) -> dict[str, str]:
        """Environment variables for processes that talk to the server."""
        return dict(zip(_VARIABLES, (self.url, self.key, str(self.home)), strict=True))

    def describe_server(self, host: str, port: int) -> dict[str, str]:
        """Environment variables for the server: its key, its own pages as the only origin, tokens against forgery."""
        names = [f"[{name}]" if ":" in name else name for name in dict.fromkeys(list_host_names(host))]
        return {
            "PREFECT_SERVER_API_AUTH_STRING": self.key,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{port}" for name in names),
            "PREFECT_UI_API_URL": "/api",  # of the page, so that it works through a tunnel too
        }


class NoServer(RuntimeError):
    """There is no Prefect server and none could be started; the message says why."""


def prefect_folder(root: Path) -> Path:
    """The folder of Prefect's files in the project at `root`, for its user only; it is made when it is not there.

    Raises NoServer when it can't be written or belongs to somebody else.
    """
    folder = root / ".ril" / "prefect"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise NoServer(f"{folder} has to be a folder that only you can write: {error.strerror}") from error
    return folder


def access_file(root: Path) -> Path:
    """The file to be sourced in a shell whose stages are to be seen on the server."""
    return prefect_folder(root) / "environment"


def grant_access(root: Path, url: str) -> Access:
    """Makes a key, and writes it with the address to `access_file`, mode 0600.

    A file that a killed `ril serve` has left keeps its key: runs that outlived it know no other.
    """
    path = access_file(root)
    home = Path(os.environ.get("PREFECT_HOME") or prefect_folder(root))
    access = Access(url, _read_key(path) or f"ril:{secrets.token_urlsafe(_KEY_BYTES)}", home)
    hidden = path.with_name(f".environment-{os.getpid()}")
    hidden.unlink(missing_ok=True)
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f"# the forms: {make_link(url, access.key)}\n")
        file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in access.describe_client().items())
    hidden.rename(path)
    return access


def read_access(root: Path) -> Access | None:
    """The access that `access_file` gives; None when there is no such file, or others could have written it."""
    text = _read_own(access_file(root))
    lines = (words.removeprefix("export ") for words in text.splitlines() if words.startswith("export "))
    found = {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}
    url, key, home = (found.get(name) for name in _VARIABLES)
    return Access(url, key, Path(home)) if url and key and home else None


def revoke_access(root: Path) -> None:
    """Removes the key: the next start makes another."""
    access_file(root).unlink(missing_ok=True)


def _read_key(path: Path) -> str | None:
    found = re.search(r"^export PREFECT_API_AUTH_STRING=(ril:[\w-]{32})$", _read_own(path), re.M)
    return found[1] if found else None


def _read_own(path: Path) -> str:
    """The text of the file at `path`; empty when there is none or others could have written or read it."""
    if path.is_symlink() or not path.is_file():
        return ""
    about = path.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        return ""
    return path.read_text(encoding="utf-8")
