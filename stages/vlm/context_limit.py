"""Check whether a prompt fits a model's context, run before any generation."""

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
    """Returns why a prompt plus `answer` tokens exceeds the model's context; None if it fits.

    Engines reject prompts that leave no room for a single token, hence the default of 1.
    """
    tokens = reader.count_prompt_tokens(messages, images)
    if tokens + answer <= checkpoint.context_tokens:
        return None
    return (
        f"prompt of {tokens} tokens and {answer} of the answer are more than context_tokens = "
        f"{checkpoint.context_tokens}"
    )
