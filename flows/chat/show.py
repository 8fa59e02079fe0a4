"""Replies side by side in columns, and as JSON values."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from flows.chat.candidates import LeftOut
from flows.chat.panel import PanelReply
from flows.chat.question import AskedQuestion
from stages.config.sampling import Sampling

NARROWEST = 18  # characters of a column; narrower ones stand below each other
VERDICTS = {1: "right", 0: "wrong", None: "no verdict"}


def escape_lines(text: str) -> str:
    """Returns text for a terminal: characters that are not printable, or turn others around, escaped; lines stay."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def describe_reply(reply: PanelReply, judged: bool) -> list[str]:
    """Returns what is said of a reply, one line each: length, discriminator, judge."""
    if reply.fault:
        return [f"failed: {escape_lines(reply.fault)}"]
    cut = ", cut off" if reply.finish_reason == "length" else ""
    lines = [f"{reply.tokens} tokens{cut}"]
    if reply.teacher_probability is not None:
        lines.append(f"D: {reply.teacher_probability:.0%} a teacher's")
    return lines + ([f"judge: {VERDICTS[reply.verdict]}"] if judged else [])


def format_replies(replies: Sequence[PanelReply], judged: bool, width: int) -> str:
    """Returns the replies as a table of at most `width` characters: a column a model, or a row if these are narrow."""
    if not replies:
        return "no model was asked"
    cells = [RichText(escape_lines(one.text) or "(empty)") for one in replies]
    said = [RichText("\n".join(describe_reply(one, judged))) for one in replies]
    titles = [RichText(one.title) for one in replies]
    if width >= (NARROWEST + 3) * len(replies) + 1:
        table = Table(show_lines=True, expand=True)
        for title in titles:
            table.add_column(title, ratio=1, overflow="fold")
        table.add_row(*cells)
        table.add_row(*said)
    else:
        table = Table(show_lines=True, expand=True, show_header=False)
        table.add_column(ratio=1, overflow="fold")
        for title, cell, line in zip(titles, cells, said, strict=True):
            table.add_row(RichText("\n").join([title, cell, line]))
    return _render(table, width)


def _render(table: Table, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False).print(table)
    return stream.getvalue().rstrip("\n")


def list_reply_values(
    question: AskedQuestion, sampling: Sampling, replies: Sequence[PanelReply], left_out: Sequence[LeftOut]
) -> dict[str, Any]:
    """Returns everything as JSON values."""
    return {
        "question": question.text,
        "messages": list(question.messages),
        "images": len(question.images),
        "reference": question.reference or None,
        "sampling": sampling.model_dump(mode="json"),
        "answers": [asdict(one) for one in replies],
        "left_out": {one.name: one.reason for one in left_out},
    }
