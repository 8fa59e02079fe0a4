"""Data sets as they are: finds what the rows of `questions.sources` mean, and reads them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from stages.config.plain import abbreviate, make_printable
from stages.config.questions import Questions
from stages.config.regular import explain_os_error
from stages.config.sources import Source
from stages.corpora.containers.find import DataFile, find_data_files
from stages.corpora.containers.hub import find_hub_snapshot
from stages.corpora.containers.image_files import ImagePlaces, is_archive, shorten_value
from stages.corpora.containers.record import Record
from stages.corpora.forms.answers import make_text
from stages.corpora.forms.draft import Draft, Fields, name_columns, take_first, take_value
from stages.corpora.forms.pairs import add_answers
from stages.corpora.forms.pictures import list_pictures, read_pictures
from stages.corpora.forms.recognition import MOVING, KnownForm, recognise_form
from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.rows import make_canonical_row
from stages.corpora.source import Canonical, RowFault, SourceRow, UnusableData

SAMPLE_ROWS = 100  # rows of a file that its form is recognised from
SAMPLE_BYTES = 2**24  # of these rows, about; with photos fewer are looked at
_NUMBERED = re.compile(r"<image[ _](\d{1,3})>")  # MMMU
_MOVING_MARKERS = ("<video>", "<audio>", "<|video_pad|>", "<|audio_pad|>")


@dataclass(frozen=True)
class Guess:
    """What was found out about a source: a field of a question, and where its value comes from."""

    field: str
    source: str
    example: str = ""


class OpenSource:
    """One source whose form is known."""

    def __init__(self, name: str, files: Sequence[DataFile], places: ImagePlaces, source: Source) -> None:
        """Reads the first rows of the first file with usable ones. Raises UnusableData as `open_source`."""
        self._name, self._files, self._source, self._places = name, files, source, places
        self._forms: list[KnownForm] = []
        self._find_form(files[0], _take_sample(files[0].iter_records()))
        self.guesses = self._list_guesses()
        counts = [file.count_rows() for file in files]
        self.count = None if None in counts or source.filter else sum(filter(None, counts))

    def rows(self) -> Iterator[SourceRow]:
        """Yields the rows in the order of the files. Raises UnusableData for a file that cannot be read."""
        for file in self._files:
            records = file.iter_records()
            sample = list(_take_sample(records))
            form = self._find_form(file, sample)
            for record in chain(sample, records):
                if record.fault is None and not _matches(record.values, self._source.filter):
                    continue
                name = _name_row(record, form.fields)
                convert = partial(_convert_record, record, form, name, self._places, self._name)
                yield SourceRow(name, convert, record.file, record.row, 0, file.split)

    def _find_form(self, file: DataFile, sample: Sequence[Record]) -> KnownForm:
        """Returns the form of a file: that of an earlier one with the same columns, else a new guess."""
        rows = [record.values for record in sample if record.fault is None]
        for form in self._forms:
            needed = [form.fields[field][0] for field in ("messages", "question") if field in form.fields]
            if not rows or all(any(take_value(row, column) is not None for row in rows) for column in needed):
                return form
        if not rows:
            fault = next((record.fault for record in sample if record.fault is not None), None)
            raise UnusableData(f"{file.shown}: none of the first rows can be read: {fault or 'there are none'}")
        form = recognise_form(rows, self._source.columns, self._source.form, file.shown)  # type: ignore[arg-type]
        self._forms.append(form)
        self._sample = rows
        return form

    def _list_guesses(self) -> list[Guess]:
        form, rows = self._forms[0], self._sample
        files = f"{len(self._files)} files" if len(self._files) > 1 else "1 file"
        found = [Guess("files", f"{files}, {self._files[0].kind}", self._files[0].shown)]
        splits = list(dict.fromkeys(file.split for file in self._files if file.split))
        if splits:
            found.append(Guess("split", ", ".join(splits)))
        found.append(Guess("form", form.name))
        for field, columns in form.fields.items():
            value = next((value for row in rows if (value := take_first(row, form.fields, field)) is not None), None)
            shown = ", ".join(columns[:6]) + (" ..." if len(columns) > 6 else "")
            where = f"column{'s' if len(columns) > 1 else ''} {make_printable(shown)}"
            if field == "answer" and form.name == "choices":
                where += " (letter or text of the option)" if form.base is None else f" (options from {form.base})"
            found.append(Guess(field, where, _show_example(value)))
        if "images" not in form.fields and form.name not in ("messages", "conversations"):
            found.append(Guess("images", "none; text only"))
        used = {column.partition(".")[0] for columns in form.fields.values() for column in columns}
        ignored = [column for column in dict.fromkeys(column for row in rows for column in row) if column not in used]
        if ignored:
            found.append(Guess("not used", make_printable(", ".join(map(str, ignored))[:200])))
        return found


def open_source(source: Source, questions: Questions, root: Path) -> OpenSource:
    """Returns the source with its form, found out from its first rows.

    Raises UnusableData if it is not there, is outside what DVC watches, or is of no form that is known.
    """
    watched = [root / questions.path, root / questions.images]
    if source.hub is not None:
        path = find_hub_snapshot(source)
        watched.append(path)
        shown = source.hub
    else:
        shown = str(source.path)
        path = root / shown
        _check_watched(path, shown, watched)
    try:
        files = find_data_files(path, shown, source)
    except OSError as error:
        raise UnusableData(f"{shown}: {make_printable(explain_os_error(error))}; correct the path") from error
    return OpenSource(shown.rstrip("/").rsplit("/", 1)[-1], files, _find_places(source, path, watched, root), source)


def _check_watched(path: Path, shown: str, watched: Sequence[Path]) -> None:
    """Raises UnusableData for a path that is not there, or outside of what DVC watches, links to folders followed."""
    if not os.path.lexists(path):
        raise UnusableData(f"questions.sources: path {abbreviate(shown)}: no such file or folder; correct it")
    real = Path(os.path.realpath(path)) if path.is_dir() else Path(os.path.realpath(path.parent))
    if any(path == one or real.is_relative_to(os.path.realpath(one)) for one in watched):
        return
    raise UnusableData(
        f"questions.sources: path {abbreviate(shown)} is outside questions.path and questions.images, so DVC does not "
        "watch it; name in one of these the folder that holds it"
    )


def _find_places(source: Source, path: Path, watched: Sequence[Path], root: Path) -> ImagePlaces:
    folder = path if path.is_dir() else path.parent
    bases = [folder, *(one for one in watched[1::-1] if one.is_dir() or is_archive(one))]
    if source.images is not None:
        given = (path if source.hub is not None else root) / source.images
        if not given.is_dir() and not is_archive(given):
            raise UnusableData(
                f"questions.sources: images {abbreviate(source.images)}: no such folder, tar or zip; correct it"
            )
        bases = [given]
    return ImagePlaces(bases, watched)


def _take_sample(records: Iterator[Record]) -> list[Record]:
    found, taken = [], 0
    for record in islice(records, SAMPLE_ROWS):
        found.append(record)
        taken += sum(_measure(value) for value in record.values.values())
        if taken > SAMPLE_BYTES:
            break
    return found


def _measure(value: Any, depth: int = 0) -> int:
    """Returns about how many bytes a value takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if depth < 4 and isinstance(value, list | dict):
        return sum(_measure(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value))
    return 8


