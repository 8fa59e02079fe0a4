"""The page about a study: its `about` and `limits`, and sentences, tables and plots computed from its records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stages.config.yaml import ParamsError
from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names
from stages.page.evaluated_models import format_percent, format_points
from studies.difference_tables import DASH, format_half_width, make_differences, tabulate_differences
from studies.document import Page, Section, Table
from studies.figures import plot_arm_scores, plot_kinds, plot_loop
from studies.findings import (
    SHOWN_DIGITS_OF_COMMIT,
    compare_arms,
    describe_extent,
    describe_sweep_ends,
    describe_verdicts,
    explain_arms,
    find_reference_arm,
    list_findings,
    list_origins,
    list_seeds,
)
from studies.measures import describe_faults, make_costs, make_faults, make_mechanism
from studies.mechanism import (
    Arms,
    Curve,
    average_figure,
    average_finite,
    average_reward,
    compute_gains,
    find_ends,
    find_onset,
    find_title,
    list_sources,
    quote_answer,
    score_by_kind,
    select_common_seeds,
)
from studies.primary import list_primary_findings
from studies.records import LAST_TWO, StudyRecord
from studies.runs import COMPARED, TUNING
from studies.statistics import Difference, average_over_seeds
from studies.study import BestOf, Study

_REAL_MODELS = "What this says about real models, and what it does not"
_GROUPS = 4  # bars side by side in one plot


def make_page(
    study: Study,
    records: Sequence[StudyRecord],
    others: Mapping[str, tuple[Study, Sequence[StudyRecord]]] | None = None,
) -> Page:
    """The page of `study` from its records.

    `others` are the studies derived from it (`like`), by name, with their records; the page summarises them too.
    Raises ParamsError when no arm was compared, Unpaired when two arms answered different questions.
    """
    arms = _select_compared(study, records)
    if not arms:
        raise ParamsError("no arm of this study has been compared yet")
    differences = compare_arms(study, arms)
    first = list_primary_findings(study, arms, differences) if study.primary else []
    run = {name: (one, _select_compared(one, found)) for name, (one, found) in (others or {}).items()}
    followed = [(name, *found, compare_arms(*found)) for name, found in run.items() if found[1]]
    return Page(
        study.title,
        study.about,
        [
            *first,
            *list_findings(study, arms, differences),
            *describe_faults(study, arms),
            *study.limits,
            *(
                f"Study {name} ({describe_extent(one, its)}): {describe_verdicts(its, found)}."
                for name, one, its, found in followed
                if found
            ),
            *list_origins(records, arms),
        ],
        [
            _make_scores(arms),
            make_differences(study, arms, differences),
            *(_make_followed_study(*one) for one in followed),
            *([_make_explanations(study, arms)] if find_reference_arm(study) in arms else []),
            *make_faults(study, arms),
            *make_mechanism(study, arms),
            *make_costs(arms, records),
            *([Section(_REAL_MODELS, "", lines=study.real_models)] if study.real_models else []),
            _make_tuning(study, records),
            _make_rewards(arms),
            _make_answers(study, arms),
            _make_origin(records),
        ],
    )


def _select_compared(study: Study, records: Sequence[StudyRecord]) -> Arms:
    """The compared records of each arm that was run, in the order of the study, with the titles of the study."""
    arms = {
        name: [replace(one, title=arm.title) for one in records if one.arm == name and one.purpose == COMPARED]
        for name, arm in study.arms.items()
    }
    for name, best in study.best_of.items():
        arms[name] = list_best(name, best, [arms[one] for one in best.arms])
    return {name: found for name, found in arms.items() if found}


def list_best(name: str, best: BestOf, sides: Sequence[Sequence[StudyRecord]]) -> list[StudyRecord]:
    """For each seed that all sides have, the most accurate record, of equal ones the first, as arm `name`."""
    by_seed = [{(one.world, one.seed): one for one in found} for found in sides]
    return [
        replace(
            max((found[at] for found in by_seed), key=lambda one: float(one.scores["accuracy"])),
            arm=name,
            title=best.title,
            core_seconds={},
            seconds={},
            stages={},
        )
        for at in sorted(set.intersection(*(set(found) for found in by_seed)))
    ]


def _make_scores(arms: Arms) -> Section:
    rows = []
    for name, found in arms.items():
        interval = average_over_seeds(found)
        single = ", ".join(f"{100 * one.scores['accuracy']:.1f}" for one in found)
        swept = {value for one in found for value in one.swept.values()}
        rate = ", ".join(f"{value:g}" for value in sorted(swept)) or DASH
        shuffled = _format_percent(average_figure(found, "accuracy_shuffled"))
        rows.append(
            [
                find_title(arms, name),
                format_percent(interval.mean),
                format_half_width(interval),
                single,
                shuffled,
                rate,
            ]
        )
    teachers = sorted({name for found in arms.values() for one in found for name in one.teachers})
    for name in teachers:
        having = [one for found in arms.values() for one in found if name in one.teachers]
        values = list(
            {(one.world, one.seed): one.teachers[name] for one in having}.values()
        )  # several arms may have the same value
        rows.append(
            [
                f"Teacher {name}",
                format_percent(average_finite(values)),
                DASH,
                ", ".join(f"{100 * v:.1f}" for v in values),
                DASH,
                DASH,
            ]
        )
    key = next((key for found in arms.values() for one in found for key in one.swept), "swept value")
    heads = ["arm", "accuracy", "± (95 %)", "each seed", "shuffled images", key]
    count = next(iter(arms.values()))[0].scores["questions"]
    text = (
        f"Accuracy on {count:,} held-out test questions with greedy decoding: mean over units (see Differences) with "
        "its 95 % t-interval."
    )
    return Section("Scores", text, [Table("", "", heads, rows), *_tabulate_benchmarks(arms)], [plot_arm_scores(arms)])


def _tabulate_benchmarks(arms: Arms) -> list[Table]:
    """The table of benchmark scores; none where no run has any."""
    scored = list(dict.fromkeys(name for found in arms.values() for one in found for name in one.benchmarks))
    rows = [
        [
            find_title(arms, name),
            *(_format_number(average_finite(one.benchmarks.get(key, math.nan) for one in found)) for key in scored),
        ]
        for name, found in arms.items()
    ]
    text = "Score of each benchmark, mean over seeds; – where it is missing or incomplete."
    return [Table("Benchmarks", text, ["arm", *scored], rows)] if scored else []


def _make_followed_study(name: str, study: Study, arms: Arms, asked: Sequence[Difference]) -> Section:
    text = (
        f"{study.about} {describe_extent(study, arms).capitalize()}; columns as above. Details are on the page {name}."
    )
    rows = [[one.title, format_percent(average_over_seeds(found).mean)] for found in arms.values() for one in found[:1]]
    tables = [
        Table("Accuracy", "", ["arm", "accuracy"], rows),
        *([tabulate_differences(arms, asked)] if asked else []),
    ]
    return Section(f"{study.title} ({name})", text, tables)


def _make_tuning(study: Study, records: Sequence[StudyRecord]) -> Section:
    tried = [one for one in records if one.purpose == TUNING]
    values = sorted({value for one in tried for value in one.swept.values()})
    rows, compared_with = [], dict[str, float]()
    for name in [name for name in study.arms if any(one.arm == name for one in tried)]:
        own = [one for one in tried if one.arm == name]
        ended = {v: [one.validation[LAST_TWO] for one in own if v in one.swept.values()] for v in values}
        used = {v for one in records if one.arm == name and one.purpose == COMPARED for v in one.swept.values()}
        cells = [f"{_format_percent(average_finite(ended[v]))}{' ←' if v in used else ''}" for v in values]
        rows.append([study.arms[name].title, *cells])
        if used:
            compared_with[study.arms[name].title] = max(used)
    if not rows:
        return Section("Sweep", "No sweep was run: all values are those of the parameters.")
    seeds = sorted({f"data set {one.world}, seed {one.seed}" for one in tried})
    text = (
        f"{next(iter(tried[0].swept))}: mean of the last two validation scores on {'; '.join(seeds)}. No tuning seed "
        "is among the seeds above. ← marks the value that the comparison uses."
    )
    lines = [line] if (line := describe_sweep_ends(study, compared_with)) else []
    return Section("Sweep", text, [Table("", "", ["arm", *(f"{value:g}" for value in values)], rows)], lines=lines)


def _make_rewards(arms: Arms) -> Section:
    trained = {name: found for name, found in arms.items() if any(one.curves for one in found)}
    by_source, health = [], []
    for name, found in trained.items():
        for source in list_sources(found):
            cells = [
                _format_reward(average_reward(found, one.format(source))) for one in (names.SIMILARITY, names.ANSWER)
            ]
            advantage = _format_signed(find_ends(found, names.ADVANTAGE.format(source))[1])
            length = _format_change(find_ends(found, names.LENGTH.format(source)), "{:.0f}", 1.0)
            by_source.append([find_title(arms, name), source, *cells, advantage, length])
        held_out = average_finite(one.discriminator.get(names.HELD_OUT_ACCURACY, math.nan) for one in found)
        by_length = average_finite(one.discriminator.get(names.LENGTH_ACCURACY, math.nan) for one in found)
        told = [_format_change(find_ends(found, names.DISC_ACCURACY_OF.format(side))) for side in (STUDENT, TEACHERS)]
        shares = [
            _format_change(find_ends(found, one)) for one in (names.CORRECT_NEGATIVE_ADVANTAGE, names.EQUAL_REWARDS)
        ]
        health.append([find_title(arms, name), _format_percent(held_out), _format_percent(by_length), *told, *shares])
    steps = "mean of the first ten steps → mean of the last ten steps, averaged over seeds"
    rewards = Table(
        "Rewards by source",
        f"Rewards in per cent (GAD: the discriminator's score), – where the objective has none; length in tokens. "
        f"{steps.capitalize()}. Advantage: mean of the last ten steps, in units of reward.",
        ["arm", "source", "similarity", "answer", "advantage", "tokens"],
        by_source,
    )
    signals = Table(
        "Discriminator and signal",
        "In per cent. Held out: accuracy before the loop, next to that of length alone. Student, teachers: share of "
        "texts that the discriminator assigns to their true source. Correct, negative advantage: share of the "
        "student's correct answers whose probability the update lowers. Equal rewards: groups in which all "
        f"answers have the same reward. The last four columns: {steps}.",
        ["arm", "held out", "length only", "student", "teachers", "correct, negative advantage", "equal rewards"],
        health,
    )
    return Section("Rewards in the loop", "", [rewards, signals] if trained else [], plot_loop(trained))


def _make_answers(study: Study, arms: Arms) -> Section:
    kinds = list(dict.fromkeys(kind for found in arms.values() for kind in score_by_kind(found)))
    rows = [
        [find_title(arms, name), *(_format_percent(score_by_kind(found).get(kind, math.nan)) for kind in kinds)]
        for name, found in arms.items()
    ]
    teachers = sorted({name for found in arms.values() for one in found for name in one.styles if name != "any"})
    written = []
    for name, found in arms.items():
        styles = [
            _format_percent(average_finite(one.styles.get(style, math.nan) for one in found))
            for style in [*teachers, "any"]
        ]
        written.append(
            [
                find_title(arms, name),
                *styles,
                _format_number(average_figure(found, "mean_tokens")),
                _format_percent(average_figure(found, "truncated_share")),
            ]
        )
    lowest = find_reference_arm(study)
    asked = dict.fromkeys(name for pair in study.differences for name in pair if name in arms and name != lowest)
    drawable = (
        lowest in arms and len(asked) <= _GROUPS
    )  # more bars side by side are not readable; the table has all arms
    plots = [plot] if drawable and (plot := plot_kinds(arms, list(asked), lowest)) else []
    text = "Test questions, means over seeds."
    style = (
        "In per cent, except tokens. An answer is in a teacher's style if, with all numbers replaced, it equals a form "
        "that this teacher uses in at least 5 % of its answers."
    )
    return Section(
        "Answers",
        text,
        [
            Table("Accuracy by kind of question", "", ["arm", *kinds], rows),
            Table(
                "Style and length",
                style,
                ["arm", *(f"style of {name}" for name in teachers), "style of any teacher", "tokens", "truncated"],
                written,
            ),
            *_make_examples(study, arms),
        ],
        plots,
    )


def _make_examples(study: Study, arms: Arms) -> list[Table]:
    """The answers of all arms to one question of the kind that gained most and of the kind that gained least, on one
    data set.
    """
    lowest = find_reference_arm(study)
    top = next((first for first, _ in study.differences if first in arms), lowest)
    seeds = (arms[top][0].world, arms[top][0].seed)
    there = {
        name: own for name, found in arms.items() if (own := [one for one in found if (one.world, one.seed) == seeds])
    }
    common = select_common_seeds({name: arms[name] for name in (top, lowest) if name in arms})
    changed = compute_gains(common[top], common[lowest]) if lowest in arms else {}
    kinds = list(dict.fromkeys(pick(changed, key=lambda kind: changed[kind]) for pick in (max, min))) if changed else []
    rows = [[find_title(arms, name), *(quote_answer(found, kind) for kind in kinds)] for name, found in there.items()]
    if not any(cell for row in rows for cell in row[1:]):
        return []
    reference_of = {one["kind"]: one["reference"] for one in there[top][0].answers}
    text = (
        f"Data set {seeds[0]}: the first test question (by id) of the kinds with the largest and the smallest gain "
        f"of {find_title(arms, top)}, the same for all arms."
    )
    heads = ["arm", *(f"{kind}; reference {reference_of.get(kind, DASH)}" for kind in kinds)]
    return [Table("Examples", text, heads, rows)]


def _make_explanations(study: Study, arms: Arms) -> Section:
    lowest = find_reference_arm(study)
    text = (
        f"Answers: value of {find_title(arms, lowest)} → value of the arm. Loop: mean of the first ten steps → "
        "mean of the "
        "last ten steps. All values are means over seeds."
    )
    tables = [table] if len(list_seeds(arms)) > 1 and (table := _tabulate_seeds(arms, lowest)) else []
    return Section(f"Changes vs. {find_title(arms, lowest)}", text, tables, lines=explain_arms(study, arms))


def _tabulate_seeds(arms: Arms, lowest: str) -> Table | None:
    """The gain of each trained arm in each seed, with its share of answers in a teacher's style."""
    before = {(one.world, one.seed): one for one in arms[lowest]}
    rows = []
    for name, found in arms.items():
        own = {(one.world, one.seed): one for one in found if one.curves}
        if name != lowest and own:
            cells = [
                _format_gain(own[at], before[at]) if at in own and at in before else DASH for at in list_seeds(arms)
            ]
            rows.append([find_title(arms, name), *cells])
    text = (
        "Points gained per seed. In brackets: per cent of test answers in any teacher's style, of "
        f"{find_title(arms, lowest)} → after the loop; then the step of the loop at which the share in such a "
        "style had "
        "covered half of the way to 100 %."
    )
    heads = ["arm", *(f"data set {world}, seed {seed}" for world, seed in list_seeds(arms))]
    return Table("By seed", text, heads, rows) if rows else None


