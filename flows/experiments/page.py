"""The page about a study, from its records alone: the same tables as Markdown and as HTML, the curves in the HTML.

Nothing here is written by hand: a sentence that the records don't bear out can't stand on the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.experiments.mechanism import by_kind, curve, ends, mean, mean_of, sources
from flows.experiments.records import Record
from flows.experiments.runs import COMPARED, TUNING
from flows.experiments.statistics import Difference, Interval, difference, mean_over_seeds
from flows.experiments.study import Study
from stages.imitation.rewards import STUDENT
from stages.job import ParamsError
from stages.page.plots import Line, Plot, curves
from stages.page.scores import percent, points

NOTHING = "–"
_SHOWN = 12  # digits of a hash


@dataclass(frozen=True)
class Table:
    """Rows under heads; the first cell of a row names it."""

    title: str
    text: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = field(default=(), repr=False)


@dataclass(frozen=True)
class Page:
    """Everything that stands on it."""

    title: str
    about: str
    findings: Sequence[str]
    sections: Sequence[Section]


def page(study: Study, records: Sequence[Record]) -> Page:
    """The page of `study` from its records. Raises ParamsError when no arm was run, Unpaired when arms don't fit together."""
    arms = {name: [one for one in records if one.arm == name and one.purpose == COMPARED] for name in study.arms}
    arms = {name: found for name, found in arms.items() if found}
    if not arms:
        raise ParamsError("no arm of this study was compared yet")
    claimed = [found for pair in _neighbours(study) if (found := _difference(arms, *pair))]
    asked = [found for pair in study.differences if (found := _difference(arms, *pair))]
    return Page(
        study.title,
        study.about,
        [*_findings(study, arms, claimed, asked), *_warnings(records, arms)],
        [
            _scores(arms),
            _differences(arms, claimed, asked),
            _tuning(study, records),
            _rewards(arms),
            _answers(arms),
            _origin(records),
        ],
    )


def _neighbours(study: Study) -> list[tuple[str, str]]:
    """Each arm of the claimed order with those one step below it."""
    return [
        (upper, lower) for below, above in zip(study.order, study.order[1:], strict=False) for upper in above for lower in below
    ]


def _difference(arms: Mapping[str, Sequence[Record]], first: str, second: str) -> Difference | None:
    return difference(arms[first], arms[second]) if first in arms and second in arms else None


def _findings(
    study: Study, arms: Mapping[str, Sequence[Record]], claimed: Sequence[Difference], asked: Sequence[Difference]
) -> list[str]:
    seeds = {(one.world, one.seed) for found in arms.values() for one in found}
    worlds = {world for world, _ in seeds}
    lines = [f"{_count(len(arms), 'arm')} of {len(study.arms)}, {_count(len(seeds), 'seed')} in {_count(len(worlds), 'world')}."]
    means = {_title(arms, name): mean_over_seeds(found).mean for name, found in arms.items()}
    ordered = sorted(means, key=lambda title: -means[title])
    lines.append("By mean accuracy: " + " > ".join(f"{title} {percent(means[title])}" for title in ordered) + ".")
    lines += [_sentence(arms, found) for found in dict.fromkeys([*asked, *claimed])]
    if study.order:
        lines.append(_order_sentence(study, claimed))
    return lines


def _sentence(arms: Mapping[str, Sequence[Record]], found: Difference) -> str:
    pair = f"{_title(arms, found.first)} against {_title(arms, found.second)}: {points(found.seeds.mean, True)} points"
    if math.isnan(found.seeds.half):
        return f"{pair}. There is one unit only: no interval, and nothing is claimed."
    between = f"95 % interval over {found.seeds.units} units {points(found.seeds.low, True)} to {points(found.seeds.high, True)}"
    if found.verdict == "open":
        seen = f"The smallest difference that this could have seen is {points(found.detectable)}."
        return f"{pair} ({between}): not told apart. {seen}"
    return f"{pair} ({between}): {found.verdict}."


