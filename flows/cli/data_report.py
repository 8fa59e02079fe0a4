"""What `ril data check` prints: statistics of rows as lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flows.cli.score import format_table, show_text
from stages.corpora.row_statistics import QUANTILES

SHOWN_REASONS = 8
SHOWN_CHARACTERS = 60  # of a value or an example
REPEATED = {
    "ids": "rows have the id of an earlier row; stage `questions` numbers them",
    "questions": "rows have question and images of an earlier row",
    "images": "images are in an earlier row too; rows that share an image go to one split",
}


def find_failure(found: Mapping[str, Any], max_reject_share: float) -> str | None:
    """Returns why the data cannot be used as they are; None if they can."""
    if found["fault"]:
        return str(found["fault"])
    read, rejected = found["read"], found["rejects"]["rows"]
    if not read:
        return f"{found['data']} has no rows"
    if not found["usable"]:
        return f"none of {read:,} rows of {found['data']} is usable; {found['rejects']['reasons'][0]['reason']}"
    if rejected > max_reject_share * read:
        limit = f"questions.max_reject_share ({max_reject_share:g})"
        return (
            f"{rejected:,} of {read:,} rows are unusable, more than {limit} allows; correct or drop them, or raise it"
        )
    return None


def format_check(found: Mapping[str, Any]) -> str:
    """Returns the report on `found` (flows/cli/data.py::summarise_data), with a blank line between its parts."""
    parts = (
        _iter_counts(found),
        _iter_guesses(found["guesses"]),
        _iter_lengths(found["lengths"]),
        _iter_images(found["images"]),
        _iter_texts(found),
        _iter_repeats(found["duplicates"]),
        _iter_overlap(found["overlap"]),
        _iter_rejects(found["rejects"]),
    )
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part)))


def _iter_counts(found: Mapping[str, Any]) -> Iterator[str]:
    read = f"{found['read']:,}"
    if found["drawn_from"]:
        first = f" from the first {found['drawn_from']:,}" if found["drawn_from"] < found["rows"] else ""
        read = f"{read} of {found['rows']:,} rows read, drawn by seed{first} (--all reads all)"
    elif found["first"]:
        read = f"the first {read} rows read; the files do not say how many there are (--all reads all)"
    else:
        read = f"{read} rows read, all"
    rejected = found["rejects"]["rows"]
    share = f" ({_percent(rejected / found['read'])})" if rejected else ""
    yield show_text(f"{found['data']}: {read}")
    yield f"{found['usable']:,} usable, {rejected:,} unusable{share}"


def _iter_guesses(guesses: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if guesses:
        yield "Read as"
        rows = [{key: _cut(str(guess[key])) for key in ("field", "source", "example")} for guess in guesses]
        yield from (f"  {line}" for line in format_table(rows).splitlines())


def _iter_lengths(lengths: Mapping[str, Any]) -> Iterator[str]:
    if lengths["prompt"] is None:
        return
    if lengths["unit"] == "tokens":
        yield f"Length in tokens of {lengths['model']}, whose context has {lengths['context']:,}"
    else:
        yield f"Length in characters, not in tokens: {lengths['why_no_tokens']}"
    yield from _format_quantiles({"prompt": lengths["prompt"], "answer": lengths["answer"]})
    if lengths["unit"] == "tokens":
        over = lengths["over_context"]
        yield f"  {over:,} rows are longer than the context, with their answer" if over else "  all rows fit"


def _iter_images(images: Mapping[str, Any]) -> Iterator[str]:
    by_row = ", ".join(f"{rows:,} rows with {count}" for count, rows in images["by_row"].items())
    if not images["images"]:
        if by_row:
            yield "Images: none"
        return
    yield f"Images: {images['images']:,} ({by_row})"
    sizes = {name: images[name] for name in ("width", "height", "megapixels")}
    sizes["kB"] = {name: value / 1000 for name, value in images["bytes"].items()}
    yield from _format_quantiles(sizes | ({"tokens": images["tokens"]} if images["tokens"] else {}))
    yield f"  formats: {', '.join(f'{name} {count:,}' for name, count in images['formats'].items())}"


def _iter_texts(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["usable"]:
        return
    yield f"Kinds: {_join_shares(found['kinds'])}"
    yield f"Script of most letters (the language is not looked at): {_join_shares(found['scripts'])}"
    if turns := [f"{count:,} {name}" for name, count in found["turns"].items() if count]:
        yield f"Rows {', '.join(turns)}"
    answers = found["answers"]
    if answers["commonest"]:
        shares = [f"{_cut(one['answer'])!r} {_percent(one['rows'] / found['usable'])}" for one in answers["commonest"]]
        yield show_text(f"Commonest answers: {', '.join(shares)}")


def _iter_repeats(duplicates: Mapping[str, Any]) -> Iterator[str]:
    lines = [
        f"  {one['repeated']:,} {REPEATED[name]} (such as {one['rows'][1]}, as {one['rows'][0]})"
        for name, one in duplicates.items()
        if one["repeated"]
    ]
    if lines:
        yield "Repeats"
        yield from map(show_text, lines)
    elif duplicates["ids"]["different"]:
        yield "Repeats: none; all ids, questions and images are different"


def _iter_overlap(overlap: Mapping[str, Any] | None) -> Iterator[str]:
    if overlap is None:
        return
    shared = [one for one in overlap["found"] if one["shared"]]
    checked = ", ".join(one["benchmark"] for one in overlap["found"])
    if not overlap["found"]:
        yield f"Benchmarks: not compared, none is in {overlap['folder']} (`ril benchmarks` lists their files)"
    elif not shared:
        yield f"Benchmarks: no image is, byte for byte, in {checked}"
    else:
        yield "Benchmarks with images of these data, byte for byte; scores on them would not count"
        for one in shared:
            yield show_text(
                f"  {one['benchmark']}: {one['shared']:,} of {one['samples']:,} rows, such as {one['examples'][0]}"
            )
    for name, message in overlap["broken"].items():
        yield show_text(f"  not compared: {name}: {message}")


def _iter_rejects(rejects: Mapping[str, Any]) -> Iterator[str]:
    if not rejects["rows"]:
        return
    yield "Unusable rows, by reason"
    for one in rejects["reasons"][:SHOWN_REASONS]:
        place = ", ".join(filter(None, (one["file"], f"row {one['row']}" if one["row"] >= 0 else "")))
        named = f"field {one['field']}" + (f" = {_cut(one['value'])}" if one["value"] else "") if one["field"] else ""
        where = ", ".join(filter(None, (place, f"id {_cut(one['id'])}" if one["id"] else "", named)))
        yield show_text(f"  {one['rows']:,}  {one['reason']}")
        yield show_text(f"      such as {where}")
    if len(rejects["reasons"]) > SHOWN_REASONS:
        yield f"  and {len(rejects['reasons']) - SHOWN_REASONS} further reasons (--json FILE has all)"


def _format_quantiles(rows: Mapping[str, Mapping[str, float] | None]) -> Iterator[str]:
    table = [
        {"": name, **{key: _format_number(quantiles[key]) for key in QUANTILES}}
        for name, quantiles in rows.items()
        if quantiles
    ]
    yield from (f"  {line}" for line in format_table(table).splitlines())


def _format_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _join_shares(shares: Mapping[str, float]) -> str:
    return show_text(", ".join(f"{_cut(name)} {_percent(share)}" for name, share in shares.items()))


def _percent(share: float) -> str:
    return "below 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
