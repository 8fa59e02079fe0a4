"""Sections of the page of a study with faulty teachers and a budget: faults, hard questions, costs, the mechanism."""

import math
from collections.abc import Sequence

from studies.costs import average_loop_cost, find_used, sum_core_seconds
from studies.difference_tables import DASH
from studies.document import Section, Table
from studies.figures import plot_mechanism
from studies.mechanism import Arms, average_curve, average_finite, compute_gains, find_title
from studies.records import StudyRecord
from studies.study import Study

_ANY = "any"


def make_mechanism(study: Study, arms: Arms) -> list[Section]:
    """The figure of the arms that `mechanism` names; none where none of them has curves."""
    shown = {name: arms[name] for name in study.mechanism if any(one.curves for one in arms.get(name, ()))}
    if not shown:
        return []
    text = "How the arms learn, in one figure: " + ", ".join(find_title(arms, name) for name in shown) + "."
    return [Section("Mechanism", text, plots=[plot_mechanism(shown)])]


def make_faults(study: Study, arms: Arms) -> list[Section]:
    """Where the student repeats its teachers' faults, and where it is right although they are wrong."""
    tables = [table for table in (_tabulate_faults(arms), _tabulate_fault_steps(arms)) if table]
    tables += [
        table for name in study.best_of if name in arms for table in [_tabulate_hard(study, arms, name)] if table
    ]
    return [Section("Faults of the teachers", "", tables)] if tables else []


def describe_faults(study: Study, arms: Arms) -> list[str]:
    """The same in a sentence each, for the arms that `mechanism` names and the recommended ones."""
    told = [name for name in dict.fromkeys(["warm_start", *study.mechanism, "recommended"]) if name in arms]
    lines = []
    shares = {name: average_finite(one.faults.get(_ANY, math.nan) for one in arms[name]) for name in told}
    if any(map(math.isfinite, shares.values())):
        said = "; ".join(
            f"{find_title(arms, name)} {_format(share)} %" for name, share in shares.items() if math.isfinite(share)
        )
        lines.append(f"Test answers that are a teacher's fault, of the questions that one changes: {said}.")
    for best in study.best_of.values():
        teachers = [arms[name] for name in best.arms if name in arms]
        hard = {name: score_where_wrong(arms[name], teachers) for name in told} if len(teachers) > 1 else {}
        if said := "; ".join(f"{find_title(arms, n)} {_format(s)} %" for n, s in hard.items() if math.isfinite(s)):
            lines.append(f"Correct on the test questions that all teachers get wrong: {said}.")
    return lines


def score_where_wrong(
    records: Sequence[StudyRecord], teachers: Sequence[Sequence[StudyRecord]], every: bool = True
) -> float:
    """Share of right answers to the questions that all teachers (else: at least one) get wrong, mean over seeds.

    nan where no seed has all teachers, or no such question. Answers without a verdict are left out.
    """
    marks = [{(one.world, one.seed): one.right for one in found} for found in teachers]
    shares = []
    for one in records:
        theirs = [found.get((one.world, one.seed), "") for found in marks]
        if not theirs or any(len(text) != len(one.right) for text in theirs):
            continue
        choose = all if every else any
        hard = [mark for mark, *said in zip(one.right, *theirs, strict=True) if choose(told == "0" for told in said)]
        known = [mark == "1" for mark in hard if mark in "01"]
        shares.append(sum(known) / len(known) if known else math.nan)
    return average_finite(shares)


def make_costs(arms: Arms, records: Sequence[StudyRecord]) -> list[Section]:
    """Core-seconds and tokens of every arm; none where no run was measured so."""
    used, rows = find_used(records), []
    for name, found in arms.items():
        whole = average_finite(sum_core_seconds(used, one) for one in found if one.stages)
        cost = average_loop_cost(found)
        cells = [_count(value) for value in (cost.core_seconds, whole, cost.sampled, cost.read)]
        steps = {one.budget.get("steps") for one in found if one.curves}
        rows.append([find_title(arms, name), ", ".join(map(str, sorted(filter(None, steps)))) or DASH, *cells])
    if not used:
        return []
    text = (
        "Means over seeds. Core-seconds: time of processor cores, of the loop and of all stages that the arm needs, "
        "those that it shares with others included. A stage that was stopped and resumed counts its last part only. "
        "Sampled: tokens that the student wrote in the loop; read: tokens of other answers that it was trained on."
    )
    heads = ["arm", "steps", "core-seconds, loop", "core-seconds, all stages", "tokens sampled", "tokens read"]
    return [Section("Cost", text, [Table("", "", heads, rows)])]


def _tabulate_faults(arms: Arms) -> Table | None:
    teachers = sorted({name for found in arms.values() for one in found for name in one.faults if name != _ANY})
    rows = [
        [
            find_title(arms, name),
            *(_format(average_finite(one.faults.get(key, math.nan) for one in found)) for key in (*teachers, _ANY)),
        ]
        for name, found in arms.items()
    ]
    text = (
        "Per cent of test answers that are what the question is answered with when the digits that a teacher takes for "
        "each other are exchanged, of the questions whose answer this changes. Answers can be equal by chance: see the "
        "arms without teachers."
    )
    heads = ["arm", *(f"fault of {name}" for name in teachers), "fault of any"]
    return Table("Repeated faults", text, heads, rows) if teachers else None


def _tabulate_fault_steps(arms: Arms) -> Table | None:
    curves = {name: average_curve(found, f"fault/{_ANY}", "validations") for name, found in arms.items()}
    steps = sorted({step for curve in curves.values() if curve for step in curve.steps})
    rows = [
        [
            find_title(arms, name),
            *(_format(dict(zip(curve.steps, curve.values, strict=True)).get(step, math.nan)) for step in steps),
        ]
        for name, curve in curves.items()
        if curve
    ]
    text = "The same for any teacher, in the validation answers (greedy) after so many steps of the loop."
    return Table("Repeated faults by step", text, ["arm", *(f"{step:.0f}" for step in steps)], rows) if rows else None


def _tabulate_hard(study: Study, arms: Arms, best: str) -> Table | None:
    teachers = [arms[name] for name in study.best_of[best].arms if name in arms]
    rows, kinds = [], sorted({kind for one in arms[best] for kind in one.scores.get("by_kind", {})})
    for name, found in arms.items():
        shares = [score_where_wrong(found, teachers), score_where_wrong(found, teachers, every=False)]
        if name in (best, *study.best_of[best].arms) or not any(map(math.isfinite, shares)):
            continue
        common = {(one.world, one.seed) for one in found} & {(one.world, one.seed) for one in arms[best]}
        own, its = ([one for one in arms[arm] if (one.world, one.seed) in common] for arm in (name, best))
        gains = compute_gains(own, its)
        above = average_finite(float(one.scores["accuracy"]) for one in own) - average_finite(
            float(one.scores["accuracy"]) for one in its
        )
        points = [f"{100 * gain:+.1f}".replace("-", "−") for gain in (above, *(gains.get(k, math.nan) for k in kinds))]
        rows.append([find_title(arms, name), *map(_format, shares), *(DASH if "nan" in one else one for one in points)])
    text = (
        "Per cent correct on the test questions that all teachers, or at least one, get wrong; then points above (+) "
        f"or below (−) {find_title(arms, best)}, in all and by kind of question."
    )
    heads = ["arm", "all wrong", "one wrong", "points", *kinds]
    return Table("Against the teachers", text, heads, rows) if rows else None


def _format(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else DASH


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else DASH
