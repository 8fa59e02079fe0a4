"""Repetition at the end of a text: exact, for blocks of any length, in linear time."""

from collections.abc import Iterator, Sequence

COPIED = 32  # characters; a shorter copy can be a number ("1,000,000,000"), a row of signs or an honest repetition


def find_repeats(text: str) -> Iterator[tuple[int, int]]:
    """Yields (length of a block, characters at the end of `text` that consist of copies of it), shortest block first.

    The first copy may be incomplete. Blocks that occur only once are left out.
    """
    for period, copied in enumerate(_match_own_start(text[::-1])):
        if period and copied >= period:
            yield period, period + copied


def ends_in_copy(text: str) -> bool:
    """Returns whether `text` ends in two or more copies of one block and at least COPIED characters are copied."""
    return any(length - period >= COPIED for period, length in find_repeats(text))


def _match_own_start(text: Sequence[str]) -> list[int]:
    """Returns for each place how many characters from there equal those at the start (the Z function)."""
    found = [0] * len(text)
    left = right = 0  # the match that ends last
    for place in range(1, len(text)):
        length = min(right - place, found[place - left]) if place < right else 0
        while place + length < len(text) and text[length] == text[place + length]:
            length += 1
        found[place] = length
        if place + length > right:
            left, right = place, place + length
    return found
