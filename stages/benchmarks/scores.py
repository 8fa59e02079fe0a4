"""From replies to scores: the outcome of every row under a profile, then the metrics of a benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.benchmarks.aggregate import ScoredRow, group_by_value, join_values, micro_average
from stages.benchmarks.bounds import NOT_SCORED, score_bounded
from stages.benchmarks.sample import BenchmarkError, Outcome, Sample
from stages.benchmarks.scorers import OURS, Profile, score_rotations
from stages.benchmarks.spec import Spec
from stages.benchmarks.verdicts import JudgeReply, has_content, score_judge_text, wants_judge

NORMAL_95 = 1.96  # half width of a 95 % interval in standard errors


@dataclass(frozen=True)
class BenchmarkReply:
    """The reply of the evaluated model to one sample."""

    index: str
    text: str
    finish_reason: str = "stop"  # "length": truncated
    completion_tokens: int = 0
    response_key: str = ""  # in the response store
    prompt: str = ""  # sha256 of the prompt


@dataclass(frozen=True)
class ScoredUnit:
    """A scored unit: a row, or all rotations of a question."""

    index: str
    groups: Mapping[str, tuple[str, ...]]
    options: int
    outcome: Outcome


def score_row(
    spec: Spec,
    sample: Sample,
    reply: BenchmarkReply | None,
    profile: Profile,
    cot: bool,
    said: Mapping[str, JudgeReply],
) -> Outcome:
    """Returns the outcome of one row: by rule, else by the judge's reply, else a state without a score.

    Raises BenchmarkError if the profile has no rule for this benchmark.
    """
    if reply is None:
        return Outcome("missing")
    if spec.needs_judge:
        empty = profile == OURS and not has_content(reply.text)
        outcome = Outcome("ok", 0.0, "", "says nothing") if empty else Outcome("pending", rule="needs a judge")
    else:
        scorer = spec.scorer(profile, cot)
        if scorer is None:
            raise BenchmarkError(f"{spec.title}: profile {profile} has no rule for it")
        outcome = score_bounded(scorer, sample, reply.text, profile)
    if wants_judge(spec, sample, reply.text, outcome) and sample.index in said:
        return score_judge_text(spec, sample, profile, said[sample.index].text, said[sample.index].form)
    return outcome


def score_units(
    spec: Spec,
    samples: Sequence[Sample],
    replies: Mapping[str, BenchmarkReply],
    profile: Profile,
    cot: bool = False,
    said: Mapping[str, JudgeReply] | None = None,
) -> list[ScoredUnit]:
    """Returns one unit per row, or per question if rotations count together, in the order of the samples."""
    rows = [
        (sample, score_row(spec, sample, replies.get(sample.index), profile, cot, said or {})) for sample in samples
    ]
    if not spec.circular:
        return [ScoredUnit(sample.index, sample.groups, len(sample.options), outcome) for sample, outcome in rows]
    questions: dict[str, list[tuple[Sample, str, Outcome]]] = {}
    for sample, outcome in rows:
        text = replies[sample.index].text if sample.index in replies else ""
        questions.setdefault(sample.extra["question"], []).append((sample, text, outcome))
    return [
        ScoredUnit(name, parts[0][0].groups, len(parts[0][0].options), score_rotations(profile, parts))
        for name, parts in questions.items()
    ]


def select_unrotated(spec: Spec, samples: Sequence[Sample]) -> list[Sample]:
    """Returns each question's unrotated row: a number that is often compared by mistake, shown separately."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.extra["question"], sample)
    return list(first.values())