def _order_sentence(study: Study, claimed: Sequence[Difference]) -> str:
    steps = len(_neighbours(study))
    whole = _count(steps, "step")
    if len(claimed) < steps:
        return f"The claimed order can't be judged: {steps - len(claimed)} of its {whole} not run."
    told = {word: sum(found.verdict == word for found in claimed) for word in ("more", "less", "open")}
    if told["more"] == steps:
        return f"The claimed order holds in all of its {whole}."
    return (
        f"The claimed order as a whole is not shown: of its {whole} {told['more']} hold, "
        f"{told['less']} go the other way, {told['open']} not told apart."
    )


def _warnings(records: Sequence[Record], arms: Mapping[str, Sequence[Record]]) -> list[str]:
    lines = []
    if len({tuple(sorted((one.world, one.seed) for one in found)) for found in arms.values()}) > 1:
        lines.append("Not all arms were run on the same seeds; differences are over those that both have.")
    if loose := [one.name for one in records if not one.committed]:
        lines.append(f"Code that no commit holds was used in: {', '.join(loose)}.")
    if len({one.commit for one in records}) > 1:
        lines.append("The runs were started from different commits; the table at the end says which.")
    return lines


def _scores(arms: Mapping[str, Sequence[Record]]) -> Section:
    rows = []
    for name, found in arms.items():
        interval = mean_over_seeds(found)
        single = ", ".join(f"{100 * one.scores['accuracy']:.1f}" for one in found)
        swept = {value for one in found for value in one.swept.values()}
        rate = ", ".join(f"{value:g}" for value in sorted(swept)) or NOTHING
        shuffled = _percent(mean_of(found, "accuracy_shuffled"))
        rows.append([_title(arms, name), percent(interval.mean), _plus_minus(interval), single, shuffled, rate])
    teachers = sorted({name for found in arms.values() for one in found for name in one.teachers})
    for name in teachers:
        values = [one.teachers[name] for found in arms.values() for one in found if name in one.teachers]
        rows.append(
            [f"Teacher {name}", percent(mean(values)), NOTHING, ", ".join(f"{100 * v:.1f}" for v in values), NOTHING, NOTHING]
        )
    key = next((key for found in arms.values() for one in found for key in one.swept), "swept value")
    heads = ["arm", "right", "± (95 %)", "each seed", "images exchanged", key]
    count = next(iter(arms.values()))[0].scores["questions"]
    text = f"Share of {count:,} held-out test questions answered right, greedily; mean over units with the t-interval over them."
    return Section("Scores", text, [Table("", "", heads, rows)])


def _differences(arms: Mapping[str, Sequence[Record]], claimed: Sequence[Difference], asked: Sequence[Difference]) -> Section:
    rows = []
    for found in dict.fromkeys([*asked, *claimed]):
        pooled = f"{points(found.pooled, True)} ({points(found.low, True)} to {points(found.high, True)})"
        rows.append(
            [
                f"{_title(arms, found.first)} − {_title(arms, found.second)}",
                points(found.seeds.mean, True),
                _plus_minus(found.seeds),
                pooled,
                f"{found.wins}/{found.losses}",
                f"{found.p_value:.2g}",
                NOTHING if math.isnan(found.detectable) else points(found.detectable),
                {"more": "more", "less": "less", "open": "not told apart"}[found.verdict],
            ]
        )
    text = (
        "In points of accuracy. The unit is the world, or the seed of training where there is one world only. Beside it, all "
        "questions of all "
        "seeds pooled: difference with its bootstrap interval, questions won and lost, McNemar's exact p. Pooled figures "
        "cover the choice of "
        "questions, not that of the seed; the verdict is by the interval over units. Smallest difference: what a t-test at 5 "
        "% would have "
        "seen in 80 % of repetitions, at the spread that was measured. No interval is corrected for the number of comparisons."
    )
    heads = ["difference", "points", "± (95 %)", "pooled", "won/lost", "p", "smallest difference", "verdict"]
    return Section("Differences", text, [Table("", "", heads, rows)] if rows else [])


