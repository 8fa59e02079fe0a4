"""The findings of a study as sentences, from its records: scores, differences, the claimed ranking, and what changed
in each arm.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.page.evaluated_models import format_percent, format_points
from studies.mechanism import (
    Arms,
    average_curve,
    average_figure,
    average_finite,
    average_reward,
    compute_gains,
    find_title,
    select_common_seeds,
)
from studies.records import StudyRecord
from studies.runs import COMPARED
from studies.statistics import Difference, average_over_seeds, compute_difference, correct_differences
from studies.study import Study

SHOWN_DIGITS_OF_COMMIT = 12  # digits of a hash
VERDICT_WORDS = {
    "more": "significantly higher",
    "less": "significantly lower",
    "more_alone": "higher, not after correction",
    "less_alone": "lower, not after correction",
    "more_explored": "higher, exploratory",
    "less_explored": "lower, exploratory",
    "open": "not significant",
}
_RISE = 0.1  # of the share of answers in a teacher's style: from here on a run has adopted it


def list_neighbours(study: Study) -> list[tuple[str, str]]:
    """Pairs (arm, arm one step below it) of the claimed ranking."""
    return [
        (upper, lower)
        for below, above in zip(study.order, study.order[1:], strict=False)
        for upper in above
        for lower in below
    ]


def find_reference_arm(study: Study) -> str:
    """The arm that the others are compared with: the lowest of the claimed ranking, else that of `differences`."""
    if study.order:
        return study.order[0][0]
    return study.differences[0][1] if study.differences else next(iter(study.arms))


def find_difference(arms: Arms, first: str, second: str) -> Difference | None:
    """The difference of two arms; None where one of them was not run, or not on a common seed."""
    return compute_difference(arms[first], arms[second]) if first in arms and second in arms else None


def compare_arms(study: Study, arms: Arms) -> list[Difference]:
    """The differences that the study asks for and the steps of its claimed ranking, with Holm's correction for all.

    Where it has primary ones, these come first and are corrected alone; the others are exploratory.
    """
    primary = dict.fromkeys((first, second) for first, second in study.primary)
    others = dict.fromkeys([(first, second) for first, second in study.differences] + list_neighbours(study))
    found = [one for pair in primary if (one := find_difference(arms, *pair))]
    rest = [one for pair in others if pair not in primary and (one := find_difference(arms, *pair))]
    if not primary:
        return correct_differences(rest)
    return [*correct_differences(found), *(replace(one, exploratory=True, holm_p_value=math.nan) for one in rest)]


def list_findings(study: Study, arms: Arms, differences: Sequence[Difference]) -> list[str]:
    """The ranking by mean accuracy, each difference with its verdict, what the correction leaves of them, the claimed
    ranking as a whole, and the discriminator next to the length of answers.
    """
    seeds = list_seeds(arms)
    lines = [f"{format_count(len(arms), 'arm')} of {len(study.arms)}, {describe_extent(study, arms)}."]
    common = select_common_seeds(arms)
    if shared := len(next(iter(common.values()))):
        where = "" if shared == len(seeds) else f" over the {format_count(shared, 'seed')} common to all arms"
        lines.append(f"By mean accuracy{where}: {_rank_arms(common)}.")
    if not study.primary:
        lines += [describe_gap(arms, found) for found in differences]
        lines += [told] if (told := describe_correction(arms, differences)) else []
    if study.order and not study.primary:
        lines.append(_describe_order(study, differences))
    lines += [
        told for told in (_describe_style(arms, find_reference_arm(study)), _describe_discriminator(arms)) if told
    ]
    return lines


def list_seeds(arms: Arms) -> list[tuple[int, int]]:
    """The pairs of world and seed in which any arm was run, in their order."""
    return sorted({(one.world, one.seed) for found in arms.values() for one in found})


def describe_extent(study: Study, arms: Arms) -> str:
    """On how many seeds and data sets the arms were run, and how many planned seeds were not."""
    seeds = list_seeds(arms)
    lacking = len({(one.world, one.seed) for one in study.seeds} - set(seeds))
    rest = f", {format_count(lacking, 'planned seed')} not run" if lacking else ""
    return f"{format_count(len(seeds), 'seed')} on {format_count(len({world for world, _ in seeds}), 'data set')}{rest}"


def _rank_arms(arms: Arms) -> str:
    means = {find_title(arms, name): average_over_seeds(found).mean for name, found in arms.items()}
    return "; ".join(f"{name} {format_percent(means[name])}" for name in sorted(means, key=lambda name: -means[name]))


def describe_gap(arms: Arms, found: Difference) -> str:
    """One difference with interval, n, verdict, p and the smallest detectable difference."""
    pair = f"{format_pair(arms, found)}: {format_points(found.seeds.mean, True)} points"
    if math.isnan(found.seeds.half):
        return f"{pair}; one unit only, so there is no interval and no verdict."
    low, high = format_points(found.seeds.low, True), format_points(found.seeds.high, True)
    interval = f"95 % interval {low} to {high}, n = {found.seeds.units}"
    return (
        f"{pair} ({interval}): {VERDICT_WORDS[found.verdict]} (p = {found.unit_p_value:.2g}, after correction "
        f"{found.holm_p_value:.2g}; minimum detectable difference {format_points(found.detectable)})."
        f"{_describe_swept(arms, found)}"
    )


def _describe_swept(arms: Arms, found: Difference) -> str:
    """That the two arms also differ in the swept parameter; empty where they don't."""
    first, second = (
        {key: value for one in arms[name] for key, value in one.swept.items()} for name in (found.first, found.second)
    )
    told = [f"{key} ({first[key]:g} and {second[key]:g})" for key in first if first[key] != second.get(key, first[key])]
    return f" The two arms also differ in {', '.join(told)}." if told else ""


