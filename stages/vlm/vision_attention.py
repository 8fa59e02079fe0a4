"""Attention of vision towers whose images are cut into windows.

transformers calls SDPA once for each window: 26,000 calls for a pack of 16,384 tokens through 28 layers. Windows of one
length, nearly all of them, are independent rows of one batch.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.config.runtime import VisionAttention

# transformers hands over all windows at once only if "flash" is in the name.
BATCHED = "ril_windows_as_flash"


def attend_windows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Returns attention [1, T, heads, width] of query, key and value [1, heads, T, width], each window by itself.

    `cu_seq_lens_q` [windows + 1] of the options are the windows' ends; without it this is plain SDPA.
    """
    ends = options.pop("cu_seq_lens_q", None)
    if ends is None:
        done: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return done
    lengths = ends[1:] - ends[:-1]
    out = torch.empty_like(query)
    for length in lengths.unique().tolist():
        starts = ends[:-1][lengths == length]
        places = (starts[:, None] + torch.arange(length, device=starts.device)).long()  # [windows, length]
        own_query, own_key, own_value = (tensor[0][:, places].transpose(0, 1) for tensor in (query, key, value))
        attended = scaled_dot_product_attention(own_query, own_key, own_value, scale=options.get("scaling"))
        out[0][:, places] = attended.transpose(0, 1)
    return out.transpose(1, 2).contiguous(), None


def use_vision_attention(tower: nn.Module, kind: VisionAttention) -> None:
    """Configures a vision tower; a projector, which does not attend, is left as it is.

    Raises ValueError when the package of `kind` is not installed.
    """
    if not hasattr(tower, "set_attn_implementation"):
        return
    if kind == "auto":
        kind = "batched" if torch.cuda.is_available() else "sdpa"
    if kind == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ValueError(
            "runtime.vision_attention is flash_attention_2, but the package flash_attn is not installed; install it, "
            "or set it to batched"
        )
    AttentionInterface.register(BATCHED, attend_windows)
    tower.config._attn_implementation = BATCHED if kind == "batched" else kind  # type: ignore[union-attr]
