"""How the language models of tiny models begin."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from stages.tiny.builds.shapes import INITIALIZER_RANGE, initialise_look_back


@pytest.mark.parametrize(
    ("hidden", "heads", "key_heads"),
    [(128, 4, 4), (96, 3, 3), (128, 2, 2), (32, 1, 1), (96, 3, 1), (128, 4, 2)],
)
def test_heads_of_the_first_layer_start_by_looking_one_two_three_places_back(
    hidden: int, heads: int, key_heads: int
) -> None:
    """One of the query heads that share a key head; a single head is left to find its own way."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        initializer_range=INITIALIZER_RANGE,
        attn_implementation="eager",
    )
    model = Qwen2ForCausalLM(config).eval()
    initialise_look_back(model.model)
    with torch.no_grad():
        seen = model(torch.randint(0, 300, (1, 200)), output_attentions=True).attentions[0][0]
    shared = heads // key_heads
    looking = {number * shared: number + 1 for number in range(key_heads)}  # places back by head
    looking = dict(list(looking.items())[: heads - 1])
    for head in range(heads):
        back = [float(torch.diagonal(seen[head], -places)[20:].mean()) for places in range(6)]
        if head in looking:
            assert max(back) == back[looking[head]] > 0.5, (head, back)
        else:
            assert max(back) < 0.2, "a head that finds its own way"
