"""Matplotlib figures as inline SVG in the colours of the page, so that they follow its light or dark theme."""

import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from stages.page.visible import make_visible, name_hidden_characters

# matplotlib needs colours as numbers; each of these is replaced in the SVG by a variable of page.css.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
SERIES = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {color: f"--s{i}" for i, color in enumerate(SERIES)}
SETTINGS = {
    "svg.hashsalt": "ril",  # equal figures, equal bytes
    "svg.fonttype": "none",  # text stays text: it has the font of the page, can be searched and read by screen readers
    "text.parse_math": False,  # `$` in a title is literal
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
}
GROUPED = (5, 3, 1, 0)  # colours of grouped bars; the last is that of the student
FEWEST_BARS = 4  # minimum number of places, so that a single bar is not too thick
SMOOTHED_FROM = 20  # steps; shorter runs are not smoothed


@dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    series: int  # which colour
    dashed: bool = False
    smooth: bool = True
    dots: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure with title and caption."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class GainBar:
    """One bar."""

    label: str
    value: float
    error: float  # half of its interval
    series: int


@dataclass(frozen=True)
class ScoreDot:
    """One row of the plot of scores."""

    label: str
    value: float
    error: float
    hollow: float | None  # a second value, without error
    series: int


def plot_curves(
    title: str, caption: str, lines: Sequence[Line], percent: bool = False, level: float | None = None
) -> Plot:
    """Lines by step; long ones thin, with their running mean in bold. `level` is a dashed line for comparison."""
    with drawing(3.7, 2.5) as (figure, axes):
        for line in lines:
            draw_line(axes, line)
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        if percent:
            format_axis_as_percent(axes.yaxis)
            axes.set_ylim(-0.03, 1.03)
        widths = [len(line.label) for line in lines]
        columns = max(len(lines), 1) if sum(widths) <= 30 else 2 if max(widths) <= 20 else 1
        if len(lines) > 1:
            figure.legend(loc="outside upper left", ncols=columns, labelcolor=INK)
        return Plot(
            title, caption, render_svg(figure, title, "; ".join(describe_line(line, percent) for line in lines))
        )


def describe_line(line: Line, percent: bool) -> str:
    """First and last value of a curve, for screen readers."""
    window = choose_window(len(line.y)) if line.smooth else 1
    ends = [value for value in running_mean(line.y, window) if math.isfinite(value)]
    if not ends:
        return f"{line.label}: no number"
    begin, end = (f"{100 * value:.0f} %" if percent else f"{value:.3g}" for value in (ends[0], ends[-1]))
    return f"{line.label}: from {begin} to {end} in {len(line.y)} steps"


def draw_line(axes: Any, line: Line) -> None:
    """Draws one curve."""
    color, style = SERIES[line.series % len(SERIES)], (0, (4, 2)) if line.dashed else "-"
    window = choose_window(len(line.y)) if line.smooth else 1
    marker = {"marker": "o", "markersize": 4.0} if line.dots or len(line.y) == 1 else {}
    if window > 1:
        axes.plot(line.x, line.y, color=color, linewidth=0.7, alpha=0.35)
    axes.plot(
        line.x, running_mean(line.y, window), color=color, linewidth=1.8, linestyle=style, label=line.label, **marker
    )


