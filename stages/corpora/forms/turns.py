"""Conversations: LLaVA, ShareGPT, OpenAI, TRL and their mixtures, as turns with markers and images."""

import json
from collections.abc import Mapping
from typing import Any

from stages.corpora.containers.image_files import shorten_value
from stages.corpora.forms.answers import collect_answers
from stages.corpora.forms.draft import Draft, Fields, name_columns, take_first
from stages.corpora.forms.pictures import list_pictures
from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.source import RowFault

_ROLES = {
    **dict.fromkeys(("human", "user", "q", "question", "prompter", "instruction"), "user"),
    **dict.fromkeys(("gpt", "assistant", "bot", "model", "chatgpt", "bing", "bard", "a", "answer", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ROLE_KEYS, _TEXT_KEYS = ("from", "role", "author", "speaker"), ("value", "content", "text")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image", "image_path")
MOST_TURNS = 1000


def list_turns(value: Any) -> Any:
    """Returns turns as a list: also from JSON text, and from an object of columns as `datasets` keeps sequences."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value  # what it is, is said where turns are expected
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        return [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    return value


def is_conversation(value: Any) -> bool:
    """Returns whether `value` is a list of turns with a role."""
    turns = list_turns(value)
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(isinstance(turn, Mapping) and any(key in turn for key in _ROLE_KEYS) for turn in turns)
    )


def convert_turns(values: Mapping[str, Any], fields: Fields) -> Draft:
    """Returns a row whose column holds the whole conversation; the last turn of the assistant is the answer."""
    column = name_columns(fields, "messages")
    return read_turns(take_first(values, fields, "messages"), column)


def read_turns(value: Any, column: str) -> Draft:
    """Returns the turns, their images and the answers in the last turn of the assistant. Raises RowFault."""
    turns = list_turns(value)
    if not isinstance(turns, list):
        raise RowFault("expected a list of turns", column, shorten_value(value))
    if len(turns) > MOST_TURNS:
        raise RowFault(f"{len(turns):,} turns, more than {MOST_TURNS:,}", column)
    draft = Draft([])
    for place, turn in enumerate(turns):
        _add_turn(draft, turn, f"{column}.{place}", place == len(turns) - 1)
    return draft


def _add_turn(draft: Draft, turn: Any, field: str, last: bool) -> None:
    if not isinstance(turn, Mapping):
        raise RowFault("a turn is an object with role and content", field, shorten_value(turn))
    key, said = next(((key, turn[key]) for key in _ROLE_KEYS if turn.get(key) is not None), ("role", None))
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise RowFault(
            f"the role {shorten_value(said)} is not that of a user, an assistant or a system",
            f"{field}.{key}",
            shorten_value(said),
        )
    key, content = next(((key, turn[key]) for key in _TEXT_KEYS if turn.get(key) is not None), ("content", None))
    where = f"{field}.{key}"
    if turn.get("tool_calls"):
        raise RowFault("calls of tools are not supported", f"{field}.tool_calls", shorten_value(turn["tool_calls"]))
    if role == "assistant" and last and not _is_parts(content):
        draft.answers = collect_answers(content, where)
        draft.turns.append({"role": role, "content": draft.answers[0] if draft.answers else ""})
        return
    text, images = read_content(content, where)
    if images and role != "user":
        raise RowFault("an image in a turn that is not the user's", where, shorten_value(content))
    draft.images += images
    draft.turns.append({"role": role, "content": text})
    if role == "assistant" and last:
        draft.answers = [text] if text.strip() else []


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(part, Mapping) for part in content)


def read_content(content: Any, field: str) -> tuple[str, list[str | bytes]]:
    """Returns the text of a turn, with a marker where a part is an image, and the images. Raises RowFault.

    A part {"type": "image"} without an image takes the next one of the row's column of images.
    """
    if content is None:
        return "", []
    if isinstance(content, str):
        return content, []
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise RowFault("the content of a turn is text or a list of parts", field, shorten_value(content))
    text, images = "", []
    for place, part in enumerate(content):
        if isinstance(part, str):
            text += part
            continue
        if not isinstance(part, Mapping):
            raise RowFault("a part is an object with a type", f"{field}.{place}", shorten_value(part))
        kind = part.get("type") or next((name for name in (*_IMAGE_PARTS, "text") if part.get(name) is not None), "")
        if kind in _TEXT_PARTS:
            said = part.get("text")
            if said is not None and not isinstance(said, str):
                raise RowFault("the text of a part is text", f"{field}.{place}.text", shorten_value(said))
            text += said or ""
        elif kind in _IMAGE_PARTS:
            shown = {key: value for key, value in part.items() if key not in ("type", "text")}
            found = list_pictures(shown, f"{field}.{place}") if any(v is not None for v in shown.values()) else []
            images += found
            text += IMAGE_MARKER * max(1, len(found))
        else:
            raise RowFault(
                f"a part of type {shorten_value(kind)} is not supported; text and images are",
                f"{field}.{place}",
                shorten_value(part),
            )
    return text, images
