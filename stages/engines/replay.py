"""The store alone: nothing is asked, nothing is paid; what is missing is named."""

from collections.abc import Sequence

SHOWN_QUESTIONS = 5  # questions named in the error


class MissingAnswers(RuntimeError):
    """Answers that the store lacks while no engine may be started."""


def explain_missing_answers(label: str, missing: Sequence[tuple[str, int]]) -> MissingAnswers:
    """The error for `missing`, pairs of a question's id and how many answers it lacks."""
    named = ", ".join(question for question, _ in missing[:SHOWN_QUESTIONS])
    more = f" and {len(missing) - SHOWN_QUESTIONS} more" if len(missing) > SHOWN_QUESTIONS else ""
    count = sum(answers for _, answers in missing)
    return MissingAnswers(
        f"model {label}: {count} answers to {len(missing)} questions are not in the store ({named}{more}), and "
        f"runtime.engines.{label}.kind is replay, which asks nobody. Bring the answers into the store "
        "(RIL_STORE), or give "
        "the model an engine that answers"
    )
