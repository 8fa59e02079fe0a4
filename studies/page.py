"""The page about a study, computed from its records; no sentence on it is written by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stages.config.yaml import ParamsError
from stages.groups.response import STUDENT, TEACHERS
from stages.job import metric_names as names
from stages.page.scores import percent, points
from studies.document import Page, Section, Table
from studies.figures import drawn_differences, drawn_kinds, drawn_loop, drawn_scores
from studies.findings import (
    SHOWN,
    VERDICTS,
    between,
    explanations,
    extent,
    findings,
    neighbours,
    origins,
    reference,
    seeds_of,
    sweep_ends,
    verdicts,
)
from studies.mechanism import (
    Arms,
    Curve,
    by_kind,
    ends,
    gains,
    mean,
    mean_of,
    on_common_seeds,
    onset,
    rewarded,
    said,
    sources,
    title,
)
from studies.records import Record
from studies.runs import COMPARED, TUNING
from studies.statistics import Difference, Interval, mean_over_seeds
from studies.study import Study

NOTHING = "–"
_GROUPS = 4  # bars side by side in one plot


def page(
    study: Study, records: Sequence[Record], others: Mapping[str, tuple[Study, Sequence[Record]]] | None = None
) -> Page:
    """The page of `study` from its records.

    `others` are the studies derived from it (`like`), by name, with their records; the page summarises them too.
    Raises ParamsError when no arm was compared, Unpaired when two arms answered different questions.
    """
    arms = _compared(study, records)
    if not arms:
        raise ParamsError("no arm of this study has been compared yet")
    claimed = [found for pair in neighbours(study) if (found := between(arms, *pair))]
    asked = _asked(study, arms)
    run = {name: (one, _compared(one, found)) for name, (one, found) in (others or {}).items()}
    followed = [(name, *found, _asked(*found)) for name, found in run.items() if found[1]]
    return Page(
        study.title,
        study.about,
        [
            *findings(study, arms, claimed, asked),
            *(
                f"Study {name} ({extent(one, its)}): {verdicts(its, found)}."
                for name, one, its, found in followed
                if found
            ),
            *origins(records, arms),
        ],
        [
            _scores(arms),
            _differences(study, arms, list(dict.fromkeys([*asked, *claimed]))),
            *(_followed(*one) for one in followed),
            *([_explained(study, arms)] if reference(study) in arms else []),
            _tuning(study, records),
            _rewards(arms),
            _answers(study, arms),
            _origin(records),
        ],
    )


def _compared(study: Study, records: Sequence[Record]) -> Arms:
    """The compared records of each arm that was run, in the order of the study, with the titles of the study."""
    arms = {
        name: [replace(one, title=arm.title) for one in records if one.arm == name and one.purpose == COMPARED]
        for name, arm in study.arms.items()
    }
    return {name: found for name, found in arms.items() if found}


def _asked(study: Study, arms: Arms) -> list[Difference]:
    return [found for first, second in study.differences if (found := between(arms, first, second))]


def _scores(arms: Arms) -> Section:
    rows = []
    for name, found in arms.items():
        interval = mean_over_seeds(found)
        single = ", ".join(f"{100 * one.scores['accuracy']:.1f}" for one in found)
        swept = {value for one in found for value in one.swept.values()}
        rate = ", ".join(f"{value:g}" for value in sorted(swept)) or NOTHING
        shuffled = _percent(mean_of(found, "accuracy_shuffled"))
        rows.append([title(arms, name), percent(interval.mean), _plus_minus(interval), single, shuffled, rate])
    teachers = sorted({name for found in arms.values() for one in found for name in one.teachers})
    for name in teachers:
        having = [one for found in arms.values() for one in found if name in one.teachers]
        values = list(
            {(one.world, one.seed): one.teachers[name] for one in having}.values()
        )  # several arms may have the same value
        rows.append(
            [
                f"Teacher {name}",
                percent(mean(values)),
                NOTHING,
                ", ".join(f"{100 * v:.1f}" for v in values),
                NOTHING,
                NOTHING,
            ]
        )
    key = next((key for found in arms.values() for one in found for key in one.swept), "swept value")
    heads = ["arm", "accuracy", "± (95 %)", "each seed", "shuffled images", key]
    count = next(iter(arms.values()))[0].scores["questions"]
    text = (
        f"Accuracy on {count:,} held-out test questions with greedy decoding: mean over units (see Differences) with "
        "its 95 % t-interval."
    )
    return Section("Scores", text, [Table("", "", heads, rows)], [drawn_scores(arms)])


def _followed(name: str, study: Study, arms: Arms, asked: Sequence[Difference]) -> Section:
    text = f"{study.about} {extent(study, arms).capitalize()}; columns as above. Details are on the page {name}."
    rows = [[one.title, percent(mean_over_seeds(found).mean)] for found in arms.values() for one in found[:1]]
    tables = [Table("Accuracy", "", ["arm", "accuracy"], rows), *([_subtracted(arms, asked)] if asked else [])]
    return Section(f"{study.title} ({name})", text, tables)


def _subtracted(arms: Arms, differences: Sequence[Difference]) -> Table:
    rows = []
    for found in differences:
        pooled = f"{points(found.pooled, True)} ({points(found.low, True)} to {points(found.high, True)})"
        rows.append(
            [
                f"{title(arms, found.first)} − {title(arms, found.second)}",
                points(found.seeds.mean, True),
                _plus_minus(found.seeds),
                pooled,
                f"{found.wins}/{found.losses}",
                f"{found.p_value:.2g}",
                NOTHING if math.isnan(found.detectable) else points(found.detectable),
                VERDICTS[found.verdict],
            ]
        )
    heads = ["difference", "points", "± (95 %)", "pooled", "won/lost", "p", "detectable", "verdict"]
    return Table("", "", heads, rows)


def _differences(study: Study, arms: Arms, differences: Sequence[Difference]) -> Section:
    text = (
        "In percentage points of accuracy. The unit is the data set, or the training seed where there is only one data "
        "set. Points: mean over units with its 95 % t-interval. Pooled: all questions of all seeds, with a bootstrap "
        "interval; won/lost: questions that only one of the two arms answers correctly, with McNemar's exact p. Pooled "
        "figures cover the choice of questions, not that of the seed. Detectable: the minimum difference that a "
        "two-sided t-test at 5 % detects with 80 % power at the measured spread. The verdict uses the interval over "
        "units. Intervals are not corrected for multiple comparisons."
    )
    lowest = reference(study)
    against = [one for name in arms if name != lowest and (one := between(arms, name, lowest))]
    plots = [plot] if (plot := drawn_differences(arms, against, lowest)) else []
    return Section("Differences", text, [_subtracted(arms, differences)] if differences else [], plots)


def _tuning(study: Study, records: Sequence[Record]) -> Section:
    tried = [one for one in records if one.purpose == TUNING]
    values = sorted({value for one in tried for value in one.swept.values()})
    rows, compared_with = [], dict[str, float]()
    for name in [name for name in study.arms if any(one.arm == name for one in tried)]:
        own = [one for one in tried if one.arm == name]
        ended = {v: [one.validation["end"] for one in own if v in one.swept.values()] for v in values}
        used = {v for one in records if one.arm == name and one.purpose == COMPARED for v in one.swept.values()}
        cells = [f"{_percent(mean(ended[v]))}{' ←' if v in used else ''}" for v in values]
        rows.append([study.arms[name].title, *cells])
        if used:
            compared_with[study.arms[name].title] = max(used)
    if not rows:
        return Section("Sweep", "No sweep was run: all values are those of the parameters.")
    seeds = sorted({f"data set {one.world}, seed {one.seed}" for one in tried})
    text = (
        f"{next(iter(tried[0].swept))}: validation score at the end of the loop on {'; '.join(seeds)}. No tuning seed "
        "is among the seeds above. ← marks the value that the comparison uses."
    )
    lines = [line] if (line := sweep_ends(study, compared_with)) else []
    return Section("Sweep", text, [Table("", "", ["arm", *(f"{value:g}" for value in values)], rows)], lines=lines)


def _rewards(arms: Arms) -> Section:
    trained = {name: found for name, found in arms.items() if any(one.curves for one in found)}
    by_source, health = [], []
    for name, found in trained.items():
        for source in sources(found):
            cells = [_reward(rewarded(found, one.format(source))) for one in (names.SIMILARITY, names.ANSWER)]
            advantage = _signed(ends(found, names.ADVANTAGE.format(source))[1])
            length = _from_to(ends(found, names.LENGTH.format(source)), "{:.0f}", 1.0)
            by_source.append([title(arms, name), source, *cells, advantage, length])
        held_out = mean(one.discriminator.get(names.HELD_OUT_ACCURACY, math.nan) for one in found)
        by_length = mean(one.discriminator.get(names.LENGTH_ACCURACY, math.nan) for one in found)
        told = [_from_to(ends(found, names.DISC_ACCURACY_OF.format(side))) for side in (STUDENT, TEACHERS)]
        shares = [_from_to(ends(found, one)) for one in (names.CORRECT_NEGATIVE_ADVANTAGE, names.EQUAL_REWARDS)]
        health.append([title(arms, name), _percent(held_out), _percent(by_length), *told, *shares])
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
    return Section("Rewards in the loop", "", [rewards, signals] if trained else [], drawn_loop(trained))


def _answers(study: Study, arms: Arms) -> Section:
    kinds = list(dict.fromkeys(kind for found in arms.values() for kind in by_kind(found)))
    rows = [
        [title(arms, name), *(_percent(by_kind(found).get(kind, math.nan)) for kind in kinds)]
        for name, found in arms.items()
    ]
    teachers = sorted({name for found in arms.values() for one in found for name in one.styles if name != "any"})
    written = []
    for name, found in arms.items():
        styles = [_percent(mean(one.styles.get(style, math.nan) for one in found)) for style in [*teachers, "any"]]
        written.append(
            [
                title(arms, name),
                *styles,
                _number(mean_of(found, "mean_tokens")),
                _percent(mean_of(found, "truncated_share")),
            ]
        )
    lowest = reference(study)
    asked = dict.fromkeys(name for pair in study.differences for name in pair if name in arms and name != lowest)
    drawable = (
        lowest in arms and len(asked) <= _GROUPS
    )  # more bars side by side are not readable; the table has all arms
    plots = [plot] if drawable and (plot := drawn_kinds(arms, list(asked), lowest)) else []
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
            *_examples(study, arms),
        ],
        plots,
    )


def _examples(study: Study, arms: Arms) -> list[Table]:
    """The answers of all arms to one question of the kind that gained most and of the kind that gained least, on one
    data set.
    """
    lowest = reference(study)
    top = next((first for first, _ in study.differences if first in arms), lowest)
    seeds = (arms[top][0].world, arms[top][0].seed)
    there = {
        name: own for name, found in arms.items() if (own := [one for one in found if (one.world, one.seed) == seeds])
    }
    common = on_common_seeds({name: arms[name] for name in (top, lowest) if name in arms})
    changed = gains(common[top], common[lowest]) if lowest in arms else {}
    kinds = list(dict.fromkeys(pick(changed, key=lambda kind: changed[kind]) for pick in (max, min))) if changed else []
    rows = [[title(arms, name), *(said(found, kind) for kind in kinds)] for name, found in there.items()]
    if not any(cell for row in rows for cell in row[1:]):
        return []
    reference_of = {one["kind"]: one["reference"] for one in there[top][0].answers}
    text = (
        f"Data set {seeds[0]}: the first test question (by id) of the kinds with the largest and the smallest gain "
        f"of {title(arms, top)}, the same for all arms."
    )
    heads = ["arm", *(f"{kind}; reference {reference_of.get(kind, NOTHING)}" for kind in kinds)]
    return [Table("Examples", text, heads, rows)]


def _explained(study: Study, arms: Arms) -> Section:
    lowest = reference(study)
    text = (
        f"Answers: value of {title(arms, lowest)} → value of the arm. Loop: mean of the first ten steps → mean of the "
        "last ten steps. All values are means over seeds."
    )
    tables = [table] if len(seeds_of(arms)) > 1 and (table := _seed_by_seed(arms, lowest)) else []
    return Section(f"Changes vs. {title(arms, lowest)}", text, tables, lines=explanations(study, arms))


def _seed_by_seed(arms: Arms, lowest: str) -> Table | None:
    """The gain of each trained arm in each seed, with its share of answers in a teacher's style."""
    before = {(one.world, one.seed): one for one in arms[lowest]}
    rows = []
    for name, found in arms.items():
        own = {(one.world, one.seed): one for one in found if one.curves}
        if name != lowest and own:
            cells = [_gained(own[at], before[at]) if at in own and at in before else NOTHING for at in seeds_of(arms)]
            rows.append([title(arms, name), *cells])
    text = (
        "Points gained per seed. In brackets: per cent of test answers in any teacher's style, of "
        f"{title(arms, lowest)} → after the loop; then the step of the loop at which the share in such a style had "
        "covered half of the way to 100 %."
    )
    heads = ["arm", *(f"data set {world}, seed {seed}" for world, seed in seeds_of(arms))]
    return Table("By seed", text, heads, rows) if rows else None