def _show_example(value: Any) -> str:
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return f"({len(value['bytes']):,} bytes)"
    return shorten_value(value)[:120]


def _matches(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(
        take_value(values, column) in (given if isinstance(given, list) else [given])
        for column, given in wanted.items()
    )


def _name_row(record: Record, fields: Fields) -> str:
    given = take_first(record.values, fields, "id")
    if isinstance(given, str) and given.strip():
        return given
    if isinstance(given, int | float) and not isinstance(given, bool) and given == given:
        return str(int(given)) if isinstance(given, float) and given.is_integer() else str(given)[:100]
    return f"{record.file.rsplit('/', 1)[-1]}:{record.row}" if "::" not in record.file else record.file[-900:]


def _convert_record(record: Record, form: KnownForm, name: str, places: ImagePlaces, source: str) -> Canonical:
    """Returns the canonical row of a record; raises RowFault with the field that is at fault."""
    if record.fault is not None:
        raise record.fault
    values, fields = record.values, form.fields
    _refuse_moving(values)
    draft = form.convert(values, fields)
    add_answers(draft, values, fields)
    _add_system(draft, values, fields)
    column = name_columns(fields, "images")
    if not draft.images or len(draft.images) < sum(turn["content"].count(IMAGE_MARKER) for turn in draft.turns):
        draft.images += _list_images(values, fields, column)  # else the parts of the turns have named all
    _place_markers(draft)
    answer = _add_target(draft, fields)
    images = read_pictures(draft.images, places, column)
    kind = _read_name(values, fields, "kind") or draft.kind
    made = make_canonical_row(name, images, draft.turns, answer, _read_name(values, fields, "source") or source, kind)
    return made | {"answers": draft.answers if len(draft.answers) > 1 else None}


def _refuse_moving(values: Mapping[str, Any]) -> None:
    for column, value in values.items():
        if str(column).lower() in MOVING and value not in (None, "", [], {}, b""):
            what = "audio" if "aud" in str(column).lower() or str(column).lower() in ("wav", "mp3") else "video"
            raise RowFault(
                f"{what} is not supported; remove the row, or make images of it", column, shorten_value(value)
            )


def _list_images(values: Mapping[str, Any], fields: Fields, column: str) -> list[str | bytes]:
    """Returns the images of the columns: of all that are numbered, else of the first that has any."""
    columns = fields.get("images", ())
    if len(columns) > 1 and all(one[-1:].isdigit() for one in columns):
        return [image for one in columns for image in list_pictures(take_value(values, one), one)]
    for one in columns:
        if images := list_pictures(take_value(values, one), one):
            return images
    return []


def _add_system(draft: Draft, values: Mapping[str, Any], fields: Fields) -> None:
    said = take_first(values, fields, "system")
    if isinstance(said, str) and said.strip() and (not draft.turns or draft.turns[0]["role"] != "system"):
        draft.turns.insert(0, {"role": "system", "content": said})


def _place_markers(draft: Draft) -> None:
    """Puts markers before the first question where the texts have none, and makes `<image 2>` to plain markers."""
    users = [turn for turn in draft.turns if turn["role"] == "user"]
    for turn in draft.turns:
        if found := next((marker for marker in _MOVING_MARKERS if marker in turn["content"]), None):
            raise RowFault(f"{found.strip('<|>').split('_')[0]} is not supported; remove the row", turn["role"], found)
    if not users or not draft.images or any(IMAGE_MARKER in turn["content"] for turn in draft.turns):
        return
    order = [int(number) - 1 for turn in users for number in _NUMBERED.findall(turn["content"])]
    if order and sorted(order) == list(range(len(draft.images))):
        draft.images = [draft.images[place] for place in order]
        for turn in users:
            turn["content"] = _NUMBERED.sub(IMAGE_MARKER, turn["content"])
        return
    users[0]["content"] = f"{IMAGE_MARKER}\n" * len(draft.images) + users[0]["content"]


def _add_target(draft: Draft, fields: Fields) -> str:
    """Returns the reference answer, and ends the conversation with the assistant; raises RowFault if there is none."""
    if not draft.answers:
        where = "answer" if fields.get("answer") else "answers" if fields.get("answers") else "messages"
        raise RowFault("no reference answer; the judge needs one", name_columns(fields, where))
    if not draft.turns or draft.turns[-1]["role"] != "assistant":
        draft.turns.append({"role": "assistant", "content": draft.answers[0]})
    return draft.answers[0]


def _read_name(values: Mapping[str, Any], fields: Fields, field: str) -> str | None:
    text = take_first(values, fields, field)
    return make_text(text, field) if isinstance(text, str | int) and not isinstance(text, bool) else None


def read(questions: Questions, root: Path) -> Iterator[SourceRow]:
    """Yields the rows of all sources in their order; raises UnusableData as `open_source` and `OpenSource.rows`."""
    for place, source in enumerate(questions.sources):
        for row in open_source(source, questions, root).rows():
            yield row._replace(source=place)


def list_guesses(questions: Questions, root: Path) -> dict[str, list[Guess]]:
    """Returns what was found out about each source, by its place and name, from its first rows.

    Raises UnusableData as `open_source`.
    """
    return {
        f"{place}: {source.path or source.hub}": open_source(source, questions, root).guesses
        for place, source in enumerate(questions.sources)
    }
