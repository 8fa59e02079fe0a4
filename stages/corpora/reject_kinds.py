"""Rejected rows by kind of reason: how many, and the first of each; what is held does not grow with the rows."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from stages.corpora.adapters import UnusableRow

MOST_KINDS = 1000  # of reasons that are told apart
KIND_CHARACTERS = 80
EXAMPLE_CHARACTERS = 150
OTHERS = "other reasons"
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9][0-9,.]*")  # what differs between reasons of one kind


class RejectKinds:
    """Counts rejects; reasons that differ in numbers and quoted values alone are of one kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, UnusableRow] = {}

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, reject: UnusableRow) -> None:
        """Counts one reject; after MOST_KINDS kinds each new one is among OTHERS."""
        kind = _VALUES.sub("", reject.reason)[:KIND_CHARACTERS]
        if kind not in self._first and len(self._first) >= MOST_KINDS:
            kind, reject = OTHERS, replace(reject, reason=OTHERS)
        self._counts[kind] += 1
        self._first.setdefault(kind, reject)

    def tabulate(self) -> list[dict[str, Any]]:
        """Returns the kinds, commonest first: number of rows, and the first row with file, row, field and value."""
        return [{"rows": count, **vars(self._first[kind])} for kind, count in self._counts.most_common()]

    def describe(self, most: int) -> str:
        """Returns the commonest kinds with their counts and an example each, in one line."""
        common = self._counts.most_common(most)
        return "; ".join(
            f"{count:,} row{'s' * (count != 1)}: {self._first[kind].reason[:EXAMPLE_CHARACTERS]}"
            for kind, count in common
        )
