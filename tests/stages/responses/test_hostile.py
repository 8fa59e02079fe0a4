"""A store that others write to: what is broken, special, too large or of another model is named and passed over."""

import itertools
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.job.bounded import Fault
from stages.responses import segment_rows
from stages.responses.compact import compact
from stages.responses.dataset import export_dataset
from stages.responses.index import Index, Runs
from stages.responses.key import derive_answer_key
from stages.responses.merge import merge
from stages.responses.segment_rows import ANSWER_SCHEMA, MAX_ROWS, ORIGINAL, write_segment
from stages.responses.segments import list_segments
from stages.responses.sets import find_faults, find_sets, find_strays
from stages.responses.store import Store, StoredAnswer, make_answer_table
from tests.fuzz.mutations import limit_time, measure_peak

Make = Callable[..., StoredAnswer]
BROKEN = "00000000000000000000-deadbeef.parquet"  # comes before all others


def faults(folder: Path) -> list[str]:
    return [str(found) for found in find_faults(folder) if isinstance(found, Fault)]


def texts(folder: Path, answers: list[StoredAnswer], say: Callable[[str], None] = lambda text: None) -> list[str]:
    found = Store(folder, say).fetch([(answer.request_key, answer.sample) for answer in answers])
    return [found[answer.key].text for answer in answers if answer.key in found]


def make_bomb_rows(answer: StoredAnswer, rows: int, **columns: pa.Array) -> pa.Table:
    table = make_answer_table([answer], 0)
    values = {
        name: table[name].combine_chunks().take(pa.array(np.zeros(rows, np.int32))) for name in table.column_names
    }
    return pa.table({**values, **columns})


def many_rows(answer: StoredAnswer, path: Path) -> None:
    """As many rows as fit into a file of some KiB."""
    pq.write_table(make_bomb_rows(answer, 4 * MAX_ROWS), path, compression="zstd")


