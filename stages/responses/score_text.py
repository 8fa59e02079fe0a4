"""The stored text of an answer that was scored, not generated: the log probability of each of its tokens, as JSON."""

import math
from collections.abc import Sequence

from stages.job.bounded import UnusableFile, parse_json, show_value

DIGITS = 4  # decimals: 1,000 tokens are off by 0.05 nats at most; differences between batches on CPU are below 1e-5


def format_log_probs(log_probs: Sequence[float]) -> str:
    """Returns `log_probs` as a JSON list of numbers with DIGITS decimals."""
    return f"[{', '.join(f'{value:.{DIGITS}f}' for value in log_probs)}]"


def parse_log_probs(text: str) -> list[float]:
    """Returns the numbers of `format_log_probs`. Raises UnusableFile for another text."""
    values = parse_json(text)
    if not isinstance(values, list) or not all(isinstance(one, float) and math.isfinite(one) for one in values):
        raise UnusableFile(f"log probabilities are a list of numbers, not {show_value(text)}")
    return values
