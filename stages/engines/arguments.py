"""Arguments of vLLM, shared by the in-process engine and the server: same model, same prompts, same sampling."""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from PIL import Image

from stages.config.engines import GpuUse
from stages.config.runtime import Runtime
from stages.corpora.images import make_portable
from stages.corpora.rows import split_target
from stages.engines.engine import Answer, Request, RequestError
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint

if TYPE_CHECKING:
    from stages.vlm.reader import Reader  # needs torch

GIB = 1 << 30
CPU_BLOCK = 32  # KV block size in tokens; with vLLM's 128 no tiny prompt shares a prefix: 5,000 tokens/s, not 7,100
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def make_engine_arguments(
    checkpoint: Checkpoint, runtime: Runtime, settings: GpuUse, reader: "Reader", log_probs: bool
) -> dict[str, Any]:
    """Returns the arguments of vLLM's engine for one checkpoint on this machine, named as in `vllm.LLM`.

    `reader` is the checkpoint's; vLLM's own processor gets its limits on images.

    With `log_probs`, log probabilities are those of the distribution that a token is sampled from. vLLM's default is
    that before penalty and temperature (trap T14). It then computes them at every step, requested or not.
    """
    import torch

    # With per-request seeds, a prompt that is prefilled in two chunks crashes a CPU engine ("CPU Generator does not
    # use offset"). Room for all prompts at once avoids chunking. It costs little: there is no warm-up on CPU.
    on_cpu: dict[str, Any] = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": runtime.kv_cache_gib * GIB,
        "max_num_batched_tokens": settings.sequences * checkpoint.context_tokens,
        "block_size": CPU_BLOCK,
    }
    on_gpu: dict[str, Any] = {
        "gpu_memory_utilization": settings.memory_share or runtime.gpu_memory_utilization,
        "enable_sleep_mode": settings.sharing == "sleep",
    }
    return {
        "model": str(checkpoint.weights),
        "dtype": _DTYPES[checkpoint.precision],
        "max_model_len": checkpoint.context_tokens,
        "max_num_seqs": settings.sequences,
        "limit_mm_per_prompt": {"video": 0} if reader.image_token_id >= 0 else {},
        **({"mm_processor_kwargs": reader.make_vllm_arguments()} if checkpoint.limits.list_set() else {}),
        "load_format": "safetensors",  # never a pickle
        "trust_remote_code": False,
        "generation_config": "vllm",  # sampling follows the parameters, not the checkpoint's suggestions
        "seed": 0,
        "disable_log_stats": True,
        **({"logprobs_mode": "processed_logprobs"} if log_probs else {}),
        **(on_gpu if torch.cuda.is_available() else on_cpu),
    }


def make_adapter_arguments(rank: int) -> dict[str, Any]:
    """Returns the further arguments of vLLM's engine for serving one adapter of `rank`; none if it is 0."""
    if not rank:
        return {}
    from vllm.config.lora import MaxLoRARanks

    return {
        "enable_lora": True,
        "max_lora_rank": min(known for known in get_args(MaxLoRARanks) if known >= rank),
        "max_loras": 1,
    }


def make_sampling_arguments(request: Request, chat: Chat, never: float) -> dict[str, Any]:
    """Returns the arguments of vLLM's `SamplingParams`; `never` is added to the logits of banned tokens.

    A sampled image placeholder breaks every later forward pass over the text (trap T1). In process, `never` is minus
    infinity. Over HTTP it is -1e30, because JSON has no infinity and vLLM passes this route's bias through unchanged.
    Both give a probability of exactly 0, also under greedy decoding. There is no measurable cost at 300 ids (bad words
    and lists of allowed ids cost nothing either); with 150,000 ids only this method leaves all other tokens untouched.
    """
    asked = request.sampling
    return {
        "n": request.n,
        "seed": request.seed if asked.temperature > 0 else None,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "repetition_penalty": asked.repetition_penalty,
        "max_tokens": asked.max_tokens,
        "structured_outputs": {"regex": asked.pattern} if asked.pattern else None,
        "stop_token_ids": chat.stop_token_ids,
        "logit_bias": dict.fromkeys(chat.banned_token_ids, never) or None,
        "detokenize": False,  # the chat decodes once, when an answer is complete
        **({"logprobs": 0} if request.log_probs else {}),  # 0: of the sampled token only
        **({"prompt_logprobs": 0} if request.is_scored else {}),  # 0: of the prompt's own tokens only
    }


def encode_request(request: Request, chat: Chat) -> list[int]:
    """Returns the token ids that are sent: the prompt, and the given answer, a text with its end-of-turn token.

    Raises ValueError as `Chat.encode_prompt` does.
    """
    messages, _ = split_target(request.messages)
    ids = chat.encode_prompt(messages, len(request.images))
    return [*ids, *encode_given(request, chat)]


def encode_given(request: Request, chat: Chat) -> tuple[int, ...]:
    """Returns the token ids of the given answer: those of the request, or those of its text; () without one."""
    if request.given_ids:
        return request.given_ids
    return () if (given := request.given) is None else tuple(chat.encode_response(given))


def make_scored_answer(request: Request, chat: Chat, log_probs: Sequence[float]) -> Answer:
    """Returns the given answer of `request` with the log probabilities of its tokens.

    `log_probs` are those of the whole sent text but its first token, images expanded; the end of them is the answer's.
    A value that is not finite makes the answer a failed one: no model in order gives a token the probability 0.
    """
    ids = encode_given(request, chat)
    given = chat.decode(ids) if request.given_ids else request.given or ""
    own = tuple(log_probs[len(log_probs) - len(ids) :])
    reason = "stop" if all(map(math.isfinite, own)) else f"a log probability of the given answer is not finite: {own}"
    return Answer(0, given, ids, reason, len(log_probs) + 1 - len(ids), len(ids), own)


def check_log_probs(requests: Iterable[Request], reported: bool) -> None:
    """Raises ValueError if a request asks for log probabilities and the engine was started without (`reported`)."""
    if not reported and any(request.log_probs for request in requests):
        raise ValueError(
            "the engine was started without StartOptions.log_probs: its log probabilities are not those of sampling"
        )


def format_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Returns `arguments` as command-line flags of a vLLM server."""
    found: list[str] = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            found.append(flag)
        elif value is False:
            found.append(f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, Mapping):
            found += [flag, json.dumps(value)] if value else []
        else:
            found += [flag, str(value)]
    return found


def make_data_url(image: bytes, question: str, max_pixels: int | None = None) -> str:
    """Returns `image` as a `data:` URL with its own media type; the bytes are unchanged where possible.

    An image that servers would decode differently from training (rotated, transparent, 16 bits) is sent as a PNG of
    what training sees, one of more than `max_pixels` as a PNG of at most so many. Raises RequestError, which names the
    question, if the bytes are not an image.
    """
    try:
        sent = make_portable(image, max_pixels)
        with Image.open(io.BytesIO(sent)) as picture:
            kind = picture.get_format_mimetype()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"question {question}: {error}") from error
    return f"data:{kind};base64,{base64.b64encode(sent).decode()}"
