"""Qwen3-VL: features of three levels reach the layers that they belong to, in packs and under a shared prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.config.build import Build
from stages.config.lora import Lora
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_pack, make_packs
from stages.tiny.builds.shapes import build_tiny
from stages.training.recomputation import recompute_layers
from stages.vlm import qwen3_vl
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import Network, load_network, load_reader
from stages.vlm.text_pass import compute_text_hidden, embed
from tests.stages.conftest import TEXTS
from tests.stages.groups.test_pack import loss_and_gradients, picture, repeated, some_groups

LEVELS = 3
LAYERS = 4


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Three levels, as published, whose features come from the layers 1, 2 and 3 of the tower."""
    folder = tmp_path_factory.mktemp("qwen3_vl")
    build = Build(
        steps=0, learning_rate=1e-3, hidden_size=64, layers=LAYERS, heads=2, vision_hidden_size=32, vision_layers=4
    )
    _, network = build_tiny("qwen3_vl", build, TEXTS, 512, 1, folder)
    network.model.model.visual.config.deepstack_visual_indexes = [1, 2, 3]
    network.model.model.visual.deepstack_visual_indexes = [1, 2, 3]
    network.head.weight.data.mul_(40)
    network.model.save_pretrained(folder)
    write_card(folder, "qwen3_vl", "fp32", 512)
    return open_checkpoint(folder)


def loaded(checkpoint: Checkpoint) -> tuple[Network, list[Group]]:
    """The model; images of four sizes, one and two to a prompt, and a prompt without."""
    reader = load_reader(checkpoint)
    groups = some_groups(reader)
    wide = reader.make_prompt([{"role": "user", "content": "<image>wide"}], [picture(300, 70, 5)])
    answers = tuple(tuple(reader.chat.encode_response(text)) for text in ("16", "3:3, 8:11, 5:16"))
    groups.insert(1, Group(wide, answers))
    assert [len(group.prompt.pixels.tokens) if group.prompt.pixels else 0 for group in groups] == [1, 1, 1, 2, 0]
    return load_network(checkpoint, reader), groups


def test_the_checkpoint_is_deep(deep: Checkpoint) -> None:
    network, groups = loaded(deep)
    assert groups[0].prompt.pixels is not None
    features = network.encode_images(groups[0].prompt.pixels)
    assert features.shape == (sum(groups[0].prompt.pixels.tokens), (1 + LEVELS) * 64)
    assert network.model.config.vision_config.deepstack_visual_indexes == [1, 2, 3]


@pytest.mark.parametrize("tokens", [150, 4096])
def test_packed_is_repeated_to_five_digits(deep: Checkpoint, tokens: int) -> None:
    """Loss, and the gradient of every weight relative to its largest value, in fp32."""
    network, groups = loaded(deep)
    assert len(list(make_packs(groups, tokens))) == (1 if tokens == 4096 else 2)
    loss, gradients = loss_and_gradients(network, groups, tokens)
    single_loss, single = loss_and_gradients(network, repeated(groups), 1)
    assert loss == pytest.approx(single_loss, rel=1e-5)
    assert gradients.keys() == single.keys() == dict(network.model.named_parameters()).keys()
    worst = 0.0
    for name, gradient in gradients.items():
        scale = max(float(single[name].abs().max()), 1e-3)
        worst = max(worst, float((gradient - single[name]).abs().max()) / scale)
    print(f"packs of {tokens}: loss off by {abs(loss / single_loss - 1):.1e}, gradients by {worst:.1e}")
    assert worst < 1e-5


def test_it_is_what_transformers_computes(deep: Checkpoint) -> None:
    """The model of transformers by itself, fed by ids and pixels; it places the features of each level on its own."""
    network, groups = loaded(deep)
    plain = load_network(deep, load_reader(deep)).model
    with torch.no_grad():
        ours = response_log_probs(network, make_pack(groups, range(len(groups))))
        theirs = torch.cat([score(plain, group, row) for group in groups for row in group.responses])
    assert torch.allclose(ours, theirs, atol=2e-5), f"off by {(ours - theirs).abs().max():.1e}"


