"""The response store: nothing lost, nothing half, the same answer for ever."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.responses import segments
from stages.responses import store as module
from stages.responses.index import ABSENT, Index, Runs, decode_rows, decode_segments
from stages.responses.key import derive_answer_key
from stages.responses.segment_rows import ANSWERS_PER_ROW_GROUP, FIRST_SCHEMA, decode_digests, write_segment
from stages.responses.segments import list_segments
from stages.responses.store import Store, StoredAnswer, make_answer_table


def stored(name: str, sample: int, text: str) -> StoredAnswer:
    request = hashlib.sha256(name.encode()).hexdigest()
    return StoredAnswer(
        key=derive_answer_key(request, sample),
        request_key=request,
        sample=sample,
        question_id="q",
        text=text,
        token_ids=(1, 2, 3),
        finish_reason="stop",
        prompt_tokens=5,
        completion_tokens=3,
        engine="vllm",
        engine_version="0",
    )


def pairs(answers: Iterable[StoredAnswer]) -> list[tuple[str, int]]:
    return [(answer.request_key, answer.sample) for answer in answers]


def asked(name: str, *samples: int) -> list[tuple[str, int]]:
    return [(hashlib.sha256(name.encode()).hexdigest(), sample) for sample in samples]


def silent(text: str) -> None:
    raise AssertionError(f"nothing to say, but: {text}")


ANSWERS = [stored(f"r{index}", sample, f"text {index} {sample}") for index in range(4) for sample in range(3)]


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", silent)
    store.append(ANSWERS[:5])
    store.append(ANSWERS[5:])
    for opened in (store, Store(tmp_path / "new", silent)):
        assert len(opened) == len(ANSWERS)
        assert opened.fetch(pairs(ANSWERS)) == {answer.key: answer for answer in ANSWERS}
        assert opened.fetch(asked("unknown", 0)) == {}


def test_an_empty_append_writes_nothing(tmp_path: Path) -> None:
    Store(tmp_path, silent).append([])
    assert not list(tmp_path.iterdir())


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.lists(st.tuples(st.integers(0, 3), st.text(max_size=5)), min_size=1, max_size=4)
        ),
        min_size=1,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_of_duplicates_the_first_order_counts_however_files_came_there(tmp_path_factory, segments, order) -> None:
    """Segments are files: copied from elsewhere in any order, they serve the same answers."""
    folder = tmp_path_factory.mktemp("store")
    contents: list[tuple[int, str, list[StoredAnswer]]] = []
    for number, (place, rows) in enumerate(segments):
        answers = list({sample: stored("r", sample, text) for sample, text in rows}.values())
        contents.append((place, f"{place:020d}-{number:08x}.parquet", answers))
    order.shuffle(contents)
    for _, name, answers in contents:
        write_segment(folder / name, make_answer_table(answers, 5))
    expected: dict[str, StoredAnswer] = {}
    for _, _, answers in sorted(contents, key=lambda segment: segment[:2]):
        for answer in answers:
            expected.setdefault(answer.key, answer)
    assert Store(folder, silent).fetch(pairs(expected.values())) == expected


def test_a_clock_that_was_set_back_does_not_replace_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, clock in (("first", 2**60), ("second", 1), ("third", 0)):
        monkeypatch.setattr(time, "time_ns", lambda clock=clock: clock)
        Store(tmp_path, silent).append([stored("r", 0, text)])
    (answer,) = Store(tmp_path, silent).fetch(asked("r", 0)).values()
    assert answer.text == "first"


def test_orders_follow_one_another_and_names_are_the_folders_own(tmp_path: Path) -> None:
    """What becomes visible later has a larger order, whoever wrote it; a copy of the folder gives other names."""
    for _ in range(3):
        Store(tmp_path / "a", silent).append(ANSWERS[:1])
    segments = list_segments(tmp_path / "a")
    assert [segment.order for segment in segments] == [1, 2, 3]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("a", "b"):
        Store(tmp_path / name, silent).append(ANSWERS[1:2])
    newest = [list_segments(tmp_path / name)[-1] for name in ("a", "b")]
    assert [segment.order for segment in newest] == [4, 4]
    assert newest[0].path.name != newest[1].path.name


def test_a_name_that_was_taken_meanwhile_is_not_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that saw an old listing, as one that was stopped for a minute did."""
    Store(tmp_path, silent).append([stored("r", 0, "first")])
    seen = iter([[], [], list_segments(tmp_path)])
    real = segments.list_segments
    monkeypatch.setattr(
        segments, "list_segments", lambda folder: next(seen, None) if folder == tmp_path else real(folder)
    )
    segments.publish(tmp_path, lambda path: write_segment(path, make_answer_table([stored("r", 0, "second")], 0)))
    monkeypatch.undo()
    assert [segment.order for segment in list_segments(tmp_path)] == [1, 2]
    (answer,) = Store(tmp_path, silent).fetch(asked("r", 0)).values()
    assert answer.text == "first"


