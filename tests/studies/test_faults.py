"""Faults of teachers in answers, costs, and the page of a study with a protocol, from records made here."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.config.params import Params, validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.tiny.world_rows import iter_world_rows
from studies.costs import average_loop_cost, find_used, sum_core_seconds
from studies.document import render_html, render_markdown
from studies.faults import compute_fault_curves, compute_fault_shares, find_fault_answers, list_faulty_teachers
from studies.loop_tokens import count_arm_tokens
from studies.measures import score_where_wrong
from studies.page import make_page
from studies.records import StudyRecord, read_records, write_record
from studies.study import Study

Make = Callable[..., StudyRecord]
FAULTS = {"models": {"qwen2_5_vl": {"build": {"confuses": [[3, 6]]}}, "internvl3": {"build": {"confuses": [[1, 8]]}}}}


def params_of(root: Path, **overlay: Any) -> Params:
    return validate_params(merge_params(merge_params(read_yaml(root / "params.yaml"), FAULTS), overlay))


def draw(params: Params, split: str, count: int) -> Iterator[dict[str, Any]]:
    rows = iter_world_rows(params.world, split)
    return (next(rows) for _ in range(count))


def test_the_fault_of_a_teacher_is_the_answer_with_its_digits_exchanged(root: Path) -> None:
    params = params_of(root)
    assert list_faulty_teachers(params) == {"qwen2_5_vl": ((3, 6),), "internvl3": ((1, 8),)}
    rows = list(draw(params, "test", 60))
    faults = find_fault_answers(params, "test", [row["id"] for row in rows])
    answers = {row["id"]: row["answer"] for row in rows}
    kinds = {row["id"]: row["kind"] for row in rows}
    for teacher, found in faults.items():
        assert found, teacher
        assert all(answer != answers[name] for name, answer in found.items())
        assert {kinds[name] for name in found} <= {"sum", "alternating", "largest", "odd"}, "bars are read correctly"
    odd = [name for name in faults["qwen2_5_vl"] if kinds[name] == "odd"]
    assert all(abs(int(answers[name]) - int(faults["qwen2_5_vl"][name])) <= 6 for name in odd)
    honest = validate_params(read_yaml(root / "params.yaml"))
    assert find_fault_answers(honest, "test", answers) == {}
    looked_for = {"qwen2_5_vl": [(3, 6)], "internvl3": [(1, 8)]}
    assert find_fault_answers(honest, "test", answers, looked_for) == faults
    other = {"qwen2_5_vl": [(2, 9)]}
    assert find_fault_answers(params, "test", answers, other) == faults, "what teachers have goes before"


def test_shares_are_of_the_questions_that_a_fault_changes() -> None:
    faults = {"a": {"q1": "3", "q2": "4"}, "b": {"q2": "5", "q3": "6"}}
    rows = [
        {"question_id": name, "response": text}
        for name, text in (("q1", "a3:3. Answer: 3"), ("q2", "so 5."), ("q3", "1"), ("q4", "3"))
    ]
    assert compute_fault_shares(rows, faults) == {"a": 0.5, "b": 0.5, "any": pytest.approx(2 / 3)}
    assert compute_fault_shares(rows, {}) == {}
    assert math.isnan(compute_fault_shares(rows, {"a": {}})["a"])


def test_shares_by_step_come_from_the_kept_validation_answers(root: Path) -> None:
    params = params_of(root)
    ids = [row["id"] for row in draw(params, "validation", 40)]
    faults = find_fault_answers(params, "validation", ids)["qwen2_5_vl"]
    rows = [
        {"step": step, "question_id": name, "response": faults.get(name, "0") if step else "none"}
        for step in (0, 30)
        for name in ids
    ]
    curves = compute_fault_curves(rows, params)
    assert curves["step"] == [0.0, 30.0]
    assert curves["fault/qwen2_5_vl"] == [0.0, 1.0]
    assert set(curves) == {"step", "fault/qwen2_5_vl", "fault/internvl3", "fault/any"}
    assert compute_fault_curves([], params) == {}


def test_tokens_of_a_loop_are_lengths_times_rows(root: Path) -> None:
    curves = {"completions/student/mean_length": [10.0, 20.0], "completions/teacher/mean_length": [5.0, math.nan]}
    at = {"ril": {"questions_per_step": 2, "group": 4, "warmup_steps": 0}}
    assert count_arm_tokens(curves, params_of(root, **at)) == {"sampled": 240, "read": 40}
    alone = merge_params(at, {"ril": {"objective": "dr_grpo"}})
    assert count_arm_tokens(curves, params_of(root, **alone)) == {"sampled": 240}
    imitation = merge_params(at, {"ril": {"objective": "imitation"}})
    assert count_arm_tokens(curves, params_of(root, **imitation)) == {"read": 40}
    references = merge_params(at, {"ril": {"objective": "sft"}})
    assert count_arm_tokens(curves, params_of(root, **references)) == {"read": 10}


def test_a_stage_costs_once_and_counts_for_every_arm_that_needs_it(record: Make) -> None:
    first = record("a", 1, 0.5, stages={"model": "m", "ril": "r"}, core_seconds={"model": 100.0, "ril": 30.0})
    cached = record("b", 1, 0.5, stages={"model": "m", "ril": "other"}, core_seconds={"ril": 40.0})
    renamed = record("c", 1, 0.5, stages={"model": "n", "ril": "third"}, core_seconds={"ril": 50.0})
    untimed = record("d", 2, 0.5, stages={"model": "x"})
    used = find_used([first, cached, renamed, untimed])
    assert [sum_core_seconds(used, one) for one in (first, cached, renamed)] == [130.0, 140.0, 150.0]
    assert math.isnan(sum_core_seconds(used, untimed))
    assert average_loop_cost([first, cached]).core_seconds == 35.0


def test_hard_questions_are_those_that_all_teachers_get_wrong(record: Make) -> None:
    def one(arm: str, right: str) -> StudyRecord:
        return record(arm, 1, 0.5, right=right)

    teachers = [[one("t", "0011-")], [one("u", "0101-")]]
    student = [one("s", "10-10")]
    assert score_where_wrong(student, teachers) == 1.0
    assert score_where_wrong(student, teachers, every=False) == 0.5
    assert math.isnan(score_where_wrong([record("s", 2, 0.5)], teachers))


# --- the page --------------------------------------------------------------------------------------------------------
TITLES = {"low": "Warm start", "rl": "Reinforcement", "copy": "Imitation", "both": "Both", "t": "First", "u": "Second"}


@pytest.fixture
def study(small_study: dict[str, Any]) -> Study:
    arms = {name: {"title": title} for name, title in TITLES.items()}
    return Study.model_validate(
        {
            **small_study,
            "seeds": [{"world": world, "seed": 1} for world in range(3)],
            "arms": arms,
            "order": [["low"], ["rl"]],
            "differences": [["both", "low"]],
            "primary": [["both", "rl"], ["both", "copy"], ["both", "best"]],
            "claim": {"text": "both together are better than either", "pairs": [["both", "rl"], ["both", "copy"]]},
            "best_of": {"best": {"title": "Better teacher", "arms": ["t", "u"]}},
            "mechanism": ["copy", "rl", "both"],
        }
    )


def make_records(record: Make, **scores: list[float]) -> list[StudyRecord]:
    curves = {
        "step": [1.0, 2.0],
        "rewards/student/similarity": [0.1, 0.5],
        "rewards/student/answer": [0.2, 0.4],
        "rewards/teacher/answer": [0.8, 0.9],
        "disc/acc": [0.9, 0.6],
        "entropy/student": [1.0, 0.5],
    }
    found = []
    for arm, accuracies in scores.items():
        for world, accuracy in enumerate(accuracies):
            trained = arm in ("rl", "copy", "both")
            loop: dict[str, Any] = {
                "curves": curves,
                "validations": {"step": [0.0, 2.0], "validation": [0.5, 0.6], "fault/any": [0.1, 0.3]},
                "core_seconds": {"ril": 60.0},
                "tokens": {"sampled": 1000.0, "read": 500.0},
                "stages": {"ril": f"{arm} {world}"},
                "budget": {"steps": 2},
            }
            faults = {} if arm in ("t", "u") else {"t": 0.2, "any": 0.25}
            found.append(record(arm, world, accuracy, faults=faults, **(loop if trained else {})))
    return found


GOOD = {"low": [0.4, 0.42, 0.44], "rl": [0.5, 0.51, 0.53], "copy": [0.6, 0.62, 0.61], "both": [0.8, 0.81, 0.83]}
TEACHERS = {"t": [0.7, 0.6, 0.7], "u": [0.65, 0.7, 0.6]}


def test_the_verdict_stands_first_then_the_primary_differences(study: Study, record: Make) -> None:
    shown = make_page(study, make_records(record, **GOOD, **TEACHERS))
    first, reinforcement, imitation, better, correction, explored, *_ = shown.findings
    assert first == (
        "Shown: both together are better than either (Both vs. Reinforcement +30.0 points, Both vs. Imitation +20.3 "
        "points)."
    )
    assert reinforcement.startswith("Both vs. Reinforcement: +30.0 points (95 % interval +30.0 to +30.0, n = 3): ")
    assert "minimum detectable difference" in reinforcement
    assert reinforcement.endswith(
        "Cost of the loop: Both 60 core-seconds, 1,500 tokens; Reinforcement 60 core-seconds, 1,500 tokens."
    )
    assert imitation.startswith("Both vs. Imitation: +20.3 points")
    assert better.startswith("Both vs. Better teacher: +11.3 points")  # of 70, 70, 70 %: the best of each data set
    assert correction.startswith("After Holm's correction for 3 differences, significant at 5 %: ")
    assert explored.startswith("Exploratory, without correction: higher, exploratory: Both vs. Warm start (+39.3), ")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"both": [0.3, 0.31, 0.33]}, "Contradicted: both together are better than either. Significantly lower: "),
        ({"both": [0.9, 0.5, 0.7]}, "Not shown: both together are better than either (Both vs. Reinforcement +18.7 "),
        ({"both": [0.9]}, "Not tested yet: both together are better than either."),
        ({"both": []}, "Not tested yet: both together are better than either."),
    ],
)
def test_a_claim_that_does_not_hold_is_said_to_be_one(
    study: Study, record: Make, scores: dict[str, list[float]], said: str
) -> None:
    shown = make_page(study, make_records(record, **{**GOOD, **scores}, **TEACHERS))
    assert shown.findings[0].startswith(said)


def test_faults_hard_questions_costs_and_the_mechanism_are_on_the_page(
    study: Study, record: Make, tmp_path: Path
) -> None:
    for one in make_records(record, **GOOD, **TEACHERS):
        write_record(tmp_path, one)
    shown = make_page(study, read_records(tmp_path))
    text, html = render_markdown(shown), render_html(shown)
    assert "### Repeated faults\n" in text
    assert "| Both | 20.0 | 25.0 |" in text
    assert "| Both | 10.0 | 30.0 |" in text  # by step
    assert "| Both | 100.0 | 50.0 |" not in text
    assert "### Against the teachers" in text
    assert "Test answers that are a teacher's fault, of the questions that one changes: Imitation 25.0 %" in text
    assert "| Both | 2 | 60 | 60 | 1,000 | 500 |" in text
    assert "### Primary" in text
    assert "### Exploratory" in text
    assert "<b>Mechanism</b>" in html
    for panel in ("Similarity reward", "Discriminator&#39;s accuracy", "Entropy per token"):
        assert panel in html
    plain = study.model_copy(update={"primary": [], "claim": None, "best_of": {}, "mechanism": []})
    without = [record("low", 1, 0.5), record("both", 1, 0.6)]
    bare = render_markdown(make_page(plain, without))
    assert not [word for word in ("Faults", "Mechanism", "## Cost", "### Primary") if word in bare]
