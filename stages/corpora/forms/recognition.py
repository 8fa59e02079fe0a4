"""Recognises the form of rows from the names of their columns and from what the first rows hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stages.config.plain import abbreviate, make_printable
from stages.corpora.forms.choices import find_base, list_options
from stages.corpora.forms.draft import Draft, Fields, take_first, take_value
from stages.corpora.forms.pairs import convert_choice, convert_pair, convert_texts
from stages.corpora.forms.turns import convert_turns, is_conversation, list_turns
from stages.corpora.source import RowFault, UnusableData

# Names of columns by field, the likeliest first; compared without case.
NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "questionid", "qid", "uid", "uuid", "pid", "sample_id", "data_id", "index", "__key__"),
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns", "texts"),
    "question": ("question", "prompt", "query", "instruction", "problem", "question_text", "input", "text", "txt"),
    "answer": (
        *("answer", "multiple_choice_answer", "completion", "response", "output", "solution", "ground_truth"),
        *("correct_answer", "correct_option", "correct_choice_idx", "correct_idx", "answer_idx", "answerkey", "label"),
        *("reference", "reference_answer", "gold", "target", "answer_text", "reward_model.ground_truth", "cls"),
    ),
    "answers": ("answers", "accepted_answers", "direct_answers", "answer_list", "all_answers", "references"),
    "options": ("options", "choices", "candidates", "multiple_choices"),
    "images": (
        *(
            "images",
            "decoded_image",
            "image",
            "image_path",
            "image_paths",
            "img",
            "img_path",
            "image_file",
            "image_files",
            "picture",
        ),
        *("image_name", "imagename", "file_name", "filename", "image_url", "image_urls", "photo", "image_bytes"),
        *("image_base64", "png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif"),
        *("image_id", "imageid", "img_id"),
    ),
    "system": ("system", "system_prompt", "system_message"),
    "kind": ("kind",),
    "source": ("source", "data_source", "dataset"),
}
_OPTION_COLUMNS = ("{}", "option_{}", "option{}", "choice_{}", "choice{}", "opt_{}", "answer_{}")
_PROMPTS = ("prompt", "instruction", "query", "problem", "input", "text", "txt")
MOVING = ("video", "videos", "video_path", "audio", "audios", "audio_path", "mp4", "wav", "mp3")


@dataclass(frozen=True)
class KnownForm:
    """The form of a source's rows."""

    name: str
    fields: Fields
    base: int | None = None  # number of the first option, where answers are numbers

    @property
    def convert(self) -> Callable[[Mapping[str, Any], Fields], Draft]:
        """The function from a row to a draft."""
        if self.name == "choices":
            return partial(convert_choice, base=self.base)
        return {"vqa": convert_pair, "prompt": convert_pair, "texts": convert_texts}.get(self.name, convert_turns)


def recognise_form(
    rows: Sequence[Mapping[str, Any]], given: Mapping[str, str], name: str | None, place: str
) -> KnownForm:
    """Returns the form of `rows` (some from the start), `given` columns and a `name` taken as they are.

    Raises UnusableData, with the columns that there are, for a form that is not known.
    """
    held = _list_columns(rows)
    for field, column in given.items():
        if not any(take_value(row, column) is not None for row in rows):
            raise UnusableData(
                f"{place}: columns.{field} is {abbreviate(column)}, which the rows lack or have empty; they have "
                f"{_show_columns(rows)}"
            )
    fields: dict[str, tuple[str, ...]] = {field: (column,) for field, column in given.items()}
    taken = set(given.values())
    for field, names in NAMES.items():
        if field not in fields:
            found = tuple(held[one] for one in names if one in held and held[one] not in taken)
            if field == "answer" and not found:
                found = tuple(one for one in names if "." in one and any(take_value(row, one) for row in rows))
            if found:
                fields[field] = found
    _find_lettered(fields, held, rows)
    if "images" not in given:
        _find_numbered(fields, held, rows)
    found_name = name or _name_form(fields, rows, given)
    if found_name is None:
        raise UnusableData(
            f"{place}: no form of question is recognised in the columns {_show_columns(rows)}; name them in "
            "questions.sources, such as `columns: {question: ..., answer: ..., images: ...}`"
        )
    return _keep_used(found_name, fields, rows, place)


