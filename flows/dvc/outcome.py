"""What dvc does with each stage, read from its output: ran, restored, skipped; and why, from `dvc status`."""

import re
from collections.abc import Callable, Mapping
from io import TextIOBase
from typing import Any

_BUSY = re.compile(r"'(?P<path>[^']*)' is busy, it is being blocked by")
_HOLDER = re.compile(r"\(PID (?P<pid>\d+)\): (?P<command>.+)")
_LABEL = re.compile(r"^[\w@.-]+ +\| ")  # of stages that run side by side (flows/dvc/repro.py)
_WORDS = (
    (re.compile(r"^Running stage '(?P<stage>[^']+)'"), "ran"),
    (re.compile(r"^Stage '(?P<stage>[^']+)' didn't change, skipping"), "skipped: nothing changed"),
    (re.compile(r"^Stage '(?P<stage>[^']+)' is cached - skipping run"), "restored from DVC's run cache"),
    (re.compile(r"^ERROR: failed to reproduce '(?P<stage>[^']+)'"), "failed"),
)


class StageLog(TextIOBase):
    """Takes dvc's output, hands each whole line to `say`, and remembers what became of each stage."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.stages: dict[str, str] = {}
        self.busy: str | None = None  # what another dvc holds, when that is why this one gave up
        self.last_error = ""
        self._say = say
        self._part = ""

    def write(self, text: str) -> int:
        """Takes a piece of output; always all of it."""
        *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            self._take(line.rsplit("\r", 1)[-1].rstrip())  # of a progress bar only what stands at the end
        return len(text)

    def _take(self, line: str) -> None:
        if not line:
            return
        self._say(line)
        line = _LABEL.sub("", line)
        for pattern, word in _WORDS:
            if found := pattern.match(line):
                self.stages[found["stage"]] = word
        if line.lower().startswith("error: "):
            self.last_error = line[len("error: ") :]
        if found := _BUSY.search(line):
            self.busy = found["path"]
        if self.busy and "held by" not in self.busy and (found := _HOLDER.search(line)):
            self.busy += f", held by process {found['pid']}"


def format_reasons(status: list[Any]) -> str:
    """The reasons that `dvc status` gives for one stage, as one line."""
    words = []
    for entry in status:
        if not isinstance(entry, Mapping):
            words.append(str(entry))
            continue
        for kind, changed in entry.items():
            words.append(f"{kind}: {_flatten(changed)}" if changed else str(kind))
    return "; ".join(words)


def _flatten(changed: Any) -> str:
    if not isinstance(changed, Mapping):
        return str(changed)
    parts = []
    for name, what in changed.items():
        parts.append(
            _flatten(what) if name == "params.yaml" and isinstance(what, Mapping) else f"{name} {_flatten(what)}"
        )
    return ", ".join(parts)


def make_outcome_rows(
    before: Mapping[str, list[Any]],
    stages: Mapping[str, str],
    lock_before: Mapping[str, Any],
    lock_after: Mapping[str, Any],
) -> list[dict[str, str]]:
    """A row for each stage that dvc looked at: why it was out of date, what was done, what dvc.lock says of it now."""
    rows = []
    for stage in dict.fromkeys([*stages, *before]):
        same = lock_before.get(stage) == lock_after.get(stage)
        rows.append(
            {
                "stage": stage,
                "out of date before": format_reasons(before.get(stage, [])) or "no",
                "now": stages.get(stage, "not reached"),
                "dvc.lock": "as before" if same else "new" if stage not in lock_before else "changed",
            }
        )
    return rows
