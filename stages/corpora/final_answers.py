"""The part of a reply that is meant as its answer, in time linear in the reply.

Models wrap answers: reasoning before, tags or boxes around, special tokens behind. What is wrapped is returned as text.
"""

import re
from collections.abc import Collection

from stages.corpora.numbers import find_last_match

LONGEST_REPLY = 65_536  # characters without the reasoning, some 16,000 tokens; longer replies are not scored by rule
_REASONING = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("◁think▷", "◁/think▷"))
_WRAPPERS = (("<answer>", "</answer>"), ("<|begin_of_box|>", "<|end_of_box|>"))
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<eos>", "</s>")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*+\{|[{}]")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*+\{([^{}]*+)\}")
# White space in front of "answer" stays within its line: an earlier start would capture the same.
_ANSWER_LINE = re.compile(
    r"^(?:[^\S\n]|[*_#>])*+(?:final\s++)?+answer[*_]*+\s*+[:：][*_]*+\s*+([^\n]++)", re.IGNORECASE | re.MULTILINE
)
_ANSWER_IS = re.compile(r"\banswer is:?\s++(.+?)(?:\.(?:\s|$)|\n|$)", re.IGNORECASE)

_VERB = r"(?:is|isn't|are|was|has|can|can't|cannot|could|would|does|doesn't)\b"
# The letter that a reply opens with, as in "(B) dog", "**B**", "B. dog", "B - it barks", "Option B", "B because"; not
# "(A) and (B)", "A is wrong", "A cat", "A, B and C", "B-52".
_LEADING = re.compile(
    r"[\s*_#>$\"'`]*+(?:(?:[Tt]he\s++)?(?:[Cc]orrect\s++|[Rr]ight\s++)?(?:[Oo]ption|[Cc]hoice)\s++)?+[*_(\[{（]*+"
    r"(?P<letter>[A-Z]|(?<=\()[a-z](?=\)))(?![\w'’])"
    r"(?:[*_)\]}）]++(?!\s*+(?:is|are|was|and|or|nor|can|cannot|would|could)\b)(?P<closed>[.:：,]?)"
    r"|[^\S\n]*+(?:(?P<sign>[.:：、。])(?=[\s*_)]|$)|,(?=\s)(?!\s++(?:and\s++|or\s++)?[A-Z]\b)"
    r"|[—–-](?=\s)|\n|(?:because|since)\b))"
)


def strip_reasoning(reply: str) -> str:
    """Returns the reply after its reasoning, without special tokens at its end; "" if the reasoning never ends."""
    start = max((reply.rfind(closing) + len(closing) for _, closing in _REASONING if closing in reply), default=0)
    end = len(reply)
    while token := next((token for token in _END_TOKENS if reply.endswith(token, start, end)), ""):
        end -= len(token)
    text = reply[start:end].strip()
    return "" if text.startswith(tuple(opening for opening, _ in _REASONING)) else text


def unwrap_answer(reply: str) -> str:
    """Returns what the last answer tag or box token encloses, else the reply without its reasoning.

    A tag that is opened and never closed, as in a truncated reply, encloses the rest.
    """
    text = strip_reasoning(reply)
    for opening, closing in _WRAPPERS:
        end = text.rfind(closing)
        start = text.rfind(opening, 0, end if end >= 0 else len(text))
        if start >= 0:
            text = text[start + len(opening) : end if end >= 0 else len(text)].strip()
    return text


def strip_text_commands(text: str) -> str:
    r"""Returns `text` with the content of `\text{}` and its kind in place of the command."""
    return _TEXT_COMMAND.sub(r"\1", text)


def find_last_boxed(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{}`, whatever braces it holds; None without a closed one."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    opened: list[int] = []  # for each open brace: where the content of its box starts, -1 without a box
    last: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace.group() != "}":
            opened.append(-1 if brace.group() == "{" else brace.end())
        elif opened and (start := opened.pop()) >= 0 and (last is None or start > last[0]):
            last = start, brace.start()
    return None if last is None else text[slice(*last)]


def find_last_answer_line(text: str) -> str | None:
    """Returns the rest of the last line "Answer: ...", None if there is none."""
    last = find_last_match(_ANSWER_LINE, text)
    return None if last is None else last.group(1).rstrip()


def find_marked_answer(text: str) -> tuple[str, str] | None:
    """Returns the answer marked as final, and how: `boxed`, `answer line`, `answer is`; None if nothing is marked."""
    for rule, marked in (("boxed", find_last_boxed(text)), ("answer line", find_last_answer_line(text))):
        if marked is not None:
            return strip_text_commands(marked).strip(" .*$"), rule
    said = find_last_match(_ANSWER_IS, text)
    return None if said is None else (said.group(1).strip(" .*$\"'"), "answer is")


def find_leading_letter(text: str, letters: Collection[str]) -> str | None:
    """Returns the letter that a reply opens with; None if the reply goes through several options in the same form."""
    found = _LEADING.match(text)
    if found is None:
        return None
    sign = found["sign"] or found["closed"] or ("" if found["closed"] is None else ")")
    if sign:
        before = r"(?<=\s)" if sign in "):：" else r"(?:(?<=\n)|(?<=[.;,!?]\s))"
        form = re.compile(rf"{before}[*_(\[]*+([A-Z])[*_]*+{re.escape(sign)}(?=[\s*_])(?!\s*+{_VERB})")
        if any(other[1] in letters and other[1] != found["letter"] for other in form.finditer(text, found.end())):
            return None
    return found["letter"].upper()
