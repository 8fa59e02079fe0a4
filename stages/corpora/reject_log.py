"""The rows that cannot be used: one line each in rejects.jsonl, written as they come, and their commonest reasons."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from stages.corpora.adapters import UnusableRow
from stages.corpora.source import UnusableData
from stages.job.files import replacing

SHOWN_REASONS = 3
MOST_KINDS = 1000  # of reasons that are told apart
KIND_CHARACTERS = 80
EXAMPLE_CHARACTERS = 150
OTHERS = "other reasons"
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9][0-9,.]*")  # what differs between reasons of one kind


class RejectLog:
    """Rejected rows: their lines are in a file, their number by source and by kind of reason in memory."""

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self._kinds: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self.by_source: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.by_source.total()

    def add(self, reject: UnusableRow, source: int) -> None:
        """Writes the line of a row of the source with this place in `questions.sources`."""
        self._lines.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")
        self.by_source[source] += 1
        kind = _VALUES.sub("", reject.reason)[:KIND_CHARACTERS]
        if kind not in self._examples and len(self._examples) >= MOST_KINDS:
            kind = OTHERS
        self._kinds[kind] += 1
        self._examples.setdefault(kind, OTHERS if kind == OTHERS else reject.reason[:EXAMPLE_CHARACTERS])

    def count_reasons(self) -> str:
        """Returns the commonest kinds of reasons with their counts and an example each."""
        common = self._kinds.most_common(SHOWN_REASONS)
        return "; ".join(f"{count:,} row{'s' * (count != 1)}: {self._examples[kind]}" for kind, count in common)


@contextmanager
def writing_rejects(path: Path) -> Iterator[RejectLog]:
    """Yields the log whose lines become the file `path`, also when the data cannot be used (UnusableData)."""
    fault = None
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        try:
            yield RejectLog(lines)
        except UnusableData as error:
            fault = error
    if fault is not None:
        raise fault
