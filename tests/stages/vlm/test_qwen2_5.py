"""The judge's recipe."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from stages.tiny.builds.shapes import INITIALIZER_RANGE, initialise_look_back


@pytest.mark.parametrize(("hidden", "heads"), [(128, 4), (96, 3), (128, 2), (32, 1)])
def test_heads_of_the_first_layer_start_by_looking_one_two_three_places_back(hidden: int, heads: int) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        initializer_range=INITIALIZER_RANGE,
        attn_implementation="eager",
    )
    model = Qwen2ForCausalLM(config).eval()
    initialise_look_back(model, heads)
    with torch.no_grad():
        seen = model(torch.randint(0, 300, (1, 200)), output_attentions=True).attentions[0][0]
    for head in range(heads):
        back = [float(torch.diagonal(seen[head], -places)[20:].mean()) for places in range(6)]
        if head < heads - 1:
            assert max(back) == back[head + 1] > 0.5, (head, back)
        else:
            assert max(back) < 0.2, "one head is left to find its own way"
