"""The bytes of passes by formula are those of traces of transformers' layers, at the shapes of published students."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flows.estimate.passes import PATCHES_PER_TOKEN, measure_frozen_tower, measure_text, measure_tower
from flows.estimate.published import PUBLISHED
from flows.estimate.shapes import TowerShape
from stages.config.lora import Lora
from stages.groups.attention import use_group_attention
from stages.groups.group_mask import GroupMask, GroupSpan
from stages.training.recomputation import recompute_layers
from stages.vlm.text_pass import Embedded, compute_text_hidden
from stages.vlm.vision_attention import use_vision_attention
from tests.flows.estimate.traces import Traced, trace
from tests.gpu.shapes import PATCH_VALUES, Shape, model_of, network_of, shape_of

TOKENS = 8192
STUDENTS = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct")


def trace_text(name: str, layers: int, recompute: bool, rank: int) -> Traced:
    """The language model alone, on the meta device, over one group of eight answers."""
    with torch.device("meta"):
        network = network_of(model_of(shape_of(name, layers=layers), torch.bfloat16))
        if rank:
            network = network.add_adapter("student", Lora(rank=rank), 0)
            for one in network.trained.parameters():  # peft leaves the precision of adapters on this device as it is
                one.data = one.data.to(torch.bfloat16)
        if recompute:
            recompute_layers(network.model)
        mask = GroupMask((GroupSpan(0, TOKENS // 2, (TOKENS // 16,) * 8),))
        positions = torch.arange(TOKENS).expand(3, -1)
        use_group_attention(network.text, "merged")

        def compute() -> Tensor:
            # Without `embed`, which looks for equal tokens: ids on this device have no values.
            embedded = Embedded(network.text.embed_tokens(torch.zeros(TOKENS, dtype=torch.long)))  # type: ignore[operator]
            return compute_text_hidden(network.text, embedded, positions, mask)

        return trace(network.model, compute)


@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", STUDENTS)
def test_layers_of_language_models_keep_what_the_formula_says(name: str, recompute: bool, rank: int) -> None:
    # A first layer over a frozen embedding has no gradient of its input, so one layer is no pattern for all.
    two, three = (trace_text(name, layers, recompute, rank) for layers in (2, 3))
    text = PUBLISHED[name].text
    said = measure_text(text, TOKENS, recompute, rank)
    kept = two.kept + (text.layers - 2) * (three.kept - two.kept)
    assert said.kept == pytest.approx(kept, rel=0.03)
    peak = two.backward + (text.layers - 2) * (three.backward - two.backward)
    assert said.kept + said.working == pytest.approx(peak, rel=0.05)
    per_token = (three.kept - two.kept) / TOKENS
    print(f"{name}, rank {rank}, checkpointing {recompute}: {per_token:,.0f} bytes kept a token and layer")


TOWER = TowerShape(320, 32, 856, gated=True)
PATCHES = 32 * 32


def trace_tower(layers: int, recompute: bool, grad: bool) -> Traced:
    """A tower of a quarter of the width on the CPU: how it cuts windows depends on values."""
    vision = {"depth": layers, "hidden_size": TOWER.hidden, "intermediate_size": TOWER.feed_forward, "num_heads": 4}
    model = model_of(Shape("tower", 256, 1, 4, 2, 64, 64, True, vision=vision), torch.bfloat16)
    use_vision_attention(model.model.visual, "batched")
    if recompute:
        recompute_layers(model)
    pixels, grids = torch.randn(PATCHES, PATCH_VALUES, dtype=torch.bfloat16), torch.tensor([[1, 32, 32]])
    compute: Callable[[], Tensor] = lambda: torch.cat(model.model.get_image_features(pixels, grids).pooler_output)  # noqa: E731
    return trace(model, compute, grad)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_vision_towers_keep_what_the_formula_says(recompute: bool) -> None:
    one, two = (trace_tower(layers, recompute, grad=True) for layers in (1, 2))
    said = measure_tower(TOWER, PATCHES // PATCHES_PER_TOKEN, recompute)
    kept = one.kept + (TOWER.layers - 1) * (two.kept - one.kept)
    assert said.kept == pytest.approx(kept, rel=0.05)
    peak = one.backward + (TOWER.layers - 1) * (two.backward - one.backward)
    assert said.kept + said.working == pytest.approx(peak, rel=0.1)


def test_a_frozen_tower_needs_the_memory_of_one_layer() -> None:
    one, two = (trace_tower(layers, recompute=False, grad=False) for layers in (1, 2))
    assert one.forward == two.forward
    assert measure_frozen_tower(TOWER, PATCHES // PATCHES_PER_TOKEN) == pytest.approx(one.forward, rel=0.05)


@pytest.mark.parametrize("name", STUDENTS)
def test_published_shapes_are_those_of_transformers(name: str) -> None:
    with torch.device("meta"):
        model = model_of(shape_of(name), torch.bfloat16)
    shape = PUBLISHED[name]
    tower = sum(one.numel() for one in model.model.visual.parameters())
    assert sum(one.numel() for one in model.parameters()) == shape.weights
    assert tower == shape.tower_weights
