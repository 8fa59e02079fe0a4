"""A page of texts, tables and plots, as Markdown (without plots) and as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.page.plots import Plot
from stages.page.visible import make_visible

_WIDTH = 120  # characters in a line of Markdown outside tables


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first cell of a row is its name."""

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
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    about: str
    findings: Sequence[str]
    sections: Sequence[Section]


def render_markdown(shown: Page) -> str:
    """The page as Markdown, without plots; texts are wrapped."""
    lines = [f"# {shown.title}", "", _wrap_line(shown.about), "", *map(_format_item, shown.findings)]
    for section in shown.sections:
        lines += ["", f"## {section.title}", *(["", _wrap_line(section.text)] if section.text else [])]
        lines += ["", *map(_format_item, section.lines)] if section.lines else []
        for table in section.tables:
            lines += [
                *(["", f"### {table.title}"] if table.title else []),
                *(["", _wrap_line(table.text)] if table.text else []),
                "",
            ]
            lines += [f"| {' | '.join(table.heads)} |", f"|---{'|---:' * (len(table.heads) - 1)}|"]
            lines += [f"| {' | '.join(map(_escape_cell, row))} |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _wrap_line(text: str) -> str:
    return fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _format_item(text: str) -> str:
    return fill(f"- {text}", _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")  # answers of models may contain both


def render_html(shown: Page) -> str:
    """The page as one HTML file that loads nothing."""
    here = Path(__file__).resolve().parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "stages" / "page"]),
        autoescape=True,
        finalize=make_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html").render(page=shown)
