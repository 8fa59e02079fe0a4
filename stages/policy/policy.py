"""The policy: the student, its reference model, and their part of a step (Eq. 2).

The reference pass needs no rewards, so it runs while the judge works (`Policy.prepare`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stages.config.objective import PAPER, Objective
from stages.config.ril import Ril
from stages.corpora.rows import Question
from stages.groups.log_probs import predicting_states, token_entropies, token_full_kl, token_log_probs
from stages.groups.pack import Group, Pack, make_packs
from stages.groups.response import STUDENT, Response
from stages.job import metric_names as names
from stages.policy.batch import PolicyBatch, PreparedGroup, ReferenceCache, RewardedGroup, TokenMeans
from stages.policy.loss import (
    LossInputs,
    count_tokens,
    distillation_advantages,
    k3,
    policy_loss,
    rollout_weights,
)
from stages.policy.rewards import select_trainable
from stages.training.frozen import FrozenShards
from stages.training.passes import PaddingGroups, balance_packs, estimate_prompt_cost
from stages.training.ranks import MEETINGS, get_ranks
from stages.training.trainer import Trainer
from stages.vlm.reader import Network, Prompt, Reader
from stages.vlm.shards import is_sharded
from stages.vlm.weights import is_finite


@dataclass(frozen=True)
class Policy:
    """The student with its trainer, the reference model, and the settings of Eq. 2.

    With several ranks, each processes a share of the step's groups; loss, gradient and metrics cover all ranks.
    """

    student: Network
    reference: Network  # the SFT student, never refreshed; may share its model with a student that has an adapter
    trainer: Trainer
    block: Ril
    objective: Objective = PAPER
    padding: PaddingGroups | None = None  # equalizes the number of passes; required with several ranks
    shards: FrozenShards | None = None  # of the reference's weights; None if every rank has all of them

    @property
    def temperature(self) -> float:
        """Temperature of all log-probabilities, equal to that of sampling (trap T14)."""
        return self.block.sampling.temperature or 1.0

    def iter_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Returns name and value of all student weights for the engine; empty on ranks other than the first.

        All ranks must exhaust it together.
        """
        return self.student.iter_weights(self.trainer.state_dict())

    def export_adapter(self) -> tuple[Callable[[Path], None], int]:
        """Returns a function that writes the student's adapter to the folder `adapter` of a folder, and its bytes.

        All ranks must call this together; the function is for the first one.
        """
        state = self.trainer.state_dict()
        save = partial(self.student.save_adapter, state, base="data/warm_start")
        return save, sum(tensor.nbytes for tensor in state.values())

    # --- before rewards ----------------------------------------------------------------------------------------------

    def open_prompts(
        self, reader: Reader, questions: Sequence[Question], groups: Sequence[Sequence[Response]]
    ) -> list[tuple[int, Prompt]]:
        """Returns the places and prompts of this rank's share of the step's groups: decodes their images.

        Communicates with no other rank and uses no model, so that a thread can do it while a model learns.
        """
        own = get_ranks().share(list(zip(questions, groups, strict=True)), partial(estimate_tokens, reader))
        prompts = reader.make_prompts([(questions[place].messages, questions[place].images) for place in own])
        return list(zip(own, prompts, strict=True))

    def prepare(
        self,
        opened: Sequence[tuple[int, Prompt]],
        questions: Sequence[Question],
        groups: Sequence[Sequence[Response]],
    ) -> list[PreparedGroup]:
        """Returns prompts and reference log-probabilities of the groups that `open_prompts` has opened."""
        kept = [select_trainable(groups[place], self.objective) for place, _ in opened]
        packed = [
            Group(prompt, tuple(one.token_ids for one in rows)) for (_, prompt), rows in zip(opened, kept, strict=True)
        ]
        caches = self.cache_reference(packed)
        return [
            PreparedGroup(place, prompt, cache, questions[place].id)
            for (place, prompt), cache in zip(opened, caches, strict=True)
        ]

    @torch.no_grad()
    def cache_reference(self, groups: Sequence[Group]) -> list[ReferenceCache]:
        """Returns image features and log p of each response under the SFT student.

        If the vision tower is trained, the reference model uses its own frozen tower and no features are shared. A
        tower and a reference that are sharded run equally often on all ranks.
        """
        caches: list[ReferenceCache] = []
        budget, frozen = self.block.tokens_per_pack, self.block.freeze_vision
        sharded = self.trainer.sharded and frozen
        divided = is_sharded(self.reference.text)  # by the trainer of an adapter, perhaps the discriminator's
        together = sharded or divided or self.shards is not None
        # The tower that is sharded is the student's, or the reference's if it runs.
        tower = sharded or (self.shards is not None and not frozen and self.reference.has_vision)
        made = balance_packs(groups, budget, self.padding, tower) if together else make_packs(groups, budget)
        for pack in (one.to(self.student.device) for one in made):
            compute = partial(compute_features, self.student, pack)
            features = (self.trainer.forward(compute) if sharded else compute()) if frozen else None
            if not (pack.groups or divided or self.shards):  # padding that synchronizes the ranks
                continue
            score = partial(self._score_reference, pack, features)
            with MEETINGS.attend() if divided else nullcontext():
                states, log_probs = self.shards.forward(score) if self.shards else score()
            if pack.groups:
                kept = [groups[number] for number in pack.groups]
                caches += self._split_by_group(kept, states, log_probs, features)
        return caches

    def _score_reference(self, pack: Pack, features: Tensor | None) -> tuple[Tensor, Tensor]:
        states = predicting_states(self.reference, pack, features)
        return states, token_log_probs(states, self.reference.head.weight, pack.targets, self.temperature)

    def _split_by_group(
        self, groups: Sequence[Group], states: Tensor, log_probs: Tensor, features: Tensor | None
    ) -> list[ReferenceCache]:
        lengths = [len(ids) for group in groups for ids in group.responses]
        by_response = iter(zip(torch.split(log_probs, lengths), torch.split(states, lengths), strict=True))
        images = [int((group.prompt.ids == self.student.image_token_id).sum()) for group in groups]
        seen = [None] * len(groups) if features is None else torch.split(features[: sum(images)], images)
        caches = []
        for group, its_features in zip(groups, seen, strict=True):
            found = {ids: next(by_response) for ids in group.responses}
            log_probs_of = {ids: values for ids, (values, _) in found.items()}
            states_of = {ids: rows for ids, (_, rows) in found.items()} if self.objective.has_full_kl else {}
            caches.append(ReferenceCache(its_features, log_probs_of, states_of))
        return caches

    # --- the update --------------------------------------------------------------------------------------------------

    def update(self, groups: Sequence[RewardedGroup], rate: float) -> dict[str, float | None]:
        """Runs `inner_updates` steps of Eq. 2 on all responses of this rank's groups; returns the first one's metrics.

        With a frozen vision tower, image features are computed once and shared by student and reference model. The old
        log-probabilities are those of the first inner update, so no separate pass is needed for any mu; at mu = 1 the
        ratio is exactly 1.
        """
        kept = [group for group in groups if group.responses]
        responses = int(get_ranks().sum(sum(len(group.responses) for group in kept)))
        if not responses:
            return {names.LOSS: None, names.GRAD_NORM: 0.0}
        batches = self._make_batches(self._add_caches(kept))
        constant = self.objective.loss_normaliser == "constant"
        normaliser = float(responses * (self.block.sampling.max_tokens if constant else 1))
        old: list[Tensor] = []
        metrics: dict[str, float | None] = {}
        for inner in range(self.block.inner_updates):
            means = TokenMeans()
            for number, batch in enumerate(batches):
                compute = partial(self._loss, batch, old[number] if inner else None, normaliser, means)
                loss, log_probs = self.trainer.forward(compute)
                owners = [kept[place].question_id for place in batch.pack.groups for _ in kept[place].responses]
                value = self.trainer.backward(loss, number == len(batches) - 1, owners)
                if not math.isfinite(value) or not is_finite(batch.reference):  # k3 clamps a reference of infinity
                    self._blame_term(batch, log_probs, owners)
                if inner == 0:
                    old.append(log_probs)
            done = self.trainer.step(rate)
            if inner == 0:
                update = {names.LOSS: done.loss, names.GRAD_NORM: done.grad_norm, names.LEARNING_RATE: rate}
                metrics = {**update, **means.compute_means()}
            else:  # ratios of the last inner update: how far off-policy the student is for mu > 1
                last = means.compute_means()
                metrics |= {names.for_last_update(name): last[name] for name in (names.RATIO, names.CLIP_RATIO)}
        return metrics

    def _blame_term(self, batch: PolicyBatch, log_probs: Tensor, owners: Sequence[str]) -> None:
        """Names the term of the loss that is not finite; `owners` are the question ids of the pack's responses."""
        advantages = batch.expand_to_tokens([one.advantage for one in batch.responses])
        terms = {"reference log-probability": batch.reference, "advantage": advantages, "log-probability": log_probs}
        for term, values in terms.items():
            broken = ~torch.isfinite(values)
            if broken.any():
                responses = batch.pack.response[broken].tolist()
                self.trainer.blame(term, float(values[broken][0]), [owners[place] for place in responses])

    def _add_caches(self, groups: Sequence[RewardedGroup]) -> list[RewardedGroup]:
        if not get_ranks().max(int(any(group.cache is None for group in groups)))[0]:  # all ranks or none
            return list(groups)
        caches = self.cache_reference([group.group for group in groups])
        return [replace(group, cache=cache) for group, cache in zip(groups, caches, strict=True)]

    def _make_batches(self, groups: Sequence[RewardedGroup]) -> list[PolicyBatch]:
        """Returns the packs of the step with the caches of their responses concatenated in pack order."""
        made = balance_packs(
            [group.group for group in groups], self.block.tokens_per_pack, self.padding, self.student.trains_vision
        )
        return [self._batch(pack.to(self.student.device), [groups[number] for number in pack.groups]) for pack in made]

    def _batch(self, pack: Pack, groups: Sequence[RewardedGroup]) -> PolicyBatch:
        if not groups:  # padding only
            device = self.student.device
            empty = torch.zeros(0, self.student.head.in_features, device=device)
            return PolicyBatch(pack, (), None, empty, torch.zeros(0, device=device))
        caches = [group.cache for group in groups if group.cache is not None]
        places = [
            (cache, one.response.token_ids)
            for cache, group in zip(caches, groups, strict=True)
            for one in group.responses
        ]
        features = [cache.features for cache in caches if cache.features is not None and len(cache.features)]
        return PolicyBatch(
            pack,
            [one for group in groups for one in group.responses],
            torch.cat(features) if features else None,
            torch.cat([cache.states[ids] for cache, ids in places]) if caches[0].states else None,
            torch.cat([cache.log_probs[ids] for cache, ids in places]),
        )

    def _loss(
        self, batch: PolicyBatch, before: Tensor | None, normaliser: float, means: TokenMeans
    ) -> tuple[Tensor, Tensor]:
        """Returns the batch's part of the loss and its log-probabilities [N] without gradient.

        `before` [N] are the log-probabilities of the first inner update. If None, this is the first inner update and
        the ratio is exactly 1.
        """
        states = predicting_states(self.student, batch.pack, batch.features)
        weight, targets = self.student.head.weight, batch.pack.targets
        if before is None:
            log_probs, entropy = token_entropies(states, weight, targets, self.temperature)
            means.add_by_source(names.ENTROPY, entropy, batch)
            means.add_by_source(names.KL, k3(log_probs.detach(), batch.reference), batch)
            self._measure_divergence(log_probs.detach(), batch, means)
        else:
            log_probs = token_log_probs(states, weight, targets, self.temperature)
        old = log_probs.detach() if before is None else before
        inputs = self._make_loss_inputs(batch, old, normaliser, self._compute_full_kl(states, batch))
        loss, seen = policy_loss(log_probs, old, inputs)
        for name, values in seen.items():
            means.add(name, values)
            means.add_by_source(name, values, batch)
        return loss, log_probs.detach()

    def _measure_divergence(self, log_probs: Tensor, batch: PolicyBatch, means: TokenMeans) -> None:
        """Adds the estimated reverse KL of the tokens to each teacher that the student is distilled from."""
        if not self.objective.distils:
            return
        scored = batch.expand_to_tokens([float(bool(one.response.teacher_log_probs)) for one in batch.responses]) > 0
        named = self.block.distillation
        gaps = (log_probs - batch.stack_teachers(len(named), log_probs))[:, scored]
        found = {names.REVERSE_KL_OF.format(name): values for name, values in zip(named, gaps, strict=True)}
        for column, values in {**found, names.REVERSE_KL: gaps.mean(0)}.items():
            means.add(column, values)

    def _compute_full_kl(self, states: Tensor, batch: PolicyBatch) -> Tensor | None:
        if not self.objective.has_full_kl or batch.reference_states is None:
            return None
        whole = self.shards.kept if self.shards else None
        heads = self.student.head.weight, self.reference.head.weight if whole is None else whole
        return token_full_kl(states, heads[0], batch.reference_states, heads[1], self.temperature)

    def _make_loss_inputs(self, batch: PolicyBatch, old: Tensor, normaliser: float, full: Tensor | None) -> LossInputs:
        objective, response = self.objective, batch.pack.response
        weights = None
        if objective.loss_normaliser == "row":
            weights = 1.0 / count_tokens(response)[response]
        if (outside := batch.mask_term("none")) is not None:
            weights = torch.where(outside, 0.0, 1.0 if weights is None else weights)
        teacher_kl = objective.kl_on_teacher_rows
        advantages = batch.expand_to_tokens([one.advantage for one in batch.responses])
        if objective.distils:
            teachers = batch.stack_teachers(len(self.block.distillation), old)
            advantages = advantages + distillation_advantages(old, teachers)
        return LossInputs(
            advantages=advantages,
            reference=batch.reference,
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            kl_weight=self.block.kl_weight,
            normaliser=normaliser,
            ratio=objective.ratio,
            kl=objective.kl,
            response=response,
            weights=weights,
            gain_weights=compute_corrections(batch, old, objective),
            luffy=batch.mask_term("luffy"),
            luffy_gamma=objective.luffy_gamma,
            sft=batch.mask_term("sft"),
            teacher_mask=None if teacher_kl == "same" else ~batch.student_tokens,
            teacher_kl=None if teacher_kl in ("same", "none") else teacher_kl,  # type: ignore[arg-type]
            full_kl=full,
        )