def long_texts(answer: StoredAnswer, path: Path) -> None:
    """A text of 1 MiB that the dictionary holds once and 10,000 rows repeat."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array(["x" * 2**20]))
    pq.write_table(make_bomb_rows(answer, 10_000, text=text), path, compression="zstd", store_schema=False)


def long_keys(answer: StoredAnswer, path: Path) -> None:
    """The same in a column that the index reads."""
    key = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array(["x" * 2**20]))
    pq.write_table(make_bomb_rows(answer, 10_000, request_key=key), path, compression="zstd", store_schema=False)


def one_text(answer: StoredAnswer, path: Path) -> None:
    pq.write_table(make_bomb_rows(answer, 1, text=pa.array(["x" * 2**25])), path, compression="zstd")


def many_tokens(answer: StoredAnswer, path: Path) -> None:
    """A list of two million equal numbers takes some hundred bytes."""
    tokens = pa.ListArray.from_arrays(pa.array([0, 2**21], pa.int32()), pa.array(np.zeros(2**21, np.int32)))
    pq.write_table(make_bomb_rows(answer, 1, token_ids=tokens), path, compression="zstd")


def deep_schema(answer: StoredAnswer, path: Path) -> None:
    kind = pa.int32()
    for _ in range(2000):
        kind = pa.list_(kind)
    pq.write_table(pa.table({"a": pa.nulls(1, kind)}), path)


def wide_schema(answer: StoredAnswer, path: Path) -> None:
    pq.write_table(pa.table({f"c{number}": [1] for number in range(17_000)}), path)


@pytest.mark.parametrize("write", [many_rows, long_texts, long_keys, one_text, many_tokens, deep_schema, wide_schema])
def test_a_small_file_of_much_content_is_passed_over(
    write: Any, tmp_path: Path, stored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With limits of a sixteenth and less, so that the files are made in a second."""
    monkeypatch.setattr(segment_rows, "MAX_DECODED_BYTES", 2**24)
    monkeypatch.setattr(segment_rows, "MAX_TOKENS", 2**20)
    answers = [stored("a", sample, f"text {sample}") for sample in range(4)]
    Store(tmp_path, pytest.fail).append(answers)
    write(stored("b", 0, "x"), tmp_path / BROKEN)
    assert (tmp_path / BROKEN).stat().st_size < 2**23
    wanted = [*answers, stored("b", 0, "x")]
    said: list[str] = []

    def read() -> None:
        with limit_time(30):
            assert texts(tmp_path, wanted, said.append) == [answer.text for answer in answers]
            (fault,) = faults(tmp_path)
            assert fault.startswith(f"{tmp_path / BROKEN}: ")

    assert measure_peak(read) < 2**28
    assert len(said) == 1


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(path.parent)  # the path of a socket is at most 107 bytes
        bound.bind(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_link_to_secret(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_empty_folder(path: Path) -> None:
    path.mkdir()


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


SPECIAL = [
    *(make_pipe, make_socket, make_dangling, make_loop, make_link_to_device, make_link_to_secret),
    *(make_empty_folder, make_sparse),
]
PLACES = [BROKEN, "about.json", "refused", "refused/a.jsonl", ".x.partial", "named by hand.parquet"]


@pytest.mark.parametrize(("special", "place"), itertools.product(SPECIAL, PLACES))
def test_a_special_file_anywhere_in_a_set_hides_nothing(
    special: Any, place: str, tmp_path: Path, stored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "store" / "responses" / "set"
    answers = [stored("a", sample, f"text {sample}") for sample in range(4)]
    Store(folder, pytest.fail).append(answers)
    (folder / place).parent.mkdir(exist_ok=True)
    special(folder / place)
    harmless = (special is make_empty_folder and place in ("refused", ".x.partial")) or (
        special is make_sparse and place in ("refused", ".x.partial")
    )
    with limit_time(10):
        assert texts(folder, answers) == [answer.text for answer in answers]
        assert bool(faults(folder)) != harmless
        assert all(fault.startswith(str(folder / place)) for fault in faults(folder))
        Store(folder, lambda text: None).append([stored("b", 0, "new")])
        (done,) = merge(tmp_path / "new", tmp_path / "store", lambda text: None)
        assert done.added == 5
        compact(folder, lambda text: None)
    assert texts(folder, [*answers, stored("b", 0, "new")])[-1] == "new"
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_symlink()]


def test_a_link_in_the_place_of_a_set_is_named_and_not_followed(tmp_path: Path, stored: Make) -> None:
    Store(tmp_path / "elsewhere", pytest.fail).append([stored("a", 0, "secret")])
    Store(tmp_path / "store/responses/set", pytest.fail).append([stored("b", 0, "b")])
    for name, target in (("linked", tmp_path / "elsewhere"), ("loop", "loop"), ("gone", "nowhere")):
        (tmp_path / "store/responses" / name).symlink_to(target)
    os.mkfifo(tmp_path / "store/responses/pipe")
    assert [one.name for one in find_sets(tmp_path / "store")] == ["set"]
    assert sorted(fault.path.name for fault in find_strays(tmp_path / "store/responses")) == [
        *("gone", "linked", "loop", "pipe")
    ]
    assert [done.set_name for done in merge(tmp_path / "new", tmp_path / "store", pytest.fail)] == ["set"]


@pytest.mark.parametrize(
    "name", [f"{10**20 - 1:020d}-deadbeef.parquet", f"{1:020d}-deadbeef-c{10**20 - 1:020d}-01234567.parquet"]
)
@pytest.mark.parametrize("content", ["whole", "broken"])
def test_a_name_with_the_last_order_stops_no_writer(name: str, content: str, tmp_path: Path, stored: Make) -> None:
    Store(tmp_path, pytest.fail).append([stored("a", 0, "a0")])
    if content == "whole":
        write_segment(tmp_path / name, make_answer_table([stored("z", 0, "z0")], 0))
    else:
        (tmp_path / name).write_bytes(b"PAR1")
    with limit_time(10):
        for sample in range(1, 5):
            Store(tmp_path, lambda text: None).append([stored("a", sample, f"a{sample}")])
        compact(tmp_path, lambda text: None)
        Store(tmp_path, lambda text: None).append([stored("a", 5, "a5")])
    assert texts(tmp_path, [stored("a", sample, "") for sample in range(6)]) == [f"a{sample}" for sample in range(6)]


@pytest.mark.parametrize("content", ["", "../../x", "0123456", "0123456g", "x" * 100, "é" * 8])
def test_a_wrong_id_of_a_folder_gives_no_wrong_names(content: str, tmp_path: Path, stored: Make) -> None:
    (tmp_path / f".home-{tmp_path.stat().st_ino}").write_text(content)
    for sample in range(3):
        Store(tmp_path, pytest.fail).append([stored("a", sample, "text")])
    assert [segment.order for segment in list_segments(tmp_path)] == [1, 2, 3]
    assert len({segment.path.name[21:29] for segment in list_segments(tmp_path)}) == 1


def test_thousands_of_runs_of_one_request_cost_no_thousands_of_steps() -> None:
    request = np.array([[7, 9]], np.uint64)
    count = 100_000
    index = Index([Runs.from_rows(np.repeat(request, count, axis=0), 2 * np.arange(count))])
    with limit_time(10):
        found = index.find_places(request, np.arange(2 * count)[None, :])
    assert (found[0, ::2] >= 0).all()
    assert (found[0, 1::2] < 0).all()


# --- what is paid for is stored -------------------------------------------------------------------------------------

HALF = "half \ud83d and a whole \ud83d\ude00 \udc00"


def test_half_a_surrogate_pair_is_kept_as_it_was_and_served_as_text(tmp_path: Path, stored: Make) -> None:
    """Through compaction, export and import; a set without such a text has no such column."""
    answers = [stored("a", 0, HALF), stored("a", 1, "plain")]
    folder = tmp_path / "store/responses/set"
    Store(folder, pytest.fail).append([stored("b", 0, "plain")])
    assert pq.read_schema(list_segments(folder)[0].path).names == ANSWER_SCHEMA.names
    Store(folder, pytest.fail).append(answers)
    shown = ["half \ufffd and a whole \U0001f600 \ufffd", "plain"]
    assert texts(folder, answers) == shown
    compact(folder, pytest.fail)
    export_dataset([folder], tmp_path / "out", pytest.fail)
    list(merge(tmp_path / "new", tmp_path / "out", pytest.fail))
    for made in (folder, tmp_path / "out/set", tmp_path / "new/set"):
        assert texts(made, answers) == shown
        (file,) = made.glob("*.parquet")
        kept = pq.read_table(file)[ORIGINAL.name].to_pylist()
        assert [text.decode("utf-8", "surrogatepass") for text in kept if text is not None] == [HALF]
        assert faults(made) == []


def test_counts_and_tokens_that_no_model_has_lose_no_answer(tmp_path: Path, stored: Make) -> None:
    strange = replace(stored("a", 0, "paid"), prompt_tokens=10**12, completion_tokens=-5, token_ids=(1, 2**40))
    Store(tmp_path, pytest.fail).append([strange, stored("a", 1, "\x00" * 10)])
    assert texts(tmp_path, [strange, stored("a", 1, "")]) == ["paid", "\x00" * 10]
    assert faults(tmp_path) == []


def test_long_answers_are_split_into_groups_that_are_read(tmp_path: Path, stored: Make) -> None:
    answers = [replace(stored("a", sample, ""), text=f"{sample}" * 2**23, token_ids=()) for sample in range(9)]
    Store(tmp_path, pytest.fail).append(answers)
    (segment,) = list_segments(tmp_path)
    assert pq.read_metadata(segment.path).num_row_groups > 1
    assert texts(tmp_path, answers[::-1]) == [answer.text for answer in answers[::-1]]


# --- one name, one model --------------------------------------------------------------------------------------------


def test_rows_of_another_model_are_named_and_not_imported(tmp_path: Path, stored: Make) -> None:
    folder = tmp_path / "store/responses/set"
    about = {"name": "teacher", "revision": "cd", "model": "cd"}
    Store(folder, pytest.fail).append([stored("a", 0, "ours")])
    (folder / "about.json").write_text(json.dumps(about))
    assert faults(folder) == []
    Store(folder, pytest.fail).append([replace(stored("b", 0, "theirs"), revision="ef")])
    (fault,) = faults(folder)
    assert "row 0: revision is 'ef', another model than 'cd' in about.json" in fault
    said: list[str] = []
    (done,) = merge(tmp_path / "new", tmp_path / "store", said.append)
    assert (done.added, done.damaged, len(said)) == (1, 1, 1)


def test_a_key_that_is_not_the_hash_of_its_request_is_not_imported(tmp_path: Path, stored: Make) -> None:
    request = json.dumps({"messages": [["user", "another question"]], "images": []})
    Store(tmp_path / "store/set", pytest.fail).append([replace(stored("a", 0, "wrong"), request=request)])
    (tmp_path / "store/set/about.json").write_text(json.dumps({"asked_sha256": "ab" * 32}))
    (done,) = merge(tmp_path / "new", tmp_path / "store", lambda text: None)
    assert (done.added, done.damaged) == (0, 1)


def test_lines_of_refusals_are_imported_one_by_one(tmp_path: Path, stored: Make) -> None:
    """A reason may hold any line break but the one that ends a line."""
    folder = tmp_path / "store/set"
    Store(folder, pytest.fail).append([stored("a", 0, "a0")])
    good = [{"request_key": f"{number:064x}", "reason": "too long\u2028\x0b\x85 here"} for number in range(3)]
    lines = [json.dumps(row, ensure_ascii=False) for row in good]
    (folder / "refused").mkdir()
    (folder / "refused/a.jsonl").write_text("\n".join([lines[0], "null", lines[1], "[[", lines[2]]), encoding="utf-8")
    (tmp_path / "secret.jsonl").write_text(json.dumps({"request_key": "ab" * 32, "reason": "from outside"}))
    (folder / "refused/b.jsonl").symlink_to(tmp_path / "secret.jsonl")
    said: list[str] = []
    (done,) = merge(tmp_path / "new", tmp_path / "store", said.append)
    assert (done.added, done.damaged) == (1, 2)
    assert any("a.jsonl: line 2: expected an object" in line and "(and 1 more lines)" in line for line in said)
    (file,) = (tmp_path / "new/set/refused").iterdir()
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").strip("\n").split("\n")] == good
    assert [again.added for again in merge(tmp_path / "new", tmp_path / "store", said.append)] == [0]
    assert len(list((tmp_path / "new/set/refused").iterdir())) == 1


def test_an_answer_under_a_wrong_key_is_not_served(tmp_path: Path, stored: Make) -> None:
    right = stored("a", 0, "right")
    Store(tmp_path, pytest.fail).append([right])
    wrong = replace(stored("b", 0, "wrong"), request_key=right.request_key)  # its key is of another request
    write_segment(tmp_path / BROKEN, make_answer_table([wrong], 0))
    assert derive_answer_key(right.request_key, 0) != wrong.key
    assert texts(tmp_path, [right]) == ["right"]
