"""What a study with a protocol says first: its claim, its primary differences, and that all else is exploratory."""

import math
from collections.abc import Sequence

from stages.page.evaluated_models import format_points
from studies.costs import average_loop_cost
from studies.findings import describe_correction, describe_gap, describe_verdicts, format_pair
from studies.mechanism import Arms, find_title
from studies.statistics import Difference
from studies.study import Study


def list_primary_findings(study: Study, arms: Arms, differences: Sequence[Difference]) -> list[str]:
    """The claim with its verdict, each primary difference, the correction, costs, and the exploratory ones."""
    primary = [one for one in differences if not one.exploratory]
    others = [one for one in differences if one.exploratory]
    lines = [line] if (line := describe_claim(study, arms, primary)) else []
    lines += [f"{describe_gap(arms, one)}{_describe_cost(arms, one)}" for one in primary]
    if missing := len(study.primary) - len(primary):
        lines.append(f"Primary differences that were not run: {missing} of {len(study.primary)}.")
    lines += [told] if (told := describe_correction(arms, primary)) else []
    if others:
        lines.append(f"Exploratory, without correction: {describe_verdicts(arms, others)}.")
    return lines


def describe_claim(study: Study, arms: Arms, primary: Sequence[Difference]) -> str:
    """Whether what the study claims was shown, was not, or is the other way round; empty without a claim."""
    if study.claim is None:
        return ""
    pairs = [tuple(pair) for pair in study.claim.pairs]
    found = [one for one in primary if (one.first, one.second) in pairs]
    text, told = study.claim.text, ", ".join(f"{format_pair(arms, one)} {_format_gain(one)}" for one in found)
    if len(found) < len(pairs) or any(math.isnan(one.seeds.half) for one in found):
        return f"Not tested yet: {text}."
    if all(one.verdict == "more" for one in found):
        return f"Shown: {text} ({told})."
    if worse := [one for one in found if one.verdict == "less"]:
        lost = ", ".join(f"{format_pair(arms, one)} {_format_gain(one)}" for one in worse)
        return f"Contradicted: {text}. Significantly lower: {lost}."
    return f"Not shown: {text} ({told}; not all of them significantly higher after correction)."


def _format_gain(found: Difference) -> str:
    return f"{format_points(found.seeds.mean, True)} points"


def _describe_cost(arms: Arms, found: Difference) -> str:
    """Core-seconds and tokens of the two loops; empty where one was not timed."""
    parts = []
    for name in (found.first, found.second):
        cost = average_loop_cost(arms[name])
        if math.isfinite(cost.core_seconds):
            parts.append(f"{find_title(arms, name)} {cost.core_seconds:,.0f} core-seconds, {cost.tokens:,.0f} tokens")
    return f" Cost of the loop: {'; '.join(parts)}." if parts else ""
