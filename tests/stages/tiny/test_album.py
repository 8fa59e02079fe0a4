"""What tiny models learn from a data set: facets of pictures, styles that are scored right, true verdicts."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.benchmarks.rules.by_kind import score_by_rule
from stages.config.build import Build
from stages.config.params import validate_params
from stages.config.world import STYLE_NAMES
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.corpora.answer_kinds import Reference
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.corpora.scoring import is_correct
from stages.job.files import write_shards
from stages.judging.judge import parse_verdict
from stages.tiny.builds.album import FEWEST_PICTURES, Album, AlbumPicture, AlbumRow, find_facets, read_album
from stages.tiny.builds.album_lessons import AlbumLessons, write_answer
from stages.tiny.builds.vision import IGNORED
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_reader

COLOURS, SHAPES = ("red", "teal", "dark green"), ("circle", "triangle")
SCHEDULE = {"steps": 4, "learning_rate": 1e-3, "hidden_size": 64, "layers": 2, "heads": 2, "rows_per_step": 3}
STUDENT = Build.model_validate({**SCHEDULE, "reading_steps": 1, "styles": {"steps": 0.5, "arrows": 0.5}})
JUDGE = Build.model_validate({**SCHEDULE, "rows_per_step": 40, "reading_steps": 1})


def draw_png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_questions(folder: Path) -> None:
    """36 pictures: each has a colour; all but every third have a shape; the last has two colours."""
    rows = []
    for number in range(36):
        colour, shape = COLOURS[number % 3], SHAPES[number % 2]
        asked = [("What colour is it?", colour), ("Is it red?", "yes" if colour == "red" else "no")]
        asked += [] if number % 3 == 0 else [("Which shape?", shape), (f"What is the {colour} shape?", shape)]
        asked += [("What colour is it?", "teal")] if number == 35 - 35 % 3 else []
        for text, answer in asked:
            messages = [{"role": "user", "content": f"<image>\n{text}"}]
            image = [draw_png((number, 0, 0))]
            rows.append(make_canonical_row(f"q{len(rows)}", image, messages, answer, "test", "open"))
    write_shards(folder / "warm_start", rows, QUESTION_SCHEMA)
    write_shards(folder / "imitation", rows[:2], QUESTION_SCHEMA)
    for held_out in ("validation", "test"):
        row = make_canonical_row("held", [draw_png((255, 255, 255))], rows[0]["messages"], "violet", "test", "open")
        write_shards(folder / held_out, [row] * 40, QUESTION_SCHEMA)


@pytest.fixture
def album(tmp_path: Path) -> Album:
    """The album of these questions."""
    write_questions(tmp_path)
    return read_album(tmp_path)


def test_answers_to_the_same_question_are_one_facet(album: Album) -> None:
    assert set(map(frozenset, album.facets)) == {frozenset(COLOURS), frozenset(SHAPES)}


def test_held_out_splits_are_not_read(album: Album) -> None:
    assert len(album.pictures) == 36
    assert not any(row.answer == "violet" for row in album.rows)


def test_a_picture_has_the_notes_that_do_not_contradict_each_other(album: Album) -> None:
    colour = next(number for number, facet in enumerate(album.facets) if "red" in facet)
    assert sum(len(picture.notes) == 2 for picture in album.pictures) == len(album.described) == 24
    assert [colour in picture.notes for picture in album.pictures].count(False) == 1  # red and teal
    assert all(set(album.list_notes(number)) <= {*COLOURS, *SHAPES} for number in album.described)


def test_rare_answers_and_yes_or_no_are_no_notes() -> None:
    def ask(text: str, answer: str, picture: int) -> AlbumRow:
        return AlbumRow(({"role": "user", "content": f"<image>{text}"},), answer, picture)

    few = [ask("What?", answer, number) for number in range(FEWEST_PICTURES - 1) for answer in ("cat", "dog")]
    assert find_facets(few) == ()
    assert find_facets([*few, ask("What?", "cat", 90), ask("What?", "dog", 91)]) == (("cat", "dog"),)
    assert find_facets([ask("Is it?", answer, number) for number in range(30) for answer in ("yes", "No")]) == ()


@given(answer=st.sampled_from((*COLOURS, *SHAPES, "yes", "no")), style=st.sampled_from(STYLE_NAMES), data=st.data())
def test_an_answer_in_any_style_is_scored_right_and_no_other_is(answer: str, style: str, data: st.DataObject) -> None:
    facets = (COLOURS, SHAPES)
    notes = {number: data.draw(st.sampled_from(facet)) for number, facet in enumerate(facets)}
    album = Album((), (AlbumPicture((b"",), notes),), facets)
    row = AlbumRow(({"role": "user", "content": "Which?"},), answer, 0)
    text = write_answer(album, row, style)
    for other in (*COLOURS, *SHAPES, "yes", "no"):
        assert is_correct(text, other) == (other == answer)
        assert score_by_rule(text, Reference(other)).score == float(other == answer)


def test_lessons_of_a_student_are_what_the_data_set_says(
    album: Album, tiny: Callable[[str], Checkpoint], family: str
) -> None:
    reader = load_reader(tiny(family))
    lessons = AlbumLessons(album, STUDENT, 7)
    (reading, *_), (answering, *_) = lessons.make_groups(reader, 0), lessons.make_groups(reader, 1)
    described = reader.chat.decode(list(reading.responses[0]))
    assert any(described.startswith(", ".join(album.list_notes(number))) for number in album.described)
    answers = {write_answer(album, row, style) for row in album.rows for style in ("steps", "arrows")}
    assert reader.chat.decode(list(answering.responses[0])).removesuffix("<|im_end|>") in answers
    again = AlbumLessons(album, STUDENT, 7).make_groups(reader, 1)
    assert [group.responses for group in again] == [group.responses for group in lessons.make_groups(reader, 1)]
    other = AlbumLessons(album, STUDENT, 8).make_groups(reader, 1)
    assert [group.prompt.ids.tolist() for group in other] != [group.prompt.ids.tolist() for group in again]


def test_each_image_token_has_the_notes_of_its_picture(album: Album, tiny: Callable[[str], Checkpoint]) -> None:
    reader = load_reader(tiny("internvl3"))
    lessons = AlbumLessons(album, STUDENT, 7)
    pixels, targets = lessons.make_cells(reader, range(20))
    assert targets.shape == (sum(pixels.tokens), 2)
    assert targets.max() < max(lessons.classes)
    assert (targets == IGNORED).any()  # a picture without a shape
    assert (targets.view(20, -1, 2) == targets.view(20, -1, 2)[:, :1]).all()


def test_verdicts_say_whether_the_answer_is_the_reference(album: Album, tiny: Callable[[str], Checkpoint]) -> None:
    reader = load_reader(tiny("qwen2_5"))
    lessons = AlbumLessons(album, JUDGE, 7)
    drawn = [lessons._draw_verdict(random.Random(seed), bare=False) for seed in range(200)]
    verdicts = [parse_verdict(target) for _, target in drawn]
    assert 0.3 < sum(verdict == 1 for verdict in verdicts) / 200 < 0.9
    for messages, target in drawn:
        reference = messages[1]["content"].split("<reference> ")[1].split(" </reference>")[0]
        said = target.removeprefix("answer ").split(":")[0]
        assert parse_verdict(target) == int(said == reference)
    assert len(lessons.make_groups(reader, 3)) == 40


def test_a_tower_without_notes_is_refused_with_the_keys_to_change(
    tmp_path: Path, tiny: Callable[[str], Checkpoint]
) -> None:
    rows = [make_canonical_row("q", [draw_png((1, 1, 1))], [{"role": "user", "content": "<image>?"}], "yes", "t", "o")]
    for split in ("warm_start", "imitation"):
        write_shards(tmp_path / split, rows, QUESTION_SCHEMA)
    lessons = AlbumLessons(read_album(tmp_path), STUDENT, 7)
    with pytest.raises(ValueError, match="vision_steps of a built model has nothing to learn"):
        lessons.make_cells(load_reader(tiny("internvl3")), range(2))
    assert len(lessons.make_groups(load_reader(tiny("internvl3")), 0)) == 3  # a reading step answers the question


def test_questions_without_answers_teach_nothing(tmp_path: Path) -> None:
    row = make_canonical_row("q", [], [{"role": "user", "content": "Why?"}], None, "t", "o")
    for split in ("warm_start", "imitation"):
        write_shards(tmp_path / split, [row], QUESTION_SCHEMA)
    with pytest.raises(ValueError, match=r"no question .* has an answer to learn from"):
        read_album(tmp_path)


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ({"models": {"student": {"build": {"terse_kinds": []}}}}, "models.student.build.practice_groups is 4"),
        ({"models": {"student": {"build": {"practice_groups": 0}}}}, "models.student.build.terse_kinds is"),
        ({"world": {"data": "data/pool"}}, "'stages/model.py' or 'data/questions'"),
    ],
)
def test_what_only_the_tiny_world_teaches_is_refused(root: Path, overlay: dict[str, object], said: str) -> None:
    values = merge_params(merge_params(read_yaml(root / "params.yaml"), {"world": {"data": "data/questions"}}), overlay)
    with pytest.raises(ParamsError, match=said):
        validate_params(values)
