"""Profiles that claim a harness give its answers: 20,000 replies a rule, against golden files made with the harness
itself.

`python -m tests.stages.benchmarks.parity.golden FOLDER` makes them anew in environments of their own.
"""

import dis
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks import aggregate, scorers
from stages.benchmarks.rules import lmms, open_answers, vlmeval
from tests.stages.benchmarks.parity import cases
from tests.stages.benchmarks.parity import rules as our_side
from tests.stages.benchmarks.parity.golden import PACKAGES, disagreements, golden, parsed_share

RULES = [(harness, rule) for harness in PACKAGES for rule in cases.MAKERS if rule.startswith(harness)]


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    """The harnesses' answers by rule."""
    return {rule: line for harness in PACKAGES for rule, line in golden(harness).items()}


def test_golden_files_hold_every_rule(answers: dict[str, dict[str, Any]]) -> None:
    assert set(answers) == set(cases.MAKERS) == set(our_side.OURS)
    assert {rule for _, rule in RULES} == set(answers)


@pytest.mark.parametrize(("harness", "rule"), RULES, ids=[rule for _, rule in RULES])
def test_no_reply_is_scored_otherwise_than_by_the_harness(
    answers: dict[str, dict[str, Any]], harness: str, rule: str
) -> None:
    line = answers[rule]
    made = list(cases.cases(rule))
    assert line["digest"] == cases.digest(made), "the grammar has changed: make the golden files anew"
    assert len(line["answers"]) == cases.COUNTS.get(rule, 20_000)
    assert parsed_share(line["answers"]) >= 0.7
    assert next(disagreements(rule, made, line["answers"]), None) is None


# --- every branch ---------------------------------------------------------------------------------------------------


def code_of(module: types.ModuleType) -> Iterator[types.CodeType]:
    """The code of every function of a module, comprehensions included."""
    waiting = [value.__code__ for value in vars(module).values() if isinstance(value, types.FunctionType)]
    waiting = [code for code in waiting if code.co_filename == module.__file__]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def lines_of(module: types.ModuleType) -> set[int]:
    """Numbers of all lines that a call could reach."""
    return {line for code in code_of(module) for _, line in dis.findlinestarts(code) if line != code.co_firstlineno}


def test_the_cases_reach_every_line_of_the_rules() -> None:
    modules = {module.__file__: module for module in (vlmeval, lmms, open_answers)}
    seen: dict[str, set[int]] = {file: set() for file in modules}

    def trace(frame: types.FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in seen:
            return None
        if event == "line":
            seen[frame.f_code.co_filename].add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _, rule in RULES:
            for case, _ in zip(cases.cases(rule), range(500), strict=False):
                our_side.OURS[rule](case)
    finally:
        sys.settrace(before)
    left = {file: lines_of(modules[file]) - seen[file] for file in modules}
    excused = {
        line for code in code_of(vlmeval) if code.co_name == "has_chinese" for _, line in dis.findlinestarts(code)
    }
    left[str(vlmeval.__file__)] -= excused
    assert not {Path(file).name: sorted(lines) for file, lines in left.items() if lines}


# --- broken scorers are caught ----------------------------------------------------------------------------------------

BROKEN = (
    ("vlmeval", "LAST_TOKENS = 4", "LAST_TOKENS = 5", "vlmeval_letter"),
    ("vlmeval", "words.index(present[0])", "len(words) - 1 - words[::-1].index(present[0])", "vlmeval_letter"),
    ("vlmeval", "> 2 * sum", "> 3 * sum", "vlmeval_text"),
    ("vlmeval", "RELATIVE_ERROR = 0.05", "RELATIVE_ERROR = 0.0499", "vlmeval_relaxed"),
    (
        "vlmeval",
        "if said is not None and wanted:",
        "if said is not None and wanted and wanted > 0:",
        "vlmeval_relaxed",
    ),
    ("vlmeval", "if len(marked) != 1:", "if not marked:", "vlmeval_cot"),
    (
        "vlmeval",
        "return True if None not in found else None",
        "return True if any(found) else None",
        "vlmeval_circular",
    ),
    ("lmms", "_PHRASE, _BETWEEN, _STOP", "_BETWEEN, _PHRASE, _STOP", "lmms_any_letter"),
    ("lmms", "key=lambda candidate: candidate[:2]", "key=lambda candidate: candidate[0]", "lmms_any_letter"),
    ("lmms", '("{}.", " {} ")):', '("{}.", "{}.")):', "lmms_mmmu"),
    ("lmms", "said[-1]", "said[0]", "lmms_blink"),
    ("lmms", "str(int(float(extraction)))", "str(round(float(extraction)))", "lmms_mathvista"),
    ("lmms", '.rstrip(".") == wanted', " == wanted", "lmms_realworldqa"),
    ("open_answers", ", 2)]", ", 3)]", "lmms_open"),
    ("open_answers", "len(end) < len(tail)", "len(end) > len(tail)", "lmms_open"),
)


@pytest.mark.parametrize(("name", "right", "wrong", "rule"), BROKEN, ids=[f"{one[3]}: {one[2]}" for one in BROKEN])
def test_a_broken_scorer_is_caught(
    answers: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str, rule: str
) -> None:
    original = importlib.import_module(f"stages.benchmarks.rules.{name}")
    source = Path(str(original.__file__)).read_text()
    assert source.count(right) >= 1
    broken = types.ModuleType(original.__name__)
    monkeypatch.setitem(sys.modules, original.__name__, broken)
    exec(compile(source.replace(right, wrong), str(original.__file__), "exec"), broken.__dict__)
    for user in (scorers, our_side):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, broken)
    assert next(disagreements(rule, cases.cases(rule), answers[rule]["answers"]), None) is not None


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [
        (
            "micro_average",
            lambda rows: aggregate.Mean(sum(score for _, score in rows) / (len(rows) + 1), 0.0),
            "lmms_mmmu_average",
        ),
        ("macro_average", lambda group: aggregate.micro_average, "lmms_mmstar_average"),
    ],
)
def test_a_broken_average_is_caught(
    answers: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, rule: str
) -> None:
    monkeypatch.setattr(aggregate, name, wrong)
    assert next(disagreements(rule, cases.cases(rule), answers[rule]["answers"]), None) is not None
