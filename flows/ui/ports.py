"""Whether a port is free, and who holds it otherwise."""

import errno
import socket
from dataclasses import dataclass

import psutil

_COMMAND_CHARACTERS = 100


@dataclass(frozen=True)
class Holder:
    """The process that listens at a port; None and empty where the system does not say, as for other users'."""

    pid: int | None
    command: str
    folder: str

    def __str__(self) -> str:
        """For a message."""
        if self.pid is None:
            return "a process of another user"
        return f"process {self.pid} ({self.command[:_COMMAND_CHARACTERS]})" + (self.folder and f" in {self.folder}")


def find_holder(host: str, port: int) -> Holder | None:
    """Who listens at `host`:`port`; None when it is free. Raises OSError when `host` is no address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does; else its past holds it
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return _describe_listener(port)
    return None


def _describe_listener(port: int) -> Holder:
    for one in psutil.net_connections(kind="tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid is not None:
            process = psutil.Process(one.pid)
            with process.oneshot():
                return Holder(one.pid, " ".join(" ".join(process.cmdline()).split()), _read_folder(process))
    return Holder(None, "", "")


def _read_folder(process: psutil.Process) -> str:
    try:
        return str(process.cwd())
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return ""
