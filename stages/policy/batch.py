"""Groups of a step as input of the policy update: prepared without rewards, then rewarded, then packed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.groups.pack import Group, Pack
from stages.groups.response import STUDENT, TEACHERS
from stages.job.metric_names import for_source
from stages.policy.rewards import ScoredResponse
from stages.training.ranks import get_ranks
from stages.vlm.reader import Prompt


@dataclass(frozen=True)
class ReferenceCache:
    """Reward-independent inputs of the update for one group."""

    features: Tensor | None  # [image tokens, hidden] of its images, if the vision tower is frozen
    log_probs: Mapping[tuple[int, ...], Tensor]  # log p [tokens] under the SFT student, by response token ids
    states: Mapping[tuple[int, ...], Tensor]  # hidden states [tokens, hidden] that predict them; only for full KL


@dataclass(frozen=True)
class RewardedGroup:
    """The prompt of one question with the scored responses of its group."""

    prompt: Prompt
    responses: tuple[ScoredResponse, ...]
    cache: ReferenceCache | None = None  # from `Policy.cache_reference`; if None, the update computes it
    question_id: str = ""

    @property
    def group(self) -> Group:
        """The prompt and response tokens, as input of packing."""
        return Group(self.prompt, tuple(one.response.token_ids for one in self.responses))


@dataclass(frozen=True)
class PreparedGroup:
    """One question of this rank's share, without rewards."""

    place: int  # of the question in the step
    prompt: Prompt
    cache: ReferenceCache
    question_id: str

    def add_rewards(self, groups: Sequence[Sequence[ScoredResponse]]) -> RewardedGroup:
        """Returns the group with its scored responses, selected from those of all questions of the step."""
        return RewardedGroup(self.prompt, tuple(groups[self.place]), self.cache, self.question_id)


@dataclass(frozen=True)
class PolicyBatch:
    """A pack of the step with the tensors that are constant over inner updates."""

    pack: Pack
    responses: Sequence[ScoredResponse]  # of the pack
    features: Tensor | None  # of its images, if the vision tower is frozen
    reference_states: Tensor | None  # [N, hidden], only for KL over the whole vocabulary
    reference: Tensor  # [N]: log p under the SFT student

    def expand_to_tokens(self, values: Sequence[float]) -> Tensor:
        """Expands one value per response to [N], one per response token."""
        return torch.tensor(values, device=self.pack.response.device)[self.pack.response]

    @property
    def student_tokens(self) -> Tensor:
        """Mask [N] bool of student tokens."""
        return self.mask_source(STUDENT)

    def mask_source(self, source: str) -> Tensor:
        """Returns the mask [N] bool of tokens from `source`."""
        wrote = [one.response.source == source for one in self.responses]
        return torch.tensor(wrote, dtype=torch.bool, device=self.pack.response.device)[self.pack.response]

    def stack_teachers(self, count: int, like: Tensor) -> Tensor:
        """Returns log p [count, N] of each token under each of `count` teachers, of the dtype and device of `like`.

        0 for responses without values, which have no policy term. Raises ValueError for one that nobody scored.
        """
        rows: list[list[float]] = [[] for _ in range(count)]
        for one in self.responses:
            values = one.response.teacher_log_probs
            if values is None:
                raise ValueError("ril.objective distils, but an answer has no log probabilities of teachers")
            for number, row in enumerate(rows):
                row += values[number] if values else [0.0] * len(one.response.token_ids)
        return torch.tensor(rows, dtype=like.dtype, device=like.device)

    def mask_term(self, term: str) -> Tensor | None:
        """Returns the mask [N] bool of tokens whose responses have this loss term; None if there are none."""
        chosen = [one.term == term for one in self.responses]
        return torch.tensor(chosen, device=self.pack.response.device)[self.pack.response] if any(chosen) else None


@dataclass
class TokenMeans:
    """Accumulates token-level metrics over a step."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, values: Tensor) -> None:
        """Adds one value per token to the sums of `name`."""
        self.sums[name] += float(values.sum())
        self.tokens[name] += len(values)

    def add_by_source(self, name: str, values: Tensor, batch: PolicyBatch) -> None:
        """Adds the values [N] under `name`/<source> for each source, and under `name`/TEACHERS for all teachers."""
        for source in dict.fromkeys(one.response.source for one in batch.responses):
            self.add(for_source(name, source), values[batch.mask_source(source)])
        self.add(for_source(name, TEACHERS), values[~batch.student_tokens])

    def compute_means(self) -> dict[str, float]:
        """Returns the mean of each metric over the tokens of all ranks; metrics without tokens are omitted."""
        parts = get_ranks().gather((dict(self.sums), dict(self.tokens)))
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        tokens = {name: sum(counts.get(name, 0) for _, counts in parts) for name in names}
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / tokens[name] for name in names if tokens[name]}
