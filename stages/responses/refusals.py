"""Unavailable answers: the engine refused the request itself, or failed while answering it.

A refusal (a prompt longer than the context, an unreadable image) is stored next to the segments. A refused request
alone does not start an engine again; it is retried when an engine runs for other requests. A failed request is retried
by the next run.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from stages.job.files import write_text
from stages.job.rejects import Reason

REFUSAL_FOLDER = "refused"


def write_refusals(folder: Path, reasons: Mapping[str, Reason]) -> None:
    """Stores the refusals among `reasons`, by request key, next to the segments in `folder`."""
    rows = ({"request_key": key, "reason": reason.text} for key, reason in reasons.items() if reason.kind == "refused")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if lines:
        write_text(folder / REFUSAL_FOLDER / f"{secrets.token_hex(8)}.jsonl", "".join(lines))


def read_refusals(folder: Path) -> dict[str, Reason]:
    """Returns refusals by request key."""
    rows = (
        json.loads(line)
        for file in sorted((folder / REFUSAL_FOLDER).glob("*.jsonl"))
        for line in file.read_text().splitlines()
    )
    return {row["request_key"]: Reason("refused", row["reason"]) for row in rows}
