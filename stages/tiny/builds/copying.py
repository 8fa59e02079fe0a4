"""How the attention of tiny models starts: looking back and copying, which random weights find late."""

from typing import Any

import torch
from torch import Tensor

LOOK_BACK_PAIRS = 4  # the fastest turning pairs of a head
LOOK_BACK_LENGTH = 5.0  # 3 nats between a place and its neighbours
SLOWEST = 0.02  # radians a token: pairs that turn so slowly compare tokens that are 50 places apart
SKETCH_SCALE = 0.34  # as loud as what random weights add to the residual stream
MATCH_SCALE = 2.5  # an equal token is 6 nats above others; 3.5 learned worse
MLP_SCALE = 0.2  # of the first layer, so that sketches are heard; with 1.0 a judge got 82.5 % of lessons, not 84.6 %


def start_copying(text: Any, judge: bool) -> None:
    """Gives a Qwen2 text model that will be trained a start in copying; other kinds of attention are left alone.

    A judge looks back already, as it is built; only a judge gains from induction heads.
    """
    if text.layers[0].self_attn.q_proj.bias is None:
        return
    if judge:
        initialise_induction(text)
    else:
        initialise_look_back(text)


@torch.no_grad()
def initialise_look_back(text: Any) -> None:
    """Lets heads of the first layer of a Qwen2 text model start by looking at the token 1, 2, 3 ... places back, as
    copying needs it: one head for each key head, and of single heads all but one.

    In rotary positions biases alone can do that: the key's are the query's turned by so many places. Weights drawn at
    random find it late, since biases start at 0 and each one's gradient is the other.
    """
    config = text.config
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    for head in range(min(key_heads, heads - 1)):
        _look_back(text, head * (heads // key_heads), head, head + 1)


@torch.no_grad()
def initialise_induction(text: Any) -> None:
    """Lets the second layer start with two induction heads (arXiv 2209.11895): one looks at what follows an equal
    token, one at what follows two equal tokens, and both copy it.

    A Qwen2 text model with fewer key heads than heads, fewer than two layers or three heads is left alone.
    Each head of the first layer writes the same sketch of the token that it looks at, the last head of its own token,
    to coordinates of its own.
    """
    heads, width = text.config.num_attention_heads, text.config.hidden_size // text.config.num_attention_heads
    if len(text.layers) < 2 or heads < 3 or text.config.num_key_value_heads < heads:
        return
    first, attention = text.layers[0].self_attn, text.layers[1].self_attn
    own, one_back, two_back = (head * width for head in (heads - 1, 0, 1))  # where their sketches begin
    _look_back(text, heads - 1, heads - 1, 0)
    sketch = first.v_proj.weight[:width].clone()
    first.o_proj.weight.copy_(SKETCH_SCALE * torch.eye(heads * width))
    for head in range(heads):
        first.v_proj.weight[head * width : (head + 1) * width] = sketch
    text.layers[0].mlp.down_proj.weight *= MLP_SCALE

    slow = [pair for pair, angle in enumerate(text.rotary_emb.inv_freq.tolist()) if angle <= SLOWEST]
    some, others = slow[: len(slow) // 2], slow[len(slow) // 2 :]
    for head, matches in enumerate(([(slow, own, one_back)], [(some, own, one_back), (others, one_back, two_back)])):
        rows = slice(head * width, (head + 1) * width)
        query, key, value = (getattr(attention, name).weight[rows] for name in ("q_proj", "k_proj", "v_proj"))
        for matrix in (query, key, value):
            matrix.zero_()
        for pairs, asked, seen in matches:
            places = torch.tensor([*pairs, *(width // 2 + pair for pair in pairs)])
            query[places, asked + places] = MATCH_SCALE
            key[places, seen + places] = MATCH_SCALE
        value[:, own : own + width] = torch.eye(width)


def _look_back(text: Any, head: int, key_head: int, back: int) -> None:
    attention = text.layers[0].self_attn
    half = attention.head_dim // 2
    angles: Tensor = text.rotary_emb.inv_freq[:LOOK_BACK_PAIRS]
    query = attention.q_proj.bias.view(-1, 2, half)[head]
    key = attention.k_proj.bias.view(-1, 2, half)[key_head]
    query[0, :LOOK_BACK_PAIRS] = LOOK_BACK_LENGTH
    key[0, :LOOK_BACK_PAIRS] = LOOK_BACK_LENGTH * torch.cos(angles * back)
    key[1, :LOOK_BACK_PAIRS] = LOOK_BACK_LENGTH * torch.sin(angles * back)
