"""What a check has found: one line each, with what to do about it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["missing", "note", "fine"]
TO_DOWNLOAD = "not here, will be downloaded"
_COLOURS = {"missing": "\x1b[31m", "note": "\x1b[33m", "fine": "\x1b[32m"}
_PLAIN = "\x1b[0m"
_WIDTH = 9  # of topics


@dataclass(frozen=True)
class Finding:
    """One answer of a check."""

    topic: str  # data, model, key, gpu ...
    state: State  # missing: stages will fail; note: worth a look; fine
    where: str  # the key of params.yaml, the file or the variable it is about
    what: str  # what is there, with values
    remedy: str = ""  # of what is missing: what to do
    stages: tuple[str, ...] = ()  # runs that need it; (): whatever runs

    def __str__(self) -> str:
        told = f"{self.where}: {self.what}" if self.where else self.what
        return f"{told}; {self.remedy}" if self.remedy else told


def make_missing(topic: str, where: str, message: object, stages: Iterable[str] = ()) -> Finding:
    """Returns what is missing from a message of a stage's own check, whose last part is the remedy."""
    what, _, remedy = " ".join(str(message).split()).rpartition("; ")
    return Finding(topic, "missing", where, *((what, remedy) if what else (remedy, "")), tuple(stages))


def list_missing(found: Iterable[Finding]) -> list[Finding]:
    """Returns what is missing, each once."""
    return list(dict.fromkeys(one for one in found if one.state == "missing"))


def format_findings(found: Sequence[Finding], colours: bool = False) -> list[str]:
    """Returns a line for each finding: state, topic, where, what, remedy."""
    lines = []
    for one in found:
        state = one.state.ljust(7)
        if colours:
            state = f"{_COLOURS[one.state]}{state}{_PLAIN}"
        lines.append(f"{state}  {one.topic.ljust(_WIDTH)} {one}")
    return lines


def wants_colours(is_terminal: bool) -> bool:
    """Whether lines may have colours: on a terminal that can, and not when NO_COLOR forbids it."""
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
