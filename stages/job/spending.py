"""What a stage has spent, and the caps of `budget` on it.

A ledger in the store has a line for each reply that was paid for, written when it comes, so that a kill forgets none.
Several processes may add to it. What is under way is held back from what is left, so that a cap is not passed by it: of
answers exactly, of tokens and money by what an answer has cost so far.
"""

import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stages.job.stop import STOP

BUDGET_CODE = 3  # exit code of a stage that has reached a cap
PER_TOKENS = 1_000_000  # prices are of so many
Unit = Literal["answers", "tokens", "money", "gpu_hours"]
_PAID: tuple[Unit, ...] = ("answers", "tokens", "money")


class BudgetReached(Exception):
    """A cap of `budget` is used up; the message says what was spent and which key to raise.

    No RuntimeError: a stage that goes on without a judge that fails must not go on without one that it may not pay.
    """


@dataclass(frozen=True)
class TokenPrices:
    """Of a million tokens, in any currency."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass
class Spending:
    """What one run of a stage (`teacher@gpt`) has spent with this store; used from several threads."""

    ledger: Path
    key: str = ""  # of the caps in params.yaml: budget.teacher
    caps: Mapping[str, float] = field(default_factory=dict)  # by unit; one that is not there has no cap
    spent: dict[Unit, float] = field(default_factory=dict)  # by unit, as far as the ledger was read
    _read: int = 0  # bytes of the ledger that are in `spent`
    _open: int = 0  # answers that were asked for and have not come
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __reduce__(self) -> tuple[type["Spending"], tuple[Path, str, Mapping[str, float]]]:
        """For other ranks: the job is sent to them, and a lock can't be."""
        return Spending, (self.ledger, self.key, self.caps)

    def admit(self, wanted: int, prices: TokenPrices, most_tokens: int) -> int:
        """Returns how many of `wanted` answers may be asked for now; they count as under way until `add` or `settle`.

        `most_tokens` is what an answer may have at most: what counts for those under way before the first has come.
        """
        if not self.caps:
            return wanted
        with self._lock:
            self._refresh()
            allowed = min([wanted, *(self._count_affordable(unit, prices, most_tokens) for unit in _PAID)])
            self._open += max(allowed, 0)
            return max(allowed, 0)

    def _count_affordable(self, unit: Unit, prices: TokenPrices, most_tokens: int) -> int:
        cap = self.caps.get(unit)
        if cap is None:
            return 2**53
        left, answers = cap - self.spent.get(unit, 0), self.spent.get("answers", 0)
        if unit == "answers":
            return int(left) - self._open
        one = self.spent.get(unit, 0) / answers if answers else 0.0
        one = one or (most_tokens if unit == "tokens" else most_tokens * prices.completion / PER_TOKENS)
        affordable = int(min(left / one, 2**53)) if one else 2**53
        return max(1, affordable) if self._open == 0 and left > 0 else affordable - self._open

    def add(self, answers: int, prompt_tokens: int, completion_tokens: int, prices: TokenPrices) -> None:
        """Enters a reply with so many answers, which a provider bills; 0 of a reply that is of no use."""
        money = prompt_tokens * prices.prompt + completion_tokens * prices.completion
        tokens = prompt_tokens + completion_tokens
        self._append({"answers": answers, "tokens": tokens, "money": money / PER_TOKENS})
        with self._lock:
            self._open = max(0, self._open - answers)
        if self.find_reached() is not None and STOP.awaited and STOP.code is None:
            STOP.code = BUDGET_CODE  # a training loop ends after its step, and saves

    def add_gpu_hours(self, hours: float) -> None:
        """Enters GPU hours."""
        self._append({"gpu_hours": hours})

    def settle(self) -> None:
        """Says that nothing is under way: what has not come by now was refused or has failed, and costs nothing."""
        with self._lock:
            self._open = 0

    def find_reached(self) -> Unit | None:
        """Returns the unit whose cap is used up, None while all have something left."""
        if not self.caps:
            return None
        with self._lock:
            self._refresh()
            for unit in (*_PAID, "gpu_hours"):
                cap = self.caps.get(unit)
                if cap is not None and self.spent.get(unit, 0) >= cap:
                    return unit
        return None

    def explain_reached(self) -> str:
        """Returns the message about the cap that is used up."""
        unit = self.find_reached()
        return self.explain(unit) if unit else f"{self.key} was used up"

    def check(self, missing: int = 0) -> None:
        """Raises BudgetReached if a cap is used up; `missing` answers are then still to be paid for."""
        if (unit := self.find_reached()) is not None:
            raise BudgetReached(self.explain(unit, missing))

    def explain(self, unit: Unit, missing: int = 0) -> str:
        """Returns the message: the cap, what was spent of everything, what is missing, and what to do."""
        spent = ", ".join(f"{_format(one, self.spent[one])} {one.replace('_', ' ')}" for one in self.spent)
        left = ""
        if missing:
            answers = self.spent.get("answers", 0)
            each = self.spent.get("money", 0) / answers if answers else 0
            left = f"; {missing:,} answers are missing" + (
                f", about {_format('money', each * missing)} money" if each else ""
            )
        cap = _format(unit, self.caps[unit])
        return (
            f"{self.key}.{unit} is {cap} and used up: spent so far {spent or 'nothing'}{left}; all that came is "
            f"stored: raise {self.key}.{unit} and run it again, which pays for the rest only"
        )

    def _append(self, row: Mapping[str, float]) -> None:
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, f"{json.dumps(row)}\n".encode())  # one write: lines of several processes do not mix
        finally:
            os.close(handle)

    def _refresh(self) -> None:
        """Reads what is new in the ledger; a last line without its end is left for later."""
        if not self.ledger.is_file():
            return
        with self.ledger.open("rb") as opened:
            opened.seek(self._read)
            new = opened.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            for unit, value in _read_line(line).items():
                self.spent[unit] = self.spent.get(unit, 0) + value


def _read_line(line: bytes) -> dict[Unit, float]:
    """Returns the amounts of a line; none of a line that a crash of the machine has left damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    found = row if isinstance(row, dict) else {}
    return {unit: float(found[unit]) for unit in (*_PAID, "gpu_hours") if isinstance(found.get(unit), int | float)}


def _format(unit: Unit, value: float) -> str:
    return f"{math.floor(value):,}" if unit in ("answers", "tokens") else f"{value:,.4g}"