def _tuning(study: Study, records: Sequence[Record]) -> Section:
    tried = [one for one in records if one.purpose == TUNING]
    values = sorted({value for one in tried for value in one.swept.values()})
    rows = []
    for name in [name for name in study.arms if any(one.arm == name for one in tried)]:
        own = [one for one in tried if one.arm == name]
        ended = {v: [one.validation["end"] for one in own if v in one.swept.values()] for v in values}
        used = {v for one in records if one.arm == name and one.purpose == COMPARED for v in one.swept.values()}
        cells = [f"{_percent(mean(ended[v]))}{' ←' if v in used else ''}" for v in values]
        rows.append([own[0].title, *cells])
    if not rows:
        return Section("Sweep", "No sweep was run: the rates are those of the parameters.")
    seeds = sorted({f"world {one.world}, seed {one.seed}" for one in tried})
    text = (
        f"{next(iter(tried[0].swept))}: validation score at the end of the loop in {'; '.join(seeds)}, which are not among the "
        f"seeds above. "
        "← is what the arm was compared with."
    )
    return Section("Sweep", text, [Table("", "", ["arm", *(f"{value:g}" for value in values)], rows)])


def _rewards(arms: Mapping[str, Sequence[Record]]) -> Section:
    trained = {name: found for name, found in arms.items() if any(one.curves for one in found)}
    by_source, health = [], []
    for name, found in trained.items():
        for source in sources(found):
            cells = [_from_to(ends(found, f"rewards/{source}/{reward}")) for reward in ("similarity", "answer")]
            advantage = _signed(ends(found, f"rewards/{source}/advantage")[1])
            length = _from_to(ends(found, f"completions/{source}/mean_length"), "{:.0f}", 1.0)
            by_source.append([_title(arms, name), source, *cells, advantage, length])
        held_out = mean(one.discriminator.get("acc", math.nan) for one in found)
        by_length = mean(one.discriminator.get("acc_length_only", math.nan) for one in found)
        told = [_from_to(ends(found, f"disc/acc_{side}")) for side in ("student", "teacher")]
        shares = [_from_to(ends(found, one)) for one in ("frac_correct_negative_advantage", "frac_reward_zero_std")]
        health.append([_title(arms, name), _percent(held_out), _percent(by_length), *told, *shares])
    plots = [plot for title, column, text in _PLOTS if (plot := _plot(arms, trained, title, column, text))]
    steps = "mean of the first and of the last ten steps, over seeds"
    rewards = Table(
        "Rewards by source",
        f"Rewards in per cent, length in tokens: {steps}. Mean advantage of the last steps, in units of reward.",
        ["arm", "source", "similarity", "answer", "advantage", "tokens"],
        by_source,
    )
    signals = Table(
        "Discriminator and signal",
        f"Per cent. Held out: before the loop, beside what length alone reaches. Others: {steps}; a right student answer with "
        f"negative "
        "advantage is pushed down although it is right.",
        ["arm", "held out", "by length", "student told", "teacher told", "right, pushed down", "equal rewards"],
        health,
    )
    return Section("What the loop rewarded", "", [rewards, signals] if trained else [], plots)


_PLOTS = (
    ("Similarity reward", f"rewards/{STUDENT}/similarity", "Share of the student's answers that pass for a teacher's."),
    ("Answer reward", f"rewards/{STUDENT}/answer", "Share of the student's answers that the judge calls right."),
    ("Teacher's style", "styles/any", "Share of the student's answers that are written as a teacher writes."),
    ("Student told", "disc/acc_student", "Share of the student's answers that the discriminator knows as such."),
    ("Right, pushed down", "frac_correct_negative_advantage", "Share of right student answers with negative advantage."),
)


