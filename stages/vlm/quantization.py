"""Weights in NF4 (QLoRA, arXiv 2305.14314), by bitsandbytes: the frozen language model beside adapters."""

import logging
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def silence_bitsandbytes() -> None:
    """Keeps it from warning of a kernel for inference that nothing here uses; peft imports it for all adapters."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantize_layers(text: nn.Module) -> None:
    """Stores the weights of all linear layers of a language model in NF4: 4.127 bits each, biases and all else as is.

    Blocks of 64 values have one scale, and the scales are quantized again, to 8 bits with one fp32 scale for 256 of
    them. Layers compute with weights that are dequantized to the precision that they had. With a GPU the layers are
    quantized on it, one at a time, and stay there: one CPU core needs 3 minutes for the 6.5 G weights of 7B.
    """
    silence_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Params4bit

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # a rank sees its own GPU only
    for place, layer in list(text.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        given = layer.weight
        made = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, given.dtype, quant_type="nf4", device="meta"
        )
        made.bias = layer.bias
        made.weight = Params4bit(given.data, quant_type="nf4", module=made).to(device)
        # On CPUs with AVX512-BF16 a pass without gradient would repack the weights for kernels that have no backward
        # pass: later gradients would silently be without this layer (bitsandbytes 0.50.2).
        made.support_avx512bf16_for_cpu = False
        text.set_submodule(place, made)
    text.is_loaded_in_4bit = True  # type: ignore[assignment]  # by this peft knows that the layers are bitsandbytes'


def is_quantized(layer: nn.Module) -> TypeGuard[Any]:
    """Returns whether the weights of a layer are stored in NF4."""
    return isinstance(layer, nn.Linear) and hasattr(layer.weight, "quant_state")


def dequantize(layer: Any) -> Tensor:
    """Returns the weights [outputs, inputs] that a quantized layer computes with, in the precision that they had."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[no-any-return]
