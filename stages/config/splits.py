"""The splits of the questions, and how many questions each has."""

from typing import Annotated, Any, Literal

from pydantic import PlainValidator, WithJsonSchema

Split = Literal["warm_start", "imitation", "validation", "test"]
MOST_QUESTIONS = 1_000_000_000


def check_count(value: Any) -> Any:
    """Returns `value`; raises ValueError if it is no number of questions and not `all`."""
    if value == "all" or (type(value) is int and 0 <= value <= MOST_QUESTIONS):
        return value
    raise ValueError(f"should be a number from 0 to {MOST_QUESTIONS:,}, or all")


Count = Annotated[
    int | Literal["all"],
    PlainValidator(check_count),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST_QUESTIONS}, {"const": "all"}]}),
]
