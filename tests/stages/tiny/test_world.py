"""The tiny world: right answers, deterministic pictures, no material in two parts."""

import io
import itertools
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from stages.config.build import Build
from stages.config.world import KIND_NAMES as KNOWN_KINDS
from stages.config.world import STYLE_NAMES, World
from stages.corpora.images import open_image
from stages.corpora.scoring import is_correct
from stages.tiny.builds.world_lessons import WorldLessons, find_value_places, make_answering_groups
from stages.tiny.world.exercises import compute_cell_targets, draw_example, fix_styles, misread_example
from stages.tiny.world.kinds import KINDS, answer_in_style, ask_question
from stages.tiny.world.pictures import PARTS, SCAN, SIDE, _assign_part, _load_scans, _make_paper, draw_picture
from stages.tiny.world_rows import draw_world_row
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_reader

values = st.lists(st.integers(1, 9), min_size=6, max_size=6)

EXPECTED = {
    "sum": lambda v: sum(v) % 10,
    "total": lambda v: sum(v) % 10,
    "alternating": lambda v: (v[0] - v[1] + v[2] - v[3] + v[4] - v[5]) % 10,
    "largest": max,
    "odd": lambda v: sum(n % 2 for n in v),
    "rises": lambda v: sum(b > a for a, b in itertools.pairwise(v)),
}


def test_kinds_are_those_of_the_parameters() -> None:
    assert tuple(KINDS) == KNOWN_KINDS
    assert len(KINDS) >= 5


@pytest.mark.parametrize("kind", KINDS)
@given(given=values)
def test_answers_are_right_and_every_style_ends_with_them(kind: str, given: list[int]) -> None:
    exercise = ask_question(kind, given, random.Random(0))
    assert exercise.answer == str(EXPECTED[kind](given))
    for style in STYLE_NAMES:
        assert is_correct(answer_in_style(exercise, style), exercise.answer)


def test_no_material_is_in_two_parts() -> None:
    scans = [scan.tobytes() for digits in _load_scans().values() for found in digits.values() for scan in found]
    assert len(scans) == 1797
    assert len(set(scans)) == len(scans), "a scan that exists twice could be in two parts"
    for part in PARTS:
        assert all(len(found) >= 10 for found in _load_scans()[part].values())
        for number in range(20):
            assert _assign_part(f"bars {draw_picture('bars', part, number).values}") == part


@pytest.mark.parametrize("subject", ["digits", "bars"])
def test_pictures_are_a_function_of_their_seed(subject: str) -> None:
    one, same, other = (
        draw_picture(subject, "test", 3),
        draw_picture(subject, "test", 3),
        draw_picture(subject, "test", 4),
    )
    assert one == same
    assert one.png != other.png
    assert Image.open(io.BytesIO(one.png)).size == (SIDE, SIDE)


def test_a_sheet_is_paper_with_a_scan_of_its_part_in_six_cells() -> None:
    sheet = draw_picture("digits", "validation", 2)
    expected, ink = _make_paper().copy(), Image.new("RGB", (SCAN, SCAN), (20, 20, 20))
    for place, digit in enumerate(sheet.values):
        left, top = place % 3 * 28 + 2, place // 3 * 28 + 2
        box = (left, top, left + SCAN, top + SCAN)
        scans = _load_scans()["validation"][digit]
        written = [Image.composite(ink, expected.crop(box), Image.fromarray(scan)) for scan in scans]
        expected.paste(next(one for one in written if one == sheet.image.crop(box)), box)
    assert sheet.image == expected
    assert open_image(sheet.png) == expected


@pytest.mark.parametrize("subject", ["digits", "bars"])
def test_bars_and_digits_are_where_cell_targets_say(subject: str) -> None:
    picture = draw_picture(subject, "train", 1)
    targets = compute_cell_targets(picture)
    assert len(targets) == 9
    page = Image.open(io.BytesIO(picture.png)).convert("L")
    if subject == "digits":
        assert [t[0] for t in targets] == [*picture.values, 10, 10, 10]
        assert min(page.crop((0, 56, 84, 84)).getdata()) > 150, "the third line is empty"
    else:
        for place, value in enumerate(picture.values):
            column = page.crop((place * 14 + 6, 0, place * 14 + 7, SIDE)).getdata()
            assert sum(shade < 150 for shade in column) == value * 9 + 1


def test_rows_follow_styles_and_kinds() -> None:
    row = draw_example(0, "train", 5, ["sum"], {"arrows": 1.0})
    assert row.exercise.kind == "sum"
    assert row.response.endswith(f"so {row.exercise.answer}.")
    assert draw_example(0, "train", 5, ["sum"], {"arrows": 1.0}) == row
    assert draw_example(1, "train", 5, ["sum"], {"arrows": 1.0}) != row


def test_a_model_that_takes_digits_for_each_other_learns_consistent_wrong_answers() -> None:
    swap = {3: 6, 6: 3, 0: 8, 8: 0}
    changed = 0
    for index in range(60):
        row = draw_example(0, "train", index, KNOWN_KINDS, {"steps": 0.5, "arrows": 0.5})
        seen = misread_example(row, ((3, 6), (8, 0)))
        assert seen.picture.png == row.picture.png
        if row.picture.subject == "bars":
            assert seen == row
            continue
        values = tuple(swap.get(value, value) for value in row.picture.values)
        assert seen.picture.values == seen.exercise.values == values
        assert seen.exercise.running == tuple(KINDS[row.exercise.kind].running(values))
        assert seen.response == answer_in_style(seen.exercise, row.style)
        changed += seen.exercise.answer != row.exercise.answer
        assert misread_example(seen, ((3, 6), (8, 0))) == row
        assert misread_example(row, ()) == row
    assert changed > 10


