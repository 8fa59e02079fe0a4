"""What a vLLM server replies on its route for token ids."""

import math
from collections.abc import Mapping
from typing import Any

from stages.engines.arguments import make_scored_answer
from stages.engines.calls import BadReply
from stages.engines.engine import Answer, Request
from stages.vlm.chat import Chat

UNKNOWN = -9999.0  # sent in place of NaN and of minus infinity, because JSON has neither


def read_answers(request: Request, chat: Chat, reply: Any) -> list[Answer]:
    """Returns the answers to `request` in order, from a reply as JSON; raises BadReply for one of another form."""
    if request.is_scored:
        return [_read_scored_answer(request, chat, reply)]
    try:
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        prompt_tokens = int(reply["usage"]["prompt_tokens"])
        ids = [tuple(int(token) for token in choice["token_ids"]) for choice in choices]
        reasons = [str(choice["finish_reason"]) for choice in choices]
        log_probs = [read_log_probs(choice) if request.log_probs else None for choice in choices]
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise BadReply(f"{type(error).__name__}: {error}") from error
    if len(choices) != request.n:
        raise BadReply(f"{len(choices)} answers, not {request.n}")
    return [
        Answer(index, chat.decode(own), own, reason, prompt_tokens, len(own), seen)
        for index, (own, reason, seen) in enumerate(zip(ids, reasons, log_probs, strict=True))
    ]


def _read_scored_answer(request: Request, chat: Chat, reply: Any) -> Answer:
    try:  # one entry for each token that was sent: {"<id>": {"logprob": ...}}, null for the first
        found = [float(one["logprob"]) for entry in reply["prompt_logprobs"][1:] for one in entry.values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadReply(f"{type(error).__name__}: {error}") from error
    if len(found) + 1 != reply["usage"]["prompt_tokens"]:
        raise BadReply(f"{len(found)} log probabilities of {reply['usage']['prompt_tokens']} tokens")
    return make_scored_answer(request, chat, found)


def read_log_probs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    """Returns the log probability of each token of one choice of a reply; NaN where vLLM has none.

    Raises ValueError when they are not those of the choice's tokens; KeyError, TypeError for another form.
    """
    found = [(int(one["token_id"]), float(one["logprob"])) for one in choice["logprobs"]["content"]]
    if [token for token, _ in found] != [int(token) for token in choice["token_ids"]]:
        raise ValueError(f"log probabilities of {len(found)} tokens, which are not the {len(choice['token_ids'])} sent")
    return tuple(math.nan if value <= UNKNOWN else value for _, value in found)
