"""The rows that cannot be used: one line each in rejects.jsonl, written as they come, and their commonest reasons."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from stages.corpora.adapters import UnusableRow
from stages.corpora.reject_kinds import RejectKinds
from stages.corpora.source import UnusableData
from stages.job.files import replacing

SHOWN_REASONS = 3


class RejectLog:
    """Rejected rows: their lines are in a file, their number by source and by kind of reason in memory."""

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self._kinds = RejectKinds()
        self.by_source: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.by_source.total()

    def add(self, reject: UnusableRow, source: int) -> None:
        """Writes the line of a row of the source with this place in `questions.sources`."""
        self._lines.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")
        self.by_source[source] += 1
        self._kinds.add(reject)

    def count_reasons(self) -> str:
        """Returns the commonest kinds of reasons with their counts and an example each."""
        return self._kinds.describe(SHOWN_REASONS)


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