def test_a_folder_without_links_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    for text in ("first", "second"):
        Store(tmp_path, silent).append([stored("r", 0, text)])
    (answer,) = Store(tmp_path, silent).fetch(asked("r", 0)).values()
    assert answer.text == "first"


def test_segments_of_the_first_format_are_read(tmp_path: Path) -> None:
    """Their names hold a time where others have an order, and they lack the later columns."""
    file = tmp_path / "01763700000000000000-0123abcd.parquet"
    table = make_answer_table(ANSWERS[:2], 7).select(FIRST_SCHEMA.names)
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    store = Store(tmp_path, silent)
    store.append([replace(ANSWERS[0], text="later"), ANSWERS[3]])
    assert store.fetch(pairs(ANSWERS)) == {a.key: a for a in (ANSWERS[0], ANSWERS[1], ANSWERS[3])}
    assert list_segments(tmp_path)[0].path == file


def test_rows_come_in_the_order_asked_for_with_the_columns_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path, silent)
    for start in range(0, 12, 3):
        store.append(ANSWERS[start : start + 3])
    wanted = [ANSWERS[place] for place in (7, 0, 11, 3, 4)]
    requests = decode_digests(pa.array([answer.request_key for answer in wanted]))
    samples = np.array([[answer.sample, 5] for answer in wanted])
    table, there = store.read_rows(requests, samples, ["text", "sample"])
    assert table.to_pydict() == {"text": [a.text for a in wanted], "sample": [a.sample for a in wanted]}
    assert there.tolist() == [[True, False]] * 5


def test_reading_reads_no_other_row_groups_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [stored("r", sample, f"text {sample}") for sample in range(3 * ANSWERS_PER_ROW_GROUP)]
    store = Store(tmp_path, silent)
    store.append(answers)
    read: list[tuple[list[int], list[str]]] = []
    real = module.read_groups
    monkeypatch.setattr(
        module,
        "read_groups",
        lambda file, groups, columns: read.append((groups, columns)) or real(file, groups, columns),
    )
    store = Store(tmp_path, silent)
    table, _ = store.read_rows(
        decode_digests(pa.array([answers[0].request_key])), np.array([[ANSWERS_PER_ROW_GROUP + 5]]), ["text"]
    )
    assert table["text"].to_pylist() == [f"text {ANSWERS_PER_ROW_GROUP + 5}"]
    assert read == [([0, 1, 2], ["request_key", "sample"]), ([1], ["text"])]


def test_a_request_costs_32_bytes_of_index_however_many_answers_it_has(tmp_path: Path) -> None:
    store = Store(tmp_path, silent)
    store.append([stored(f"r{request}", sample, "") for request in range(100) for sample in range(16)])
    assert store.index.nbytes == 32 * 100
    store.append([stored(f"r{request}", sample, "") for request in range(100) for sample in range(16, 20)])
    assert (len(store), store.index.nbytes) == (2000, 2 * 32 * 100)


def test_requests_with_equal_first_halves_are_told_apart() -> None:
    one, other, third, far = (np.array([[high, low]], np.uint64) for high, low in ((5, 1), (5, 2), (5, 3), (4, 9)))
    zero = np.zeros(2, np.int64)
    index = Index(
        [Runs.from_rows(np.concatenate([other, one]), zero), Runs.from_rows(np.concatenate([one, far]), zero)]
    )
    assert len(index) == 3
    sample = np.array([[0]])
    assert [int(decode_rows(index.find_places(key, sample))[0, 0]) for key in (one, other)] == [1, 0]
    assert index.find_places(third, sample)[0, 0] == ABSENT


SEGMENTS = st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12, unique=True), max_size=5)


@given(SEGMENTS)
def test_the_index_serves_what_a_plain_dictionary_would(segments: list[list[tuple[int, int]]]) -> None:
    """Runs that overlap in any way; the first segment that has a sample counts."""
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    runs = []
    for number, rows in enumerate(segments):
        for row, pair in enumerate(rows):
            expected.setdefault(pair, (number, row))
        requests = np.array([[request, 7] for request, _ in rows], np.uint64).reshape(-1, 2)
        runs.append(Runs.from_rows(requests, np.array([sample for _, sample in rows], np.int64)))
    index = Index(runs)
    places = index.find_places(
        np.array([[request, 7] for request in range(5)], np.uint64), np.repeat(np.arange(11)[None], 5, axis=0)
    )
    found = {
        (request, sample): (int(decode_segments(place)), int(decode_rows(place)))
        for request, row in enumerate(places)
        for sample, place in enumerate(row)
        if place != ABSENT
    }
    assert found == expected
    assert (len(index), index.stored) == (len(expected), sum(map(len, segments)))
    assert index.count_served(len(segments)).tolist() == [
        sum(n == number for n, _ in expected.values()) for number in range(len(segments))
    ]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def other_columns(file: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "created_at": [1]}), file)


