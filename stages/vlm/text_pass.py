"""One pass of a language model over packed tokens, with image features where images stand."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Embedded:
    """What a language model is given in the place of token ids."""

    tokens: Tensor  # [tokens, hidden]; features where images stand
    images: Tensor | None = None  # [tokens] bool: image tokens
    deeper: tuple[Tensor, ...] = ()  # [image tokens, hidden] each; one is added to them after each of the first layers


def embed(text: nn.Module, ids: Tensor, features: Tensor | None, image_token_id: int) -> Embedded:
    """Returns the embeddings of ids [tokens], with the features of image tokens in order.

    features [image tokens, n * hidden]: the first `hidden` columns replace the embeddings, the others are `deeper`.

    Raises ValueError when the numbers of image tokens and features differ.
    """
    tokens = embed_tokens(text, ids)
    if features is None:
        return Embedded(tokens)
    images = ids == image_token_id
    if int(images.sum()) != len(features):
        raise ValueError(f"{int(images.sum())} image tokens, {len(features)} image features")
    first, *deeper = torch.split(features.to(tokens.dtype), tokens.shape[1], dim=1)
    return Embedded(tokens.masked_scatter(images[:, None], first), images, tuple(deeper))


def embed_tokens(text: nn.Module, ids: Tensor) -> Tensor:
    """Returns the embeddings [tokens, hidden] of `ids` [tokens]; gradients of equal tokens are summed in fp32.

    torch sums them in the precision of the weights: over a pack of 4,096 tokens in bf16 the gradient of the embeddings
    was off by 2 %, over one of 10,000 tokens by 10 % (measured on a CPU).
    """
    embedding: nn.Embedding = text.embed_tokens  # type: ignore[assignment]
    weight = embedding.weight
    if weight.dtype == torch.float32 or not (weight.requires_grad and torch.is_grad_enabled()):
        return embedding(ids)  # type: ignore[no-any-return]
    different, places = torch.unique(ids, return_inverse=True)
    return nn.functional.embedding(places, embedding(different).float()).to(weight.dtype)


def compute_text_hidden(text: nn.Module, embedded: Embedded, positions: Tensor, mask: object) -> Tensor:
    """Returns the last hidden states [tokens, hidden] of a language model.

    positions [axes, tokens]; mask [tokens, tokens] bool, or that of a pack (`stages.groups.attention`).
    """
    # transformers hands a mask of its own kind to the layers, and drops one that it does not know; keywords reach them.
    given: dict[str, Any] = {"attention_mask": mask[None, None]} if isinstance(mask, Tensor) else {"group_mask": mask}
    if embedded.deeper:
        assert embedded.images is not None
        given |= {"visual_pos_masks": embedded.images[None], "deepstack_visual_embeds": list(embedded.deeper)}
    axes = positions[:, None] if len(positions) > 1 else positions
    out = text(inputs_embeds=embedded.tokens[None], position_ids=axes, use_cache=False, **given)
    return out.last_hidden_state[0]  # type: ignore[no-any-return]
