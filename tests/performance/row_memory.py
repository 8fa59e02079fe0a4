"""Peak memory and speed of the stages that read rows, at two numbers of rows with large images.

    python tests/performance/row_memory.py [--rows 2000 20000] [--kilobytes 200] [--side 84] [--folder /tmp]

Makes LLaVA rows with JPEG files of `--side` pixels that are padded with random bytes; then runs the stages from
`questions` to `evaluate` as they are, each in fresh processes, on the smaller and on the larger number of rows: two
ranks of `warm_start`, tiny models, few steps, and engines that look at every image and answer at once. Every question
is one of RIL and one of the evaluation. Prints the largest resident memory of each process, rows/s, and the memory at
the paper's number of rows that follows from the slope. Exit code 1 when a process takes 100 MiB more with more rows.
20,000 rows of 200 kB need 13 GB in `--folder` for a while.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MIB = 1 << 20
MOST_MORE = 100  # MiB
PAPER_ROWS = {"questions": 4_000_000, "warm_start": 4_000_000, "selection": 4_000_000}  # App. C
SELECTED_ROWS = 40_000  # of all other stages
FEW = 10  # questions of the other splits
STAGES = (
    "questions", "warm_start", "selection", "teacher", "rollout", "verdict", "pool", "discriminator", "ril", "evaluate"
)  # fmt: skip
ITEMS = {"teacher": "internvl3", "verdict": "internvl3", "evaluate": "warm_start"}
ROOT = Path(__file__).resolve().parents[2]
ANSWER = " ".join(f"{number} is {number * number}," for number in range(16))
SEGMENT = 65_000  # bytes of a comment in a JPEG file, of at most 65,533


def make_photos(side: int, size: int) -> Iterator[bytes]:
    """Yields different JPEG files of about `size` bytes, for ever: one small picture with random comments."""
    from PIL import Image

    draw = random.Random(0)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), draw.randbytes(3 * side * side)).save(buffer, "JPEG")
    start, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    while True:
        missing = max(size - len(rest), 8)
        sizes = [SEGMENT] * (missing // SEGMENT) + [max(missing % SEGMENT, 8)]
        comments = (b"\xff\xfe" + (length + 2).to_bytes(2, "big") + draw.randbytes(length) for length in sizes)
        yield start + b"".join(comments) + rest


def make_source(folder: Path, rows: int, side: int, size: int) -> None:
    """Writes LLaVA rows and their images."""
    (folder / "images").mkdir(parents=True)
    source = []
    for number, photo in zip(range(rows), make_photos(side, size), strict=False):
        (folder / "images" / f"{number}.jpg").write_bytes(photo)
        turns = [{"from": "human", "value": f"<image>\nWhat is it, {number}?"}, {"from": "gpt", "value": ANSWER[:90]}]
        source.append({"id": f"q{number}", "image": f"{number}.jpg", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(source))


def make_models(folder: Path) -> None:
    """Writes a tiny student, as base and as warm-started, a teacher and a judge."""
    from stages.config.build import Build
    from stages.tiny.builds.shapes import build_tiny
    from stages.vlm.checkpoint import write_card

    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1
    )
    places = {"qwen2_5_vl": ("model/student", "warm_start", "model/internvl3"), "qwen2_5": ("model/judge",)}
    for seed, (family, place) in enumerate((family, place) for family, them in places.items() for place in them):
        target = folder / "data" / place
        target.mkdir(parents=True)
        _, network = build_tiny(family, build, [ANSWER, "What is it?"], 2048, seed, target)
        network.model.save_pretrained(target)
        write_card(target, family, "fp32", 2048)


def share_questions(folder: Path) -> None:
    """Makes the questions of the warm start those of the evaluation."""
    shutil.rmtree(folder / "data" / "questions" / "test")
    (folder / "data" / "questions" / "test").symlink_to("warm_start")


class ScriptedEngine:
    """Looks at the images of every question and answers at once; finds every answer right."""

    name, version = "script", "1"

    def __init__(self, checkpoint: Any) -> None:
        from stages.vlm.chat import RemoteChat

        self.checkpoint, self.chat = checkpoint, RemoteChat()

    def iter_outcomes(self, requests: Any) -> Iterator[tuple[int, list[Any]]]:
        """Yields the answers to each request."""
        from stages.engines.engine import Answer

        for number, request in enumerate(requests):
            seen = sum(len(image) for image in request.images)
            if request.given is not None:
                values = (-0.5 - seen % 7,) * 9
                yield number, [Answer(0, request.given, (5,) * 9, "stop", 9, 9, values)]
            elif not request.images and "<candidate" in request.messages[-1]["content"]:
                yield number, [Answer(0, "same. <answer>1</answer>", (5,), "stop", 9, 3)]
            else:
                texts = [f"{request.name} {sample}: {ANSWER}" for sample in range(request.n)]
                yield number, [Answer(n, text, (5,) * 60, "stop", 9, 60) for n, text in enumerate(texts)]

    generate = iter_outcomes

    def update_weights(self, named: Any) -> None:
        """Drops them."""

    def close(self) -> None:
        """Has nothing to free."""


def run_stage(stage: str, folder: Path, rows: int) -> None:
    """Runs a stage in this process; prints rank, seconds and the largest resident memory in MiB."""
    import stages.engines.start

    for name in ("start_engine", "start_trainable"):  # before they are imported
        setattr(stages.engines.start, name, lambda checkpoint, *_: ScriptedEngine(checkpoint))
    from flows.jobs import open_job
    from stages.config.params import validate_params
    from stages.config.yaml import merge_params, read_yaml
    from stages.training.ranks import join

    if "RANK" in os.environ:
        join()
    splits = {"warm_start": rows - 3 * FEW, "imitation": FEW, "validation": FEW, "test": FEW}
    values = {
        "questions": {"kind": "llava", "path": "rows.json", "images": "images", "splits": splits},
        "warm_start": {"steps": 4, "rows_per_step": 8, "warmup_steps": 0},
        "selection": {"split": "warm_start", "teacher": "internvl3", "top": rows - 3 * FEW - 1},
        "teachers": {"internvl3": {"model": "internvl3", "responses": 2}},
        "pool": {"teachers": ["internvl3"]},
        "discriminator": {"steps": 4, "questions_per_step": 2, "responses_per_side": 2, "held_out_share": 0.0005},
        "rollout": {"responses": 2},
        "verdict": {"exam": False},
        "ril": {"steps": 2, "questions_per_step": 2, "group": 2, "warmup_steps": 0, "validation_every": 2},
        "evaluate": {"benchmarks": [], "folder": "images"},
    }
    params = validate_params(merge_params(read_yaml(ROOT / "params.yaml"), values))
    job = open_job(stage, ITEMS.get(stage), folder, params)
    began = time.monotonic()
    __import__(f"stages.{stage}", fromlist=["run"]).run(job)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    print(json.dumps({"rank": os.environ.get("RANK", "0"), "seconds": seconds, "peak": peak}))


def measure_stage(stage: str, folder: Path, rows: int) -> SimpleNamespace:
    """Runs a stage in fresh processes; returns its seconds and the largest memory of one of them in MiB."""
    command = [sys.executable, __file__, "--child", stage, "--folder", str(folder), "--rows", str(rows)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RIL_STORE": str(folder / "store")}
    ranks: list[dict[str, str]] = [{}]
    if stage == "warm_start":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        place |= {"GLOO_SOCKET_IFNAME": "lo"}
        ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    running = [
        subprocess.Popen(command, env={**environment, **rank}, cwd=folder, stdout=subprocess.PIPE, text=True)
        for rank in ranks
    ]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{stage} failed at {rows} rows")
    found = [json.loads(text.strip().splitlines()[-1]) for text in said]
    return SimpleNamespace(seconds=max(one["seconds"] for one in found), peak=max(one["peak"] for one in found))


def measure_all(folder: Path, rows: int, side: int, size: int) -> dict[str, SimpleNamespace]:
    """Makes the rows and runs all stages on them."""
    make_source(folder, rows, side, size)
    make_models(folder)
    found = {}
    for stage in STAGES:
        found[stage] = measure_stage(stage, folder, rows)
        if stage == "questions":
            share_questions(folder)
    return found


def main() -> int:
    """Returns the exit code."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rows", type=int, nargs="+", default=[2000, 20_000])
    parse.add_argument("--kilobytes", type=int, default=200)
    parse.add_argument("--side", type=int, default=84, help="pixels")
    parse.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parse.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    given = parse.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.child:
        run_stage(given.child, given.folder, given.rows[0])
        return 0
    few, many = given.rows
    found = []
    for rows in (few, many):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found.append(measure_all(Path(folder), rows, given.side, 1000 * given.kilobytes))
    print(f"stage          MiB at {few:,}  MiB at {many:,}  more  bytes a row  paper's rows  GiB there  rows/s")
    worst = 0.0
    for stage in STAGES:
        less, more = found[0][stage], found[1][stage]
        grown = more.peak - less.peak
        worst = max(worst, grown)
        slope = max(grown, 0.0) * MIB / (many - few)
        rows = PAPER_ROWS.get(stage, SELECTED_ROWS)
        there = more.peak / 1024 + slope * (rows - many) / 1024 / MIB
        rate = (many - few) / max(more.seconds - less.seconds, 1e-9)
        print(
            f"{stage:14} {less.peak:10.0f} {more.peak:13.0f} {grown:7.0f} {slope:10.0f} {rows:13,} {there:10.2f} "
            f"{rate:9.0f}"
        )
    return int(worst >= MOST_MORE)


if __name__ == "__main__":
    raise SystemExit(main())