def other_bytes(file: Path) -> None:
    """One bit in the middle of the texts is turned: footer and keys stay whole, only the page's checksum notices."""
    texts = pq.ParquetFile(file).metadata.row_group(0).column(4)
    data = bytearray(file.read_bytes())
    data[texts.dictionary_page_offset + texts.total_compressed_size // 2] ^= 1
    file.write_bytes(data)


def no_keys(file: Path) -> None:
    """A segment by its columns, but not by what stands in them."""
    table = make_answer_table([replace(ANSWERS[0], request_key="a key")], 0)
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)


@pytest.mark.parametrize("damage", [cut, emptied, other_columns, other_bytes, no_keys])
def test_a_damaged_segment_is_named_and_its_answers_are_missing(tmp_path: Path, damage) -> None:
    store = Store(tmp_path, silent)
    store.append(ANSWERS[:5])
    store.append(ANSWERS[5:])
    damaged = sorted(tmp_path.glob("*.parquet"))[0]
    damage(damaged)
    said: list[str] = []
    found = Store(tmp_path, said.append).fetch(pairs(ANSWERS))
    assert found == {answer.key: answer for answer in ANSWERS[5:]}
    assert len(said) == 1
    assert str(damaged) in said[0]
    assert damaged.exists()  # named, never deleted


def test_a_turned_bit_is_named_or_changes_nothing(tmp_path: Path) -> None:
    Store(tmp_path, silent).append(ANSWERS)
    wanted = {answer.key: answer for answer in ANSWERS}
    (file,) = tmp_path.glob("*.parquet")
    whole = file.read_bytes()
    named = 0
    for place in range(0, len(whole), 11):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        said: list[str] = []
        found = Store(tmp_path, said.append).fetch(pairs(ANSWERS))
        assert found == ({} if said else wanted)
        named += bool(said)
    assert named > 100


def test_a_second_copy_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    Store(tmp_path, silent).append(ANSWERS)
    first = next(tmp_path.glob("*.parquet"))
    Store(tmp_path, silent).append([replace(answer, text="copy") for answer in ANSWERS])
    other_bytes(first)
    said: list[str] = []
    found = Store(tmp_path, said.append).fetch(pairs(ANSWERS))
    assert {answer.text for answer in found.values()} == {"copy"}
    assert len(said) == 1


WRITER = """
    import sys
    from pathlib import Path
    from stages.responses.store import Store
    from tests.stages.responses.test_store import stored
    store = Store(Path(sys.argv[1]), print)
    for number in range(100000):
        store.append([stored(sys.argv[2], 2 * number + half, "x" * 200) for half in (0, 1)])
        print(number, flush=True)
"""


def writer(root: Path, folder: Path, name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), name]
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )


def test_two_writers_killed_lose_nothing_that_was_acknowledged(tmp_path: Path, root: Path) -> None:
    names = ("a", "b")
    writers = {name: writer(root, tmp_path, name) for name in names}
    acknowledged: dict[str, int] = {}
    try:
        for name, process in writers.items():
            assert process.stdout is not None
            acknowledged[name] = max(int(process.stdout.readline()) for _ in range(20))
    finally:
        for process in writers.values():
            process.send_signal(signal.SIGKILL)
    for name, process in writers.items():
        rest, _ = process.communicate(timeout=60)
        acknowledged[name] = max([acknowledged[name], *(int(line) for line in rest.split())])
    store = Store(tmp_path, silent)
    for name in names:
        count = 2 * acknowledged[name] + 2
        assert len(store.fetch(asked(name, *range(count)))) == count
    assert len(store) % 2 == 0  # whole segments only


FILLER = """
    import resource, signal, sys
    from pathlib import Path
    from stages.responses.store import Store
    from tests.stages.responses.test_store import stored
    store = Store(Path(sys.argv[1]), print)
    store.append([stored("small", sample, "x") for sample in range(10)])
    print("stored", flush=True)
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        store.append([stored("large", sample, str(hash((sample, "x"))) * 40) for sample in range(20000)])
    except OSError as error:
        print(error)
        sys.exit(3)
"""


def fill(root: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(FILLER), str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment, timeout=120)


def holds_the_small_ones_alone(folder: Path, result: "subprocess.CompletedProcess[str]") -> None:
    assert result.returncode == 3, result.stderr
    assert "What was stored before is safe: make room" in result.stdout
    store = Store(folder, silent)
    assert len(store) == 10
    assert len(store.fetch(asked("small", *range(10)))) == 10
    assert not list(folder.glob("*.partial"))


def test_a_file_that_can_grow_no_more_ends_with_a_word_and_nothing_half(tmp_path: Path, root: Path) -> None:
    holds_the_small_ones_alone(tmp_path, fill(root, tmp_path, "100000"))
    assert fill(root, tmp_path).returncode == 0  # and goes on when there is room again


def test_a_full_disk_ends_with_a_word_and_nothing_half(tmp_path: Path, root: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    try:
        holds_the_small_ones_alone(disk, fill(root, disk))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
