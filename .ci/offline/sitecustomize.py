"""With this folder on PYTHONPATH no Python process reaches a network: it is refused, and noted in $RIL_OFFLINE_LOG.

`.ci/run` does the smoke run under it: after installation nothing may need, or even try, to reach another machine.
"""

import ipaddress
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any


def _is_local(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if name in ("localhost", "0.0.0.0", "::", socket.gethostname(), socket.getfqdn()):
        return True
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or name in _own_addresses()


def _own_addresses() -> set[str]:
    try:
        return set(socket.gethostbyname_ex(socket.gethostname())[2])
    except OSError:
        return set()


def _refuse(target: object) -> None:
    log = os.environ.get("RIL_OFFLINE_LOG")
    if log:
        stack = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(traceback.extract_stack()[-8:-2]))
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {' '.join(sys.argv[:3])}: {target} ({stack})\n")
    raise ConnectionRefusedError(f"off-line run: no connection to {target}")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" and not _is_local(arguments[0]):
        _refuse(arguments[0])
    # Connecting a datagram socket sends nothing; libraries do it to learn their own address.
    if event == "socket.connect" and arguments[0].type == socket.SOCK_STREAM:
        address = arguments[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            _refuse(address)


sys.addaudithook(_watch)
