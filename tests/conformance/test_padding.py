"""C7: packed = padded left = padded right = single row, both families, images of different sizes, one row without
image.

C7 against single rows and C8 (all parameter gradients, vision tower included, shared prompt against repeated prompts)
are tests/stages/groups/test_pack.py; here the plain transformers model is given padded batches.
"""

from collections.abc import Callable

import pytest
import torch

from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_packs
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.family import Pixels
from stages.vlm.reader import Network, Reader, load_network, load_reader


def groups_of(reader: Reader, picture: Callable[[int, int], bytes]) -> list[Group]:
    """Two shapes of image, two images in one prompt, no image."""
    conversations = [
        ("Which is it?<image>", [picture(84, 84)]),
        ("<image>What is the sum?", [picture(140, 56)]),
        ("First <image> and then <image>", [picture(56, 56), picture(84, 112)]),
        ("No picture at all", []),
    ]
    prompts = reader.make_prompts([([{"role": "user", "content": text}], images) for text, images in conversations])
    texts = ["3:3,8:11", "28", "so it is 5 of 5", "7, no"]
    return [
        Group(prompt, (tuple(reader.chat.encode_response(text)),)) for prompt, text in zip(prompts, texts, strict=True)
    ]


def padded_log_probs(network: Network, reader: Reader, groups: list[Group], left: bool) -> list[torch.Tensor]:
    """log p of each response from one padded batch through the plain model, which computes positions itself."""
    rows = [torch.cat([group.prompt.ids, torch.tensor(group.responses[0])]) for group in groups]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), reader.chat.stop_token_ids[0])
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place], mask[number, place] = row, 1
    pixels = Pixels.concatenate([group.prompt.pixels for group in groups if group.prompt.pixels is not None])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels.values}
    if pixels.grids is not None:
        inputs |= {"image_grid_thw": pixels.grids, "mm_token_type_ids": (ids == reader.image_token_id).int()}
    with torch.no_grad():
        logits = network.model(**inputs).logits.log_softmax(-1)
    found = []
    for number, (group, row) in enumerate(zip(groups, rows, strict=True)):
        first = (width - len(row) if left else 0) + len(group.prompt.ids)
        targets = torch.tensor(group.responses[0])
        found.append(logits[number, first - 1 : first - 1 + len(targets)].gather(1, targets[:, None]).squeeze(1))
    return found


@pytest.mark.parametrize("left", [True, False])
def test_c7_packed_equals_padded(
    tiny: Callable[[str], Checkpoint], picture: Callable[[int, int], bytes], family: str, left: bool
) -> None:
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    network, plain = load_network(checkpoint, reader), load_network(checkpoint, reader)
    groups = groups_of(reader, picture)
    (pack,) = make_packs(groups, 10_000)
    with torch.no_grad():
        packed = response_log_probs(network, pack)
    for number, wanted in enumerate(padded_log_probs(plain, reader, groups, left)):
        assert torch.allclose(packed[pack.response == number], wanted, atol=1e-5), number
