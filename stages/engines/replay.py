"""Replay from the store: no model runs, and missing answers are an error that names them."""

from collections.abc import Sequence

SHOWN_QUESTIONS = 5  # questions named in the error


class MissingAnswers(RuntimeError):
    """Answers that are not in the store while no engine may start."""


def explain_missing_answers(label: str, missing: Sequence[tuple[str, int]]) -> MissingAnswers:
    """Returns the error for `missing`, pairs of a question's id and its number of missing answers."""
    named = ", ".join(question for question, _ in missing[:SHOWN_QUESTIONS])
    more = f" and {len(missing) - SHOWN_QUESTIONS} more" if len(missing) > SHOWN_QUESTIONS else ""
    count = sum(answers for _, answers in missing)
    return MissingAnswers(
        f"model {label}: {count} answers to {len(missing)} questions are not in the store ({named}{more}), and "
        f"runtime.engines.{label}.kind is replay, which generates nothing. Add the answers to the store "
        "(RIL_STORE), or give "
        "the model an engine that answers"
    )