def describe_correction(arms: Arms, differences: Sequence[Difference]) -> str:
    """Which differences of a study are significant after Holm's correction; empty where none has an interval."""
    tested = [one for one in differences if not math.isnan(one.holm_p_value)]
    if not tested:
        return ""
    left = [
        f"{format_pair(arms, one)} (p = {one.holm_p_value:.2g})" for one in tested if one.verdict in ("more", "less")
    ]
    return (
        f"After Holm's correction for {format_count(len(tested), 'difference')}, significant at 5 %: "
        f"{', '.join(left) or 'none'}."
    )


def _describe_discriminator(arms: Arms) -> str:
    """Held-out accuracy of the discriminator next to that of length alone, over all trained arms that have one."""
    measured = [
        (one.discriminator[names.HELD_OUT_ACCURACY], one.discriminator[names.LENGTH_ACCURACY])
        for found in arms.values()
        for one in found
        if {names.HELD_OUT_ACCURACY, names.LENGTH_ACCURACY} <= set(one.discriminator)
    ]
    if not measured:
        return ""
    by_text, by_length = (average_finite(values) for values in zip(*measured, strict=True))
    return (
        f"The pre-trained discriminator assigns {format_percent(by_text)} of held-out texts to their source; the "
        f"length of the text alone assigns {format_percent(by_length)}."
    )


def _describe_order(study: Study, differences: Sequence[Difference]) -> str:
    pairs = list_neighbours(study)
    claimed, steps = [one for one in differences if (one.first, one.second) in pairs], len(pairs)
    if len(claimed) < steps:
        return f"The claimed ranking can't be tested; pairwise steps not run: {steps - len(claimed)} of {steps}."
    told = {word: sum(found.verdict == word for found in claimed) for word in VERDICT_WORDS}
    if told["more"] == steps:
        return f"The claimed ranking is reproduced; pairwise steps that hold: {steps} of {steps}."
    rest = steps - told["more"] - told["less"]
    before = (
        f" (without the correction {told['more'] + told['more_alone']}, {told['less'] + told['less_alone']} and "
        f"{told['open']})"
        if rest > told["open"]
        else ""
    )
    return (
        f"The claimed ranking is not reproduced; pairwise steps that hold: {told['more']} of {steps}, "
        f"reversed: {told['less']}, not significant: {rest}{before}."
    )


def describe_verdicts(arms: Arms, found: Sequence[Difference]) -> str:
    """All differences of a study in one sentence, by verdict."""
    said = []
    for word, text in VERDICT_WORDS.items():
        pairs = [
            f"{format_pair(arms, one)} ({format_points(one.seeds.mean, True)})" for one in found if one.verdict == word
        ]
        said += [f"{text}: {', '.join(pairs)}"] if pairs else []
    return "; ".join(said)


def format_pair(arms: Arms, found: Difference) -> str:
    """The titles of both arms."""
    return f"{find_title(arms, found.first)} vs. {find_title(arms, found.second)}"


