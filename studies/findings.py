"""The findings of a study as sentences, from its records: scores, differences, the claimed ranking, and what changed
in each arm.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from stages.groups.response import STUDENT
from stages.job import metric_names as names
from stages.page.scores import percent, points
from studies.mechanism import Arms, curve, gains, mean, mean_of, on_common_seeds, rewarded, title
from studies.records import Record
from studies.runs import COMPARED
from studies.statistics import Difference, difference, mean_over_seeds
from studies.study import Study

SHOWN = 12  # digits of a hash
VERDICTS = {"more": "significantly higher", "less": "significantly lower", "open": "not significant"}
_RISE = 0.1  # of the share of answers in a teacher's style: from here on a run has adopted it


def neighbours(study: Study) -> list[tuple[str, str]]:
    """Pairs (arm, arm one step below it) of the claimed ranking."""
    return [
        (upper, lower)
        for below, above in zip(study.order, study.order[1:], strict=False)
        for upper in above
        for lower in below
    ]


def reference(study: Study) -> str:
    """The arm that the others are compared with: the lowest of the claimed ranking, else that of `differences`."""
    if study.order:
        return study.order[0][0]
    return study.differences[0][1] if study.differences else next(iter(study.arms))


def between(arms: Arms, first: str, second: str) -> Difference | None:
    """The difference of two arms; None where one of them was not run, or not on a common seed."""
    return difference(arms[first], arms[second]) if first in arms and second in arms else None


def findings(study: Study, arms: Arms, claimed: Sequence[Difference], asked: Sequence[Difference]) -> list[str]:
    """The ranking by mean accuracy, each difference with its verdict, and the claimed ranking as a whole."""
    seeds = seeds_of(arms)
    lines = [f"{counted(len(arms), 'arm')} of {len(study.arms)}, {extent(study, arms)}."]
    common = on_common_seeds(arms)
    if shared := len(next(iter(common.values()))):
        where = "" if shared == len(seeds) else f" over the {counted(shared, 'seed')} common to all arms"
        lines.append(f"By mean accuracy{where}: {_ranked(common)}.")
    lines += [_sentence(arms, found) for found in dict.fromkeys([*asked, *claimed])]
    if study.order:
        lines.append(_order_sentence(study, claimed))
    if told := _style_sentence(arms, reference(study)):
        lines.append(told)
    return lines


def seeds_of(arms: Arms) -> list[tuple[int, int]]:
    """The pairs of world and seed in which any arm was run, in their order."""
    return sorted({(one.world, one.seed) for found in arms.values() for one in found})


def extent(study: Study, arms: Arms) -> str:
    """On how many seeds and data sets the arms were run, and how many planned seeds were not."""
    seeds = seeds_of(arms)
    lacking = len({(one.world, one.seed) for one in study.seeds} - set(seeds))
    rest = f", {counted(lacking, 'planned seed')} not run" if lacking else ""
    return f"{counted(len(seeds), 'seed')} on {counted(len({world for world, _ in seeds}), 'data set')}{rest}"


def _ranked(arms: Arms) -> str:
    means = {title(arms, name): mean_over_seeds(found).mean for name, found in arms.items()}
    return "; ".join(f"{name} {percent(means[name])}" for name in sorted(means, key=lambda name: -means[name]))


def _sentence(arms: Arms, found: Difference) -> str:
    pair = f"{_pair(arms, found)}: {points(found.seeds.mean, True)} points"
    if math.isnan(found.seeds.half):
        return f"{pair}; one unit only, so there is no interval and no verdict."
    low, high = points(found.seeds.low, True), points(found.seeds.high, True)
    interval = f"95 % interval {low} to {high}, n = {found.seeds.units}"
    return f"{pair} ({interval}): {VERDICTS[found.verdict]} (minimum detectable difference {points(found.detectable)})."


def _order_sentence(study: Study, claimed: Sequence[Difference]) -> str:
    steps = len(neighbours(study))
    if len(claimed) < steps:
        return f"The claimed ranking can't be tested; pairwise steps not run: {steps - len(claimed)} of {steps}."
    told = {word: sum(found.verdict == word for found in claimed) for word in VERDICTS}
    if told["more"] == steps:
        return f"The claimed ranking is reproduced; pairwise steps that hold: {steps} of {steps}."
    return (
        f"The claimed ranking is not reproduced; pairwise steps that hold: {told['more']} of {steps}, "
        f"reversed: {told['less']}, not significant: {told['open']}."
    )


def verdicts(arms: Arms, found: Sequence[Difference]) -> str:
    """All differences of a study in one sentence, by verdict."""
    said = []
    for word, text in VERDICTS.items():
        pairs = [f"{_pair(arms, one)} ({points(one.seeds.mean, True)})" for one in found if one.verdict == word]
        said += [f"{text}: {', '.join(pairs)}"] if pairs else []
    return "; ".join(said)


def _pair(arms: Arms, found: Difference) -> str:
    return f"{title(arms, found.first)} vs. {title(arms, found.second)}"


def _style_sentence(arms: Arms, lowest: str) -> str:
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
        f"({len(adopted)} of {len(adopted) + len(others)}): {points(mean(adopted), True)} points vs. "
        f"{title(arms, lowest)} on average; all other runs: {points(mean(others), True)}."
    )


def origins(records: Sequence[Record], arms: Arms) -> list[str]:
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
        lines.append(f"All compared runs started from commit {min(commits)[:SHOWN]}.")
    return lines


def explanations(study: Study, arms: Arms) -> list[str]:
    """One line for each trained arm: what changed against the reference, in answers and in the loop."""
    name = reference(study)
    if name not in arms:
        return []
    lines = []
    for other, found in arms.items():
        if other != name and any(one.curves for one in found):
            common = on_common_seeds({other: found, name: arms[name]})
            lines += [_explanation(common[other], common[name])] if common[other] else []
    return lines


def _explanation(found: Sequence[Record], start: Sequence[Record]) -> str:
    gain = mean_over_seeds(found).mean - mean_over_seeds(start).mean
    parts = [f"{found[0].title}: {points(gain, True)} points"]
    if all("any" in one.styles for one in [*found, *start]):
        parts.append(f"answers in a teacher's style {_moved(_style(start), _style(found))} %")
    tokens = [mean_of(each, "mean_tokens") for each in (start, found)]
    if all(map(math.isfinite, tokens)):
        parts.append(f"tokens per answer {tokens[0]:.1f} → {tokens[1]:.1f}")
    kinds = gains(found, start)
    if len(kinds) > 1:
        best, worst = (pick(kinds, key=lambda kind: kinds[kind]) for pick in (max, min))
        parts.append(f"by kind {points(kinds[worst], True)} ({worst}) to {points(kinds[best], True)} ({best})")
    loop = {
        "answers judged correct": rewarded(found, names.ANSWER.format(STUDENT)),
        "answers classified as a teacher's": rewarded(found, names.SIMILARITY.format(STUDENT)),
        "correct answers with negative advantage": curve(found, names.CORRECT_NEGATIVE_ADVANTAGE),
    }
    told = [f"{text} {_moved(one.start, one.end)} %" for text, one in loop.items() if one is not None and one.shares]
    return "; ".join(parts) + (f". In the loop: {', '.join(told)}." if told else ".")


def _style(records: Sequence[Record]) -> float:
    return mean(one.styles.get("any", math.nan) for one in records)


def _moved(start: float, end: float) -> str:
    return f"{100 * start:.0f} → {100 * end:.0f}"


def sweep_ends(study: Study, chosen: Mapping[str, float]) -> str:
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


def counted(number: int, noun: str) -> str:
    """The number with its noun: 1 seed, 2 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
