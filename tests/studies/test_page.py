"""Records on disk, what is counted from texts, and the page that is written from records alone."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.config.yaml import ParamsError
from stages.tiny.world.kinds import KINDS, answer_in_style, ask_question
from studies.document import render_html, render_markdown
from studies.mechanism import find_onset
from studies.page import make_page
from studies.records import StudyRecord, compute_style_shares, mask_numbers, pick_examples, read_records, write_record
from studies.study import Study

Make = Callable[..., StudyRecord]
CURVES = {
    "step": [1.0, 2.0],
    "rewards/student/similarity": [0.1, 0.5],
    "rewards/student/answer": [0.2, math.nan],
    "rewards/internvl3/similarity": [0.9, 0.7],
    "frac_correct_negative_advantage": [0.25, 0.75],
    "styles/any": [0.3, 0.6],
}


@pytest.fixture
def study(small_study: dict[str, Any]) -> Study:
    return Study.model_validate({**small_study, "seeds": [{"world": world, "seed": 1} for world in range(3)]})


class _First:
    """Chooses the first of everything."""

    def choice(self, items: Any) -> Any:
        return items[0]


def test_a_record_comes_back_as_it_was_written(tmp_path: Path, record: Make) -> None:
    one = record("gad", 3, 0.5, curves=CURVES)
    other = record(
        "gad", 3, 0.5, purpose="tuning", swept={"ril.learning_rate": 2e-4}, validation={"start": 0.1, "end": 0.2}
    )
    for each in (one, other):
        write_record(tmp_path, each)
    back, tuned = read_records(tmp_path)
    assert tuned == other
    assert str(back) == str(one)
    assert str(back.curves) == str(one.curves)  # nan is not equal to itself
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "gad-0.0002-w3-s1.json",
        "gad-w3-s1.csv",
        "gad-w3-s1.json",
    ]


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_style_of_the_tiny_world_is_one_form_whatever_is_said(kind: str) -> None:
    answers = [
        ask_question(kind, values, _First()) for values in ([1, 2, 3, 4, 5, 6], [9, 9, 9, 9, 9, 9], [5, 1, 8, 2, 7, 3])
    ]
    forms = {
        style: {mask_numbers(answer_in_style(answer, style)) for answer in answers}
        for style in ("terse", "steps", "arrows")
    }
    assert all(len(found) == 1 for found in forms.values())
    assert len(set().union(*forms.values())) == 3


def test_shares_of_styles_are_counted_by_teacher_and_for_any() -> None:
    forms = {"a": frozenset({"0.", "0!"}), "b": frozenset({"0!"})}
    assert compute_style_shares(["12.", "3!", "4?", "no"], forms) == {"a": 0.5, "b": 0.25, "any": 0.5}
    assert compute_style_shares([], forms) == {}
    assert compute_style_shares(["1"], {}) == {}


def spread(record: Make, arm: str, accuracies: list[float], **changes: Any) -> list[StudyRecord]:
    return [record(arm, world, accuracy, **changes) for world, accuracy in enumerate(accuracies)]


def test_a_clear_difference_is_called_one_and_the_order_holds(study: Study, record: Make) -> None:
    records = spread(record, "warm_start", [0.50, 0.52, 0.54]) + spread(record, "gad", [0.70, 0.71, 0.75])
    findings = "\n".join(make_page(study, records).findings)
    assert "2 arms of 2, 3 seeds on 3 data sets." in findings
    assert "GAD vs. Warm start: +20.0 points (95 % interval +17.5 to +22.5, n = 3): significantly higher (" in findings
    assert "After Holm's correction for 1 difference, significant at 5 %: GAD vs. Warm start (p = 0.00083)." in findings
    assert "The claimed ranking is reproduced; pairwise steps that hold: 1 of 1." in findings
    assert "differ in" not in findings


def test_a_difference_within_the_interval_is_not_significant_and_has_a_detectable_difference(
    study: Study, record: Make
) -> None:
    records = spread(record, "warm_start", [0.50, 0.52, 0.54]) + spread(record, "gad", [0.70, 0.40, 0.55])
    findings = "\n".join(make_page(study, records).findings)
    assert re.search(r": not significant \(p = 0\.\d+, .*; minimum detectable difference \d+\.\d\)\.", findings)
    assert "After Holm's correction for 1 difference, significant at 5 %: none." in findings
    assert (
        "The claimed ranking is not reproduced; pairwise steps that hold: 0 of 1, reversed: 0, not significant: 1."
        in findings
    )


def test_a_difference_among_several_needs_more_to_be_significant(small_study: dict[str, Any], record: Make) -> None:
    arms = {name: {"title": name.upper()} for name in ("low", "mid", "top")}
    changes = {"arms": arms, "order": [["low"], ["mid"], ["top"]], "differences": [["top", "low"]]}
    seeds = [{"world": world, "seed": 1} for world in range(3)]
    study = Study.model_validate(
        {**small_study, **changes, "seeds": seeds, "limits": ["Three are few."], "real_models": ["None."]}
    )
    records = [
        *spread(record, "low", [0.50, 0.52, 0.54], swept={"ril.learning_rate": 1e-4}),
        *spread(record, "mid", [0.58, 0.57, 0.65], swept={"ril.learning_rate": 2e-4}),
        *spread(record, "top", [0.80, 0.71, 0.95], swept={"ril.learning_rate": 2e-4}),
    ]
    shown = make_page(study, records)
    findings = "\n".join(shown.findings)
    assert (
        "MID vs. LOW: +8.0 points (95 % interval +0.5 to +15.5, n = 3): higher, not after correction (p =" in findings
    )
    assert "After Holm's correction for 3 differences, significant at 5 %: none." in findings
    assert "hold: 0 of 2, reversed: 0, not significant: 2 (without the correction 2, 0 and 0)." in findings
    assert "The two arms also differ in ril.learning_rate (0.0002 and 0.0001)." in findings
    assert "Three are few." in shown.findings
    assert "## What this says about real models, and what it does not\n\n- None.\n" in render_markdown(shown)
    without = make_page(study.model_copy(update={"real_models": []}), records)
    assert "real models" not in render_markdown(without)


def test_scores_of_benchmarks_are_a_table_where_there_are_any(study: Study, record: Make, tmp_path: Path) -> None:
    records = [
        *spread(record, "warm_start", [0.5, 0.6], benchmarks={"mathvista": 60.0, "mmmu": 50.0}),
        record("gad", 0, 0.5, benchmarks={"mathvista": 61.25}),
    ]
    text = render_markdown(make_page(study, records))
    assert "### Benchmarks" in text
    assert "| arm | mathvista | mmmu |" in text
    assert "| GAD | 61.2 | – |" in text
    assert "Benchmarks" not in render_markdown(make_page(study, [record("gad", 0, 0.5)]))
    write_record(tmp_path, records[0])
    assert read_records(tmp_path) == [records[0]]


def test_the_other_way_is_said_as_plainly(study: Study, record: Make) -> None:
    records = spread(record, "warm_start", [0.70, 0.71, 0.75]) + spread(record, "gad", [0.50, 0.52, 0.54])
    findings = "\n".join(make_page(study, records).findings)
    assert "GAD vs. Warm start: −20.0 points" in findings
    assert "pairwise steps that hold: 0 of 1, reversed: 1, not significant: 0." in findings


def test_one_seed_claims_nothing(study: Study, record: Make) -> None:
    findings = "\n".join(make_page(study, [record("warm_start", 1, 0.5), record("gad", 1, 0.9)]).findings)
    assert "one unit only, so there is no interval and no verdict." in findings
    assert "is reproduced" not in findings
    assert "significant" not in findings.replace("not significant: 1", "")


def test_what_is_lacking_or_mixed_is_said(study: Study, record: Make) -> None:
    records = [record("gad", 1, 0.5, committed=False), record("gad", 2, 0.5, commit="56" * 20)]
    findings = "\n".join(make_page(study, records).findings)
    assert "1 arm of 2, 2 seeds on 2 data sets, 1 planned seed not run." in findings
    assert "The claimed ranking can't be tested; pairwise steps not run: 1 of 1." in findings
    assert "Runs with uncommitted code: compared/gad-w1-s1." in findings
    assert "started from 2 commits with the same code in every stage." in findings
    other = [record("gad", 1, 0.5), record("gad", 2, 0.5, code={"ril": "78" * 8}, commit="56" * 20)]
    assert "Stages whose code differs between the compared runs: ril." in "\n".join(make_page(study, other).findings)
    tuned = record("gad", 9, 0.5, purpose="tuning", commit="78" * 20, swept={"lr": 1.0}, validation={"last_two": 0.2})
    one_commit = "\n".join(make_page(study, [record("gad", 1, 0.5), tuned]).findings)
    assert "All compared runs started from commit 343434343434." in one_commit


def test_arms_with_other_seeds_are_ranked_and_explained_on_those_that_they_share(study: Study, record: Make) -> None:
    records = [
        record("warm_start", 1, 0.5),
        *(record("gad", world, share, curves=CURVES) for world, share in ((1, 0.4), (2, 0.9))),
    ]
    shown = make_page(study, records)
    assert (
        "over the 1 seed common to all arms: Warm start 50.0\N{NO-BREAK SPACE}%; GAD 40.0\N{NO-BREAK SPACE}%."
        in shown.findings[1]
    )
    assert "- GAD: −10.0 points;" in render_markdown(shown)
    apart = "\n".join(make_page(study, [record("warm_start", 1, 0.5), record("gad", 2, 0.9)]).findings)
    assert "mean accuracy" not in apart


def test_what_changed_is_said_of_each_trained_arm_against_the_lowest(study: Study, record: Make) -> None:
    def scores(total: float, largest: float, tokens: float) -> dict[str, Any]:
        kinds = {"total": total, "largest": largest}
        return {"accuracy": (total + largest) / 2, "questions": 100, "by_kind": kinds, "mean_tokens": tokens}

    before = record("warm_start", 1, 0.5, scores=scores(0.2, 0.8, 10.0), styles={"internvl3": 0.25, "any": 0.25})
    after = record("gad", 1, 0.6, scores=scores(0.6, 0.7, 20.0), styles={"internvl3": 1.0, "any": 1.0}, curves=CURVES)
    shown = make_page(study, [before, after])
    text = render_markdown(shown)
    assert "## Changes vs. Warm start" in text
    (line,) = next(section.lines for section in shown.sections if section.title == "Changes vs. Warm start")
    assert line == (
        "GAD: +15.0 points; answers in a teacher's style 25 → 100 %; tokens per answer 10.0 → 20.0; "
        "by kind −10.0 (largest) to +40.0 (total). In the loop: answers judged correct 20 → 20 %, "
        "answers classified as a teacher's 30 → 30 %, correct answers with negative advantage 50 → 50 %."
    )
    assert "- Warm start" not in text


def test_the_first_question_of_a_kind_is_the_example_whatever_became_of_it(study: Study, record: Make) -> None:
    rows = [
        {"kind": kind, "reference": "7", "response": text, "correct": text == "7"} for kind, text in ("b7", "b8", "a9")
    ]
    answers = pick_examples(rows)
    assert [(one["kind"], one["response"], one["correct"]) for one in answers] == [("a", "9", False), ("b", "7", True)]
    scores = {"questions": 100, "mean_tokens": 9.0}
    before = record(
        "warm_start", 1, 0.5, scores=scores | {"accuracy": 0.5, "by_kind": {"a": 0.5, "b": 0.5}}, answers=answers
    )
    after = record("gad", 1, 0.5, scores=scores | {"accuracy": 0.5, "by_kind": {"a": 0.4, "b": 0.6}}, answers=answers)
    text = render_markdown(make_page(study, [before, after]))
    assert "| arm | b; reference 7 | a; reference 7 |" in text
    assert "| GAD | ✓ 7 | ✗ 9 |" in text
    without = render_markdown(make_page(study, [record("warm_start", 1, 0.5), record("gad", 1, 0.5)]))
    assert "Examples" not in without


@pytest.mark.parametrize(("rate", "said"), [(1e-4, "GAD (lowest tried)"), (2e-4, ""), (4e-4, "GAD (highest tried)")])
def test_a_value_at_an_end_of_the_sweep_is_said_to_be_one(study: Study, record: Make, rate: float, said: str) -> None:
    swept = study.model_copy(update={"sweep": {"lr": [1e-4, 2e-4, 4e-4]}})
    tuned = [
        record("gad", 9, 0.5, purpose="tuning", swept={"lr": value}, validation={"last_two": 0.2})
        for value in (1e-4, 2e-4, 4e-4)
    ]
    text = render_markdown(make_page(swept, [record("gad", 1, 0.5, swept={"lr": rate}), *tuned]))
    assert ("at an end of the sweep" in text) == bool(said)
    assert said in text


def test_the_page_shows_rewards_styles_rates_and_hashes_and_asks_for_nothing(study: Study, record: Make) -> None:
    records = [
        *spread(record, "warm_start", [0.5, 0.6], teachers={"internvl3": 0.9}),
        *spread(
            record,
            "gad",
            [0.5, 0.7],
            teachers={"internvl3": 0.9},
            curves=CURVES,
            discriminator={"acc": 0.8, "acc_length_only": 0.6},
        ),
        *(
            record(
                "gad",
                9,
                0.1,
                purpose="tuning",
                swept={"ril.learning_rate": rate},
                validation={"start": 0.3, "last_two": rate * 1000},
            )
            for rate in (2e-4, 4e-4)
        ),
    ]
    shown = make_page(study.model_copy(update={"sweep": {"ril.learning_rate": [2e-4, 4e-4]}}), records)
    text, html = render_markdown(shown), render_html(shown)
    assert "| GAD | student | 30 → 30 | 20 → 20 | – | – |" in text  # two steps: first and last ten are the same
    assert "| GAD | 80.0 | 60.0 | – | – | 50 → 50 | – |" in text
    assert "| Teacher internvl3 | 90.0\N{NO-BREAK SPACE}% | – | 90.0, 90.0 |" in text  # once a seed
    assert "| GAD | 20.0 | 40.0 |" in text
    assert "| compared/gad-w0-s1 | key of gad 0 | abababababab | cdcdcdcdcdcd | 343434343434 | 1.0 |" in text
    assert html.count("<svg") == 7  # scores, differences, kinds, four curves: nothing is drawn of what has no numbers
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert render_html(make_page(study, records)) == render_html(make_page(study, records))


def test_without_records_there_is_no_page(study: Study) -> None:
    with pytest.raises(ParamsError, match="no arm of this study has been compared yet"):
        make_page(study, [])


def test_the_page_says_seed_by_seed_what_was_gained_and_who_took_on_a_style(study: Study, record: Make) -> None:
    records = [
        *spread(record, "warm_start", [0.50, 0.52], styles={"any": 0.5}),
        record("gad", 0, 0.75, curves=CURVES, styles={"any": 1.0}),
        record("gad", 1, 0.48, curves=CURVES, styles={"any": 0.5}),
        record("gad", 2, 0.48, curves=CURVES, styles={"any": 0.5}),  # nothing to compare it with
    ]
    shown = make_page(study, records)
    text = render_markdown(shown)
    assert (
        "Runs in which the share of answers in a teacher's style rose by at least 10 points (1 of 2): +25.0 points "
        "vs. Warm start on average; all other runs: −4.0."
    ) in shown.findings
    assert "| arm | data set 0, seed 1 | data set 1, seed 1 | data set 2, seed 1 |" in text
    assert "| GAD | +25.0 (50 → 100) | −4.0 (50 → 50) | – |" in text
    assert "### By seed" not in render_markdown(make_page(study, [one for one in records if one.world == 0]))


@pytest.mark.parametrize(
    ("shares", "step"),
    [
        (
            [0.5] * 5 + [1.0] * 5,
            8,
        ),  # of the last five steps, three of 1 and two of 0.5 are the first with 0.75 and more
        ([0.5] * 5 + [0.5, 1.0, 0.5, 0.5, 0.5], None),
        ([0.5] * 10, None),
        ([0.5] * 4, None),
        ([math.nan] * 10, None),
        ([], None),
    ],
)
def test_the_onset_of_a_style_is_the_step_by_which_half_of_the_rest_is_written_so(
    record: Make, shares: list[float], step: int | None
) -> None:
    curves = {"step": [float(one + 1) for one in range(len(shares))], "styles/any": shares}
    assert find_onset(record("gad", 1, 0.5, curves=curves)) == step


def test_what_a_study_like_this_one_found_stands_on_the_page(study: Study, record: Make) -> None:
    own = spread(record, "warm_start", [0.50, 0.52, 0.54]) + spread(record, "gad", [0.50, 0.53, 0.54])
    other = study.model_copy(update={"title": "Another rate", "about": "Twice as fast."})
    faster = spread(record, "warm_start", [0.50, 0.52, 0.54]) + spread(record, "gad", [0.70, 0.71, 0.75])
    shown = make_page(study, own, {"fast": (other, faster), "unrun": (other, [])})
    text = render_markdown(shown)
    assert "Study fast (3 seeds on 3 data sets): significantly higher: GAD vs. Warm start (+20.0)." in shown.findings
    assert "## Another rate (fast)\n\nTwice as fast. 3 seeds on 3 data sets; columns as above." in text
    assert "| GAD − Warm start | +20.0 | 2.5 |" in text
    assert "GAD vs. Warm start: +0.3 points" in "\n".join(shown.findings), "its own finding stays its own"
    assert "unrun" not in text


def test_rewards_that_are_not_given_and_scores_that_are_no_shares_are_not_taken_for_shares(
    study: Study, record: Make
) -> None:
    curves = {
        "step": [1.0, 2.0],
        "rewards/student/similarity": [-0.5, 0.25],  # D's score
        "rewards/student/answer": [0.0, 0.0],
        "rewards/student/advantage": [0.0, -0.001],
        "rewards/internvl3/similarity": [0.9, 0.7],
        "rewards/teacher/similarity": [0.9, 0.7],
    }
    shown = make_page(study, [record("warm_start", 1, 0.5), record("gad", 1, 0.5, curves=curves)])
    text = render_markdown(shown)
    assert "| GAD | student | −0.12 → −0.12 | – | +0.00 | – |" in text
    assert "| GAD | internvl3 | 80 → 80 | – | – | – |" in text
    assert "| GAD | teacher |" not in text, "the only teacher once more"
    assert "In the loop" not in text
    assert "Similarity reward" not in render_html(shown)
