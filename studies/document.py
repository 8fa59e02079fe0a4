"""A page of tables, lines and plots, written as Markdown and as HTML: the same tables in both, the plots in the
HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.page.plots import Plot


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
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Everything that stands on it."""

    title: str
    about: str
    findings: Sequence[str]
    sections: Sequence[Section]


def as_markdown(shown: Page) -> str:
    """The page as Markdown, without the curves."""
    lines = [f"# {shown.title}", "", shown.about, "", *(f"- {line}" for line in shown.findings)]
    for section in shown.sections:
        lines += ["", f"## {section.title}", *(["", section.text] if section.text else [])]
        lines += ["", *(f"- {line}" for line in section.lines)] if section.lines else []
        for table in section.tables:
            lines += [
                *(["", f"### {table.title}"] if table.title else []),
                *(["", table.text] if table.text else []),
                "",
            ]
            lines += [f"| {' | '.join(table.heads)} |", f"|---{'|---:' * (len(table.heads) - 1)}|"]
            lines += [f"| {' | '.join(map(_cell, row))} |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")  # a model may write either


def as_html(shown: Page) -> str:
    """The page as one HTML file that asks for nothing else."""
    here = Path(__file__).resolve().parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "stages" / "page"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html").render(page=shown)
