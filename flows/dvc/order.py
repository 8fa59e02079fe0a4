"""Which stages may run now when several run side by side: what they need is done, the longest chain of followers goes
first.
"""

import re
from collections.abc import Collection, Mapping
from functools import cache
from graphlib import TopologicalSorter

Needs = Mapping[str, Collection[str]]

_EDGE = re.compile(r'^"(?P<first>[^"]+)" -> "(?P<then>[^"]+)";$', re.MULTILINE)
_NODE = re.compile(r'^"(?P<name>[^"]+)";$', re.MULTILINE)


def parse_needs(dot: str) -> dict[str, set[str]]:
    """What each stage of DVC's graph (`dvc dag --dot`) needs directly."""
    needs: dict[str, set[str]] = {name: set() for name in _NODE.findall(dot)}
    for first, then in _EDGE.findall(dot):
        needs[then].add(first)
    return needs


def select_targets(needs: Needs, targets: Collection[str]) -> dict[str, set[str]]:
    """The part of `needs` for `targets` and all that comes before them; the whole of it without targets.

    A target is a stage, or the name of one with a run an item (`teacher`: all teachers).
    """
    reached = [name for name in needs if not targets or name in targets or name.split("@")[0] in targets]
    kept: dict[str, set[str]] = {}
    while reached:
        name = reached.pop()
        if name not in kept:
            kept[name] = set(needs[name])
            reached.extend(needs[name])
    return kept


def select_stale(needs: Needs, stale: Collection[str]) -> dict[str, set[str]]:
    """The part of `needs` that has to be looked at: what is out of date, and whatever comes after it."""
    kept: dict[str, set[str]] = {}
    for name in TopologicalSorter(needs).static_order():
        before = {need for need in needs[name] if need in kept}
        if name in stale or before:
            kept[name] = before
    return kept


class StageOrder:
    """Hands out the stages of one run; with no stages it is over at once."""

    def __init__(self, needs: Needs) -> None:
        """`needs` says what each stage waits for; raises graphlib.CycleError for a circle."""
        self._sorter = TopologicalSorter(needs)
        self._sorter.prepare()
        self._ready: list[str] = []
        followers: dict[str, list[str]] = {name: [] for name in needs}
        for name, before in needs.items():
            for need in before:
                followers[need].append(name)
        self._chain = cache(lambda name: 1 + max((self._chain(after) for after in followers[name]), default=0))

    @property
    def left(self) -> bool:
        """Whether a stage was not handed out yet, or was and is not done."""
        return self._sorter.is_active()

    def next(self) -> str | None:
        """The stage to start now, handed out once; None while all that is left waits for one that runs."""
        self._ready = sorted([*self._ready, *self._sorter.get_ready()], key=self._chain, reverse=True)
        return self._ready.pop(0) if self._ready else None

    def finish(self, name: str) -> None:
        """Tells that `name` has ended well."""
        self._sorter.done(name)
