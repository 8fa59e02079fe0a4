"""A choice between a few words at an endpoint, such as Yes or No, read from the log probabilities of the first token.

vLLM is held to such words by a pattern; most other servers ignore it. Of a server that reports log probabilities it is
known which word is likelier, whatever it writes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

MOST_REPORTED = 20  # alternatives of a token; OpenAI's API and vLLM give no more
_WORDS = re.compile(r"\w+(?:\|\w+)+")
_FIRST_WORD = re.compile(r"\W*(\w+)")


def list_words(pattern: str | None) -> tuple[str, ...]:
    """Returns the words of a pattern such as "Yes|No"; none of a pattern of another form."""
    return tuple(pattern.split("|")) if pattern is not None and _WORDS.fullmatch(pattern) else ()


def choose_word(words: Sequence[str], text: str, choice: Mapping[str, Any]) -> str:
    """Returns the word that one `choice` of a reply is for, or its `text` if that is not known.

    A text that begins with one of the words is returned as it is: a greedy answer begins with the likeliest token.
    Otherwise the word counts whose spellings (capitals and white space aside) have the most probability among the
    alternatives of the first token.
    """
    known = {word.casefold(): word for word in words}
    first = _FIRST_WORD.match(text)
    if first is not None and first[1].casefold() in known:
        return text
    shares = dict.fromkeys(known, 0.0)
    for token, log_prob in _list_alternatives(choice):
        spelled = re.sub(r"\W", "", token).casefold()
        if spelled in shares:
            shares[spelled] += math.exp(min(log_prob, 0.0))
    likeliest = max(shares, key=lambda word: shares[word])
    return known[likeliest] if shares[likeliest] > 0 else text


def _list_alternatives(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns token and log probability of each reported alternative of the first token; none where the form differs:
    the text is what was paid for.
    """
    try:
        found = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(one["token"]), float(one["logprob"])) for one in found]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return []
    return [pair for pair in pairs if not math.isnan(pair[1])]
