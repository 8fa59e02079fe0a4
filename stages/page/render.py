"""The page as HTML: template, style and script in one text that loads nothing."""

import base64
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.page.evaluated_models import format_percent, format_points
from stages.page.visible import make_visible

SECTIONS = (  # id, heading, name in the bar at the top
    ("scores", "Scores", "Scores"),
    ("comparison", "Experiments and the paper", "Experiments"),
    ("benchmarks", "Benchmarks and latency", "Benchmarks"),
    ("data", "Questions as the student sees them", "Data"),
    ("curves", "Curves of the RIL run", "Curves"),
    ("answers", "Answers", "Answers"),
    ("rewarded", "Rewarded answers", "Rewards"),
    ("teachers", "Teachers, judge, discriminator", "Teachers and judge"),
    ("time", "Time and tokens", "Time"),
    ("settings", "Settings, versions, hashes", "Settings"),
)
LONG = 400  # characters; longer answers are collapsed


def render_page(values: Mapping[str, Any]) -> str:
    """The page. The browser is told to run no script but the page's own and to load nothing.

    All text is escaped; hidden characters are named, and long texts cut.
    """
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    code = Markup(script)  # nosec B704: the script of this folder
    own = {"script": code, "script_hash": f"sha256-{digest}", "sections": SECTIONS}
    return _render("page.html", {**values, **own})


def render_data_page(section: Mapping[str, Any]) -> str:
    """The page about questions alone, from `seen_questions.make_section`; it has no script and loads nothing."""
    return _render("data.html", {"seen": section})


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=make_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent_or_dash,
        "points": format_points_or_dash,
        "number": format_number,
        "duration": format_duration,
    }
    return environment.get_template(template).render(**values, long=LONG)


def format_percent_or_dash(share: float | None, digits: int = 1) -> str:
    """A share as percents; a dash when it was not measured."""
    return "–" if share is None or not math.isfinite(share) else format_percent(share, digits)


def format_points_or_dash(share: float | None, sign: bool = False) -> str:
    """A difference of shares in points; a dash when it was not measured."""
    return "–" if share is None or not math.isfinite(share) else format_points(share, sign)


def format_number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number with separators for thousands; whole ones without decimals, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''},.{0 if isinstance(value, int) else digits}f}".replace("-", "−")


def format_duration(seconds: float) -> str:
    """Seconds as "42.0 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
