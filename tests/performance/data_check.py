"""Time and peak memory of `ril data check` on many rows with photos.

    python tests/performance/data_check.py [--rows 20000] [--kilobytes 100] [--form llava|jsonl|parquet] [--folder /tmp]

Makes rows with JPEG files of 800 x 600 pixels and about `--kilobytes`, a tiny student, and runs the command in a fresh
process. Prints what it prints, its seconds and its largest resident memory. Exit code 1 above a minute or 1 GiB.
20,000 rows of 100 kB need 2 GB in `--folder` for a while.
"""

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS, MOST_BYTES = 60.0, 2**30
SIDE = (800, 600)


def make_photos(size: int) -> Iterator[bytes]:
    """Yields different JPEG files of about `size` bytes, for ever: one noisy picture with random comments."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    smooth = Image.fromarray(draw.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize(SIDE)
    noisy = np.asarray(smooth) + draw.normal(0, 12, (SIDE[1], SIDE[0], 3))
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    for quality in range(95, 5, -5):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= 1.1 * size:
            break
    start, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    number = random.Random(0)
    while True:
        yield start + b"\xff\xfe\x00\x12" + number.randbytes(16) + rest


def make_turns(number: int) -> list[dict[str, str]]:
    """A question and its answer, of some 50 words."""
    said = " ".join(f"{part} and {number * part % 97}" for part in range(10))
    return [
        {"from": "human", "value": f"<image>\nWhat is to the left of object {number}?"},
        {"from": "gpt", "value": said},
    ]


def make_data(folder: Path, rows: int, size: int, form: str) -> dict[str, Any]:
    """Writes the rows; returns the block `questions` that reads them."""
    photos = make_photos(size)
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        (folder / "rows").mkdir()
        for first in range(0, rows, 1000):
            numbers = range(first, min(first + 1000, rows))
            turns = [make_turns(number) for number in numbers]
            table = {
                "image": [{"bytes": next(photos), "path": None} for _ in numbers],
                "question": [turn[0]["value"].removeprefix("<image>\n") for turn in turns],
                "answer": [turn[1]["value"] for turn in turns],
            }
            pq.write_table(pa.table(table), folder / "rows" / f"{first:06d}.parquet", row_group_size=50)
        return {"path": "rows", "images": "rows"}
    (folder / "images").mkdir()
    found = []
    for number, photo in zip(range(rows), photos, strict=False):
        (folder / "images" / f"{number}.jpg").write_bytes(photo)
        found.append({"id": f"q{number}", "image": f"{number}.jpg", "conversations": make_turns(number)})
    if form == "jsonl":
        for row in found:
            row["image"] = f"images/{row['image']}"
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        return {"path": "rows.jsonl", "images": "images"}
    (folder / "rows.json").write_text(json.dumps(found))
    return {"kind": "llava", "path": "rows.json", "images": "images"}


def make_student(folder: Path) -> None:
    """Writes a tiny student."""
    from stages.config.build import Build
    from stages.tiny.builds.shapes import build_tiny
    from stages.vlm.checkpoint import write_card

    folder.mkdir(parents=True)
    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1
    )
    _, network = build_tiny("qwen2_5_vl", build, ["What is to the left of object 1? 1 and 2"], 2048, 0, folder)
    network.model.save_pretrained(folder)
    write_card(folder, "qwen2_5_vl", "fp32", 2048)


def measure(folder: Path, arguments: list[str]) -> tuple[int, float, int]:
    """Runs the command in `folder`; returns exit code, seconds and largest resident bytes."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "flows.cli", *arguments], cwd=folder, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began, used.ru_maxrss * 1024


def main() -> int:
    """Returns the exit code."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rows", type=int, default=20_000)
    parse.add_argument("--kilobytes", type=int, default=100)
    parse.add_argument("--form", choices=("llava", "jsonl", "parquet"), default="llava")
    parse.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parse.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        block = make_data(folder, given.rows, 1000 * given.kilobytes, given.form)
        make_student(folder / "data" / "model" / "student")
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["questions"] |= block if given.form == "llava" else {}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        shutil.copytree(ROOT / "stages" / "tiny", folder / "stages" / "tiny")  # params.yaml names it
        arguments = ["data", "check", *([] if given.form == "llava" else [block["path"]])]
        code, seconds, memory = measure(folder, arguments)
    print(f"\nexit code {code}, {seconds:.1f} s, {memory / 2**20:,.0f} MiB at most")
    return int(code != 0 or seconds > MOST_SECONDS or memory > MOST_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
