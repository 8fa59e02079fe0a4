"""A process that calls reward functions: `python -m stages.reward_functions.worker <socket>`.

It answers requests on a socket that it inherits, one after another; a frame is eight bytes of length and JSON. The
parent reads what functions print from a pipe, and kills this process with all that it has started when a call takes too
long. It runs the user's code, so the parent believes nothing but a well-formed reply.
"""

import base64
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.engines.supervisor import signal_on_parent_death

GIVEN = ("question", "reference", "answer", "finish_reason", "images")
LONGEST_MESSAGE = 300  # characters of an exception


class Failed(Exception):
    """A call that gave no number; the message is what is said and counted."""


def read_frame(stream: socket.socket) -> bytes | None:
    """Returns the next frame, None when the other side has closed; raises TimeoutError as the socket is set."""
    head = _read_exactly(stream, 8)
    return None if head is None else _read_exactly(stream, int.from_bytes(head, "big"))


def _read_exactly(stream: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        chunk = stream.recv(min(count - len(parts), 1 << 20))
        if not chunk:
            return None
        parts += chunk
    return bytes(parts)


def write_frame(stream: socket.socket, content: bytes) -> None:
    """Sends one frame."""
    stream.sendall(len(content).to_bytes(8, "big") + content)


def load_function(file: str | None, name: str) -> Callable[..., Any]:
    """Returns the function `name` of the user's file, or the ready function of that name; raises Failed."""
    if file is None:
        from stages.reward_functions.ready import FUNCTIONS

        return FUNCTIONS[name]
    sys.path.append(str(Path(file).resolve().parent))  # for files beside it; last, so that json.py is no json
    spec = importlib.util.spec_from_file_location(f"reward_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the user's code may raise anything, SystemExit included
        raise Failed(f"{file} cannot be imported: {describe_error(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise Failed(f"{file} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def bind_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns which of GIVEN the function takes; raises Failed for parameters that nothing gives, and for the reverse.

    A function with `**rest` gets all of GIVEN.
    """
    parameters = inspect.signature(function).parameters
    kinds = inspect.Parameter
    taken = {name for name, one in parameters.items() if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    takes_all = any(one.kind == kinds.VAR_KEYWORD for one in parameters.values())
    required = {name for name in taken if parameters[name].default is kinds.empty}
    if missing := sorted(required - set(GIVEN) - set(arguments)):
        raise Failed(
            f"parameter {missing[0]!r} is not given: functions get {', '.join(GIVEN)}; give others a default, or set "
            "them in `arguments`"
        )
    if unknown := sorted(set(arguments) - taken) if not takes_all else []:
        raise Failed(f"`arguments` has {unknown[0]!r}, which the function does not take; it takes {sorted(taken)}")
    return tuple(name for name in GIVEN if (takes_all or name in taken) and name not in arguments)


def read_number(value: Any) -> float | None:
    """Returns the number that a function returned, None for None; raises Failed for NaN, infinity and other types."""
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise Failed(f"returned {type(value).__name__}, not a number or None")
    try:
        number = float(value)
    except Exception as error:  # arrays of several numbers raise as they like
        raise Failed(f"returned {type(value).__name__}, which is no number: {describe_error(error)}") from error
    if not math.isfinite(number):
        raise Failed(f"returned {number}")
    return number


def describe_error(error: BaseException) -> str:
    """Returns type and text of an exception in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_MESSAGE]


def open_pictures(images: list[str]) -> list[Any]:
    """Returns images (files in base64) as Pillow images, upright and in RGB, as the models see them."""
    from stages.corpora.images import open_image

    return [open_image(base64.b64decode(image)) for image in images]


def seed_call(request: Mapping[str, Any]) -> None:
    """Seeds `random` and NumPy from the call alone, so that a value does not depend on the calls before it."""
    text = json.dumps([request["question"], request["answer"]])
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def refuse_children() -> None:
    """Raises Failed when the call left a process that is still running; those that have ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
    raise Failed("left a process running; wait for it before the function returns")


class Functions:
    """The functions that this process has loaded, by number."""

    def __init__(self) -> None:
        self._loaded: dict[int, tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {}
        self._process = os.getpid()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the reply: `value`, `taken` of a function that was loaded, or `failed` with the reason."""
        try:
            if "load" in request:
                self._load(request["load"], request["file"], request["function"], request["arguments"])
                return {"taken": self._loaded[request["load"]][2]}
            return {"value": self._call(request)}
        except Failed as error:
            return {"failed": str(error)}

    def _load(self, number: int, file: str | None, name: str, arguments: dict[str, Any]) -> None:
        function = load_function(file, name)
        self._loaded[number] = (function, arguments, bind_arguments(function, arguments))

    def _call(self, request: Mapping[str, Any]) -> float | None:
        function, arguments, taken = self._loaded[request["number"]]
        given = {name: request[name] for name in taken if name != "images"}
        if "images" in taken:
            given["images"] = open_pictures(request["images"])
        seed_call(request)
        try:
            value = function(**given, **arguments)
        except BaseException as error:  # SystemExit and KeyboardInterrupt of user code are failures, too
            if os.getpid() != self._process:
                os._exit(1)
            raise Failed(f"raised {describe_error(error)}") from error
        if os.getpid() != self._process:
            os._exit(0)  # a fork of the function came back: only the first process answers
        number = read_number(value)
        refuse_children()
        return number


def main(descriptor: int) -> None:
    """Answers requests until the parent closes the socket."""
    signal_on_parent_death(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    functions = Functions()
    with socket.socket(fileno=descriptor) as stream:
        stream.setblocking(True)
        stream.set_inheritable(False)
        while (content := read_frame(stream)) is not None:
            reply = functions.answer(json.loads(content))
            for out in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # the user's code may have closed them
                    out.flush()
            try:
                write_frame(stream, json.dumps(reply).encode())
            except OSError:  # the user's code has closed the socket
                os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
