"""Gradient checkpointing: a layer keeps its input only, and the backward pass computes its activations again.

transformers checkpoints a layer if the layer itself is in train mode. Models here are in eval mode, so that a
checkpoint's dropout never acts; therefore only the layers' own flag is set, not that of the modules inside them.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

# Without reentrance a layer may have inputs without gradient (the first one of a frozen embedding), and ZeRO-3 gathers
# weights again as in any forward pass. Nothing draws random numbers, so their state need not be kept.
_RECOMPUTE = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def recompute_layers(model: nn.Module) -> int:
    """Turns gradient checkpointing on in all layers of language models and vision towers; returns their number.

    Passes without gradient are unchanged. Raises ValueError when the model has no layer that can do so.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"runtime.gradient_checkpointing: no layer of {type(model).__name__} can compute its activations again; "
            "set it to false"
        )
    for layer in layers:
        layer._gradient_checkpointing_func = _RECOMPUTE
        layer.gradient_checkpointing = True
        layer.training = True
    return len(layers)
