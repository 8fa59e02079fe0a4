"""Unicode scripts of texts: a light substitute for languages, which need a model to be told apart."""

import functools
import unicodedata
from collections import Counter

# First words of Unicode names that are not the name of a script.
_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han", "FULLWIDTH": "Latin", "HALFWIDTH": "Katakana"}
_JAPANESE = ("Hiragana", "Katakana")
NO_SCRIPT = "none"  # digits, signs and emoji alone


@functools.lru_cache(maxsize=1 << 16)
def find_script(character: str) -> str:
    """Returns the script of a letter, such as "Latin" or "Han"; "" for what is no letter."""
    if not character.isalpha():
        return ""
    word = unicodedata.name(character, "").partition(" ")[0]
    return _NAMES.get(word, word.partition("-")[0].capitalize())


def find_main_script(text: str) -> str:
    """Returns the script that most letters of `text` have; NO_SCRIPT without a letter.

    Kana make a text Japanese, although most of its letters may be Han.
    """
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := find_script(character):
            counts[script] += count
    if not counts:
        return NO_SCRIPT
    kana = [script for script in _JAPANESE if counts[script]]
    main = max(counts, key=lambda script: (counts[script], script))
    return "Han and Kana" if kana and main in ("Han", *_JAPANESE) else main
