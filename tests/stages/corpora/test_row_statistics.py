"""Statistics of rows: each number against data for which it is known."""

import hashlib
import io
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.corpora.adapters import UnusableRow
from stages.corpora.row_statistics import ImageRows, Lengths, Place, RowStatistics, compute_quantiles, count_repeats
from stages.corpora.rows import make_canonical_row
from stages.corpora.scripts import NO_SCRIPT, find_main_script


def picture(width: int, height: int = 10, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, 0, 0)).save(buffer, form)
    return buffer.getvalue()


def row(name: str, question: str, answer: str, images: list[bytes] | None = None, **more: Any) -> dict[str, Any]:
    shown = images or []
    turns = [{"role": "user", "content": "<image>" * len(shown) + question}]
    if target := more.get("target"):
        turns.append({"role": "assistant", "content": target})
    return make_canonical_row(name, shown, turns, answer, "file.json", more.get("kind", "open"))


def gather(*rows: Any) -> dict[str, Any]:
    statistics = RowStatistics()
    for number, one in enumerate(rows):
        statistics.add(one, Place(f"{number // 2}.json", number % 2))
    return statistics.summarise()


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("What is it?", "Latin"),
        ("Ｗｈａｔ", "Latin"),
        ("这是什么?", "Han"),
        ("これは何ですか", "Han and Kana"),
        ("Что это? OK", "Cyrillic"),
        ("ما هذا؟", "Arabic"),
        ("이것은 무엇입니까", "Hangul"),
        ("यह क्या है", "Devanagari"),
        ("12 + 3 = 😀", NO_SCRIPT),
        ("", NO_SCRIPT),
    ],
)
def test_the_script_of_most_letters_is_named(text: str, script: str) -> None:
    assert find_main_script(text) == script


def test_counts_and_shares_are_those_of_the_rows() -> None:
    found = gather(
        row("a", "What?", "yes", [picture(10)]),
        row("b", "什么?", "yes", [picture(20), picture(30, 40, "JPEG")], kind="choice"),
        row("c", "How many?", "3", target="There are 3."),
        UnusableRow(3, "d", "no question"),
    )
    assert (found["read"], found["usable"], found["rejects"]["rows"]) == (4, 3, 1)
    assert found["kinds"] == {"open": pytest.approx(2 / 3), "choice": pytest.approx(1 / 3)}
    assert found["images"]["by_row"] == {"0": 1, "1": 1, "2": 1}
    assert found["images"]["formats"] == {"PNG": 2, "JPEG": 1}
    assert found["images"]["width"] == {"min": 10, "median": 20, "p95": 30, "max": 30}
    assert found["images"]["megapixels"]["max"] == pytest.approx(30 * 40 / 1e6)
    assert found["answers"]["commonest"] == [{"answer": "yes", "rows": 2}]
    assert found["turns"]["without a target of their own"] == 2
    assert found["lengths"]["unit"] == "characters"
    assert found["lengths"]["answer"]["max"] == len("There are 3.")


def test_rows_longer_than_the_context_are_counted() -> None:
    sizes = iter(((90, 10), (91, 10), (200, 1)))
    statistics = RowStatistics(lambda row, headers: Lengths(*next(sizes), tuple(7 for _ in headers)))
    for number in range(3):
        statistics.add(row(str(number), "?", "x", [picture(10)]), Place("", number))
    found = statistics.summarise(context=100)["lengths"]
    assert (found["unit"], found["over_context"]) == ("tokens", 2)
    assert found["prompt"] == {"min": 90, "median": 91, "p95": 200, "max": 200}
    assert statistics.summarise(100)["images"]["tokens"]["median"] == 7


def test_repeated_ids_questions_and_images_are_told_apart() -> None:
    image, other = picture(10), picture(20)
    found = gather(
        row("a", "What?", "1", [image]),
        row("a", "Who?", "2", [image, image]),
        row("b", " What? ", "3", [image]),
        row("c", "What?", "4", [other]),
    )["duplicates"]
    assert found["ids"] == {"different": 3, "repeated": 1, "rows": ["0.json, row 0", "0.json, row 1"]}
    assert found["questions"] == {"different": 3, "repeated": 1, "rows": ["0.json, row 0", "1.json, row 0"]}
    assert found["images"]["different"] == 2
    assert found["images"]["repeated"] == 2  # rows 1 and 2; that row 1 shows it twice is none


def test_rejects_are_grouped_by_what_is_wrong() -> None:
    rejects = [UnusableRow(n, f"q{n}", f"image 'x{n}.png': no such file", "a.json", "image", f"x{n}") for n in range(5)]
    found = gather(*rejects, UnusableRow(9, "q9", "no question"))["rejects"]["reasons"]
    assert [one["rows"] for one in found] == [5, 1]
    assert (found[0]["file"], found[0]["row"], found[0]["field"], found[0]["value"]) == ("a.json", 0, "image", "x0")


def test_nothing_is_summarised_without_rows() -> None:
    found = gather()
    assert (found["read"], found["lengths"]["prompt"], found["images"]["width"]) == (0, None, None)
    assert found["duplicates"]["ids"] == {"different": 0, "repeated": 0, "rows": []}


@given(st.lists(st.integers(0, 20), max_size=40))
def test_different_and_repeated_values_are_all_values(values: list[int]) -> None:
    found = count_repeats(values)
    assert found["different"] == len(set(values))
    assert found["different"] + found["repeated"] == len(values)
    assert not found["rows"] or values[found["rows"][0]] == values[found["rows"][1]]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_quantiles_are_values_in_order(values: list[int]) -> None:
    found = list((compute_quantiles(np.array(values)) or {}).values())
    assert found == sorted(found)
    assert set(found) <= set(values)
    assert (found[0], found[-1]) == (min(values), max(values))


def test_an_image_leads_to_its_row() -> None:
    hashes = [hashlib.sha256(random.Random(number).randbytes(8)).hexdigest() for number in range(50)]
    rows = ImageRows([int(one[:16], 16) for one in hashes[:-1]], range(49), str)
    assert [rows[one] for one in hashes[:-1]] == [str(number) for number in range(49)]
    assert hashes[0] in rows
    assert hashes[-1] not in rows
