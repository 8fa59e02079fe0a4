"""What vLLM is told, in process and as a server alike: the same model, the same prompts, the same way of drawing."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from stages.config.runtime import Runtime
from stages.corpora.images import make_portable
from stages.engines.engine import Request, RequestError
from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint

GIB = 1 << 30
SEQUENCES = 256  # answers written at a time; tiny model on CPU: 6,000 tokens/s with 64, 7,600 with 128, 8,400 with 256
CPU_BLOCK = 32  # tokens a prompt can share; with vLLM's 128 no tiny prompt shares anything: 5,000 tokens/s, not 7,100
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def make_engine_arguments(
    checkpoint: Checkpoint, runtime: Runtime, sequences: int, sees_images: bool
) -> dict[str, Any]:
    """Arguments of vLLM's engine for one checkpoint on this machine, by the names that `vllm.LLM` has for them."""
    import torch

    # With a seed for each request, a prompt that is read in two parts ends a CPU engine ("CPU Generator does not
    # use offset"): room for all prompts at once keeps them whole. It costs little, there is no warm-up on CPU.
    on_cpu: dict[str, Any] = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": runtime.kv_cache_gib * GIB,
        "max_num_batched_tokens": sequences * checkpoint.context_tokens,
        "block_size": CPU_BLOCK,
    }
    on_gpu = {"gpu_memory_utilization": runtime.gpu_memory_utilization}
    return {
        "model": str(checkpoint.weights),
        "dtype": _DTYPES[checkpoint.precision],
        "max_model_len": checkpoint.context_tokens,
        "max_num_seqs": sequences,
        "limit_mm_per_prompt": {"video": 0} if sees_images else {},
        "generation_config": "vllm",  # sampling is what the parameters say, not what a checkpoint suggests
        "seed": 0,
        "disable_log_stats": True,
        **(on_gpu if torch.cuda.is_available() else on_cpu),
    }


def make_sampling_arguments(request: Request, chat: Chat, never: float) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`; `never` is added to the logits of tokens that must not be drawn.

    A sampled image placeholder breaks every later forward pass over the text (trap T1). In process `never` is minus
    infinity, over HTTP -1e30, because JSON has no infinity and vLLM takes this route's bias as it is: both leave a
    probability of exactly 0, greedy decoding included. No measurable cost at 300 ids (nor have bad words and lists of
    allowed ids); with 150,000 ids it alone touches only the banned ones.
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
        "detokenize": False,  # the chat decodes, once, when an answer is whole
        **({"logprobs": 0} if request.log_probs else {}),  # 0: of the sampled token alone
    }


def format_flags(arguments: Mapping[str, Any]) -> list[str]:
    """`arguments` as flags of a vLLM server."""
    found: list[str] = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            found.append(flag)
        elif isinstance(value, Mapping):
            found += [flag, json.dumps(value)] if value else []
        else:
            found += [flag, str(value)]
    return found


def make_data_url(image: bytes, question: str) -> str:
    """The bytes of `image`, as they are, as a `data:` URL with their own type.

    A picture that servers would decode in another way than training does (turned, transparent, 16 bits) goes as a PNG
    of what training sees. Raises RequestError, naming the question, for bytes that are no image.
    """
    try:
        sent = make_portable(image)
        with Image.open(io.BytesIO(sent)) as picture:
            kind = picture.get_format_mimetype()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"question {question}: {error}") from error
    return f"data:{kind};base64,{base64.b64encode(sent).decode()}"