def _gained(found: Record, start: Record) -> str:
    gain = points(found.scores["accuracy"] - start.scores["accuracy"], True)
    styles = [one.styles.get("any", math.nan) for one in (start, found)]
    if not all(map(math.isfinite, styles)):
        return gain
    step = onset(found)
    since = "" if step is None else f"; step {step}"
    return f"{gain} ({100 * styles[0]:.0f} → {100 * styles[1]:.0f}{since})"


def _origin(records: Sequence[Record]) -> Section:
    rows = [
        [
            one.name,
            one.key[:SHOWN],
            one.params_sha256[:SHOWN],
            one.lock_sha256[:SHOWN],
            f"{one.commit[:SHOWN]}{'' if one.committed else ' (modified)'}",
            f"{sum(one.seconds.values()) / 60:.1f}" if one.seconds else NOTHING,
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else NOTHING


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else NOTHING


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−") if math.isfinite(value) else NOTHING  # + 0.0: no −0.00


def _plus_minus(interval: Interval) -> str:
    return NOTHING if math.isnan(interval.half) else points(interval.half)


def _reward(found: Curve | None) -> str:
    if found is None:
        return NOTHING
    return _from_to((found.start, found.end)) if found.shares else _from_to((found.start, found.end), "{:+.2f}", 1.0)


def _from_to(values: tuple[float, float], form: str = "{:.0f}", factor: float = 100.0) -> str:
    if not all(map(math.isfinite, values)):
        return NOTHING
    return " → ".join(form.format(factor * value).replace("-", "−") for value in values)
