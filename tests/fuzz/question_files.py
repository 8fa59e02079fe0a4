"""Small valid questions in each format, and what must hold of whatever comes out of a hostile file."""

import hashlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from stages.config.questions import Questions
from stages.corpora.adapters import UnusableRow, read_user_rows
from stages.corpora.rows import make_canonical_row
from stages.corpora.source import UnusableData
from tests.fuzz.mutations import limit_time

SECONDS = 2.0  # of the processor; a busy machine takes longer
ROWS = 4


def draw_png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def make_llava_rows() -> list[dict[str, Any]]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a colour"}]
    return [{"id": f"q{number}", "image": f"{number}.png", "conversations": turns} for number in range(ROWS)]


def make_canonical_rows() -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "a colour"}]
    return [
        make_canonical_row(f"q{number}", [draw_png(number)], messages, "a colour", "fuzz", "open")
        for number in range(ROWS)
    ]


def write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    for number in range(ROWS):
        (folder / f"images/{number}.png").write_bytes(draw_png(number))


def make_block(kind: str, path: str, images: str) -> Questions:
    splits = {"warm_start": 1, "imitation": 1, "validation": 1, "test": 1}
    return Questions.model_validate({"kind": kind, "path": path, "images": images, "splits": splits})


def check_row(row: dict[str, Any]) -> None:
    """Fails unless a stage can use the row as it is."""
    for text in (row["id"], row["source"], row["kind"]):
        assert type(text) is str
        assert text
        assert len(text) <= 1000
    for text in (row["answer"], *(message["content"] for message in row["messages"])):
        assert type(text) is str
        assert not {"\0", "\ud800"} & set(text)
        text.encode()
    assert row["answer"].strip()
    assert all(message["role"] in ("system", "user", "assistant") for message in row["messages"])
    assert [hashlib.sha256(image["bytes"]).hexdigest() for image in row["images"]] == row["image_sha256"]


def try_questions(block: Questions, root: Path) -> Counter[str]:
    """How many rows are read and rejected, or `refused`: one line with the path. Fails on anything else."""
    found: Counter[str] = Counter()
    fault = ""
    try:
        with limit_time(SECONDS):
            for row in read_user_rows(block, root):
                if isinstance(row, UnusableRow):
                    assert row.reason.isprintable()
                    assert 0 < len(row.reason) < 500
                    assert row.id.isprintable()
                else:
                    check_row(row)
                found["rejected" if isinstance(row, UnusableRow) else "read"] += 1
    except UnusableData as error:
        fault = str(error)
    if fault:
        assert fault.isprintable(), fault
        assert len(fault) < 1000
        assert Path(block.path).name in fault or "questions." in fault
        found["refused"] += 1
    return found
