"""Our side of the comparison: the scorers that claim a harness, put to the same cases."""

from collections.abc import Callable
from typing import Any

from stages.benchmarks import aggregate, scorers
from stages.benchmarks.rules import lmms, vlmeval
from stages.benchmarks.sample import Outcome, Sample

Case = dict[str, Any]


def sample(case: Case) -> Sample:
    """The case as a sample, as loaders make them."""
    keys = ("question_type", "answer_type", "precision")
    extra = {key: case[key] for key in keys if key in case} | {"answer_option": case.get("gold_letter", "")}
    options = case.get("options", vlmeval.letter_choices(case.get("choices", [])))
    return Sample("1", "q", case.get("gold", "A"), options, extra=extra)


def hit(scorer: scorers.Scorer) -> Callable[[Case], int]:
    """Only whether it is right."""
    return lambda case: int(scorer(sample(case), case["reply"]).score)


def taken(scorer: scorers.Scorer) -> Callable[[Case], str | None]:
    """Only what it takes for the answer."""
    return lambda case: scorer(sample(case), case["reply"]).extracted


def circular(case: Case) -> int | None:
    """A question in all its rotations, VLMEvalKit."""
    rows = [(sample(row), row["reply"]) for row in case["rows"]]
    told = [(one, reply, scorers.score_vlmeval_choice(one, reply)) for one, reply in rows]
    outcome = scorers.score_rotations(scorers.VLMEVAL, told)
    return None if outcome.state != "ok" else int(outcome.score)


def mmbench(case: Case) -> int:
    """A question in all its rotations, lmms-eval without a judge."""
    rows = [(sample(row), row["reply"]) for row in case["rows"]]
    told = [(one, reply, scorers.score_lmms_mmbench(one, reply)) for one, reply in rows]
    return int(scorers.score_rotations(scorers.LMMS, told).score)


def mmmu(case: Case) -> list[Any]:
    """Letter and hit of a row of VLMEvalKit's MMMU."""
    outcome: Outcome = scorers.score_vlmeval_mmmu(sample(case), case["reply"])
    return [outcome.extracted, int(outcome.score)]


def normal(case: Case) -> list[Any]:
    """Form and hit of an extraction, MathVista in lmms-eval."""
    form = lmms.normalise_mathvista(
        case["question_type"], case["answer_type"], case["choices"], case["precision"], case["reply"]
    )
    return [form, int(lmms.is_mathvista_equal(form, case["gold"]))]


def quick(case: Case) -> str | None:
    """What lmms-eval extracts without a judge."""
    return lmms.extract_mathvista_quickly(case["question_type"], case["answer_type"], case["choices"], case["reply"])


def scored(case: Case) -> list[aggregate.ScoredRow]:
    """The rows of a table as averages take them."""
    return [({key: (row[key],) for key in ("category", "l2_category")}, row["score"]) for row in case["rows"]]


def report(case: Case) -> list[Any]:
    """VLMEvalKit's overall mean and those of the categories."""
    parts = aggregate.group_by_value(scored(case), "category").values()
    return [
        round(aggregate.micro_average(scored(case)).value, 9),
        [round(aggregate.micro_average(part).value, 9) for part in parts],
    ]


OURS: dict[str, Callable[[Case], Any]] = {
    "vlmeval_letter": lambda case: vlmeval.match_letter(case["reply"], case["options"]),
    "vlmeval_text": lambda case: vlmeval.match_option_text(case["reply"], case["options"]),
    "vlmeval_choice": lambda case: vlmeval.match_choice(case["reply"], case["options"]),
    "vlmeval_relaxed": hit(scorers.score_vlmeval_relaxed),
    "vlmeval_mathvista": taken(scorers.score_vlmeval_mathvista),
    "vlmeval_mathvista_extracted": lambda case: (
        scorers.score_vlmeval_mathvista_extraction(sample(case), case["reply"]).score == 1
    ),
    "vlmeval_cot": lambda case: vlmeval.match_choice(vlmeval.read_answer_line(case["reply"]), case["options"]),
    "vlmeval_mmmu": mmmu,
    "vlmeval_circular": circular,
    "vlmeval_grade": lambda case: vlmeval.read_vlmeval_grade(case["reply"]),
    "lmms_any_letter": taken(scorers.score_lmms_any_letter),
    "lmms_mmmu": lambda case: lmms.find_mmmu_letter(case["reply"], case["options"]),
    "lmms_blink": lambda case: lmms.find_blink_letter(case["reply"], case["letters"]) or None,
    "lmms_ai2d": hit(scorers.score_lmms_ai2d),
    "lmms_first_character": hit(scorers.score_lmms_first_character),
    "lmms_relaxed": hit(scorers.score_lmms_relaxed),
    "lmms_open": lambda case: int(scorers.score_lmms_mmmu(sample({**case, "options": {}}), case["reply"]).score),
    "lmms_mathvista": normal,
    "lmms_mathvista_quick": quick,
    "lmms_mmbench": mmbench,
    "lmms_realworldqa": hit(scorers.score_lmms_realworldqa),
    "lmms_vision": hit(scorers.score_same_text),
    "lmms_grade": lambda case: lmms.read_lmms_grade(case["reply"]),
    "vlmeval_report": report,
    "lmms_mmstar_average": lambda case: round(aggregate.macro_average("l2_category")(scored(case)).value, 9),
    "lmms_mmmu_average": lambda case: round(aggregate.micro_average(scored(case)).value, 5),
}
