"""Packs: the same loss and the same gradients as one row at a time, for every family, images of different shapes
included.
"""

import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.groups.group_mask import make_tree_mask
from stages.groups.log_probs import response_log_probs, token_log_probs
from stages.groups.pack import Group, make_pack, make_packs
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import Network, Prompt, Reader, load_network, load_reader


def picture(width: int, height: int, colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).point(lambda v: (v + colour) % 256).convert("RGB").save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def some_groups(reader: Reader) -> list[Group]:
    """A picture, another shape of picture, two pictures in one prompt, and a question without any."""
    conversations = [
        ("Which is it?<image>", [picture(84, 84, 3)]),
        ("<image>What is the sum?", [picture(140, 56, 90)]),
        ("First <image> and then <image>", [picture(56, 56, 7), picture(84, 112, 30)]),
        ("No picture at all", []),
    ]
    prompts = reader.make_prompts([([{"role": "user", "content": text}], images) for text, images in conversations])
    answers = [("3:3,8:11", "28", "so it is 5"), ("7",), ("1,2,3", "The digits"), ("x", "yz", "5:16, so")]
    return [
        Group(prompt, tuple(tuple(reader.chat.encode_response(text)) for text in texts))
        for prompt, texts in zip(prompts, answers, strict=True)
    ]


def repeated(groups: list[Group]) -> list[Group]:
    """Every response with a prompt of its own."""
    return [Group(group.prompt, (response,)) for group in groups for response in group.responses]


def loss_and_gradients(network: Network, groups: list[Group], tokens: int) -> tuple[float, dict[str, torch.Tensor]]:
    network.model.zero_grad()
    total = 0.0
    weights = torch.sin(torch.arange(1000.0))  # another weight for every token, so that order matters
    place = 0
    for pack in make_packs(groups, tokens):
        log_probs = response_log_probs(network, pack)
        loss = (log_probs * weights[place : place + len(log_probs)]).sum()
        place += len(log_probs)
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in network.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tokens", [64, 4096])
def test_packed_equals_one_row_at_a_time(tiny: Callable[[str], Checkpoint], family: str, tokens: int) -> None:
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader)
    groups = some_groups(reader)
    loss, gradients = loss_and_gradients(network, groups, tokens)
    single_loss, single_gradients = loss_and_gradients(network, repeated(groups), 1)
    assert loss == pytest.approx(single_loss, rel=1e-5)
    assert gradients.keys() == single_gradients.keys()
    for name, gradient in gradients.items():
        scale = single_gradients[name].abs().max().clamp(min=1e-6)
        assert ((gradient - single_gradients[name]).abs().max() / scale) < 1e-4, name


def test_log_probs_equal_the_plain_models(tiny: Callable[[str], Checkpoint], family: str) -> None:
    """The transformers model itself, fed by its own processor's ids and pixels, says the same."""
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    network, plain = load_network(checkpoint, reader), load_network(checkpoint, reader)
    group = some_groups(reader)[0]
    with torch.no_grad():
        ours = response_log_probs(network, make_pack([group], range(1)))
        start = 0
        for response in group.responses:
            ids = torch.cat([group.prompt.ids, torch.tensor(response)])[None]
            assert group.prompt.pixels is not None
            inputs = {"input_ids": ids, "pixel_values": group.prompt.pixels.values}
            if group.prompt.pixels.grids is not None:
                inputs |= {
                    "image_grid_thw": group.prompt.pixels.grids,
                    "mm_token_type_ids": (ids == reader.image_token_id).int(),
                }
            logits = plain.model(**inputs).logits[0]
            wanted = torch.log_softmax(logits[len(group.prompt.ids) - 1 : -1], -1)
            theirs = wanted.gather(1, torch.tensor(response)[:, None]).squeeze(1)
            assert torch.allclose(ours[start : start + len(response)], theirs, atol=1e-5)
            start += len(response)


@given(st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=5), st.integers(1, 40))
def test_every_row_is_packed_once(shapes: list[list[int]], budget: int) -> None:
    groups = [
        Group(Prompt(torch.arange(3), torch.arange(3)[None], None), tuple(tuple(range(n)) for n in lengths))
        for lengths in shapes
    ]
    made = list(make_packs(groups, budget))
    assert [number for pack in made for number in pack.groups] == list(range(len(groups)))
    assert sum(len(pack.targets) for pack in made) == sum(map(sum, shapes))
    for pack in made:
        assert len(pack.groups) == 1 or len(pack.ids) <= budget
        rows = [row for number in pack.groups for row in groups[number].responses]
        assert len(pack.last) == len(rows)
        assert pack.response.tolist() == [number for number, row in enumerate(rows) for _ in row]
        assert pack.targets.tolist() == [token for row in rows for token in row]


def test_a_response_sees_its_prompt_and_itself_only() -> None:
    mask = make_tree_mask(2, (2, 1))
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert mask is not None
    assert torch.equal(mask, torch.tensor(expected).bool())
    assert make_tree_mask(2, (2,)) is None, "one response is plain causal attention"


def test_tiled_log_probs_and_their_gradients_equal_full_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.groups.head.ROWS_PER_TILE", 7)
    monkeypatch.setattr("stages.groups.head.COLUMNS_PER_TILE", 13)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator, requires_grad=True)
    weight = torch.randn(101, 16, generator=generator, requires_grad=True)
    targets = torch.randint(101, (37,), generator=generator)
    ours = token_log_probs(hidden, weight, targets)
    full = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(ours, full, atol=1e-5)
    for got, wanted in zip(
        torch.autograd.grad(ours.sin().sum(), (hidden, weight)),
        torch.autograd.grad(full.sin().sum(), (hidden, weight)),
        strict=True,
    ):
        assert torch.allclose(got, wanted, atol=1e-5)
