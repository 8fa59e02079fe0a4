"""Drawing: matplotlib figures as inline SVG in the page's own colours, so that they follow its light or dark form."""

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

# matplotlib wants numbers for colours; each of these stands for a variable of style.css and is replaced in the SVG.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
SERIES = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {color: f"--s{i}" for i, color in enumerate(SERIES)}
SETTINGS = {
    "svg.hashsalt": "ril",  # equal figures, equal bytes
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be read aloud and searched
    "text.parse_math": False,  # a `$` in a title is a `$`
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
SMOOTHED_FROM = 20  # steps; shorter runs are shown as they are


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
    """A drawn figure with what belongs above it."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Bar:
    """One row of the plot of scores."""

    label: str
    value: float
    error: float
    hollow: float | None  # a second value, without error
    series: int


def curves(title: str, caption: str, lines: Sequence[Line], percent: bool = False, level: float | None = None) -> Plot:
    """Lines by step; long noisy ones thin, with their running mean in bold. `level` is a dashed line for comparison."""
    with drawing(3.7, 2.5) as (figure, axes):
        for line in lines:
            draw_line(axes, line)
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        if percent:
            as_percent(axes.yaxis)
            axes.set_ylim(-0.03, 1.03)
        columns = 2 if sum(len(line.label) for line in lines) > 30 else max(len(lines), 1)
        if len(lines) > 1:
            figure.legend(loc="outside upper left", ncols=columns, labelcolor=INK)
        return Plot(title, caption, as_svg(figure, title))


def draw_line(axes: Any, line: Line) -> None:
    """Draws one curve."""
    color, style = SERIES[line.series % len(SERIES)], (0, (4, 2)) if line.dashed else "-"
    window = window_of(len(line.y)) if line.smooth else 1
    marker = {"marker": "o", "markersize": 4.0} if line.dots or len(line.y) == 1 else {}
    if window > 1:
        axes.plot(line.x, line.y, color=color, linewidth=0.7, alpha=0.35)
    axes.plot(line.x, running_mean(line.y, window), color=color, linewidth=1.8, linestyle=style, label=line.label, **marker)


def window_of(steps: int) -> int:
    """Over how many steps a curve of this length is averaged."""
    return min(max(steps // 12, 2), 25) if steps >= SMOOTHED_FROM else 1


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place, nan aside."""
    means = []
    for place in range(len(values)):
        last = [value for value in values[max(0, place + 1 - window) : place + 1] if math.isfinite(value)]
        means.append(sum(last) / len(last) if last else math.nan)
    return means


def dots(title: str, caption: str, bars: Sequence[Bar]) -> Plot:
    """One row a model: a dot with its standard error, and a hollow dot for the second value."""
    with drawing(3.9, 0.4 * len(bars) + 0.5) as (figure, axes):
        for place, bar in enumerate(bars):
            color = SERIES[bar.series % len(SERIES)]
            if bar.hollow is not None:
                axes.plot([bar.hollow, bar.value], [place, place], color=GRID, linewidth=1.4, zorder=1)
                axes.plot([bar.hollow], [place], "o", color=color, markerfacecolor="none", markersize=6, zorder=2)
            axes.errorbar([bar.value], [place], xerr=[bar.error], fmt="o", color=color, markersize=7, capsize=3, zorder=3)
        axes.set_yticks(range(len(bars)), [textwrap.shorten(bar.label, 28, placeholder="…") for bar in bars], color=INK)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, 1.02)
        as_percent(axes.xaxis)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        return Plot(title, caption, as_svg(figure, title))


def as_percent(axis: Any) -> None:
    """Shares as whole percents."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """An empty figure (inches) with one pair of axes, whatever the user's matplotlibrc says."""
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


def as_svg(figure: Any, label: str) -> Markup:
    """The figure as an `svg` element that can stand among others in one page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]+)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">',
        text,
        count=1,
    )
    text = own_ids(text, re.sub(r"[^a-z0-9]+", "-", label.lower()))
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return Markup(text)  # safe: matplotlib escapes the texts that it writes


def own_ids(svg: str, prefix: str) -> str:
    """Drops ids that nothing points to and puts `prefix` before the others: a page holds each id once."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