def _plot(
    arms: Mapping[str, Sequence[Record]], trained: Mapping[str, Sequence[Record]], title: str, column: str, text: str
) -> Plot | None:
    lines = []
    for place, (name, found) in enumerate(trained.items()):
        if one := curve(found, column):
            lines.append(Line(_title(arms, name), one.steps, one.values, place % 6, dashed=place >= 6))
    return curves(title, f"{text} Mean over seeds.", lines, percent=True) if lines else None


def _answers(arms: Mapping[str, Sequence[Record]]) -> Section:
    kinds = list(dict.fromkeys(kind for found in arms.values() for kind in by_kind(found)))
    rows = [
        [_title(arms, name), *(_percent(by_kind(found).get(kind, math.nan)) for kind in kinds)] for name, found in arms.items()
    ]
    teachers = sorted({name for found in arms.values() for one in found for name in one.styles if name != "any"})
    written = []
    for name, found in arms.items():
        styles = [_percent(mean(one.styles.get(style, math.nan) for one in found)) for style in [*teachers, "any"]]
        written.append(
            [_title(arms, name), *styles, _number(mean_of(found, "mean_tokens")), _percent(mean_of(found, "truncated_share"))]
        )
    text = "Test questions, means over seeds."
    style = (
        "An answer is in a teacher's style when it reads like one of the forms in which that teacher writes at least 5 % of "
        "its answers, "
        "numbers aside."
    )
    return Section(
        "How they answer",
        text,
        [
            Table("Right answers by kind of question", "", ["arm", *kinds], rows),
            Table(
                "Style and length",
                style,
                ["arm", *(f"as {name}" for name in teachers), "as any teacher", "tokens", "cut"],
                written,
            ),
        ],
    )


def _origin(records: Sequence[Record]) -> Section:
    rows = [
        [
            one.name,
            one.key[:_SHOWN],
            one.params_sha256[:_SHOWN],
            one.lock_sha256[:_SHOWN],
            f"{one.commit[:_SHOWN]}{'' if one.committed else ' and more'}",
            f"{sum(one.seconds.values()) / 60:.1f}" if one.seconds else NOTHING,
        ]
        for one in records
    ]
    text = (
        "One DVC experiment each. Key: hash of parameters, code and data of every stage on the way, by which a finished run "
        "is known. "
        "Minutes: of the stages that it made itself; what another run had made is not in them."
    )
    return Section(
        "Where it comes from", text, [Table("", "", ["record", "key", "parameters", "dvc.lock", "commit", "minutes"], rows)]
    )


def as_markdown(shown: Page) -> str:
    """The page as Markdown, without the curves."""
    lines = [f"# {shown.title}", "", shown.about, "", *(f"- {line}" for line in shown.findings)]
    for section in shown.sections:
        lines += ["", f"## {section.title}", *(["", section.text] if section.text else [])]
        for table in section.tables:
            lines += [*(["", f"### {table.title}"] if table.title else []), *(["", table.text] if table.text else []), ""]
            lines += [f"| {' | '.join(table.heads)} |", f"|---{'|---:' * (len(table.heads) - 1)}|"]
            lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join(lines) + "\n"


def as_html(shown: Page) -> str:
    """The page as one HTML file that asks for nothing else."""
    here = Path(__file__).resolve().parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parents[1] / "stages" / "page"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html").render(page=shown)


def _title(arms: Mapping[str, Sequence[Record]], name: str) -> str:
    return arms[name][0].title


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else NOTHING


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else NOTHING


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if math.isfinite(value) else NOTHING


def _plus_minus(interval: Interval) -> str:
    return NOTHING if math.isnan(interval.half) else points(interval.half)


def _from_to(values: tuple[float, float], form: str = "{:.0f}", factor: float = 100.0) -> str:
    if not all(map(math.isfinite, values)):
        return NOTHING
    return " → ".join(form.format(factor * value) for value in values)
