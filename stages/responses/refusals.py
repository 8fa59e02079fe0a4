"""Unavailable answers: the engine refused the request itself, or failed while answering it.

A refusal (a prompt longer than the context, an unreadable image) is stored next to the segments. A refused request
alone does not start an engine again; it is retried when an engine runs for other requests. A failed request is retried
by the next run.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from stages.job.bounded import Fault, UnusableFile, parse_json, read_bounded, replace_surrogates, show_value
from stages.job.files import write_text
from stages.job.rejects import Reason
from stages.responses.key import is_sha256

REFUSAL_FOLDER = "refused"
MAX_FILE_BYTES = 2**24  # a file holds the refusals among 1,024 answers, one or more a request
MAX_REASON = 2000  # characters

_REMEDY = "the other lines count; correct or remove this one"


def write_refusals(folder: Path, reasons: Mapping[str, Reason]) -> None:
    """Stores the refusals among `reasons`, by request key, next to the segments in `folder`."""
    rows = (
        {"request_key": key, "reason": reason.text[:MAX_REASON]}
        for key, reason in reasons.items()
        if reason.kind == "refused"
    )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if lines:
        write_text(folder / REFUSAL_FOLDER / f"{secrets.token_hex(8)}.jsonl", "".join(lines))


def read_refusals(folder: Path) -> tuple[dict[str, Reason], list[Fault]]:
    """Returns refusals by request key, and the files that are wrong, each with its first wrong line."""
    reasons: dict[str, Reason] = {}
    faults: list[Fault] = []
    for file in list_refusal_files(folder):
        try:
            lines = read_bounded(file, MAX_FILE_BYTES).split("\n")  # not splitlines(): a reason may hold other breaks
        except (UnusableFile, FileNotFoundError) as error:
            faults.append(Fault(file, f"{error}; move it away: its requests are then asked again"))
            continue
        wrong: list[str] = []
        for number, line in enumerate(lines, start=1):
            if line:
                try:
                    key, reason = parse_refusal(line)
                except UnusableFile as error:
                    wrong.append(f"line {number}: {error}")
                else:
                    reasons[key] = reason
        if wrong:
            more = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
            faults.append(Fault(file, f"{wrong[0]}{more}; {_REMEDY}"))
    return reasons, faults


def list_refusal_files(folder: Path) -> list[Path]:
    """Returns the paths of the refusals of a set, sorted by name; none if `refused` is not a folder, but a link to one.

    Raises OSError if the folder can't be listed.
    """
    inside = folder / REFUSAL_FOLDER
    if inside.is_symlink() or not inside.is_dir():
        return []
    return sorted(file for file in inside.iterdir() if file.suffix == ".jsonl" and not file.name.startswith("."))


def parse_refusal(line: str) -> tuple[str, Reason]:
    """Returns request key and reason of one line. Raises UnusableFile for anything else."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise UnusableFile(f"expected an object with request_key and reason, found {show_value(row)}")
    key, reason = row.get("request_key"), row.get("reason")
    if not isinstance(key, str) or not is_sha256(key):
        raise UnusableFile(f"request_key is {show_value(key)}, which is not a sha256")
    if not isinstance(reason, str):
        raise UnusableFile(f"reason is {show_value(reason)}, which is not a text")
    return key, Reason("refused", replace_surrogates(reason[:MAX_REASON]))
