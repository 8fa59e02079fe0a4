"""The order of stages that run side by side: nothing before what it needs, everything once, the longest chain first."""

from graphlib import CycleError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.dvc.order import StageOrder, parse_needs, select_stale, select_targets

DOT = """strict digraph {
"model@a";
"model@b";
"questions";
"teacher@a";
"pool";
"model@a" -> "teacher@a";
"questions" -> "teacher@a";
"teacher@a" -> "pool";
}
"""
NEEDS = {
    "model@a": set(),
    "model@b": set(),
    "questions": set(),
    "teacher@a": {"model@a", "questions"},
    "pool": {"teacher@a"},
}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, set[str]]:
    """Stages 0, 1, ...; each needs some of those before it."""
    count = draw(st.integers(0, 9))
    return {str(n): {str(m) for m in draw(st.sets(st.integers(0, n - 1)))} if n else set() for n in range(count)}


def test_dvcs_graph_is_read() -> None:
    assert parse_needs(DOT) == NEEDS


def test_targets_bring_what_they_need_and_no_more() -> None:
    assert select_targets(NEEDS, ()) == NEEDS
    assert set(select_targets(NEEDS, ("teacher",))) == {"teacher@a", "model@a", "questions"}
    assert set(select_targets(NEEDS, ("model@b", "questions"))) == {"model@b", "questions"}


def test_what_is_stale_and_what_follows_is_looked_at() -> None:
    assert select_stale(NEEDS, ["questions"]) == {
        "questions": set(),
        "teacher@a": {"questions"},
        "pool": {"teacher@a"},
    }
    assert select_stale(NEEDS, []) == {}


def test_the_longest_chain_goes_first() -> None:
    order = StageOrder({"alone": (), "first": (), "second": ("first",)})
    assert order.next() == "first"
    assert order.next() == "alone"
    assert order.next() is None
    order.finish("first")
    assert order.next() == "second"


def test_a_circle_is_refused() -> None:
    with pytest.raises(CycleError):
        StageOrder({"a": ("b",), "b": ("a",)})


@given(graphs(), st.integers(1, 3), st.data())
def test_everything_runs_once_and_after_what_it_needs(
    needs: dict[str, set[str]], jobs: int, data: st.DataObject
) -> None:
    order, running, done = StageOrder(needs), list[str](), list[str]()
    while order.left:
        while len(running) < jobs and (name := order.next()) is not None:
            assert needs[name] <= set(done)
            running.append(name)
        assert running, "it would wait for ever"
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        order.finish(ended)
        done.append(ended)
    assert sorted(done) == sorted(needs)
