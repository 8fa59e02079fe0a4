"""The worked example on a few rows that are made the same way: same files, same parameters, fewer steps."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import QuestionFolder

SHAPES, COLOURS = ("circle", "rectangle", "triangle"), {"red": (255, 0, 0), "teal": (0, 128, 128), "black": (0, 0, 0)}
STEPS = {"reading_steps": 3, "steps": 6, "rows_per_step": 8, "warmup_steps": 1}
SEEING = {"build": {**STEPS, "vision_steps": 3}}
FEW_STEPS: dict[str, Any] = {
    "models": {**dict.fromkeys(("student", "qwen2_5_vl", "internvl3"), SEEING), "judge": {"build": STEPS}},
    "questions": {"splits": {"warm_start": 120, "imitation": 12, "validation": 6, "test": "all"}},
    "warm_start": {"steps": 2, "rows_per_step": 8},
}


def draw_picture(shape: str, colour: str, choose: random.Random) -> Image.Image:
    """One shape of 64 x 64 pixels, on light paper."""
    picture = Image.new("RGB", (64, 64), tuple(choose.randint(225, 255) for _ in range(3)))
    left, top, side = choose.randint(0, 30), choose.randint(0, 30), choose.randint(12, 30)
    box, pen = (left, top, left + side, top + side), ImageDraw.Draw(picture)
    if shape == "triangle":
        pen.polygon([(left, top + side), (left + side, top + side), (left + side // 2, top)], COLOURS[colour])
    else:
        (pen.ellipse if shape == "circle" else pen.rectangle)(box, COLOURS[colour])
    return picture


def write_part(folder: Path, pictures: int, choose: random.Random) -> list[list[Any]]:
    """questions.json and images/ as the package has them; returns the rows [question, answer, number of the image]."""
    (folder / "images").mkdir(parents=True)
    rows: list[list[Any]] = []
    for number in range(pictures):
        shape, colour = choose.choice(SHAPES), choose.choice(list(COLOURS))
        draw_picture(shape, colour, choose).save(folder / "images" / f"{number}.png")
        rows += [["what shape is in the image?", shape, number], ["what color is the shape?", colour, number]]
        other = choose.choice(SHAPES)
        rows += [[f"is there a {other}?", "yes" if other == shape else "no", number]]
        rows += [[f"what is the {colour} shape?", shape, number]]
    (folder / "questions.json").write_text(json.dumps(rows))
    return rows


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_reads_such_data_as_it_is_and_keeps_its_test_split(
    root: Path, copy_project: Callable[..., Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    example = read_yaml(root / "examples" / "easy_vqa" / "params.yaml")
    project = copy_project(tmp_path / "project", merge_params(example, FEW_STEPS))
    parts = project / "examples" / "easy_vqa" / "data" / "easy_vqa" / "data"
    choose = random.Random(0)
    write_part(parts / "train", 60, choose)
    held_out = write_part(parts / "test", 10, choose)
    assert call(project, "dvc", "init", "--no-scm", "-q")[0] == 0

    code, out, err = call(project, "flows.cli", "data", "check", "--no-benchmarks")
    assert code == 0, out[-2000:] + err
    assert "280 usable, 0 unusable" in out

    code, out, err = call(
        project, "flows.cli", "run", "--no-server", "evaluate@warm_start", RIL_STORE=str(tmp_path / "store")
    )
    assert code == 0, out[-2000:] + err
    assert "described by their answers (rectangle, circle, triangle" in out + err
    questions = project / "data" / "questions"
    test = QuestionFolder(questions, "test")
    said = sorted((question.text, question.answer) for question in test)
    assert said == sorted((text, answer) for text, answer, _ in held_out)
    shown = {sha256 for question in test for sha256 in question.image_sha256}
    for split in ("warm_start", "imitation", "validation"):
        assert not shown & {sha256 for question in QuestionFolder(questions, split) for sha256 in question.image_sha256}
    scores = json.loads((project / "reports" / "evaluate" / "warm_start" / "metrics.json").read_text())
    assert scores["questions"] == len(held_out)
    kinds = {name.removesuffix(", unsure").removeprefix("rule: ") for name in scores["decided_by"]}
    assert kinds <= {"short text", "yes/no", "no answer"}
