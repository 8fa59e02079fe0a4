"""The discriminator's prompt (§3.2, Fig. 3, in our words): a response is put in, nothing else of the question is seen."""

from stages.groups import Group
from stages.vlm import Prompt, Reader

SYSTEM = (
    "You act as a discriminator. A response is given inside <response> </response>. "
    "Say which model wrote it: 0 = teacher, 1 = student."
)
OPENING = "Which model wrote this response? Choose 0 (Teacher model) or 1 (Student model).\n<response>"
CLOSING = "</response>"  # the paper asks after the response; asked before it, the words are read once for many responses


def discriminator_group(reader: Reader, responses: list[str]) -> Group:
    """One text prefix and the responses to judge, each followed by the closing words and the end of the turn.

    The discriminator reads the last token of each. Both sides' texts are decoded and stripped in the same way before they come
    here, and neither side's end token is part of them, so that no leftover of a tokenizer gives the writer away (trap T33).
    """
    opening, closing = prefix_ids(reader)
    bodies = tuple((*reader.chat.text_ids(text), *closing) for text in responses)
    return Group(opening, bodies)


def prefix_ids(reader: Reader) -> tuple[Prompt, list[int]]:
    """The prompt up to the response, and the ids that close it."""
    split = "\ue100"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{OPENING}{split}{CLOSING}"}]
    ids = reader.chat.prompt_ids(messages, 0)
    mark = reader.chat.text_ids(split)
    at = next(place for place in range(len(ids)) if ids[place : place + len(mark)] == mark)
    return reader.text_prompt(ids[:at]), ids[at + len(mark) :]


def discriminator_texts() -> list[str]:
    """Texts from which a tiny tokenizer learns this prompt's words."""
    return [SYSTEM, OPENING, CLOSING] * 40
