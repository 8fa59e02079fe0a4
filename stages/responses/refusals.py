"""Answers that can't be had: the engine refused the request for what it is, or failed on the way.

A refusal (a prompt longer than the context, an image that can't be read) is remembered beside the segments: it starts
no engine of its own again, and is asked again when one runs anyway. A failure is asked again by the next run.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from stages.job.files import write_text
from stages.job.rejects import Reason

REFUSAL_FOLDER = "refused"


def write_refusals(folder: Path, reasons: Mapping[str, Reason]) -> None:
    """Keeps the refusals among `reasons`, by request key, beside the segments in `folder`."""
    rows = ({"request_key": key, "reason": reason.text} for key, reason in reasons.items() if reason.kind == "refused")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if lines:
        write_text(folder / REFUSAL_FOLDER / f"{secrets.token_hex(8)}.jsonl", "".join(lines))


def read_refusals(folder: Path) -> dict[str, Reason]:
    """Refusals by request key."""
    rows = (
        json.loads(line)
        for file in sorted((folder / REFUSAL_FOLDER).glob("*.jsonl"))
        for line in file.read_text().splitlines()
    )
    return {row["request_key"]: Reason("refused", row["reason"]) for row in rows}
