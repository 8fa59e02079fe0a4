"""A question and its answer in columns of their own: VQA, prompts, multiple choice, several pairs a row."""

from collections.abc import Mapping
from typing import Any

from stages.corpora.containers.image_files import shorten_value
from stages.corpora.forms.answers import collect_answers, read_listed
from stages.corpora.forms.choices import ask, find_letter, list_options
from stages.corpora.forms.draft import Draft, Fields, name_columns, take_first, take_value
from stages.corpora.forms.turns import is_conversation, list_turns, read_turns
from stages.corpora.source import RowFault


def convert_pair(values: Mapping[str, Any], fields: Fields) -> Draft:
    """Returns a row of question and answer; either may be a list of turns. Raises RowFault."""
    column = name_columns(fields, "question")
    asked = take_first(values, fields, "question")
    if is_conversation(asked):
        draft = read_turns(asked, column)
    else:
        draft = Draft([{"role": "user", "content": _read_question(asked, column)}])
    reply = take_first(values, fields, "answer")
    if is_conversation(reply):
        replied = read_turns(reply, name_columns(fields, "answer"))
        draft.turns += replied.turns
        draft.answers = replied.answers
    return draft


def _read_question(asked: Any, column: str) -> str:
    if isinstance(asked, str) and asked.strip():
        return asked
    if isinstance(asked, Mapping):  # {"en": ...} has no order that could be relied on; {"text": ...} is clear
        asked = asked.get("text")
        if isinstance(asked, str) and asked.strip():
            return asked
    if asked is None or asked == "":
        raise RowFault("no question", column)
    raise RowFault("a question is text", column, shorten_value(asked))


def convert_choice(values: Mapping[str, Any], fields: Fields, base: int | None = None) -> Draft:
    """Returns a multiple-choice row; the answer is a letter. A row without options is an open question."""
    draft = convert_pair(values, fields)
    field = name_columns(fields, "options")
    options = list_options([take_value(values, column) for column in fields["options"]], field)
    if not options:
        return draft
    column = name_columns(fields, "answer")
    letter = find_letter(take_first(values, fields, "answer"), options, base, column)
    draft.turns[-1]["content"] = ask(draft.turns[-1]["content"], options)
    draft.answers = [letter] if letter else []
    draft.kind = "choice"
    return draft


def convert_texts(values: Mapping[str, Any], fields: Fields) -> Draft:
    """Returns a row of several pairs about the same images (The Cauldron, FineVision) as one conversation."""
    column = name_columns(fields, "messages")
    pairs = list_turns(take_first(values, fields, "messages"))
    if not isinstance(pairs, list) or not pairs:
        raise RowFault("expected a list of pairs", column, shorten_value(pairs))
    draft = Draft([])
    for place, pair in enumerate(pairs):
        if not isinstance(pair, Mapping) or not isinstance(pair.get("user"), str):
            raise RowFault("a pair has `user` and `assistant`", f"{column}.{place}", shorten_value(pair))
        draft.answers = collect_answers(pair.get("assistant"), f"{column}.{place}.assistant")
        draft.turns.append({"role": "user", "content": pair["user"]})
        draft.turns.append({"role": "assistant", "content": draft.answers[0] if draft.answers else ""})
    return draft


def add_answers(draft: Draft, values: Mapping[str, Any], fields: Fields) -> None:
    """Takes the answers of columns of their own, where there are any: they are the reference, whatever a turn says."""
    reply = take_first(values, fields, "answer")
    accepted = read_listed(take_first(values, fields, "answers"))
    found: list[str] = []
    if draft.kind != "choice" and reply is not None and not is_conversation(reply):
        found = collect_answers(reply, name_columns(fields, "answer"))
    if draft.kind != "choice" and accepted is not None:
        found += [one for one in collect_answers(accepted, name_columns(fields, "answers")) if one not in found]
    if found:
        draft.answers = found
