"""Making text of others harmless before a judge reads it, without changing what it says.

Nothing that a question, a reference or an answer holds may look like the judge's own tags, like a special token, or
like the end of its fence (trap T29). What stays is what a careful reader would see.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator

# An opening bracket, or what a reader may take for one, before what could be a tag or a special token.
_BRACKET = r"(?:[<＜﹤〈⟨]|&lt;|&#0*60;|&#x0*3c;)"
_TAG_OPENER = re.compile(_BRACKET + r"(?=\s*(?:[/|!\\]|[^\W\d_]))", re.IGNORECASE)
_HARMLESS = "‹"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # ！ to ～ are ! to ~
_HIDDEN = frozenset(
    ("Cc", "Cf", "Co", "Cs", "Cn")
)  # controls, zero width and direction marks, private, halves, unassigned
_LETTERS = "bcdfghjkmnpqrstvwxz"  # without vowels, and without letters that look like digits: no nonce is a word
_NONCE_LETTERS = 4
_GAP = " [...] "


def normalise_characters(text: str) -> str:
    """`text` in ordinary characters: digits of every script and full-width signs as ASCII, blanks as blanks, hidden
    ones gone.

    Powers, fractions and accents stay as they are.
    """
    return "".join(_iter_plain_characters(text.translate(_FULL_WIDTH)))


def _iter_plain_characters(text: str) -> Iterator[str]:
    for character in text:
        if (character.isascii() and character.isprintable()) or character == "\n":
            yield character
        elif character.isspace():
            yield " "
        elif unicodedata.decimal(character, None) is not None:
            yield str(unicodedata.decimal(character))
        elif unicodedata.category(character) not in _HIDDEN:
            yield character


def sanitize(text: str) -> str:
    """`text` with everything that could open or close a tag, or stand for a special token, made harmless.

    `<` becomes a look-alike where a letter, `/`, `|` or `!` follows; elsewhere ("3 < 5") it stays.
    """
    return _TAG_OPENER.sub(_HARMLESS, normalise_characters(text))


def shorten_middle(text: str, longest: int) -> str:
    """`text` up to `longest` characters; of a longer one the first quarter and the end, where answers stand."""
    if len(text) <= longest:
        return text
    kept = max(longest - len(_GAP), 2)
    return text[: kept // 4] + _GAP + text[-(kept - kept // 4) :]


def make_nonce(*parts: str) -> str:
    """Four letters for a fence around `parts`: a function of them, found in none of them.

    Who writes a part can't know them: they hash the part itself. Equal parts get equal letters, so that a stored
    verdict is found again.
    """
    attempt = 0
    while True:
        digest = hashlib.sha256("\x1f".join((*parts, str(attempt))).encode()).digest()
        letters = "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:_NONCE_LETTERS])
        if not any(letters in part for part in parts):
            return letters
        attempt += 1