def score(model: Any, group: Group, response: tuple[int, ...]) -> Tensor:
    """Log p of a response after its prompt."""
    ids = torch.cat([group.prompt.ids, torch.tensor(response)])[None]
    seen = group.prompt.pixels
    inputs: dict[str, Any] = {} if seen is None else {"pixel_values": seen.values, "image_grid_thw": seen.grids}
    if seen is not None:
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    logits = model(input_ids=ids, **inputs).logits[0, len(group.prompt.ids) - 1 : -1]
    found: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    return found


@pytest.mark.parametrize("level", range(LEVELS))
def test_each_level_reaches_its_layer(deep: Checkpoint, level: int) -> None:
    """Other features of one level leave the layers up to its own as they are, and change those behind it."""
    network, groups = loaded(deep)
    pack = make_pack(groups, range(len(groups)))
    assert pack.pixels is not None
    states: list[list[Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: states[-1].append(given[0].detach()))
        for layer in network.text.layers  # type: ignore[union-attr]
    ]
    with torch.no_grad():
        features = network.encode_images(pack.pixels)
        changed = features.clone()
        changed[:, (1 + level) * 64 : (2 + level) * 64] += 1.0
        for one in (features, changed):
            states.append([])
            embedded = embed(network.text, pack.ids, one, network.image_token_id)
            log_probs = response_log_probs(network, pack, one)
            assert torch.equal(states[-1][0][0], embedded.tokens)
            assert bool(torch.isfinite(log_probs).all())
    for hook in hooks:
        hook.remove()
    before, after = states
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [
        layer <= level for layer in range(LAYERS)
    ]
    images = pack.ids == network.image_token_id
    difference = (after[level + 1] - before[level + 1])[0]  # right behind its layer: what was added, where images are
    assert torch.allclose(difference[images], torch.ones_like(difference[images]), atol=1e-5)
    assert not difference[~images].any()


def test_a_pack_without_images_has_no_deeper_features(deep: Checkpoint) -> None:
    network, groups = loaded(deep)
    pack = make_pack(groups, range(4, 5))
    assert pack.pixels is None
    embedded = embed(network.text, pack.ids, None, network.image_token_id)
    assert embedded.images is None
    assert embedded.deeper == ()
    assert len(compute_text_hidden(network.text, embedded, pack.positions, torch.ones(len(pack.ids), 1).bool())) == len(
        pack.ids
    )


def test_features_computed_before_give_the_same(deep: Checkpoint) -> None:
    """As with a frozen tower, whose features student and reference share."""
    network, groups = loaded(deep)
    network.freeze_vision()
    (pack,) = make_packs(groups, 10**6)
    assert pack.pixels is not None
    features = network.encode_images(pack.pixels).detach()
    assert torch.equal(response_log_probs(network, pack), response_log_probs(network, pack, features))
    with pytest.raises(ValueError, match=r"image tokens, .* image features"):
        response_log_probs(network, pack, features[1:])


def test_recomputation_changes_nothing(deep: Checkpoint) -> None:
    network, groups = loaded(deep)
    loss, gradients = loss_and_gradients(network, groups, 4096)
    assert recompute_layers(network.model) == 2 * LAYERS
    again, others = loss_and_gradients(network, groups, 4096)
    assert again == loss
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-6 * float(gradient.abs().max())), name


def test_an_adapter_sits_in_the_language_model_alone(deep: Checkpoint) -> None:
    network, groups = loaded(deep)
    (pack,) = make_packs(groups, 10**6)
    before = response_log_probs(network, pack).detach()
    adapted = network.add_adapter("student", Lora(rank=4, alpha=8.0), seed=1)
    assert torch.equal(response_log_probs(adapted, pack).detach(), before)
    response_log_probs(adapted, pack).sum().backward()  # type: ignore[no-untyped-call]
    learned = {name for name, one in adapted.trained.named_parameters() if one.grad is not None and one.grad.any()}
    assert len(learned) == 7 * LAYERS, "B of each layer; A has no gradient while B is zero"
    assert all("lora_B" in name for name in learned)


def test_it_is_loaded_and_saved_under_the_names_of_transformers(deep: Checkpoint, tmp_path: Path) -> None:
    network, _ = loaded(deep)
    names = network.model.state_dict().keys()
    assert {name.split(".")[1] for name in names if name.startswith("model.")} == {"language_model", "visual"}
    assert any(".deepstack_merger_list.2." in name for name in names)
    network.model.save_pretrained(tmp_path)
    again = qwen3_vl.load_model(tmp_path, torch.float32).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.model.state_dict().items())