def test_a_built_model_is_taught_what_it_takes_digits_for(tiny: Callable[[str], Checkpoint]) -> None:
    """Tower, transcriptions and answers alike: the same pictures, with other digits told."""
    reader, given = load_reader(tiny("qwen2_5_vl")), {"steps": 1, "learning_rate": 1e-3, "hidden_size": 64, "layers": 1}
    build = Build.model_validate({**given, "heads": 2, "rows_per_step": 24, "styles": {"steps": 1.0}})
    honest, confused = (
        WorldLessons(World(), build.model_copy(update={"confuses": pairs}), lambda *_: 7) for pairs in ((), ((3, 6),))
    )
    pixels, right = honest.make_cells(reader, range(24))
    seen, told = confused.make_cells(reader, range(24))
    assert torch.equal(pixels.values, seen.values)
    expected = right.clone()
    expected[:, 0][right[:, 0] == 3], expected[:, 0][right[:, 0] == 6] = 6, 3
    assert torch.equal(told, expected)
    assert not torch.equal(told, right)
    for reading in (True, False):
        texts = [
            [reader.chat.decode(group.responses[0]) for group in make_answering_groups(reader, rows, reading)]
            for rows in (honest._draw_rows(range(24)), confused._draw_rows(range(24)))
        ]
        assert texts[0] != texts[1]


def test_lessons_show_the_pictures_of_the_data_set(tiny: Callable[[str], Checkpoint], family: str) -> None:
    reader = load_reader(tiny(family))
    rows = [draw_example(0, "train", index, KNOWN_KINDS, {"steps": 1.0}) for index in range(12)]
    asked = [([{"role": "user", "content": f"{row.exercise.question}\n<image>"}], [row.picture.png]) for row in rows]
    for group, prompt in zip(make_answering_groups(reader, rows, False), reader.make_prompts(asked), strict=True):
        assert group.prompt.pixels is not None
        assert prompt.pixels is not None
        assert torch.equal(group.prompt.pixels.values, prompt.pixels.values)
        assert torch.equal(group.prompt.ids, prompt.ids)


def test_practice_does_not_score_what_only_a_picture_tells(tiny: Callable[[str], Checkpoint]) -> None:
    reader = load_reader(tiny("qwen2_5_vl"))
    response = [reader.chat.encode_text(sign)[0] for sign in "a3:3,b8:1. x5"]
    assert find_value_places(reader, (*response, reader.chat.end_token_id)) == {1, 6}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([[3, 10]], "less than or equal to 9"),
        ([[3, 6], [6, 8]], "confuses has 6 twice"),
        ([[3, 3]], "confuses has 3 twice"),
    ],
)
def test_pairs_that_make_no_exchange_are_refused(pairs: list[list[int]], said: str) -> None:
    given = {"steps": 1, "learning_rate": 1e-3, "hidden_size": 64, "layers": 1, "heads": 2, "confuses": pairs}
    with pytest.raises(ValidationError, match=said):
        Build.model_validate({**given, "styles": {"steps": 1.0}})
    with pytest.raises(ValidationError, match="confuses is for models that see pictures"):
        Build.model_validate({**given, "confuses": [[1, 2]]})


def test_terse_kinds_get_the_bare_number_and_change_nothing_else() -> None:
    styles, kinds = {"steps": 0.5, "arrows": 0.5}, ("sum", "largest", "rises")
    for index in range(40):
        spelled = draw_example(0, "train", index, kinds, styles)
        mixed = draw_example(0, "train", index, kinds, styles, fix_styles(("sum", "rises"), "bare"))
        assert (mixed.picture, mixed.exercise) == (spelled.picture, spelled.exercise)
        terse = mixed.exercise.kind != "largest"
        assert mixed.style == ("terse" if terse else spelled.style)
        assert mixed.response == (mixed.exercise.answer if terse else spelled.response)


def test_padded_answers_are_as_long_as_steps_and_tell_nothing_but_the_number(
    tiny: Callable[[str], Checkpoint],
) -> None:
    """As many characters and tokens of the student as `steps`; the values stay unseen; the judge reads the number."""
    world = World(terse_kinds=("sum", "odd", "total"), terse_form="padded")
    chat = load_reader(tiny("qwen2_5_vl")).chat
    rows = [draw_world_row(world, "imitation", number) for number in range(60)]
    padded = [row for row in rows if row.style == "padded"]
    assert {row.exercise.kind for row in padded} == {"sum", "odd", "total"}
    assert {row.style for row in rows} == {"padded", "steps", "arrows"}
    for row in padded:
        steps = answer_in_style(row.exercise, "steps")
        assert len(row.response) == len(steps)
        assert len(chat.encode_response(row.response)) == len(chat.encode_response(steps))
        assert is_correct(row.response, row.exercise.answer)
    assert len({row.response for row in padded}) == len({row.exercise.answer for row in padded})
    bare = [draw_world_row(world.model_copy(update={"terse_form": "bare"}), "imitation", n) for n in range(60)]
    assert [(row.picture.png, row.exercise) for row in bare] == [(row.picture.png, row.exercise) for row in rows]


def test_warm_start_targets_have_the_styles_of_the_world() -> None:
    drawn = [draw_world_row(World(styles={"steps": 1.0}), "warm_start", number) for number in range(20)]
    assert {row.style for row in drawn} == {"steps"}
    padded = World(styles={"steps": 1.0}, terse_kinds=("sum", "odd", "total"), terse_form="padded")
    lengths = [len(draw_world_row(padded, "warm_start", number).response) for number in range(40)]
    assert len(set(lengths)) == 1
    with pytest.raises(ValidationError, match=r"adds up to 0\.5; shares add up to 1"):
        World.model_validate({"styles": {"steps": 0.5}})
