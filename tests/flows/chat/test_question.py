"""What is asked: in the form of the project's data, from files that are pictures."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flows.chat.candidates import ChatError
from flows.chat.question import (
    choose_sampling,
    find_image_form,
    list_examples,
    make_question_of,
    read_image_file,
    read_row,
)
from stages.config.params import load_params
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row, read_questions
from stages.job.files import write_shards


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("<image>\nWhat is it?", "<image>\n{}"),
        ("<image>What is it?", "<image>{}"),
        ("What is it?\n<image>", "{}\n<image>"),
        ("Is it {red}? <image>", "{} <image>"),
        ("<image><image> Which?", "<image> {}"),
    ],
)
def test_images_stand_where_the_data_have_them(tmp_path: Path, said: str, form: str) -> None:
    plain = make_canonical_row("a", [], [{"role": "user", "content": "No picture"}], "1", "s", "k")
    images = [picture()] * said.count("<image>")
    row = make_canonical_row("b", images, [{"role": "user", "content": said}], "1", "s", "k")
    write_shards(tmp_path / "test", [plain, row], QUESTION_SCHEMA)
    assert find_image_form(tmp_path, "test") == form


def test_without_data_images_stand_in_front(tmp_path: Path) -> None:
    assert find_image_form(tmp_path, "test") == "<image>\n{}"


@given(st.text(st.characters(exclude_characters="<", codec="utf-8"), min_size=1).filter(str.strip), st.integers(0, 3))
def test_a_question_keeps_its_text_and_has_a_marker_for_each_image(text: str, count: int) -> None:
    asked = make_question_of(text, [picture()] * count, "", "{}\n<image>")
    (message,) = asked.messages
    assert message["content"].count("<image>") == count
    assert text in message["content"]
    assert asked.text == text.strip()
    assert message["content"] == (f"{text}\n{'<image>' * count}" if count else text)


def test_markers_of_a_person_are_taken_as_they_stand() -> None:
    asked = make_question_of("Before <image> and after <image>", [picture()] * 2, "7", "<image>{}")
    assert asked.messages[0]["content"] == "Before <image> and after <image>"
    assert asked.reference == "7"
    with pytest.raises(ChatError, match="has 1 <image> markers and 2 images"):
        make_question_of("One <image>", [picture()] * 2, "", "{}")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_question_is_refused(text: str) -> None:
    with pytest.raises(ChatError, match="the question is empty"):
        make_question_of(text, [], "", "{}")


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(ChatError, match=r"words\.png cannot be read as a picture"):
        read_image_file(tmp_path / "words.png")
    with pytest.raises(ChatError, match=r"nothing\.png: no such file"):
        read_image_file(tmp_path / "nothing.png")
    (tmp_path / "one.png").write_bytes(picture())
    assert read_image_file(tmp_path / "one.png") == picture()
    with pytest.raises(ChatError, match="image 2 cannot be read as a picture"):
        make_question_of("What?", [picture(), b"GIF89a"], "", "{}<image>")


def test_a_row_is_asked_as_the_stages_ask_it(tiny_run: Path) -> None:
    folder = tiny_run / "data" / "questions"
    row = read_questions(folder, "test")[2]
    asked = read_row(folder, row.id)
    assert tuple(asked.messages) == row.messages
    assert tuple(asked.images) == tuple(row.images)
    assert (asked.reference, asked.name) == (row.answer, row.id)
    own = make_question_of(row.text, row.images, "", find_image_form(folder, "test"))
    assert list(own.messages) == list(row.messages)  # a person's question has the same form
    with pytest.raises(ChatError, match="no row 'nothing'"):
        read_row(folder, "nothing")


def test_answers_are_greedy_unless_told_otherwise(tiny_run: Path) -> None:
    params = load_params(tiny_run / "params.yaml")
    greedy, warm = choose_sampling(params, 0.0, None), choose_sampling(params, 0.7, 5)
    assert (greedy.temperature, greedy.max_tokens, greedy.top_k) == (0.0, params.evaluate.max_tokens, 0)
    assert (warm.temperature, warm.max_tokens) == (0.7, 5)
    assert (warm.top_p, warm.top_k) == (params.rollout.sampling.top_p, params.rollout.sampling.top_k)


def test_examples_are_rows_that_a_person_can_ask_as_they_stand(tmp_path: Path) -> None:
    """Not those with a system turn, with the image elsewhere, or with too much of it; six at most."""
    assert list_examples(tmp_path, "test") == []
    asked = [{"role": "user", "content": "<image>\nWhat is it?"}]
    large = picture() + b"\0" * 600_000
    other = [
        make_canonical_row("system", [picture()], [{"role": "system", "content": "Be brief"}, *asked], "1", "s", "k"),
        make_canonical_row("behind", [picture()], [{"role": "user", "content": "What?\n<image>"}], "1", "s", "k"),
        make_canonical_row("large", [large], asked, "1", "s", "k"),
    ]
    fitting = [make_canonical_row(f"row {number}", [picture()], asked, "7", "s", "k") for number in range(8)]
    write_shards(tmp_path / "test", [fitting[0], *other, *fitting[1:]], QUESTION_SCHEMA)
    found = list_examples(tmp_path, "test")
    assert [one.name for one in found] == [f"row {number}" for number in range(6)]
    for one in found:
        row = read_row(tmp_path, one.name)
        assert (one.text, one.reference, one.images) == (row.text, row.reference, row.images)
        assert list(one.messages) == list(row.messages)