def _describe_style(arms: Arms, lowest: str) -> str:
    """Mean gain over the lowest arm of the runs that adopted a teacher's style, and of the others; empty where one of
    the two groups is empty.
    """
    before = {(one.world, one.seed): one for one in arms.get(lowest, ())}
    took: dict[bool, list[float]] = {True: [], False: []}
    for one in (one for found in arms.values() for one in found if one.curves):
        start = before.get((one.world, one.seed))
        if start is not None and "any" in one.styles and "any" in start.styles:
            rise = one.styles["any"] - start.styles["any"]
            took[rise >= _RISE].append(one.scores["accuracy"] - start.scores["accuracy"])
    if not all(took.values()):
        return ""
    adopted, others = took[True], took[False]
    return (
        f"Runs in which the share of answers in a teacher's style rose by at least {100 * _RISE:.0f} points "
        f"({len(adopted)} of {len(adopted) + len(others)}): {format_points(average_finite(adopted), True)} points vs. "
        f"{find_title(arms, lowest)} on average; all other runs: {format_points(average_finite(others), True)}."
    )


def list_origins(records: Sequence[StudyRecord], arms: Arms) -> list[str]:
    """Which commits the runs started from, and what limits their comparison."""
    lines = []
    if len({tuple(sorted((one.world, one.seed) for one in found)) for found in arms.values()}) > 1:
        lines.append("Not all arms were run on the same seeds; each difference uses the seeds common to both arms.")
    if loose := [one.name for one in records if not one.committed]:
        lines.append(f"Runs with uncommitted code: {', '.join(loose)}.")
    compared = [one for one in records if one.purpose == COMPARED]
    code: dict[str, set[str]] = defaultdict(set)
    for one in compared:
        for stage, digest in one.code.items():
            code[stage].add(digest)
    if other := sorted(stage for stage, found in code.items() if len(found) > 1):
        lines.append(f"Stages whose code differs between the compared runs: {', '.join(other)}.")
    elif len(commits := {one.commit for one in compared}) > 1:
        lines.append(f"The compared runs started from {len(commits)} commits with the same code in every stage.")
    else:
        lines.append(f"All compared runs started from commit {min(commits)[:SHOWN_DIGITS_OF_COMMIT]}.")
    return lines


def explain_arms(study: Study, arms: Arms) -> list[str]:
    """One line for each trained arm: what changed against the reference, in answers and in the loop."""
    name = find_reference_arm(study)
    if name not in arms:
        return []
    lines = []
    for other, found in arms.items():
        if other != name and any(one.curves for one in found):
            common = select_common_seeds({other: found, name: arms[name]})
            lines += [_explain_arm(common[other], common[name])] if common[other] else []
    return lines


def _explain_arm(found: Sequence[StudyRecord], start: Sequence[StudyRecord]) -> str:
    gain = average_over_seeds(found).mean - average_over_seeds(start).mean
    parts = [f"{found[0].title}: {format_points(gain, True)} points"]
    if all("any" in one.styles for one in [*found, *start]):
        parts.append(f"answers in a teacher's style {_format_move(_average_style(start), _average_style(found))} %")
    tokens = [average_figure(each, "mean_tokens") for each in (start, found)]
    if all(map(math.isfinite, tokens)):
        parts.append(f"tokens per answer {tokens[0]:.1f} → {tokens[1]:.1f}")
    kinds = compute_gains(found, start)
    if len(kinds) > 1:
        best, worst = (pick(kinds, key=lambda kind: kinds[kind]) for pick in (max, min))
        parts.append(
            f"by kind {format_points(kinds[worst], True)} ({worst}) to {format_points(kinds[best], True)} ({best})"
        )
    loop = {
        "answers judged correct": average_reward(found, names.ANSWER.format(STUDENT)),
        "answers classified as a teacher's": average_reward(found, names.SIMILARITY.format(STUDENT)),
        "correct answers with negative advantage": average_curve(found, names.CORRECT_NEGATIVE_ADVANTAGE),
    }
    told = [
        f"{text} {_format_move(one.start, one.end)} %" for text, one in loop.items() if one is not None and one.shares
    ]
    return "; ".join(parts) + (f". In the loop: {', '.join(told)}." if told else ".")


def _average_style(records: Sequence[StudyRecord]) -> float:
    return average_finite(one.styles.get("any", math.nan) for one in records)


def _format_move(start: float, end: float) -> str:
    return f"{100 * start:.0f} → {100 * end:.0f}"


def describe_sweep_ends(study: Study, chosen: Mapping[str, float]) -> str:
    """Which arms got a value at an end of the sweep; empty where none did."""
    values = next(iter(study.sweep.values()), [])
    if len(values) < 2:
        return ""
    told = [
        f"{', '.join(at_edge)} ({word} tried)"
        for word, edge in (("lowest", min(values)), ("highest", max(values)))
        if (at_edge := [name for name, value in chosen.items() if value == edge])
    ]
    return f"Best value at an end of the sweep (a value outside might be better): {'; '.join(told)}." if told else ""


def format_count(number: int, noun: str) -> str:
    """The number with its noun: 1 seed, 2 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
