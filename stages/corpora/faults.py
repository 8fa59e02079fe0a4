"""What is wrong with a row, as one line with key, value and what is right."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stages.config.plain import abbreviate, find_character
from stages.corpora.source import RowFault

_EXPECTED = {
    "string_type": "expected text",
    "bytes_type": "expected bytes: canonical rows hold the files themselves",
    "list_type": "expected a list",
    "model_type": "expected an object",
}


def make_fault(error: ValidationError) -> RowFault:
    """Returns the first mistake in a row, with its key and its value shortened."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    value = "" if first["type"] == "missing" else abbreviate(first["input"])
    return RowFault(_explain(first, key), key, value)


def _explain(first: ErrorDetails, key: str) -> str:
    if first["type"] == "missing":
        return f"{key} is missing; add it"
    message = _EXPECTED.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = first["input"]
    if first["type"] == "string_unicode" and isinstance(value, str):
        message = (
            f"the text holds the character {find_character(value, allowed=chr(10))}, which can't be stored; remove it"
        )
    return f"{key} = {abbreviate(value)}: {message}" if key else f"{abbreviate(value)}: {message}"
