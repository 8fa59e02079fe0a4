"""Groups and packs: the data structure of all training.

A group is one prompt and K responses to it. A pack concatenates whole groups to one sequence up to a token budget. A
prompt and its images occur once, each response attends to its prompt and itself, and its positions continue those of
the prompt. A question with 2G responses costs P + 2G R tokens instead of 2G (P + R), with the same loss and gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.groups.group_mask import GroupMask, GroupSpan
from stages.vlm.family import Pixels
from stages.vlm.reader import Prompt


@dataclass(frozen=True)
class Group:
    """One prompt and its responses, each a tuple of token ids that ends with the end-of-turn token."""

    prompt: Prompt
    responses: tuple[tuple[int, ...], ...]
    unscored: tuple[frozenset[int], ...] = ()  # per response, indices of tokens that are context but not predicted
    name: str = ""  # id of the question, for messages

    @property
    def scored_tokens(self) -> int:
        """Number of response tokens that are predicted."""
        return sum(map(len, self.responses)) - sum(map(len, self.unscored))

    @property
    def tokens(self) -> int:
        """Number of tokens of this group in a pack."""
        return len(self.prompt.ids) + sum(map(len, self.responses))


@dataclass(frozen=True)
class Pack:
    """Concatenated groups. Responses are numbered consecutively over all groups of the pack."""

    ids: Tensor  # [T] int64
    positions: Tensor  # [axes, T] int64
    mask: GroupMask
    pixels: Pixels | None  # images of all prompts
    predicts: Tensor  # [N] int64: indices whose hidden state predicts a response token
    targets: Tensor  # [N] int64: the predicted tokens
    response: Tensor  # [N] int64: number of the response of each target
    last: Tensor  # [responses] int64: index of each response's last token
    groups: range  # indices of the packed groups

    def to(self, device: torch.device) -> "Pack":
        """Returns the pack on `device`; packs are built on the CPU and moved to the device of the model."""
        return Pack(
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            mask=self.mask,
            pixels=None if self.pixels is None else self.pixels.to(device),
            predicts=self.predicts.to(device),
            targets=self.targets.to(device),
            response=self.response.to(device),
            last=self.last.to(device),
            groups=self.groups,
        )


def make_pack(groups: Sequence[Group], numbers: range) -> Pack:
    """Returns the pack of `groups[numbers]`."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    owner: list[int] = []  # number of the response of each token, -1 in a prompt
    predicts: list[int] = []
    scored: list[bool] = []
    last: list[int] = []
    spans: list[GroupSpan] = []
    place = responses = 0
    for number in numbers:
        group = groups[number]
        prompt_tokens = len(group.prompt.ids)
        spans.append(GroupSpan(place, prompt_tokens, tuple(map(len, group.responses))))
        ids.append(group.prompt.ids)
        positions.append(group.prompt.positions)
        owner += [-1] * prompt_tokens
        prompt_end = place + prompt_tokens - 1
        place += prompt_tokens
        following = int(group.prompt.positions.max()) + 1
        for number_in_group, response in enumerate(group.responses):
            count = len(response)
            ids.append(torch.tensor(response, dtype=torch.long))
            positions.append((following + torch.arange(count)).expand(len(group.prompt.positions), -1))
            owner += [responses] * count
            left_out = group.unscored[number_in_group] if group.unscored else frozenset()
            scored += [position not in left_out for position in range(count)]
            predicts += [prompt_end, *range(place, place + count - 1)]
            place += count
            last.append(place - 1)
            responses += 1
    all_ids, owners = torch.cat(ids), torch.tensor(owner)
    in_response = owners >= 0
    chosen = torch.tensor(scored, dtype=torch.bool)
    pixels = [groups[number].prompt.pixels for number in numbers]
    seen = [one for one in pixels if one is not None]
    return Pack(
        ids=all_ids,
        positions=torch.cat(positions, dim=1),
        mask=GroupMask(tuple(spans)),
        pixels=Pixels.concatenate(seen) if seen else None,
        predicts=torch.tensor(predicts, dtype=torch.long)[chosen],
        targets=all_ids[in_response][chosen],
        response=owners[in_response][chosen],
        last=torch.tensor(last, dtype=torch.long),
        groups=numbers,
    )


def make_packs(groups: Sequence[Group], tokens_per_pack: int) -> Iterator[Pack]:
    """Yields packs of consecutive groups up to `tokens_per_pack` tokens; a larger group gets a separate pack."""
    start = tokens = 0
    for number, group in enumerate(groups):
        if number > start and tokens + group.tokens > tokens_per_pack:
            yield make_pack(groups, range(start, number))
            start, tokens = number, 0
        tokens += group.tokens
    if start < len(groups):
        yield make_pack(groups, range(start, len(groups)))
