"""The discriminator's prompt (§3.2, Fig. 3, reworded): it contains the response only.

Two variants add the question, or the question with its images: `discriminator.sees`.
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
QUESTION = "Question: {}\n"  # before the opening, if the discriminator sees the question
# The paper asks after the response; asking before it makes the instruction a prefix shared by many responses.
CLOSING = "</response>"


def make_discriminator_group(reader: Reader, responses: list[str]) -> Group:
    """Returns a text prefix with the responses to score, each followed by the closing tag and the end of the turn.

    The discriminator scores the last token of each. Texts of both sides are decoded and stripped in the same way and
    contain no end token, so that no tokenizer artefact reveals the source (trap T33).
    """
    opening, closing = encode_prefix(reader)
    return Group(opening, encode_bodies(reader, responses, closing))


def make_question_group(
    reader: Reader, messages: Sequence[Mapping[str, str]], images: Sequence[bytes], responses: Sequence[str]
) -> Group:
    """Returns the same group with the question, and its images if given, before the response."""
    markers = IMAGE_MARKER * len(images)
    text = " ".join(
        message["content"].replace(IMAGE_MARKER, "").strip() for message in messages if message["role"] == "user"
    )
    opening, closing = encode_prefix(reader, f"{markers}{QUESTION.format(text)}", images)
    return Group(opening, encode_bodies(reader, responses, closing))


def encode_bodies(reader: Reader, responses: Sequence[str], closing: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Returns the token ids of each response, followed by `closing`."""
    return tuple((*reader.chat.encode_text(text), *closing) for text in responses)


def encode_prefix(reader: Reader, before: str = "", images: Sequence[bytes] = ()) -> tuple[Prompt, list[int]]:
    """Returns the prompt up to the response, starting with `before`, and the token ids after the response."""
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
    """Returns texts that teach a tiny tokenizer the words of this prompt."""
    return [DISCRIMINATOR_SYSTEM, OPENING, CLOSING] * 40