def _format_gain(found: StudyRecord, start: StudyRecord) -> str:
    gain = format_points(found.scores["accuracy"] - start.scores["accuracy"], True)
    styles = [one.styles.get("any", math.nan) for one in (start, found)]
    if not all(map(math.isfinite, styles)):
        return gain
    step = find_onset(found)
    since = "" if step is None else f"; step {step}"
    return f"{gain} ({100 * styles[0]:.0f} → {100 * styles[1]:.0f}{since})"


def _make_origin(records: Sequence[StudyRecord]) -> Section:
    rows = [
        [
            one.name,
            one.key[:SHOWN_DIGITS_OF_COMMIT],
            one.params_sha256[:SHOWN_DIGITS_OF_COMMIT],
            one.lock_sha256[:SHOWN_DIGITS_OF_COMMIT],
            f"{one.commit[:SHOWN_DIGITS_OF_COMMIT]}{'' if one.committed else ' (modified)'}",
            f"{sum(one.seconds.values()) / 60:.1f}" if one.seconds else DASH,
        ]
        for one in records
    ]
    text = (
        "One DVC experiment per record. Key: hash of the parameters, code and data of all stages that the run depends "
        "on; it identifies a finished run. Minutes: time of the stages that the run executed itself, without those "
        "that it took over from other runs."
    )
    return Section(
        "Provenance",
        text,
        [Table("", "", ["record", "key", "parameters", "dvc.lock", "commit", "minutes"], rows)],
    )


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else DASH


def _format_number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else DASH


def _format_signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−") if math.isfinite(value) else DASH  # + 0.0: no −0.00


def _format_reward(found: Curve | None) -> str:
    if found is None:
        return DASH
    return (
        _format_change((found.start, found.end))
        if found.shares
        else _format_change((found.start, found.end), "{:+.2f}", 1.0)
    )


def _format_change(values: tuple[float, float], form: str = "{:.0f}", factor: float = 100.0) -> str:
    if not all(map(math.isfinite, values)):
        return DASH
    return " → ".join(form.format(factor * value).replace("-", "−") for value in values)
