"""Writes one data set in every form and into every container, as people and libraries write them."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.config.questions import Questions
from stages.corpora.adapters import UnusableRow, read_user_rows

ROWS = 5
SPLITS = {"warm_start": 1, "imitation": 1, "validation": 1, "test": 1}
Rows = list[dict[str, Any]]


def draw(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number * 7 % 256, 40, 90)).save(buffer, kind)
    return buffer.getvalue()


def ask(number: int) -> str:
    return f"What number is in picture {number}?"


def block(path: str, watched: str | None = None, **source: Any) -> Questions:
    """The block of one source in `path`."""
    listed = [{"path": path, **source}]
    given = {"kind": "sources", "path": path, "images": watched or path, "splits": SPLITS, "sources": listed}
    return Questions.model_validate(given)


def read(questions: Questions, folder: Path) -> tuple[Rows, list[UnusableRow]]:
    found = list(read_user_rows(questions, folder))
    rejects = [row for row in found if isinstance(row, UnusableRow)]
    return [row for row in found if not isinstance(row, UnusableRow)], rejects


# Forms: from the number of a row and its image to the row. The answer is the number of the row, the image is shown.
FORMS: Mapping[str, Callable[[int, Any], dict[str, Any]]] = {
    "llava": lambda n, image: {
        "id": f"q{n}",
        "image": image,
        "conversations": [{"from": "human", "value": f"<image>\n{ask(n)}"}, {"from": "gpt", "value": str(n)}],
    },
    "sharegpt": lambda n, image: {
        "images": [image],
        "conversations": [{"from": "user", "value": f"<image>{ask(n)}"}, {"from": "assistant", "value": str(n)}],
        "system": "Be short.",
    },
    "messages": lambda n, image: {
        "images": [image],
        "messages": [{"role": "user", "content": ask(n)}, {"role": "assistant", "content": str(n)}],
    },
    "messages of parts": lambda n, image: {
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": ask(n)}]},
            {"role": "assistant", "content": [{"type": "text", "text": str(n)}]},
        ],
        "images": [image],
    },
    "messages as text": lambda n, image: {
        "messages": json.dumps([{"role": "user", "content": ask(n)}, {"role": "assistant", "content": str(n)}]),
        "image": image,
    },
    "prompt and completion": lambda n, image: {"prompt": ask(n), "completion": str(n), "image": image},
    "prompt of messages": lambda n, image: {
        "prompt": [{"role": "user", "content": ask(n)}],
        "completion": [{"role": "assistant", "content": str(n)}],
        "images": [image],
    },
    "prompt and ground truth": lambda n, image: {
        "prompt": [{"role": "user", "content": f"<image>{ask(n)}"}],
        "images": [image],
        "reward_model": {"style": "rule", "ground_truth": str(n)},
    },
    "instruction": lambda n, image: {"instruction": ask(n), "output": str(n), "images": image},
    "vqa": lambda n, image: {"question_id": n, "question": ask(n), "answer": str(n), "image": image},
    "vqa of several answers": lambda n, image: {
        "question": ask(n),
        "answers": [str(n), str(n), "many"],
        "image": image,
    },
    "options in columns": lambda n, image: {
        "question": ask(n),
        "A": str(n),
        "B": "none",
        "C": "many",
        "D": None,
        "answer": "A",
        "image": image,
    },
    "options by number": lambda n, image: {
        "question": ask(n),
        "choices": ["none", str(n), "many"],
        "answer": 1 if n else 0,
        "image": image,
    },
    "options by text": lambda n, image: {
        "question": ask(n),
        "options": ["none", f"{n} or so", "many"],
        "answer": f"{n} or so",
        "image": image,
    },
    "several pairs": lambda n, image: {
        "images": [image],
        "texts": [{"user": "Is it a picture?", "assistant": "yes"}, {"user": ask(n), "assistant": str(n)}],
    },
    "text only": lambda n, _image: {"question": ask(n), "answer": n},
}


def _write_json(rows: Rows, folder: Path) -> str:
    (folder / "q.json").write_text(json.dumps(rows, indent=1))
    return "q.json"


def dump_lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _write_lines(rows: Rows, folder: Path) -> str:
    (folder / "q.jsonl").write_bytes(dump_lines(rows))
    return "q.jsonl"


def _write_gzip(rows: Rows, folder: Path) -> str:
    (folder / "q.jsonl.gz").write_bytes(gzip.compress(dump_lines(rows)))
    return "q.jsonl.gz"


def _write_zstd(rows: Rows, folder: Path) -> str:
    with pa.CompressedOutputStream(str(folder / "q.jsonl.zst"), "zstd") as file:
        file.write(dump_lines(rows))
    return "q.jsonl.zst"


def _write_parquet(rows: Rows, folder: Path) -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / "q.parquet", row_group_size=2)
    return "q.parquet"


def _write_arrow(rows: Rows, folder: Path) -> str:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / "q.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return "q.arrow"


def _save(rows: Rows, folder: Path) -> str:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(folder / "saved")
    return "saved"


def _write_cells(rows: Rows, folder: Path, name: str, delimiter: str) -> str:
    names = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / name).open("w", newline="", encoding="utf-8-sig", errors="replace") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(names)
        for row in rows:
            cells = (row.get(key) for key in names)
            writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in cells])
    return name


def write_tar(folder: Path, name: str, members: Mapping[str, bytes], mode: str = "w") -> str:
    with tarfile.open(folder / name, mode) as archive:  # type: ignore[call-overload]
        for member, content in members.items():
            described = tarfile.TarInfo(member)
            described.size = len(content)
            archive.addfile(described, io.BytesIO(content))
    return name


def _write_archive(rows: Rows, folder: Path) -> str:
    members = {}
    for number, row in enumerate(rows):
        members[f"part/{number:04}.png"] = draw(number)
        plain = {key: value for key, value in row.items() if key not in ("image", "images")}
        members[f"part/{number:04}.json"] = json.dumps(plain).encode()
    return write_tar(folder, "q.tar", members)


# Containers: how images stand in it, and what writes it.
CONTAINERS: Mapping[str, tuple[str, Callable[[Rows, Path], str]]] = {
    "json": ("path", _write_json),
    "jsonl": ("path", _write_lines),
    "jsonl.gz": ("base64", _write_gzip),
    "jsonl.zst": ("path", _write_zstd),
    "parquet": ("struct", _write_parquet),
    "arrow": ("bytes", _write_arrow),
    "save_to_disk": ("struct", _save),
    "csv": ("path", lambda rows, folder: _write_cells(rows, folder, "q.csv", ",")),
    "tsv": ("path", lambda rows, folder: _write_cells(rows, folder, "q.tsv", "\t")),
    "tar": ("member", _write_archive),
}
