"""The discriminator's prompt (§3.2, Fig. 3, in our words): a response is put in, nothing else of the question is seen.

Two departures show it the question too, or the question with its images: `discriminator.sees`.
"""

from collections.abc import Mapping, Sequence

from stages.corpora.markers import IMAGE_MARKER
from stages.groups.pack import Group
from stages.vlm.reader import Prompt, Reader

DISCRIMINATOR_SYSTEM = (
    "You act as a discriminator. A response is given inside <response> </response>. "
    "Say which model wrote it: 0 = teacher, 1 = student."
)
OPENING = "Which model wrote this response? Choose 0 (Teacher model) or 1 (Student model).\n<response>"
QUESTION = "Question: {}\n"  # before the opening, where the discriminator may see it
CLOSING = (
    "</response>"  # the paper asks after the response; asked before it, the words are read once for many responses
)


def make_discriminator_group(reader: Reader, responses: list[str]) -> Group:
    """One text prefix and the responses to judge, each followed by the closing words and the end of the turn.

    The discriminator reads the last token of each. Both sides' texts are decoded and stripped in the same way before
    they come here, and neither side's end token is part of them, so that no leftover of a tokenizer gives the writer
    away (trap T33).
    """
    opening, closing = encode_prefix(reader)
    return Group(opening, _encode_bodies(reader, responses, closing))


def make_question_group(
    reader: Reader, messages: Sequence[Mapping[str, str]], images: Sequence[bytes], responses: Sequence[str]
) -> Group:
    """The same with the question before the response; its images too, where they are given."""
    markers = IMAGE_MARKER * len(images)
    text = " ".join(
        message["content"].replace(IMAGE_MARKER, "").strip() for message in messages if message["role"] == "user"
    )
    opening, closing = encode_prefix(reader, f"{markers}{QUESTION.format(text)}", images)
    return Group(opening, _encode_bodies(reader, responses, closing))


def _encode_bodies(reader: Reader, responses: Sequence[str], closing: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple((*reader.chat.encode_text(text), *closing) for text in responses)


def encode_prefix(reader: Reader, before: str = "", images: Sequence[bytes] = ()) -> tuple[Prompt, list[int]]:
    """The prompt up to the response, with `before` in front of its words, and the ids that close it."""
    split = "\ue100"
    messages = [
        {"role": "system", "content": DISCRIMINATOR_SYSTEM},
        {"role": "user", "content": f"{before}{OPENING}{split}{CLOSING}"},
    ]
    mark = reader.chat.encode_text(split)
    if images:
        prompt = reader.make_prompt(messages, images)
        at = _find_place(prompt.ids.tolist(), mark)
        return Prompt(prompt.ids[:at], prompt.positions[:, :at], prompt.pixels), prompt.ids[at + len(mark) :].tolist()
    ids = reader.chat.encode_prompt(messages, 0)
    at = _find_place(ids, mark)
    return reader.make_text_prompt(ids[:at]), ids[at + len(mark) :]


def _find_place(ids: list[int], mark: list[int]) -> int:
    return next(place for place in range(len(ids)) if ids[place : place + len(mark)] == mark)


def collect_discriminator_texts() -> list[str]:
    """Texts from which a tiny tokenizer learns this prompt's words."""
    return [DISCRIMINATOR_SYSTEM, OPENING, CLOSING] * 40
