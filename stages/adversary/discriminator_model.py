"""The discriminator (§3.2): the SFT student's language model with a scalar head instead of the vocabulary head.

Student text has label 1, teacher text 0. The input is the response inside a fixed prompt (Fig. 3); the question and the
image are included only if `discriminator.sees` selects them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

from stages.adversary.prompt import encode_bodies, encode_prefix, make_discriminator_group, make_question_group
from stages.config.discriminator import DiscriminatorLoss, Sees
from stages.groups.attention import use_group_attention
from stages.groups.pack import Group, Pack
from stages.groups.response import STUDENT
from stages.training.passes import PaddingGroups, balance_packs
from stages.training.ranks import get_ranks
from stages.training.trainer import Trainer
from stages.vlm.reader import Network, Reader
from stages.vlm.text_pass import compute_text_hidden, embed
from stages.vlm.weights import check_finite, load_state

WEIGHTS = "discriminator.safetensors"
NEGATIVE = "negative"  # the writer of texts that no model wrote (stages/adversary/negatives.py)
# Texts of a group share the tokens of a prompt and enlarge its attention mask: at least so many texts, of short ones as
# many as these tokens hold. 160 texts of 34 tokens behind a prompt of 69 took 0.43 s, in groups of eight 0.61 s (CPU).
TEXTS_PER_GROUP, GROUP_TOKENS = 8, 1024


class ScoreHead(nn.Linear):
    """A linear layer that computes in fp32 whatever the precision of its weights, so that no logit is rounded."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns fp32 [..., out_features]."""
        return linear(input.float(), self.weight.float(), self.bias.float())


class DiscriminatorModel(nn.Module):
    """Scores texts: logit z > 0 means student, z < 0 means teacher."""

    def __init__(self, network: Network, seed: int, sees: Sees = "response") -> None:
        """Takes the language model of `network`; the scalar head is initialized from `seed`, N(0, 0.02).

        If `network` has an adapter, only adapter and head are trained. If it sees images, it also takes the vision
        tower, which is frozen.
        """
        super().__init__()
        self.text = network.family.get_text_model(network.model)
        self._attention, self._image_token_id = network.group_attention, network.image_token_id
        hidden = network.head.in_features
        self.score = ScoreHead(hidden, 1)
        generator = torch.Generator().manual_seed(seed % 2**63)
        with torch.no_grad():
            self.score.weight.copy_(torch.randn(1, hidden, generator=generator) * 0.02)
            self.score.bias.zero_()
        self._network: Network | None = None  # only if needed: it holds the vision tower and the vocabulary head
        if sees == "question_and_image":
            self.vision = nn.ModuleList(network.family.get_vision_modules(network.model)).requires_grad_(False)
            self._network = network
        self._adapter: tuple[nn.Module, ...] = ()  # a tuple, so that its weights are registered once
        if network.trained is not network.model:
            network.trained.add_module("score", self.score)
            self._network, self._adapter = network, (network.trained,)

    @property
    def trained(self) -> nn.Module:
        """What is trained and saved: all of it, or its adapter and head."""
        return self._adapter[0] if self._adapter else self

    def forward(self, pack: Pack) -> Tensor:
        """Returns the logit [texts] fp32 of each text of the pack, computed at its last token."""
        use_group_attention(self.text, self._attention)
        pack, network = pack.to(self.score.weight.device), self._network
        features = None
        if pack.pixels is not None:
            assert network is not None
            with torch.no_grad():
                features = network.encode_images(pack.pixels)
        embedded = embed(self.text, pack.ids, features, self._image_token_id)
        if network is not None:
            network.select_adapter()
        hidden = compute_text_hidden(self.text, embedded, pack.positions, pack.mask)
        return self.score(hidden[pack.last]).squeeze(1)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Writes the weights into `folder`; they must not be sharded (see `save_discriminator`)."""
        save_discriminator(self.trained.state_dict(), folder)

    def load(self, folder: Path) -> None:
        """Loads weights written by `save`.

        Raises FileNotFoundError when there are none, because the stage ran for an objective without discriminator,
        BadWeights when tensors do not match or are not finite.
        """
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"{folder} has no discriminator: its stage ran without one; run: dvc repro discriminator"
            )
        load_state(self.trained, load_file(folder / WEIGHTS), folder / WEIGHTS)


def save_discriminator(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the state dict of what a discriminator trains into `folder`, in the format of `DiscriminatorModel.load`.

    Raises BadWeights, and writes nothing, when a value is not finite.
    """
    check_finite(weights, "the discriminator")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)


@dataclass(frozen=True)
class Text:
    """A text to score, with its question and images for a discriminator that sees them."""

    body: str
    question_id: str = ""
    messages: Sequence[Mapping[str, str]] = ()
    images: Sequence[bytes] = field(default=(), repr=False)