def estimate_tokens(reader: Reader, question_and_responses: tuple[Question, Sequence[Response]]) -> float:
    """Estimates the tokens of a group; the cost by which ranks share a step."""
    question, responses = question_and_responses
    prompt = estimate_prompt_cost(reader, question.messages, question.images)
    return prompt + sum(len(one.token_ids) for one in responses)


def compute_corrections(batch: PolicyBatch, old: Tensor, objective: Objective) -> Tensor | None:
    """Returns importance weights [N] for the mismatch of engine and trainer; None if rollout_correction is "none".

    Raises ValueError when a student response has no log-probabilities from the engine.
    """
    if objective.rollout_correction == "none":
        return None
    sampled: list[float] = []
    for one in batch.responses:
        if one.response.source == STUDENT and one.response.sampled_log_probs is None:
            raise ValueError(
                f"ril.rollout_correction is {objective.rollout_correction!r}, but the engine returned no "
                "log-probs; set it to none"
            )
        sampled += one.response.sampled_log_probs or [0.0] * len(one.response.token_ids)
    engine = torch.tensor(sampled, dtype=old.dtype, device=old.device)
    kind, cap = objective.rollout_correction, objective.rollout_cap
    return rollout_weights(old, engine, batch.student_tokens, batch.pack.response, kind, cap)


def compute_features(network: Network, pack: Pack) -> Tensor | None:
    """Returns the image features of a pack without gradient; None for a pack without images."""
    if pack.pixels is None:
        return None
    with torch.no_grad():
        return network.encode_images(pack.pixels)
