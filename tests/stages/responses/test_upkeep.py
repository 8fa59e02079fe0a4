"""Compacting, merging, exporting and checking a store: no answer that was served ever changes, none is lost."""

import hashlib
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.config.sampling import Sampling
from stages.job.bounded import Fault
from stages.responses import compact as module
from stages.responses.compact import compact
from stages.responses.dataset import export_dataset
from stages.responses.key import derive_answer_key
from stages.responses.merge import merge
from stages.responses.segments import list_segments
from stages.responses.sets import compute_set_statistics, find_faults
from stages.responses.store import Store, StoredAnswer

Make = Callable[..., StoredAnswer]
Read = Callable[[Path, Sequence[tuple[str, int]]], dict[str, str]]


def asked(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def key_of(name: str, sample: int) -> str:
    return derive_answer_key(asked(name), sample)


ALL = [(asked(name), sample) for name in "abc" for sample in range(4)]


def silent(text: str) -> None:
    raise AssertionError(f"nothing to say, but: {text}")


def filled(folder: Path, stored: Make, texts: Sequence[Sequence[tuple[str, int, str]]]) -> None:
    for rows in texts:
        Store(folder, lambda text: None).append([stored(*row) for row in rows])


THREE = [[("a", 0, "a0"), ("a", 1, "a1")], [("a", 1, "other"), ("b", 0, "b0")], [("b", 0, "other"), ("c", 3, "c3")]]


def test_compaction_leaves_every_answer_as_it_was(tmp_path: Path, stored: Make, projected: Read) -> None:
    filled(tmp_path, stored, THREE)
    before = projected(tmp_path, ALL)
    rows = Store(tmp_path, silent).fetch(ALL)
    done = compact(tmp_path, silent)
    assert (done.before, done.after, done.answers, done.duplicates) == (3, 1, 4, 2)
    assert Store(tmp_path, silent).fetch(ALL) == rows
    filled(tmp_path, stored, [[("a", 0, "too late"), ("c", 0, "c0")]])
    assert projected(tmp_path, ALL) == {**before, key_of("c", 0): "c0"}
    compact(tmp_path, silent)
    assert projected(tmp_path, ALL) == {**before, key_of("c", 0): "c0"}
    assert compact(tmp_path, silent).after == len(list_segments(tmp_path)) == 1


def test_a_compaction_that_was_overtaken_removes_nothing_new(tmp_path: Path, stored: Make, projected: Read) -> None:
    """Orders and names are not used again: what a slow compaction removes at its end is what it has read."""
    filled(tmp_path, stored, THREE)
    names = {segment.path.name for segment in list_segments(tmp_path)}
    for sample in range(3):
        compact(tmp_path, silent)
        filled(tmp_path, stored, [[("c", sample, "new")]])
        newest = list_segments(tmp_path)[-1]
        assert newest.order == 4 + sample
        assert newest.path.name not in names
        names.add(newest.path.name)
    assert len(projected(tmp_path, ALL)) == 7


def test_a_crash_at_any_point_of_a_compaction_changes_nothing(
    tmp_path: Path, stored: Make, projected: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename and every removal is a point at which the process may end."""
    filled(tmp_path / "whole", stored, [*THREE, [("a", 2, "a2")], [("c", 3, "late"), ("a", 2, "late")]])
    before = projected(tmp_path / "whole", ALL)
    for point in range(20):
        folder = tmp_path / f"crash{point}"
        filled(folder, stored, [*THREE, [("a", 2, "a2")], [("c", 3, "late"), ("a", 2, "late")]])
        left = [point]

        def counted(original: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def step(*arguments: Any, **named: Any) -> Any:
                if str(arguments[0]).endswith(".parquet") or "rename" in original.__name__:
                    if left[0] == 0:
                        raise KeyboardInterrupt
                    left[0] -= 1
                return original(*arguments, **named)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                compact(folder, silent)
            except KeyboardInterrupt:
                pass
            else:
                assert projected(folder, ALL) == before
                break
        assert projected(folder, ALL) == before
        compact(folder, silent)
        assert projected(folder, ALL) == before
        assert len(list_segments(folder)) == 1
    assert point > 4


def test_nothing_moves_past_a_damaged_segment(tmp_path: Path, stored: Make, projected: Read) -> None:
    """When its file is put back, it counts where it counted before."""
    filled(
        tmp_path,
        stored,
        [[("a", 0, "a0")], [("a", 1, "first")], [("a", 1, "second"), ("b", 0, "b0")], [("b", 1, "b1")]],
    )
    middle = list_segments(tmp_path)[1].path
    whole = middle.read_bytes()
    middle.write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    compact(tmp_path, said.append)
    assert str(middle) in said[0]
    assert middle.read_bytes() == whole[: len(whole) // 2]
    assert projected(tmp_path, ALL)[key_of("a", 1)] == "second"
    middle.write_bytes(whole)
    assert projected(tmp_path, ALL)[key_of("a", 1)] == "first"
    assert len(projected(tmp_path, ALL)) == 4


def test_large_stores_become_files_of_a_bounded_number_of_rows(
    tmp_path: Path, stored: Make, projected: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_PER_SEGMENT", 2048)
    texts = [[(f"r{part}", sample, f"{part} {sample}") for sample in range(700)] for part in range(7)]
    filled(tmp_path, stored, texts)
    done = compact(tmp_path, silent)
    assert (done.after, done.answers) == (3, 4900)
    keys = [(asked(f"r{part}"), sample) for part in range(7) for sample in range(700)]
    assert list(projected(tmp_path, keys).values()) == [text for part in texts for _, _, text in part]


def test_leftovers_of_killed_writers_go_after_a_day(tmp_path: Path, stored: Make) -> None:
    filled(tmp_path, stored, THREE)
    old, new = tmp_path / ".old.partial", tmp_path / ".new.partial"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert compact(tmp_path, silent).leftovers == 1
    assert (old.exists(), new.exists()) == (False, True)


def write_many(folder: str, name: str, count: int) -> None:
    store = Store(Path(folder), silent)
    answer = StoredAnswer("", asked(name), 0, "q", "", (1,), "stop", 1, 1, "vllm", "0")
    for number in range(count):
        store.append([replace(answer, key=key_of(name, number), sample=number, text=f"{name} {number}")])


def test_compaction_beside_writers_and_readers(tmp_path: Path) -> None:
    """Two processes write, this one compacts again and again, a thread reads: what was seen once stays as it was
    seen.
    """
    context = multiprocessing.get_context("fork")
    count = 60
    writers = [context.Process(target=write_many, args=(str(tmp_path), name, count)) for name in ("a", "b")]
    keys = [(asked(name), number) for name in ("a", "b") for number in range(count)]
    seen: dict[str, str] = {}
    changed: list[str] = []
    stop = threading.Event()

    def reads() -> None:
        while not stop.is_set():
            found = {key: answer.text for key, answer in Store(tmp_path, silent).fetch(keys).items()}
            changed.extend(key for key in seen if found.get(key) != seen[key])
            seen.update(found)

    for process in writers:
        process.start()
    reader = threading.Thread(target=reads, daemon=True)
    reader.start()
    compactions = 0
    try:
        while any(process.is_alive() for process in writers):
            if list_segments(tmp_path):
                compact(tmp_path, silent)
                compactions += 1
    finally:
        stop.set()
        reader.join(60)
    assert [process.exitcode for process in writers] == [0, 0]
    compact(tmp_path, silent)
    assert compactions > 1
    assert not changed
    assert len(Store(tmp_path, silent).fetch(keys)) == 2 * count


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.text(max_size=3)), min_size=1, max_size=4)


@given(
    st.lists(ROWS, min_size=1, max_size=3),
    st.lists(ROWS, min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_merge_changes_no_answer_that_was_here(
    tmp_path_factory: pytest.TempPathFactory, ours: Any, theirs: Any, first: bool, second: bool, older: bool
) -> None:
    """Whatever both hold, whoever is older, compacted before, after or not."""
    root = tmp_path_factory.mktemp("merge")
    answer = StoredAnswer("", "", 0, "q", "", (1,), "stop", 1, 1, "vllm", "0")
    folders = (root / "ours/responses/set", root / "theirs/responses/set")
    for folder, segments in zip(
        folders[::-1] if older else folders, (theirs, ours) if older else (ours, theirs), strict=True
    ):
        for rows in segments:
            unique = {
                derive_answer_key(r, s): replace(answer, key=key_of(r, s), request_key=asked(r), sample=s, text=t)
                for r, s, t in rows
            }
            Store(folder, silent).append(list(unique.values()))
    texts = [{key: found.text for key, found in Store(folder, silent).fetch(ALL).items()} for folder in folders]
    if first:
        compact(folders[1], silent)
    (done,) = merge(root / "ours/responses", root / "theirs", silent)
    if second:
        compact(folders[0], silent)
    merged = {key: found.text for key, found in Store(folders[0], silent).fetch(ALL).items()}
    assert merged == {**texts[1], **texts[0]}
    assert done.added == len(texts[1].keys() - texts[0].keys())
    assert {key: found.text for key, found in Store(folders[1], silent).fetch(ALL).items()} == texts[1]
    assert [one.added for one in merge(root / "ours/responses", root / "theirs", silent)] == [0]


def test_an_exported_set_loads_as_a_data_set_and_comes_back(
    tmp_path: Path, stored: Make, projected: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    from stages.responses.about import write_about

    for name in ("one", "two"):
        filled(tmp_path / "store/responses" / name, stored, [*THREE, [("c", 0, f"of {name}", "length")]])
    about = {
        "name": "org/model",
        "revision": "0123abc",
        "license": "apache-2.0",
        "template": "ab" * 32,
        "sampling": {**Sampling(top_p=0.95).model_dump(mode="json"), "pattern": "a|b"},
        "asked_sha256": "ef" * 32,
    }
    write_about(tmp_path / "store/responses/one", about)
    sets = [tmp_path / "store/responses" / name for name in ("one", "two")]
    export_dataset(sets, tmp_path / "out", silent)

    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    answers = Store(sets[0], silent).fetch(ALL)
    assert {row["key"]: (row["text"], tuple(row["token_ids"])) for row in loaded} == {
        key: (answer.text, answer.token_ids) for key, answer in answers.items()
    }
    second = load_dataset(str(tmp_path / "out"), "two", cache_dir=str(tmp_path / "cache"))["train"]
    assert "of two" in second["text"]
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "other"  # one of the two is not known
    for said in (
        "org/model",
        "0123abc",
        "apache-2.0",
        "top_p 0.95",
        "pattern a\\|b",
        "ab" * 32,
        "| answers | 5 |",
        "| truncated | 20.00% |",
    ):
        assert said in card.text

    assert [done.added for done in merge(tmp_path / "new/responses", tmp_path / "out", silent)] == [5, 5]
    for one in sets:
        there = tmp_path / "new/responses" / one.name
        assert Store(there, silent).fetch(ALL) == Store(one, silent).fetch(ALL)
        assert projected(there, ALL) == projected(one, ALL)
    assert (tmp_path / "new/responses/one/about.json").read_bytes() == (sets[0] / "about.json").read_bytes()
    with pytest.raises(FileExistsError, match="is not empty"):
        export_dataset(sets, tmp_path / "out", silent)


def test_a_damaged_set_is_not_exported(tmp_path: Path, stored: Make) -> None:
    filled(tmp_path / "set", stored, THREE)
    os.truncate(list_segments(tmp_path / "set")[1].path, 100)
    with pytest.raises(ValueError, match="damaged segments"):
        export_dataset([tmp_path / "set"], tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()


def test_statistics_count_what_is_served(tmp_path: Path, stored: Make) -> None:
    filled(tmp_path, stored, [*THREE, [("c", 0, "cut off", "length")]])
    found = compute_set_statistics(tmp_path, silent)
    assert (found.segments, found.answers, found.duplicates, found.cut) == (4, 5, 2, 1)
    assert found.completion_tokens == len("a0a1b0c3cut off")
    assert found.seconds == 2.5
    assert found.engines == {"vllm 0": 5}
    assert found.index_bytes == 32 * 4


def test_faults_are_found_wherever_a_bit_turns(tmp_path: Path, stored: Make) -> None:
    choose = random.Random(0)
    filled(tmp_path, stored, [[("a", sample, f"text {choose.random()}") for sample in range(50)]])
    assert list(find_faults(tmp_path)) == [50]
    (segment,) = list_segments(tmp_path)
    whole = segment.path.read_bytes()
    for place in sorted(choose.sample(range(len(whole)), 40)):
        segment.path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        found = list(find_faults(tmp_path))
        if found == [50]:  # a bit that no reader minds, such as one of a page's statistics
            assert len(Store(tmp_path, silent)) == 50
        else:
            assert isinstance(found[0], Fault)
            assert found[0].path == segment.path
    Store(tmp_path / "b", silent).append([replace(stored("a", 0, "x"), sample=7)])
    (fault,) = find_faults(tmp_path / "b")
    assert isinstance(fault, Fault)
    assert fault.reason.startswith("row 0: key is ")
    assert "not the hash of request_key and sample" in fault.reason
