"""The response store: nothing lost, nothing half, the same answer for ever."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.responses import Store, StoredAnswer, answer_key


def stored(request: str, sample: int, text: str) -> StoredAnswer:
    return StoredAnswer(
        key=answer_key(request, sample),
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


def silent(text: str) -> None:
    raise AssertionError(f"nothing to say, but: {text}")


ANSWERS = [stored(f"r{index}", sample, f"text {index} {sample}") for index in range(4) for sample in range(3)]


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", silent)
    store.append(ANSWERS[:5])
    store.append(ANSWERS[5:])
    for opened in (store, Store(tmp_path / "new", silent)):
        assert len(opened) == len(ANSWERS)
        assert opened.fetch(answer.key for answer in ANSWERS) == {answer.key: answer for answer in ANSWERS}
        assert opened.fetch(["unknown"]) == {}


def test_an_empty_append_writes_nothing(tmp_path: Path) -> None:
    Store(tmp_path, silent).append([])
    assert not list(tmp_path.iterdir())


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 3), st.text(max_size=5)), min_size=1, max_size=4)),
        min_size=1,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_of_duplicates_the_oldest_counts_in_any_order_of_writing(tmp_path_factory, segments, order) -> None:
    """Segments are files: written in any order, copied from elsewhere, they serve the same answers."""
    folder = tmp_path_factory.mktemp("store")
    contents: list[tuple[int, str, list[StoredAnswer]]] = []
    for number, (created, rows) in enumerate(segments):
        answers = list({sample: stored("r", sample, text) for sample, text in rows}.values())
        contents.append((created, f"{created:020d}-{number:08x}.parquet", answers))
    order.shuffle(contents)
    for created, name, answers in contents:
        write_segment(folder / name, created, answers)
    expected: dict[str, StoredAnswer] = {}
    for _, _, answers in sorted(contents, key=lambda segment: segment[:2]):
        for answer in answers:
            expected.setdefault(answer.key, answer)
    assert Store(folder, silent).fetch(expected) == expected


def write_segment(file: Path, created: int, answers: list[StoredAnswer]) -> None:
    """A segment with a chosen time, as another machine would have written it."""
    scratch = file.parent / "scratch"
    Store(scratch, silent).append(answers)
    (written,) = scratch.glob("*.parquet")
    table = pq.read_table(written)
    table = table.set_column(table.schema.get_field_index("created_at"), "created_at", pa.array([created] * len(table)))
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    written.unlink()


def test_a_clock_that_was_set_back_does_not_replace_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path, silent).append([stored("r", 0, "first")])
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    Store(tmp_path, silent).append([stored("r", 0, "second")])
    (answer,) = Store(tmp_path, silent).fetch([answer_key("r", 0)]).values()
    assert answer.text == "first"


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


@pytest.mark.parametrize("damage", [cut, emptied, other_columns, other_bytes])
def test_a_damaged_segment_is_named_and_its_answers_are_missing(tmp_path: Path, damage) -> None:
    store = Store(tmp_path, silent)
    store.append(ANSWERS[:5])
    store.append(ANSWERS[5:])
    damaged = sorted(tmp_path.glob("*.parquet"))[0]
    damage(damaged)
    said: list[str] = []
    found = Store(tmp_path, said.append).fetch(answer.key for answer in ANSWERS)
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
        found = Store(tmp_path, said.append).fetch(wanted)
        assert found == ({} if said else wanted)
        named += bool(said)
    assert named > 100


def test_a_second_copy_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    Store(tmp_path, silent).append(ANSWERS)
    first = next(tmp_path.glob("*.parquet"))
    Store(tmp_path, silent).append([replace(answer, text="copy") for answer in ANSWERS])
    other_bytes(first)
    said: list[str] = []
    found = Store(tmp_path, said.append).fetch(answer.key for answer in ANSWERS)
    assert {answer.text for answer in found.values()} == {"copy"}
    assert len(said) == 1


WRITER = """
    import sys
    from pathlib import Path
    from stages.responses import Store
    from tests.stages.responses.test_store import stored
    store = Store(Path(sys.argv[1]), print)
    for number in range(100000):
        store.append([stored(sys.argv[2], 2 * number + half, "x" * 200) for half in (0, 1)])
        print(number, flush=True)
"""


def writer(root: Path, folder: Path, name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), name]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})


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
        keys = [answer_key(name, sample) for sample in range(2 * acknowledged[name] + 2)]
        assert len(store.fetch(keys)) == len(keys)
    assert len(store) % 2 == 0  # whole segments only
