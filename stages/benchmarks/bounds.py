"""Bounds on what one reply may take: a reply that cannot be scored by rule is `unparsed`, and the others are scored."""

from stages.benchmarks.sample import Outcome, Sample
from stages.benchmarks.scorers import OURS, Profile, Scorer
from stages.corpora.final_answers import LONGEST_REPLY, strip_reasoning

LONGEST_JUDGE_TEXT = 1000  # characters; a judge is asked for at most 64 tokens
NOT_SCORED = "not scored: "  # begins the rule of an outcome for which no scorer could be applied
TOO_LONG = f"{NOT_SCORED}longer than {LONGEST_REPLY:,} characters"


def score_bounded(scorer: Scorer, sample: Sample, reply: str, profile: Profile) -> Outcome:
    """Returns the outcome of a scorer; `unparsed` with the reason as rule for a reply that is too long or has no value.

    The profile `ours` does not count the reasoning. Rules take at most 50 ms and 10 MB for a reply of LONGEST_REPLY
    characters (tests/fuzz/test_replies.py).
    """
    text = strip_reasoning(reply) if profile == OURS else reply
    if len(text) > LONGEST_REPLY:
        return Outcome("unparsed", rule=TOO_LONG)
    try:
        return scorer(sample, text)
    except (ArithmeticError, RecursionError, ValueError) as error:  # of numbers and literals that the reply contains
        return Outcome("unparsed", rule=f"{NOT_SCORED}{type(error).__name__}: {error!s:.100}")
