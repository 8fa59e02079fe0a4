"""How the language models of tiny models begin."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from stages.tiny.builds.copying import (
    LOOK_BACK_LENGTH,
    SKETCH_SCALE,
    initialise_induction,
    initialise_look_back,
)
from stages.tiny.builds.shapes import INITIALIZER_RANGE


def make_model(hidden: int, heads: int, key_heads: int, layers: int = 2) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        initializer_range=INITIALIZER_RANGE,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("hidden", "heads", "key_heads"),
    [(128, 4, 4), (96, 3, 3), (128, 2, 2), (32, 1, 1), (96, 3, 1), (128, 4, 2)],
)
def test_heads_of_the_first_layer_start_by_looking_one_two_three_places_back(
    hidden: int, heads: int, key_heads: int
) -> None:
    """One of the query heads that share a key head; a single head is left to find its own way."""
    model = make_model(hidden, heads, key_heads)
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


@pytest.mark.parametrize(("hidden", "heads"), [(128, 4), (96, 3)])
def test_heads_of_the_second_layer_start_by_looking_at_what_follows_equal_tokens(hidden: int, heads: int) -> None:
    """The last 30 tokens are the first 30 again, except that every third is another one: there, and at the first token
    after it, two equal tokens in a row are found nowhere.
    """
    model = make_model(hidden, heads, heads)
    initialise_look_back(model.model)
    initialise_induction(model.model)
    drawn = torch.randperm(300)
    ids = torch.cat([drawn[:30], drawn[:30]])
    ids[30::3] = drawn[30:40]
    with torch.no_grad():
        seen = model(ids[None], output_attentions=True).attentions[1][0]
    places = torch.arange(31, 60)
    followed = seen[:, places, places - 29]  # attention to what follows the equal token, [heads, places]
    equal, two_equal = (places % 3 != 0), (places % 3 == 2)
    assert followed[0, equal].mean() > 0.5
    assert followed[1, two_equal].mean() > 0.3
    assert followed[1, two_equal].mean() > 1.5 * followed[1, equal & ~two_equal].mean()
    assert followed[2, equal].mean() < 0.1, "drawn at random"


@pytest.mark.parametrize(("heads", "key_heads", "layers"), [(4, 4, 1), (2, 2, 2), (4, 2, 2)])
def test_a_model_without_room_for_it_is_left_alone(heads: int, key_heads: int, layers: int) -> None:
    model = make_model(128, heads, key_heads, layers)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    initialise_induction(model.model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("item", ["student", "judge"])
def test_a_stage_gives_its_model_that_start(make_project: Callable[..., Path], item: str) -> None:
    """Of a model that is built and not trained: a student looks back and no more, a judge has induction heads too."""
    untrained = {"steps": 0, "reading_steps": 0, "warmup_steps": 0}
    given = untrained | ({"vision_steps": 0} if item == "student" else {})
    project = make_project({"models": {item: {"build": given}}})
    words = [sys.executable, "-m", "flows.run", "model", item]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    weights = load_file(project / "data" / "model" / item / "model.safetensors")
    (bias,) = (one for name, one in weights.items() if name.endswith("layers.0.self_attn.q_proj.bias"))
    (out,) = (one for name, one in weights.items() if name.endswith("layers.0.self_attn.o_proj.weight"))
    heads = {"student": 3, "judge": 4}[item]
    looking = bias.view(heads, -1)[:, :4].eq(LOOK_BACK_LENGTH).all(1).tolist()
    assert looking == [True] * (heads - 1) + [item == "judge"]  # the judge's last head looks at its own token
    assert torch.equal(out, SKETCH_SCALE * torch.eye(len(out))) == (item == "judge")