def compute_benchmark_scores(
    spec: Spec,
    samples: Sequence[Sample],
    replies: Mapping[str, BenchmarkReply],
    profile: Profile,
    cot: bool = False,
    said: Mapping[str, JudgeReply] | None = None,
) -> dict[str, Any]:
    """Returns the metrics of one benchmark under one profile; scores in per cent.

    `score` is over decided rows. It is None if nothing was decided, and `complete` is false while any row lacks a reply
    or a verdict; `lowest` counts those rows as wrong. Unparsed rows count as wrong, and `unparsed` is their number;
    `not_scored`, if there are any, has the reasons for those to which no rule could be applied.
    """
    marks = score_units(spec, samples, replies, profile, cot, said)
    decided = [mark for mark in marks if mark.outcome.state in ("ok", "unparsed")]
    rows = _list_scored_rows(decided)
    mean = spec.headline[profile](rows)
    share = {state: sum(mark.outcome.state == state for mark in marks) / len(marks) for state in _STATES}
    answers = [replies[sample.index] for sample in samples if sample.index in replies]
    guessed = sum(1 / mark.options for mark in marks if mark.outcome.state == "unparsed" and mark.options) / len(marks)
    numbers: dict[str, Any] = {
        "title": spec.title,
        "column": spec.column,
        "profile": profile,
        "rows": len(samples),
        "units": len(marks),
        "score": 100 * mean.value if decided else None,
        "error": 100 * NORMAL_95 * mean.error if decided else None,
        "complete": len(decided) == len(marks),
        "lowest": 100 * spec.headline[profile](_list_scored_rows(marks)).value,
        **{name: 100 * value for name, value in share.items()},
        "truncated": 100 * sum(reply.finish_reason == "length" for reply in answers) / max(len(answers), 1),
        "tokens": sum(reply.completion_tokens for reply in answers) / max(len(answers), 1),
        "if_random": 100 * (mean.value + guessed) if decided and spec.judge == "letter" else None,
        "by": {group: _tabulate(rows, group) for group in spec.groups},
        "beside": {name: 100 * average(rows).value for name, average in spec.beside.items()} if decided else {},
    }
    reasons = {mark.index: mark.outcome.rule for mark in marks if mark.outcome.rule.startswith(NOT_SCORED)}
    if reasons:
        numbers["not_scored"] = reasons
    if spec.circular:
        straight = select_unrotated(spec, samples)
        outcomes = [score_row(spec, one, replies.get(one.index), profile, cot, said or {}) for one in straight]
        numbers["beside"]["first rotation alone"] = 100 * sum(one.score for one in outcomes) / len(outcomes)
    for name, scorer in spec.second.items():
        scores = [
            score_bounded(scorer, sample, replies[sample.index].text, profile).score
            for sample in samples
            if sample.index in replies
        ]
        numbers["beside"][name] = 100 * sum(scores) / max(len(scores), 1)
    if "capability" in spec.groups:
        numbers["by"]["combination"] = _tabulate(join_values(rows, "capability"), "capability")
    return numbers


_STATES = ("unparsed", "judge_failed", "pending", "missing")


def _list_scored_rows(marks: Sequence[ScoredUnit]) -> list[ScoredRow]:
    return [(mark.groups, mark.outcome.score) for mark in marks]


def _tabulate(rows: Sequence[ScoredRow], group: str) -> dict[str, dict[str, float]]:
    return {
        value: {"n": len(part), "score": 100 * micro_average(part).value}
        for value, part in group_by_value(rows, group).items()
    }


def average_columns(numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the unweighted mean over the paper's columns, and the missing columns.

    A column of two settings is their mean. Only complete scores of one profile count; `value` is None if there are
    none.
    """
    from stages.benchmarks.registry import COLUMNS

    columns = collect_column_scores(numbers)
    there = [columns[name] for name in COLUMNS if columns.get(name) is not None]
    lacking = [name for name in COLUMNS if columns.get(name) is None]
    values = [value for value in there if value is not None]
    return {"value": sum(values) / len(values) if values else None, "over": len(values), "lacking": lacking}


def collect_column_scores(numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns the score of each of the paper's columns; None if a part is missing or incomplete."""
    from stages.benchmarks.registry import load_registry

    found: dict[str, float | None] = {}
    parts: dict[str, list[str]] = {}
    for spec in load_registry().values():
        if spec.column:
            parts.setdefault(spec.column, []).append(spec.id)
    for column, ids in parts.items():
        scores = [numbers[name]["score"] for name in ids if name in numbers and numbers[name]["complete"]]
        found[column] = sum(scores) / len(scores) if len(scores) == len(ids) else None
    return found
