"""Sanitizes untrusted text before a judge reads it, without changing its content.

No part of a question, reference or answer may look like the judge's tags, a special token, or the closing tag of its
own section (trap T29). The visible text is preserved.
"""

import hashlib
import re
import unicodedata

# An opening bracket or look-alike in front of a possible tag or special token.
_BRACKET = r"(?:[<＜﹤〈⟨]|&lt;|&#0*60;|&#x0*3c;)"
_TAG_OPENER = re.compile(_BRACKET + r"(?=\s*(?:[/|!\\]|[^\W\d_]))", re.IGNORECASE)
_HARMLESS = "‹"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # ！ to ～ are ! to ~
# Control, format (zero width, direction), private use, surrogate, unassigned.
_HIDDEN = frozenset(("Cc", "Cf", "Co", "Cs", "Cn"))
_LETTERS = "bcdfghjkmnpqrstvwxz"  # no vowels and no letters that look like digits, so that no nonce is a word
_NONCE_LETTERS = 4
_GAP = " [...] "
LONGEST_READ = 65_536  # characters; of longer texts, start and end are read


class _PlainCharacters(dict[int, str | None]):
    """What `normalise_characters` makes of each character, found when it first occurs; None removes it."""

    def __missing__(self, code: int) -> str | None:
        plain = _make_plain(chr(_FULL_WIDTH.get(code, code)))
        if code < _KEPT_CODES:
            self[code] = plain
        return plain


def _make_plain(character: str) -> str | None:
    if (character.isascii() and character.isprintable()) or character == "\n":
        return character
    if character.isspace():
        return " "
    if unicodedata.decimal(character, None) is not None:
        return str(unicodedata.decimal(character))
    return None if unicodedata.category(character) in _HIDDEN else character


_KEPT_CODES = 0x3000  # alphabets and signs; what is above is found anew each time, which bounds the memory
_PLAIN = _PlainCharacters()


def normalise_characters(text: str) -> str:
    """Returns `text` with digits of all scripts and full-width characters as ASCII, without hidden characters.

    All white space except newlines becomes a blank. Superscripts, fractions and accents are unchanged.
    """
    return text.translate(_PLAIN)


def sanitize(text: str) -> str:
    """Returns `text` with all possible tags and special tokens neutralized.

    `<` becomes a look-alike if a letter, `/`, `|` or `!` follows; elsewhere ("3 < 5") it is unchanged.
    """
    return _TAG_OPENER.sub(_HARMLESS, normalise_characters(text))


def shorten_middle(text: str, longest: int) -> str:
    """Cuts `text` to `longest` characters; keeps the first quarter and the end, which usually contains the answer."""
    if len(text) <= longest:
        return text
    kept = max(longest - len(_GAP), 2)
    return text[: kept // 4] + _GAP + text[-(kept - kept // 4) :]


def make_nonce(*parts: str) -> str:
    """Returns a nonce of four letters for tags around `parts`: a hash of them that occurs in none of them.

    The author of a part cannot predict it, because it depends on the part. Equal parts get equal nonces, so that stored
    verdicts are found again.
    """
    attempt = 0
    while True:
        digest = hashlib.sha256("\x1f".join((*parts, str(attempt))).encode()).digest()
        letters = "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:_NONCE_LETTERS])
        if not any(letters in part for part in parts):
            return letters
        attempt += 1