def _list_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the columns that hold something in some row, by name without case."""
    found: dict[str, str] = {}
    for row in rows:
        for column, value in row.items():
            if value is not None and isinstance(column, str):
                found.setdefault(column.strip().lower(), column)
    return found


def _show_columns(rows: Sequence[Mapping[str, Any]]) -> str:
    found = dict.fromkeys(str(column) for row in rows for column in row)
    shown = make_printable(", ".join(list(found)[:30]))
    return shown or "(none)"


def _find_lettered(fields: dict[str, tuple[str, ...]], held: Mapping[str, str], rows: Sequence[Any]) -> None:
    """Takes the columns A, B, C ... (option_a ..., option1 ...) as options, where no column has them all."""
    if "options" in fields:
        fields["options"] = fields["options"][:1]
        return
    for pattern in _OPTION_COLUMNS:
        for marks in ("abcdefghij", "123456789", "0123456789"):
            if pattern == "{}" and marks != "abcdefghij":
                continue
            names = [pattern.format(mark) for mark in marks]
            count = next((place for place, name in enumerate(names) if name not in held), len(names))
            if count >= 2:
                every = {column.strip().lower(): column for row in rows for column in row if isinstance(column, str)}
                fields["options"] = tuple(every[name] for name in names if name in every)
                return


def _find_numbered(fields: dict[str, tuple[str, ...]], held: Mapping[str, str], rows: Sequence[Any]) -> None:
    """Takes the columns image_1, image_2 ... together."""
    for stem in ("image_", "image", "img_", "images_"):
        every = {column.strip().lower(): column for row in rows for column in row if isinstance(column, str)}
        numbered = [every[f"{stem}{number}"] for number in range(100) if f"{stem}{number}" in every]
        if numbered and any(column.lower() in held for column in numbered):
            fields["images"] = tuple(numbered)
            return


def _name_form(fields: Fields, rows: Sequence[Mapping[str, Any]], given: Mapping[str, str]) -> str | None:
    for column in fields.get("messages", ()):
        values = [value for row in rows if (value := take_value(row, column)) is not None]
        said = [turns[0] for value in values if isinstance(turns := list_turns(value), list) and turns]
        if any(is_conversation(value) for value in values):
            return "conversations" if any(isinstance(turn, Mapping) and "from" in turn for turn in said) else "messages"
        if any(isinstance(turn, Mapping) and "user" in turn for turn in said):
            return "texts"
    if "question" not in fields:
        return None
    if "options" in fields and "answer" in fields:
        return "choices"
    if "answer" not in fields and "answers" not in fields:
        return None
    return "prompt" if fields["question"][0].lower() in _PROMPTS and "question" not in given else "vqa"


def _keep_used(name: str, fields: Fields, rows: Sequence[Mapping[str, Any]], place: str) -> KnownForm:
    turns = name in ("conversations", "messages", "texts")
    needed = ("messages",) if turns else ("question", "options") if name == "choices" else ("question",)
    for field in needed:
        if field not in fields:
            raise UnusableData(
                f"{place}: form {name} needs a column for {field}; the rows have {_show_columns(rows)}: name it in "
                "`columns`"
            )
    unused = ("question", "options") if turns else ("messages",) if name == "choices" else ("messages", "options")
    kept = {field: columns for field, columns in fields.items() if field not in unused}
    if turns:  # of a row with turns, only columns that say so are references: `response` may be anything
        kept["answer"] = tuple(
            one for one in fields.get("answer", ()) if one.lower() in ("answer", "solution") or "ground_truth" in one
        )
        kept["messages"] = _order_turns(fields["messages"], rows)
    base = _find_base(kept, rows) if name == "choices" else None
    return KnownForm(name, {field: columns for field, columns in kept.items() if columns}, base)


def _order_turns(columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(one for one in columns if any(take_value(row, one) is not None for row in rows)) or columns


def _find_base(fields: Fields, rows: Sequence[Mapping[str, Any]]) -> int | None:
    pairs = []
    for row in rows:
        given = take_first(row, fields, "answer")
        try:
            options = list_options([take_value(row, one) for one in fields["options"]], "options")
        except RowFault:
            continue  # the row is rejected with this fault when it is read
        if given is not None and options:
            pairs.append((given, options))
    return find_base(pairs)
