"""Reference answers of any type as text."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from stages.corpora.containers.image_files import shorten_value
from stages.corpora.source import RowFault

_KEYS = ("answer", "text", "value", "content")  # of an answer that is an object, as in VQA v2 and SQuAD
MOST_ANSWERS = 1000


def make_text(value: object, field: str) -> str | None:
    """Returns a value as an answer would be written; None for null, not-a-number and empty text.

    true is "yes", 3.0 is "3". Raises RowFault for what is no answer.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, int | Decimal | date | datetime | time):
        return str(value)
    if isinstance(value, Mapping):
        found = [value[key] for key in _KEYS if value.get(key) is not None]
        if found and not isinstance(found[0], Mapping):
            return make_text(found[0], field)
    raise RowFault("an answer is text, a number, true or false, or a list of these", field, shorten_value(value))


def collect_answers(value: Any, field: str) -> list[str]:
    """Returns the different answers in `value`, the commonest first, earlier ones before later ones.

    Raises RowFault for what is no answer.
    """
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    given = value if isinstance(value, list | tuple) else [value]
    if len(given) > MOST_ANSWERS:
        raise RowFault(f"{len(given):,} answers, more than {MOST_ANSWERS:,}", field)
    texts = [text for text in (make_text(one, field) for one in given) if text is not None]
    return [text for text, _ in Counter(texts).most_common()]


def read_listed(value: Any) -> Any:
    """Returns the list that a text holds as JSON, as in a cell of CSV; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value  # a text that begins like a list
        return found if isinstance(found, list) else value
    return value
