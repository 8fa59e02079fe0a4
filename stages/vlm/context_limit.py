"""Whether a question goes into a model's context at all, asked before anything is paid for it."""

from collections.abc import Mapping, Sequence

from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import Reader


def explain_too_long(
    reader: Reader,
    checkpoint: Checkpoint,
    messages: Sequence[Mapping[str, str]],
    images: Sequence[bytes],
    answer: int = 1,
) -> str | None:
    """Why a prompt and `answer` tokens after it are more than the model takes; None when they are not.

    Engines refuse a prompt that leaves no room for one token.
    """
    tokens = reader.count_prompt_tokens(messages, images)
    if tokens + answer <= checkpoint.context_tokens:
        return None
    return (
        f"prompt of {tokens} tokens and {answer} of the answer are more than context_tokens = "
        f"{checkpoint.context_tokens}"
    )
