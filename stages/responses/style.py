"""Style of answers, for the pool: near-duplicates and style statistics.

Similarity is the Jaccard index of the sets of word 3-grams (Broder, "On the resemblance and containment of documents",
1997).
"""

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")
_ITEM = re.compile(r"^[^\S\n]*+(?:[-*•]|\d+[.)])\s", re.MULTILINE)
SHINGLE = 3
LONGEST_READ = 65_536  # characters; an answer has at most some thousand tokens


def split_words(text: str) -> list[str]:
    """Returns the case-folded words and numbers in the first LONGEST_READ characters of `text`."""
    return [word.casefold() for word in _WORD.findall(text[:LONGEST_READ])]


def make_shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Returns the set of runs of SHINGLE words of `text`; one run of all words if it has fewer."""
    found = split_words(text)
    return frozenset(tuple(found[at : at + SHINGLE]) for at in range(max(1, len(found) - SHINGLE + 1)))


def jaccard_similarity(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Returns the share of common 3-grams among all of both texts, 0 to 1."""
    return len(one & other) / len(one | other)


def find_distinct(texts: Sequence[str], alike: float) -> list[int]:
    """Returns the indices of texts with a similarity below `alike` to every text kept before; the first one stays."""
    kept: list[int] = []
    seen: list[frozenset[tuple[str, ...]]] = []
    for place, text in enumerate(texts):
        found = make_shingles(text)
        if all(jaccard_similarity(found, other) < alike for other in seen):
            kept.append(place)
            seen.append(found)
    return kept


def compute_style(texts: Sequence[str]) -> dict[str, float]:
    """Returns means over texts: words, lines, share of distinct words in a text, share of texts with a list."""
    if not texts:
        return {"mean_words": 0.0, "mean_lines": 0.0, "distinct_words": 0.0, "lists_share": 0.0}
    counted = [split_words(text) for text in texts]
    spoken = [found for found in counted if found]
    return {
        "mean_words": sum(map(len, counted)) / len(texts),
        "mean_lines": sum(len(text.splitlines()) for text in texts) / len(texts),
        "distinct_words": sum(len(set(found)) / len(found) for found in spoken) / max(len(spoken), 1),
        "lists_share": sum(bool(_ITEM.search(text)) for text in texts) / len(texts),
    }
