"""Hostile files of a response store: segments, `about`, `refused`, requests, exported sets. What is wrong is named and
passed over, what is good is served, and nothing raises, hangs or grows.
"""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.sampling import Sampling
from stages.job.bounded import Fault, UnusableFile
from stages.responses.about import read_about
from stages.responses.dataset import export_dataset
from stages.responses.key import GenerationSpec, derive_answer_key, hash_spec, make_request_content, parse_request
from stages.responses.merge import merge
from stages.responses.refusals import read_refusals
from stages.responses.segment_rows import ANSWER_SCHEMA
from stages.responses.segments import list_segments
from stages.responses.sets import compute_set_statistics, find_faults
from stages.responses.store import Store, StoredAnswer, make_answer_table
from tests.fuzz.mutations import draw_hostile, draw_inputs, dump_json, limit_time, mutate_bytes, mutate_json

SECONDS = 5.0  # for one input, on a machine with other work; most take 0.02 s
SPEC = GenerationSpec("0" * 64, "qwen2_5", "fp32", 256, "ab" * 32, (5, 6), Sampling(), 0)


def ignore(text: str) -> None:
    """What is said is for people; here only the outcome counts."""


def answer(question: str, sample: int) -> StoredAnswer:
    messages = [{"role": "user", "content": question}]
    request = SPEC.request_key(messages, [])
    return StoredAnswer(
        key=derive_answer_key(request, sample),
        request_key=request,
        sample=sample,
        question_id=question,
        text=f"{question} is {sample}",
        token_ids=(1, 2, 3),
        finish_reason="stop",
        prompt_tokens=5,
        completion_tokens=3,
        engine="vllm",
        engine_version="0",
        model="org/model",
        revision="0" * 64,
        seconds=0.5,
        request=json.dumps(make_request_content(messages, [])),
    )


def make_about_values() -> dict[str, Any]:
    values = {
        "model": SPEC.model,
        "family": SPEC.family,
        "precision": SPEC.precision,
        "context_tokens": SPEC.context_tokens,
        "template": SPEC.template,
        "banned": list(SPEC.banned),
        "sampling": SPEC.sampling.model_dump(mode="json"),
        "draw": 0,
    }
    assert hash_spec(values) == SPEC.hash()
    return {**values, "name": "org/model", "revision": "0" * 64, "license": None, "asked_sha256": SPEC.hash()}


