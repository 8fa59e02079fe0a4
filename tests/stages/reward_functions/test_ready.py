"""The ready reward functions on answers of every form."""

import importlib.util
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.config.own_rewards import READY
from stages.reward_functions.ready import FUNCTIONS, compute_iou
from stages.reward_functions.worker import GIVEN, bind_arguments

CASES: list[tuple[str, dict[str, Any], str, str, float | None]] = [
    ("choice", {}, "B", "B", 1.0),
    ("choice", {}, "b.", "B", 1.0),
    ("choice", {}, "(B) dog", "(B)", 1.0),
    ("choice", {}, "<think>A or C?</think> The answer is C.", "c", 1.0),
    ("choice", {}, "A", "B", 0.0),
    ("choice", {}, "(A) and (B)", "B", 0.0),
    ("choice", {}, "a dog", "A", 0.0),
    ("choice", {}, "B", "7", None),
    ("choice", {"letters": "AB"}, "C", "C", None),
    ("numeric", {}, "So it is 12.", "12", 1.0),
    ("numeric", {}, "It is 1.2 m", "120 cm", 1.0),
    ("numeric", {}, "120", "120 cm", 1.0),
    ("numeric", {}, "120 kg", "120 cm", 0.0),
    ("numeric", {}, "12 pears", "12 apples", 0.0),
    ("numeric", {}, "104", "100", 0.0),
    ("numeric", {"tolerance": 0.05}, "104", "100", 1.0),
    ("numeric", {"tolerance": 0.05}, "106", "100", 0.0),
    ("numeric", {"absolute": 2.0}, "1.01 m", "100 cm", 1.0),
    ("numeric", {"absolute": 2.0}, "1.03 m", "100 cm", 0.0),
    ("numeric", {}, "I see none", "100", 0.0),
    ("numeric", {}, "100", "a red car", None),
    ("box_iou", {}, "[0, 0, 10, 10]", "[0,0,10,5]", 0.5),
    ("box_iou", {}, "first [1,1,2,2], then (10, 10, 0, 0)", "[0,0,10,10]", 1.0),
    ("box_iou", {}, "[20,20,30,30]", "[0,0,10,10]", 0.0),
    ("box_iou", {"threshold": 0.5}, "[0,0,10,10]", "[0,0,10,5]", 1.0),
    ("box_iou", {"threshold": 0.6}, "[0,0,10,10]", "[0,0,10,5]", 0.0),
    ("box_iou", {}, "top left", "[0,0,10,5]", 0.0),
    ("box_iou", {}, "[0,0,10,5]", "top left", None),
    ("length", {"most": 3}, "one two three", "", 1.0),
    ("length", {"most": 3}, "one two three four", "", 0.0),
    ("length", {"least": 1}, "  ", "", 0.0),
    ("length", {"least": 3, "most": 3, "unit": "characters"}, "abc", "", 1.0),
    (
        "format",
        {"pattern": "<think>.*</think>\\s*<answer>.*</answer>"},
        "<think>a\nb</think>\n<answer>7</answer> ",
        "",
        1.0,
    ),
    ("format", {"pattern": "<answer>.*</answer>"}, "It is <answer>7</answer>", "", 0.0),
]


@pytest.mark.parametrize(("name", "arguments", "answer", "reference", "value"), CASES)
def test_value(name: str, arguments: dict[str, Any], answer: str, reference: str, value: float | None) -> None:
    function = FUNCTIONS[name]
    given = {"answer": answer, "reference": reference}
    assert function(**{key: given[key] for key in bind_arguments(function, arguments)}, **arguments) == value


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra `math` (math-verify)")
@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("The answer is $\\frac{1}{2}$", "0.5", 1.0),
        ("So x = 3.", "3", 1.0),
        ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}", 1.0),
        ("$(x+1)^2$", "$x^2 + 2x + 1$", 1.0),
        ("4", "3", 0.0),
        ("no idea", "3", 0.0),
        ("3", "", None),
    ],
)
def test_math_verify(answer: str, reference: str, value: float | None, caplog: pytest.LogCaptureFixture) -> None:
    assert FUNCTIONS["math_verify"](answer=answer, reference=reference) == value
    assert not caplog.records


def test_every_ready_function_has_a_case_and_takes_what_functions_are_given() -> None:
    assert tuple(FUNCTIONS) == READY
    assert {name for name, *_ in CASES} | {"math_verify"} == set(READY)
    for function in FUNCTIONS.values():
        assert set(list(inspect.signature(function).parameters)[:1]) <= set(GIVEN)
        assert function.__doc__


def test_a_wrong_argument_of_length_is_explained() -> None:
    with pytest.raises(ValueError, match="unit is 'tokens'; take words or characters"):
        FUNCTIONS["length"](answer="a", unit="tokens")


boxes = st.tuples(*[st.integers(-50, 50).map(float)] * 4)


@given(boxes, boxes, st.integers(-9, 9), st.integers(1, 5))
def test_iou_is_symmetric_and_knows_no_place_and_no_scale(one: Any, other: Any, shift: int, scale: int) -> None:
    value = compute_iou(one, other)
    assert 0.0 <= value <= 1.0
    assert compute_iou(other, one) == value
    x1, y1, x2, y2 = one
    assert compute_iou((x2, y2, x1, y1), other) == value
    moved = [tuple(scale * number + shift for number in box) for box in (one, other)]
    assert compute_iou(*moved) == pytest.approx(value)  # type: ignore[arg-type]
    assert compute_iou(one, one) == (1.0 if x1 != x2 and y1 != y2 else 0.0)
