"""Hostile LLaVA files and images: rows that a stage can use, rejects with a reason, or one line about the file."""

import json
import os
import random
import socket
from collections import Counter
from pathlib import Path

import pytest

from stages.corpora.adapters import read_user_rows
from tests.fuzz.mutations import draw_inputs, dump_json, measure_peak, mutate_bytes, mutate_json, nest
from tests.fuzz.question_files import draw_png, make_block, make_llava_rows, try_questions, write_images

BLOCK = make_block("llava", "rows.json", "images")
PATHS = (
    *("0.png", "../rows.json", "/etc/passwd", "/proc/self/environ", "/dev/zero", "", ".", "..", "a\0b", "x" * 300),
    *("pipe", "socket", "link", "outside", "loop", "dangling", "folder", "linked_folder/1.png", "sparse", "zero"),
    *("folder/../0.png", "//0.png", "./0.png", "0.png/", "a/b/c.png", "\ud800.png", "~/0.png", "file:///etc/passwd"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with images, and beside them what is no image."""
    write_images(tmp_path)
    images = tmp_path / "images"
    (images / "folder").mkdir()
    (images / "link").symlink_to("0.png")
    (tmp_path / "outside.png").write_bytes(draw_png(9))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").write_bytes(draw_png(9))
    (images / "outside").symlink_to("../outside.png")
    (images / "loop").symlink_to("loop")
    (images / "dangling").symlink_to("nowhere")
    (images / "zero").symlink_to("/dev/zero")
    (images / "linked_folder").symlink_to("../elsewhere")
    os.mkfifo(images / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(images)
        server.bind("socket")
        os.chdir(before)
    (images / "sparse").touch()
    os.truncate(images / "sparse", 2**40)
    return tmp_path


def write_input(folder: Path, rng: random.Random) -> None:
    """Writes a rows.json, and now and then an image, that is valid but for one thing or a few."""
    rows = make_llava_rows()
    kind = rng.randrange(8)
    (folder / "images/0.png").write_bytes(mutate_bytes(draw_png(0), rng) if kind == 0 else draw_png(0))
    if kind == 1:
        rows[0]["image"] = rng.choice((rng.choice(PATHS), [rng.choice(PATHS) for _ in range(3)]))
    content = json.dumps(rows).encode() if kind <= 1 else dump_json(mutate_json(rows, rng), rng)
    if kind == 2:
        content = mutate_bytes(json.dumps(rows).encode(), rng)
    elif kind == 3:
        content = "\n".join(json.dumps(row) for row in rows).encode()
        content = rng.choice((content, b"[" + content, json.dumps({"rows": rows}).encode(), mutate_bytes(content, rng)))
    (folder / "rows.json").write_bytes(content)


def test_hostile_files_end_in_rows_rejects_or_one_line(folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    for rng in draw_inputs():
        outcomes["files"] += 1
        write_input(folder, rng)
        outcomes += try_questions(BLOCK, folder)
    print(f"llava: {dict(outcomes)}")
    assert min(outcomes[outcome] for outcome in ("read", "rejected", "refused")) > 0


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_an_image_is_read_where_dvc_watches_it(folder: Path, path: str) -> None:
    rows = make_llava_rows()[:1]
    rows[0]["image"] = path
    (folder / "rows.json").write_text(json.dumps(rows))
    watched = ("0.png", "link", "outside", "folder/../0.png", "./0.png", "0.png/")
    assert try_questions(BLOCK, folder) == ({"read": 1} if path in watched else {"rejected": 1})


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "dangling", "loop", "sparse", "zero", "proc"])
def test_what_is_no_json_file_is_named(folder: Path, kind: str) -> None:
    targets = {"proc": "/proc/self/environ"}
    (folder / "rows.json").symlink_to(targets.get(kind, f"images/{kind}"))
    assert try_questions(BLOCK, folder) == {"refused": 1}


def test_deep_and_long_values_are_named_with_their_row(folder: Path) -> None:
    rows = json.dumps(make_llava_rows())[:-1]
    for last in ('{"id": ' + "[" * 100_000, '{"a":' * 100_000, f'{{"id": "x", "image": {"9" * 5000}}}]'):
        (folder / "rows.json").write_text(f"{rows}, {last}")
        found = try_questions(BLOCK, folder)
        assert found["read"] == 4
        assert found["refused"] + found["rejected"] == 1
    (folder / "rows.json").write_text(json.dumps([*make_llava_rows(), nest(500), nest(500, "conversations")]))
    assert try_questions(BLOCK, folder) == {"read": 4, "rejected": 2}


def test_memory_does_not_grow_with_the_file(folder: Path) -> None:
    row = json.dumps(make_llava_rows()[0] | {"image": None, "comment": "x" * 10_000})
    with (folder / "rows.json").open("w") as file:
        file.write("[" + ", ".join([row] * 10_000) + "]")  # 100 MB
    assert measure_peak(lambda: [row for row in try_large(folder) if row is None]) < 40_000_000


def try_large(folder: Path) -> list[None]:
    return [None for _ in zip(read_user_rows(BLOCK, folder), range(3000), strict=False)]