GOOD = [answer(f"q{number}", sample) for number in range(3) for sample in range(4)]
WANTED = [(one.request_key, one.sample) for one in GOOD]
FOREIGN = [answer(f"foreign {number}", 0) for number in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set with twelve good answers."""
    made = tmp_path / "responses" / SPEC.slug
    Store(made, ignore).append(GOOD)
    (made / "about.json").write_text(json.dumps(make_about_values()))
    return made


def check_served(folder: Path) -> None:
    """All good answers are served as they are; what else is served is an answer; verify and stats come to an end."""
    said: list[str] = []
    store = Store(folder, said.append)
    found = store.fetch([*WANTED, *((one.request_key, one.sample) for one in FOREIGN)])
    assert {one.key: found.get(one.key) for one in GOOD} == {one.key: one for one in GOOD}
    for served in found.values():
        assert isinstance(served.text, str)
        served.text.encode()
        assert served.key == derive_answer_key(served.request_key, served.sample)
    faults = [fault for fault in find_faults(folder) if isinstance(fault, Fault)]
    assert not said or faults, "what a stage passes over, verify names"
    for line in [*said, *map(str, faults)]:
        assert line.isprintable(), line
        assert len(line) < 1000


def draw_table(rng: random.Random) -> pa.Table | None:
    """A table that differs from one of answers in a value, a type or a column; None if pyarrow can't hold it."""
    rows = make_answer_table(FOREIGN, 7).to_pylist()
    name = rng.choice(ANSWER_SCHEMA.names)
    action = rng.randrange(8)
    schema: pa.Schema | None = ANSWER_SCHEMA
    if action <= 2:
        rows[rng.randrange(len(rows))][name] = draw_hostile(rng)
    elif action == 3:
        rows[rng.randrange(len(rows))][name] = None
    elif action == 4:
        rows[rng.randrange(len(rows))][name] = rng.choice(
            (-1, -(2**31), 2**31 - 1, float("nan"), "", [None], [-1], "é")
        )
    elif action == 5:
        rows = [{key: value for key, value in row.items() if key != name} for row in rows]
        schema = None
    elif action == 6:
        kind = rng.choice((pa.large_string(), pa.binary(), pa.int64(), pa.float64(), pa.list_(pa.string()), pa.null()))
        schema = pa.schema([pa.field(one.name, kind) if one.name == name else one for one in ANSWER_SCHEMA])
    else:
        rows = rows * rng.choice((0, 2, 300))
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    if rng.random() < 0.1:
        return table.replace_schema_metadata({"pandas": "{", "ARROW:schema": "AAAA", "huggingface": "\x00"})
    return table


@pytest.mark.slow
def test_hostile_segments_hide_no_good_answer(folder: Path) -> None:
    good = list_segments(folder)[0].path
    whole = good.read_bytes()
    first, last = (folder / f"{order:020d}-deadbeef.parquet" for order in (0, 10**20 - 1))
    tables = 0
    for rng in draw_inputs():
        path = rng.choice((first, last, folder / "named by hand.parquet"))
        if rng.random() < 0.5 and (table := draw_table(rng)) is not None:
            pq.write_table(table, path, compression=rng.choice(("zstd", "none")), use_dictionary=rng.random() < 0.5)
            tables += 1
        else:
            path.write_bytes(mutate_bytes(whole, rng))
        with limit_time(SECONDS):
            check_served(folder)
            if rng.random() < 0.1:
                compute_set_statistics(folder, ignore)
                Store(folder, ignore).append([FOREIGN[0]])
        for made in folder.glob("*.parquet"):
            if made != good:
                made.unlink()
    assert tables > 0
    assert len(Store(folder, pytest.fail).fetch(WANTED)) == len(GOOD)


def test_hostile_about_files_are_named_and_passed_over(folder: Path) -> None:
    accepted, said = 0, [""]
    for rng in draw_inputs():
        if rng.random() < 0.7:
            content = dump_json(mutate_json(make_about_values(), rng), rng)
        else:
            content = mutate_bytes(json.dumps(make_about_values(), indent=2).encode(), rng)
        (folder / "about.json").write_bytes(content)
        with limit_time(SECONDS):
            try:
                about = read_about(folder)
            except UnusableFile as error:
                said.append(str(error))
                continue
        json.dumps(about, ensure_ascii=False, allow_nan=False).encode()
        assert about.get("asked_sha256", SPEC.hash()) in (SPEC.hash(), None)
        assert about.get("model", SPEC.model) in (SPEC.model, None)
        accepted += 1
    check_served(folder)
    assert accepted > 0
    assert all(line.isprintable() for line in said)


def test_hostile_refusals_are_named_line_by_line(folder: Path) -> None:
    rows = [{"request_key": hashlib.sha256(bytes([n])).hexdigest(), "reason": f"too long by {n}"} for n in range(3)]
    file = folder / "refused" / "a.jsonl"
    file.parent.mkdir()
    for rng in draw_inputs():
        if rng.random() < 0.7:
            wrong = dump_json(mutate_json(rows[1], rng), rng)
            content = b"\n".join([json.dumps(rows[0]).encode(), wrong, json.dumps(rows[2]).encode(), b""])
        else:
            content = mutate_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(), rng)
        file.write_bytes(content)
        with limit_time(SECONDS):
            found, faults = read_refusals(folder)
        for key, reason in found.items():
            assert len(key) == 64
            reason.text.encode()
        assert all(str(fault).isprintable() for fault in faults)
        assert faults or len(found) <= len(rows)
    check_served(folder)


def test_hostile_requests_are_refused_or_requests() -> None:
    whole = make_request_content([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], ["ab" * 32])
    said = [""]
    for rng in draw_inputs():
        text = dump_json(mutate_json(whole, rng), rng).decode("utf-8", "surrogateescape")
        with limit_time(SECONDS):
            try:
                found = parse_request(text)
            except UnusableFile as error:
                said.append(str(error))
                continue
        assert found.keys() == {"messages", "images"}
        assert all(isinstance(part, str) for pair in found["messages"] for part in pair)
    assert all(line.isprintable() for line in said)


@pytest.mark.slow
def test_hostile_exported_sets_add_nothing_wrong(folder: Path, tmp_path: Path) -> None:
    (folder / "refused").mkdir()
    (folder / "refused" / "a.jsonl").write_text(json.dumps({"request_key": "ab" * 32, "reason": "no image"}) + "\n")
    export_dataset([folder], tmp_path / "whole", ignore)
    texts = {one.key: one.text for one in GOOD}
    added = 0
    for rng in draw_inputs():
        other = tmp_path / "other"
        shutil.copytree(tmp_path / "whole", other)
        file = rng.choice(sorted(path for path in other.rglob("*") if path.is_file()))
        action = rng.randrange(5)
        if action == 0 and (table := draw_table(rng)) is not None:
            pq.write_table(table, other / SPEC.slug / "part-00001.parquet")
        elif action == 1:
            file.rename(file.with_name(str(rng.choice(("x\n.parquet", "é.parquet", "-.parquet", ".parquet")))))
        elif action == 2:
            (other / SPEC.slug).rename(other / str(rng.choice(("a b", "..x", "é", "x\ny", "s" * 200, "-rf"))))
        else:
            file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        with limit_time(SECONDS):
            if any(list_segments(path) for path in other.iterdir() if path.is_dir()):
                added += sum(done.added for done in merge(tmp_path / "new", other, ignore))
        for made in (tmp_path / "new").glob("*"):
            found = Store(made, pytest.fail).fetch(WANTED)
            assert all(one.text == texts[key] for key, one in found.items())
            assert [fault for fault in find_faults(made) if isinstance(fault, Fault)] == []
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        shutil.rmtree(other)
    assert added > 0