def choose_window(steps: int) -> int:
    """Width of the running mean for a curve of this length, in steps."""
    return min(max(steps // 12, 2), 25) if steps >= SMOOTHED_FROM else 1


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the finite ones among the last `window` values at each place."""
    means = []
    for place in range(len(values)):
        last = [value for value in values[max(0, place + 1 - window) : place + 1] if math.isfinite(value)]
        means.append(sum(last) / len(last) if last else math.nan)
    return means


def plot_dots(title: str, caption: str, models: Sequence[ScoreDot]) -> Plot:
    """One row a model: a dot with its standard error, and a hollow dot for the second value."""
    with drawing(3.9, 0.4 * len(models) + 0.5) as (figure, axes):
        for place, bar in enumerate(models):
            color = SERIES[bar.series % len(SERIES)]
            if bar.hollow is not None:
                axes.plot([bar.hollow, bar.value], [place, place], color=GRID, linewidth=1.4, zorder=1)
                axes.plot([bar.hollow], [place], "o", color=color, markerfacecolor="none", markersize=6, zorder=2)
            axes.errorbar(
                [bar.value], [place], xerr=[bar.error], fmt="o", color=color, markersize=7, capsize=3, zorder=3
            )
        axes.set_yticks(
            range(len(models)), [textwrap.shorten(bar.label, 28, placeholder="…") for bar in models], color=INK
        )
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlim(0, 1.02)
        format_axis_as_percent(axes.xaxis)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        said = "; ".join(f"{bar.label} {100 * bar.value:.1f} % ± {100 * bar.error:.1f}" for bar in models)
        return Plot(title, caption, render_svg(figure, title, said))


def plot_bars(title: str, caption: str, rows: Sequence[GainBar]) -> Plot:
    """Horizontal bars of positive or negative shares, each with its interval and its value."""
    places = max(len(rows), FEWEST_BARS)
    with drawing(3.9, max(0.36 * places + 0.6, 2.4)) as (figure, axes):
        for place, row in enumerate(rows):
            axes.barh([place], [row.value], height=0.62, color=SERIES[row.series % len(SERIES)], alpha=0.85)
            error = drop_infinite(row.error)
            axes.errorbar([row.value], [place], xerr=[error], fmt="none", ecolor=INK, elinewidth=1.0, capsize=3)
            end = max(row.value + error, 0.0)
            axes.annotate(
                f"{100 * row.value:+.1f} %".replace("-", "−"),
                (end, place),
                (5, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
        axes.set_ylim(places - 0.4, -0.6)
        low = min(0.0, *(row.value - drop_infinite(row.error) for row in rows))
        high = max(0.01, *(row.value + drop_infinite(row.error) for row in rows))
        axes.set_xlim(low - 0.04 * (high - low), high + 0.3 * (high - low))
        axes.axvline(0.0, color=MUTED, linewidth=0.9)
        format_axis_as_percent(axes.xaxis)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        said = "; ".join(f"{row.label} {100 * row.value:+.1f} %" for row in rows)
        return Plot(title, caption, render_svg(figure, title, said))


def plot_grouped_bars(title: str, caption: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> Plot:
    """Vertical bars of shares, grouped."""
    width = 0.8 / len(series)
    with drawing(3.9, 2.9) as (figure, axes):
        for number, (label, values) in enumerate(series.items()):
            places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(groups))]
            color = SERIES[GROUPED[number % len(GROUPED)]]
            axes.bar(places, values, width=0.9 * width, color=color, alpha=0.85, label=label)
        axes.set_xticks(range(len(groups)), groups, color=INK, fontsize=7.0)
        format_axis_as_percent(axes.yaxis)
        axes.grid(False, axis="x")
        axes.axhline(0.0, color=MUTED, linewidth=0.9)
        figure.legend(loc="outside upper left", ncols=2, labelcolor=INK)
        parts = [
            f"{label}: {', '.join(f'{100 * value:+.1f} %' for value in values)}" for label, values in series.items()
        ]
        return Plot(
            title, caption, render_svg(figure, title, f"{', '.join(groups)}. {'; '.join(parts)}".replace("\n", " "))
        )


def drop_infinite(value: float) -> float:
    """`value`, or 0.0 if it is not finite."""
    return value if math.isfinite(value) else 0.0


def format_axis_as_percent(axis: Any) -> None:
    """Formats shares as whole per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """An empty figure (inches) with one pair of axes, independent of the user's matplotlibrc."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        yield figure, axes


def render_svg(figure: Any, label: str, said: str) -> Markup:
    """The figure as an `svg` element for a page with several; `said` gives its numbers to screen readers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = name_hidden_characters(buffer.getvalue().decode())
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]+)"[^>]*>',
        lambda box: f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(make_visible(f"{label}. {said}"))}">',
        text,
        count=1,
    )
    text = prefix_ids(text, re.sub(r"[^a-z0-9]+", "-", label.lower()))
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return Markup(text)  # nosec B704: matplotlib escapes the texts that it writes


def prefix_ids(svg: str, prefix: str) -> str:
    """Drops unused ids and puts `prefix` before the others: ids are unique in a page."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