@dataclass(frozen=True)
class DiscriminatorCollator:
    """Builds packs from texts: selects their prompt and which texts share a pack."""

    reader: Reader
    tokens_per_pack: int
    sees: Sees = "response"
    together: bool = False  # all texts of a question in one pack, as required by pairwise losses

    @property
    def _independent(self) -> bool:
        """Whether any texts can share a group."""
        return self.sees == "response" and not self.together

    def share(self, texts: Sequence[Text]) -> list[int]:
        """Returns the indices of this rank's texts, ascending; texts of one question stay together if required."""
        runs = [[text] for text in texts] if self._independent else split_by_question(texts)
        own = set(get_ranks().share(runs, lambda run: sum(len(text.body) for text in run)))
        numbers = [number for number, run in enumerate(runs) for _ in run]
        return [place for place, number in enumerate(numbers) if number in own]

    def make_packs(self, texts: Sequence[Text], tower: bool = False) -> list[Pack]:
        """Returns packs of this rank's texts in order; texts of one question are adjacent. `tower`: `balance_packs`."""
        sees = tower and self.sees == "question_and_image"
        return list(balance_packs(self._make_groups(texts), self.tokens_per_pack, PaddingGroups(self.reader), sees))

    def collate(
        self, texts: Sequence[Text], writers: Sequence[str], loss: DiscriminatorLoss, tower: bool = False
    ) -> "DiscriminatorBatch":
        """Collates texts and who wrote them to one optimizer step; `tower` as in `balance_packs`."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(text.question_id for text in texts))}
        distinct = self.merge_equal(texts)
        packed = [texts[place] for place in distinct.first]
        own = self.share(packed)
        packs = self.make_packs([packed[place] for place in own], tower)
        questions = torch.tensor([numbers[text.question_id] for text in texts])
        labels = torch.tensor([float(writer in (STUDENT, NEGATIVE)) for writer in writers])
        return DiscriminatorBatch(
            packs, torch.tensor(own, dtype=torch.long), distinct, labels, weigh_sides(writers), questions, loss
        )

    def merge_equal(self, texts: Sequence[Text]) -> "Distinct":
        """Returns which texts are packed: of equal ones the first, where nothing but the text is scored."""
        if not self._independent:
            return Distinct(list(range(len(texts))), torch.arange(len(texts)))
        numbers: dict[str, int] = {}
        first: list[int] = []
        for at, text in enumerate(texts):
            if text.body not in numbers:
                numbers[text.body] = len(first)
                first.append(at)
        return Distinct(first, torch.tensor([numbers[text.body] for text in texts], dtype=torch.long))

    def _make_groups(self, texts: Sequence[Text]) -> list[Group]:
        if self._independent:
            return group_texts(self.reader, [text.body for text in texts], self.tokens_per_pack)
        return [self._group(run) for run in split_by_question(texts)]

    def _group(self, texts: Sequence[Text]) -> Group:
        bodies = [text.body for text in texts]
        if self.sees == "response":
            return make_discriminator_group(self.reader, bodies)
        images = texts[0].images if self.sees == "question_and_image" else ()
        return make_question_group(self.reader, texts[0].messages, images, bodies)


def split_by_question(texts: Sequence[Text]) -> list[list[Text]]:
    """Splits the texts into runs of the same question, in order."""
    runs: list[list[Text]] = []
    for text in texts:
        if runs and runs[-1][0].question_id == text.question_id:
            runs[-1].append(text)
        else:
            runs.append([text])
    return runs


def group_texts(reader: Reader, texts: Sequence[str], tokens_per_pack: int) -> list[Group]:
    """Returns groups of the texts in the discriminator's prompt, in order: of TEXTS_PER_GROUP, or more short ones."""
    opening, closing = encode_prefix(reader)
    room = min(GROUP_TOKENS, tokens_per_pack) - len(opening.ids)
    runs: list[list[tuple[int, ...]]] = []
    for body in encode_bodies(reader, texts, closing):
        if not runs or (len(runs[-1]) >= TEXTS_PER_GROUP and sum(map(len, runs[-1])) + len(body) > room):
            runs.append([])
        runs[-1].append(body)
    return [Group(opening, tuple(run)) for run in runs]


def weigh_sides(writers: Sequence[str]) -> Tensor:
    """Returns the weight [texts] of each text in the loss of a step; the weights of both sides add up to 1.

    Each side has 1/2, however many of its texts are left, and each teacher an equal share of the teachers' side.
    Negatives have another 1/2.
    """
    counts = Counter(writers)
    teachers = len(counts.keys() - {STUDENT, NEGATIVE})
    shares = {
        writer: 0.5 / count / (1 if writer in (STUDENT, NEGATIVE) else teachers) for writer, count in counts.items()
    }
    return torch.tensor([shares[writer] for writer in writers])


