"""Scorers that a data set may name (`questions.scorer`): ANLS, relaxed accuracy, VQA accuracy, the same text."""

import re
from collections.abc import Sequence

from stages.benchmarks.rules import lmms, ours, vlmeval
from stages.corpora.quantities import find_number_words
from stages.corpora.scoring import normalise_text

ANLS_THRESHOLD = 0.5  # of the normalised distance, from which on a text counts as another one
VQA_AGREE = 3  # people who gave an answer, from which on it counts fully
VQA_PEOPLE = 10
LONGEST_VQA_REPLY = 1000  # characters; nobody's answer is longer
_SIGNS = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,'-]")
_ARTICLES = frozenset(("a", "an", "the"))


def compute_anls(reply: str, references: Sequence[str]) -> float:
    """Returns the average normalised Levenshtein similarity of one reply (DocVQA): the best over the references."""
    return max(_compute_similarity(_plain(reply), _plain(one)) for one in references)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _compute_similarity(one: str, other: str) -> float:
    longer, shorter = max(len(one), len(other)), min(len(one), len(other))
    if not longer:
        return 1.0
    if longer - shorter >= ANLS_THRESHOLD * longer:  # the distance is at least the difference of the lengths
        return 0.0
    distance = lmms.edit_distance(one, other) / longer
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def is_any_relaxed(reply: str, references: Sequence[str]) -> bool:
    """Returns ChartQA's relaxed accuracy: a number within 5 %, else the same text; final stop, `$`, commas are cut."""
    forms = (reply.strip(), ours.clean_chart_reply(reply))
    return any(
        vlmeval.matches_relaxed(wanted, form)
        for one in references
        for wanted in (one.strip(), ours.clean_chart_reply(one))
        for form in forms
    )


def is_any_text(reply: str, references: Sequence[str]) -> bool:
    """Returns whether a reply is one of the references, ignoring case, white space, articles and outer punctuation."""
    said = normalise_text(reply)
    return any(said == normalise_text(one) for one in references)


def compute_vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """Returns min(matches / 3, 1) over the answers of several people (VQAv2); of fewer than three, all must agree.

    The formula of the paper; the official script averages it over the ten sets of nine answers.
    """
    if len(reply) > LONGEST_VQA_REPLY:
        return 0.0
    said = normalise_vqa(reply)
    matches = sum(said == normalise_vqa(one) for one in answers)
    return min(matches / min(VQA_AGREE, len(answers)), 1.0)


def normalise_vqa(text: str) -> str:
    """Returns `text` in lower case without articles and punctuation, with numbers below 100 as digits."""
    words = _SIGNS.sub(" ", text.casefold()).split()
    return " ".join(_write_digits(word) for word in words if word not in _ARTICLES)


def _write_digits(word: str) -> str:
    numbers = find_number_words(word) if len(word) < 20 else []
    return str(numbers[0]) if len(numbers) == 1 else word
