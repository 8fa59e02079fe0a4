"""The draw: no image in two splits, own splits untouched, shares by weight, and an order that is a function of rows."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.config.questions import Questions
from stages.corpora.draw import Draw
from stages.corpora.reject_log import writing_rejects
from stages.corpora.rows import make_canonical_row
from stages.corpora.source import UnusableData
from stages.corpora.spool import Origin, RowSpool
from stages.corpora.targets import read_split_name
from stages.job.seeds import derive_seed

NAMES = ("warm_start", "imitation", "validation", "test")
TARGETS = (*NAMES, "train", None)


class Row(NamedTuple):
    """A row with its images by number."""

    target: str | None
    images: tuple[int, ...]
    source: int
    asks: str = ""  # by default a question of its own


ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from(TARGETS),
        st.lists(st.integers(0, 9), max_size=2, unique=True).map(tuple),
        st.integers(0, 2),
        st.sampled_from(["", "", "one", "two"]),
    ),
    max_size=40,
)
COUNTS = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 12) | st.just("all"), min_size=4)
SOURCES = st.lists(st.fixed_dictionaries({"limit": st.none() | st.integers(1, 9)}), min_size=3, max_size=3)


def make_block(splits: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> Questions:
    listed = [{"path": f"s/{number}", **source} for number, source in enumerate(sources)]
    given = {"kind": "sources", "path": "s", "images": "s", "sources": listed, "splits": dict(splits)}
    return Questions.model_validate(given)


@contextmanager
def drawing(rows: Mapping[str, Row], block: Questions) -> Iterator[tuple[Draw, RowSpool, Path]]:
    """Places the rows, which are by id; the order is that of their ids."""
    with tempfile.TemporaryDirectory() as folder:
        spool = RowSpool(Path(folder))
        for name, row in rows.items():
            images = [bytes([image]) for image in row.images]
            canonical = make_canonical_row(name, images, [{"role": "user", "content": row.asks or name}], "a", "s", "k")
            spool.put(canonical, derive_seed(name), Origin(row.source, row.target, "f", 1))
        with writing_rejects(Path(folder) / "rejects.jsonl") as log:
            draw = Draw(spool, block, log)
            draw.place_rows()
        yield draw, spool, Path(folder) / "rejects.jsonl"


def list_placed(spool: RowSpool) -> dict[str, list[str]]:
    return {split: [row["id"] for row in spool.iter_split(split)] for split in NAMES}


@given(ROWS, COUNTS, SOURCES, st.randoms())
def test_no_image_is_in_two_splits_and_own_splits_are_untouched(
    rows: list[Row], splits: dict[str, Any], sources: list[dict[str, Any]], shuffle: random.Random
) -> None:
    named = {f"r{number}": row for number, row in enumerate(rows)}
    block = make_block(splits, sources)
    with drawing(named, block) as (draw, spool, rejects):
        placed = list_placed(spool)
        rejected = rejects.read_text().count("\n")
        assert rejected == draw.rejected
        open_rows = sum(1 for _ in spool.iter_open(TARGETS))
    assert open_rows + rejected + sum(map(len, placed.values())) == len(rows)
    owners: dict[int, str] = {}
    for split, names in placed.items():
        for image in {image for name in names for image in named[name].images}:
            assert owners.setdefault(image, split) == split
        assert splits[split] == "all" or len(names) <= splits[split]
    own = {row.target for row in rows}
    for split in NAMES:
        for name in placed[split]:
            target = named[name].target
            assert target == split if split in own else target in ("train", None)
        for source in range(3):
            of_source = sum(named[name].source == source for names in placed.values() for name in names)
            assert of_source <= (sources[source]["limit"] or len(rows))
    drawn = {name: row for name, row in named.items() if row.target is None and not row.images and row.asks}
    for asked in {row.asks for row in drawn.values()}:
        split_of = {name: split for split in NAMES for name in placed[split]}
        assert len({split_of[name] for name, row in drawn.items() if row.asks == asked and name in split_of}) < 2
    given_to_test = {name for name, row in named.items() if row.target == "test"}
    shown = {image for name in given_to_test for image in named[name].images}
    assert not any(shown.intersection(named[name].images) for split in NAMES[:3] for name in placed[split])
    if splits["test"] == "all" and not any(source["limit"] for source in sources):
        assert given_to_test <= set(placed["test"])

    shuffled = list(named.items())
    shuffle.shuffle(shuffled)
    with drawing(dict(shuffled), block) as (_, spool, _):
        assert list_placed(spool) == placed


@given(
    st.lists(st.sampled_from([None, 0.5, 1.0, 3.0]), min_size=3, max_size=3),
    st.integers(1, 40),
    st.sampled_from(["train", None]),
)
def test_sources_have_the_shares_of_their_weights(weights: list[float | None], count: int, target: str | None) -> None:
    """The smallest split has one row, so that no source must give more than it has."""
    rows = {f"{source}-{number}": Row(target, (), source) for source in range(3) for number in range(50)}
    splits = {"warm_start": count, "imitation": 1, "validation": 1, "test": 1}
    with drawing(rows, make_block(splits, [{"weight": weight} for weight in weights])) as (_, spool, _):
        found = Counter(name[0] for name in list_placed(spool)["warm_start"])
    assert found.total() == count
    if any(weights):
        parts = [weight or 1.0 for weight in weights]
        for source, part in enumerate(parts):
            assert abs(found[str(source)] - count * part / sum(parts)) < 1


def test_a_split_of_all_rows_has_those_that_splits_with_numbers_leave(tmp_path: Path) -> None:
    rows = {f"r{number}": Row("train", (number,), 0) for number in range(50)}
    rows |= {f"t{number}": Row("test", (100 + number,), 0) for number in range(7)}
    with drawing(rows, make_block({"warm_start": "all", "imitation": 5, "validation": 3, "test": "all"}, [{}])) as (
        draw,
        spool,
        _,
    ):
        placed = list_placed(spool)
    assert {split: len(names) for split, names in placed.items()} == {
        "warm_start": 42,
        "imitation": 5,
        "validation": 3,
        "test": 7,
    }
    assert {name[0] for name in placed["test"]} == {"t"}
    assert draw.count("warm_start", 0) == 42


@pytest.mark.parametrize("order", [("t", "v", "w"), ("v", "w", "t"), ("w", "t", "v")])
def test_an_image_of_several_splits_leaves_test_untouched(order: Sequence[str]) -> None:
    """Whichever row is drawn first, and validation before training."""
    targets = {"t": "test", "v": "validation", "w": "warm_start", "i": "imitation"}
    rows = {f"{name}{place}": Row(targets[name], (1,), 0) for place, name in enumerate(order)}
    rows |= {f"own {name}": Row(target, (10 + place,), 0) for place, (name, target) in enumerate(targets.items())}
    rows |= {"v and w": Row("warm_start", (11,), 0)}
    with drawing(rows, make_block(dict.fromkeys(NAMES, "all"), [{}])) as (draw, spool, rejects):
        placed = list_placed(spool)
        reasons = rejects.read_text()
    assert sorted(placed["test"]) == sorted(["own t", f"t{order.index('t')}"])
    assert placed["validation"] == ["own v"]
    assert placed["warm_start"] == ["own w"]
    assert draw.rejected == 3
    assert reasons.count("its image is in split test, too") == 2
    assert reasons.count("its image is in split validation, too") == 1


def test_rows_without_a_split_fill_what_has_no_rows_of_its_own() -> None:
    rows = {f"a{number}": Row("train", (number,), 0) for number in range(20)}
    rows |= {f"b{number}": Row(None, (50 + number,), 1) for number in range(20)}
    rows |= {f"c{number}": Row("validation", (100 + number,), 2) for number in range(2)}
    with drawing(rows, make_block(dict.fromkeys(NAMES, 4), [{}, {}, {}])) as (draw, spool, _):
        placed = list_placed(spool)
    assert {name[0] for name in placed["test"]} == {"b"}  # rows for training are not held out where others can be
    assert {name[0] for name in placed["validation"]} == {"c"}
    assert {name[0] for split in ("warm_start", "imitation") for name in placed[split]} == {"a", "b"}
    assert draw.plan.allowed["train"] == ("warm_start", "imitation")


def test_weights_and_a_split_of_all_rows_contradict_each_other() -> None:
    block = make_block({**dict.fromkeys(NAMES, 1), "imitation": "all"}, [{"weight": 2.0}])
    with (
        pytest.raises(UnusableData, match=r"^questions.splits.imitation is all, but its sources have weights; write a"),
        drawing({"a": Row(None, (), 0)}, block),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "train") for name in ("train", "training", "TRAIN", "train2014", "trainval", "train_sft")),
        *((name, "validation") for name in ("val", "valid", "validation", "dev", "val2017", "minival", "dev_test")),
        *((name, "test") for name in ("test", "testmini", "test-dev", "test_std", "minitest")),
        *((name, None) for name in ("default", "all", "full", "", "0", "latest", "contest")),
    ],
)
def test_what_data_sets_call_their_splits(name: str, target: str | None) -> None:
    assert read_split_name(name) == target