def discriminator_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Returns the binary cross entropy of logits [n] with labels [n] (student 1), as a sum with weights [n].

    With the weights of `weigh_sides` it is -1/2 of Eq. 1.
    """
    return binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")


def mask_pairs(labels: Tensor, questions: Tensor) -> Tensor:
    """Returns [n, n] bool: True where the row is a student text and the column a teacher text of the same question."""
    student = labels > 0.5
    return student[:, None] & ~student[None, :] & (questions[:, None] == questions[None, :])


def bradley_terry_loss(logits: Tensor, labels: Tensor, questions: Tensor, pairs: int) -> Tensor:
    """Returns -log sigma(z_student - z_teacher) summed over pairs of one question and divided by `pairs` of the step.

    The loss of GAD (arXiv 2511.10643) with the opposite sign: its D is high for the teacher, ours for the student.
    """
    wanted = mask_pairs(labels, questions)
    return softplus(logits[None, :] - logits[:, None])[wanted].sum() / pairs


@dataclass(frozen=True)
class Distinct:
    """Texts without repetitions: equal texts have one logit, so one of them is packed."""

    first: list[int]  # of each distinct text, the index of the first one that is equal
    place: Tensor  # [texts] int64: of each text, the number of its distinct text


@dataclass(frozen=True)
class DiscriminatorBatch:
    """The texts and labels of one optimizer step; the packs are this rank's share of the distinct texts."""

    packs: list[Pack]
    own: Tensor  # [texts of the packs] int64: their numbers among the distinct texts
    distinct: Distinct
    labels: Tensor  # [texts] float: student and negatives 1, teacher 0; for all ranks
    weights: Tensor  # [texts] float: of `weigh_sides`; for all ranks
    questions: Tensor  # [texts] int64; for all ranks
    kind: DiscriminatorLoss

    @property
    def pairs(self) -> int:
        """Number of pairs of a student text and a teacher text of one question, over all ranks."""
        return int(mask_pairs(self.labels, self.questions).sum())

    def loss(self, logits: Tensor, start: int) -> Tensor:
        """Returns the loss of a pack whose first text has index `start` in this rank's share.

        The cross entropy is linear in labels, so that equal texts count once with the sum of their weights and the mean
        of their labels. A pairwise loss has no equal texts merged.
        """
        part = self.own[start : start + len(logits)]
        if self.kind == "bce":
            labels, weights = self._merged
            return discriminator_loss(logits, labels[part].to(logits.device), weights[part].to(logits.device))
        assert len(self.distinct.first) == len(self.labels)
        return bradley_terry_loss(
            logits, self.labels[part].to(logits.device), self.questions[part].to(logits.device), self.pairs
        )

    @cached_property
    def _merged(self) -> tuple[Tensor, Tensor]:
        """Labels and weights of the distinct texts."""
        nothing, place = torch.zeros(len(self.distinct.first)), self.distinct.place
        weights = nothing.index_add(0, place, self.weights)
        return nothing.index_add(0, place, self.weights * self.labels) / weights, weights

    def measure_sides(self, logits: Tensor, real: Tensor) -> float:
        """Returns the loss of the sides, for the log: of the logits [texts] of all ranks that `real` [texts] marks."""
        count = int(real.sum())
        sides = replace(
            self,
            own=torch.arange(count),
            distinct=Distinct(list(range(count)), torch.arange(count)),
            labels=self.labels[real],
            weights=self.weights[real],
            questions=self.questions[real],
        )
        return float(sides.loss(logits[real], 0))


@torch.no_grad()
def score_texts(
    discriminator: DiscriminatorModel,
    collator: DiscriminatorCollator,
    texts: Sequence[Text],
    trainer: Trainer | None = None,
) -> list[float]:
    """Returns the logit of each text; each rank scores a share. Pass `trainer` if its discriminator may be sharded."""
    distinct = collator.merge_equal(texts)
    packed = [texts[place] for place in distinct.first]
    own = collator.share(packed)
    packs = collator.make_packs([packed[place] for place in own], tower=trainer is not None and trainer.sharded)
    scored = [(trainer.forward(partial(discriminator, pack)) if trainer else discriminator(pack)) for pack in packs]
    found = collect_in_order(own, [float(logit) for logits in scored for logit in logits])
    return [found[number] for number in distinct.place.tolist()]


def collect_in_order(own: Sequence[int], values: Sequence[float]) -> list[float]:
    """Gathers the values of all ranks in order; each rank provides the values at its `own` indices."""
    found = {
        place: value for pairs in get_ranks().gather(list(zip(own, values, strict=True))) for place, value in pairs
    }
    return [found[place] for place in range(len(found))]


def compute_accuracy(logits: Sequence[float], labels: Sequence[int]) -> float:
    """Returns the share of correctly classified texts; z = 0 counts as wrong for both classes."""
    right = [logit > 0 if label else logit < 0 for logit, label in zip(logits, labels, strict=True)]
    return sum(right) / len(right)
