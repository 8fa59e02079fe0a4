"""The discriminator (§3.2): the SFT student's language model with one number in place of the vocabulary.

Student text is 1, teacher text is 0. It reads the response inside a fixed prompt (Fig. 3), not the question and not the
image, unless `discriminator.sees` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from stages.adversary.prompt import make_discriminator_group, make_question_group
from stages.config.discriminator import DiscriminatorLoss, Sees
from stages.groups.attention import use_group_attention
from stages.groups.pack import Group, Pack
from stages.training.passes import PaddingGroups, balance_packs
from stages.training.ranks import get_ranks
from stages.training.trainer import Trainer
from stages.vlm.reader import Network, Reader, compute_text_hidden

WEIGHTS = "discriminator.safetensors"
TEXTS_PER_GROUP = 8  # texts share the prompt's tokens; more would only make the attention mask larger


class DiscriminatorModel(nn.Module):
    """Scores texts: logit z > 0 says student, z < 0 says teacher."""

    def __init__(self, network: Network, seed: int, sees: Sees = "response") -> None:
        """Takes over `network`'s language model; the scalar head starts small, from `seed`.

        Where it sees images it takes over the vision tower too, which stays as the SFT student has it.
        """
        super().__init__()
        self.text = network.family.get_text_model(network.model)
        hidden = network.head.in_features
        self.score = nn.Linear(hidden, 1)
        generator = torch.Generator().manual_seed(seed % 2**63)
        with torch.no_grad():
            self.score.weight.copy_(torch.randn(1, hidden, generator=generator) * 0.02)
            self.score.bias.zero_()
        self._network: tuple[Network, ...] = ()  # a tuple, so that its head is no part of this module
        if sees == "question_and_image":
            self.vision = nn.ModuleList(network.family.get_vision_modules(network.model)).requires_grad_(False)
            self._network = (network,)

    def forward(self, pack: Pack) -> Tensor:
        """Logit [texts] fp32 of every text of the pack, read at its last token."""
        use_group_attention(self.text)
        pack = pack.to(self.score.weight.device)
        embedded = self.text.embed_tokens(pack.ids)  # type: ignore[operator]
        if pack.pixels is not None:
            (network,) = self._network
            with torch.no_grad():
                features = network.encode_images(pack.pixels)
            places = pack.ids == network.image_token_id
            embedded = embedded.masked_scatter(places[:, None], features.to(embedded.dtype))
        hidden = compute_text_hidden(self.text, embedded, pack.positions, pack.mask)
        return self.score(hidden[pack.last]).float().squeeze(1)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Writes the weights into `folder`; they must be whole (`save_discriminator` takes those of a trainer)."""
        save_discriminator(self.state_dict(), folder)

    def load(self, folder: Path) -> None:
        """Reads weights that `save` wrote.

        Raises FileNotFoundError when there are none: the stage ran for an objective without discriminator.
        """
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"{folder} holds no discriminator: its stage ran without one; run: dvc repro discriminator"
            )
        self.load_state_dict(load_file(folder / WEIGHTS))


def save_discriminator(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes a discriminator's state into `folder`, as `DiscriminatorModel.load` reads it."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)


@dataclass(frozen=True)
class Text:
    """A text to score, with what a discriminator that sees more would be shown."""

    body: str
    question_id: str = ""
    messages: Sequence[Mapping[str, str]] = ()
    images: Sequence[bytes] = field(default=(), repr=False)


@dataclass(frozen=True)
class DiscriminatorCollator:
    """Makes packs of texts: which prompt they stand in, and which of them share a pack."""

    reader: Reader
    tokens_per_pack: int
    sees: Sees = "response"
    together: bool = False  # all texts of a question in one pack, as a loss over pairs needs them

    @property
    def _independent(self) -> bool:
        """Whether every text can stand beside any other."""
        return self.sees == "response" and not self.together

    def share(self, texts: Sequence[Text]) -> list[int]:
        """Places of the texts that are this rank's, ascending; texts that belong together stay together."""
        runs = [[text] for text in texts] if self._independent else split_by_question(texts)
        own = set(get_ranks().share(runs, lambda run: sum(len(text.body) for text in run)))
        numbers = [number for number, run in enumerate(runs) for _ in run]
        return [place for place, number in enumerate(numbers) if number in own]

    def make_packs(self, texts: Sequence[Text], tower: bool = False) -> list[Pack]:
        """Packs of this rank's texts, in order; texts of one question follow each other. `tower` as in
        `balance_packs`.
        """
        sees = tower and self.sees == "question_and_image"
        return list(balance_packs(self._make_groups(texts), self.tokens_per_pack, PaddingGroups(self.reader), sees))

    def collate(
        self, texts: Sequence[Text], labels: Sequence[float], loss: DiscriminatorLoss, tower: bool = False
    ) -> "DiscriminatorBatch":
        """Texts and labels (student 1, teacher 0) as one optimizer step; `tower` as in `balance_packs`."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(text.question_id for text in texts))}
        own = self.share(texts)
        packs = self.make_packs([texts[place] for place in own], tower)
        questions = torch.tensor([numbers[text.question_id] for text in texts])
        return DiscriminatorBatch(packs, torch.tensor(own, dtype=torch.long), torch.tensor(labels), questions, loss)

    def _make_groups(self, texts: Sequence[Text]) -> list[Group]:
        if self._independent:
            return group_texts(self.reader, [text.body for text in texts])
        return [self._group(run) for run in split_by_question(texts)]

    def _group(self, texts: Sequence[Text]) -> Group:
        bodies = [text.body for text in texts]
        if self.sees == "response":
            return make_discriminator_group(self.reader, bodies)
        images = texts[0].images if self.sees == "question_and_image" else ()
        return make_question_group(self.reader, texts[0].messages, images, bodies)


def split_by_question(texts: Sequence[Text]) -> list[list[Text]]:
    """The texts in order, cut where the question changes."""
    runs: list[list[Text]] = []
    for text in texts:
        if runs and runs[-1][0].question_id == text.question_id:
            runs[-1].append(text)
        else:
            runs.append([text])
    return runs


def group_texts(reader: Reader, texts: Sequence[str]) -> list[Group]:
    """The texts in the discriminator's prompt, in order."""
    starts = range(0, len(texts), TEXTS_PER_GROUP)
    return [make_discriminator_group(reader, list(texts[i : i + TEXTS_PER_GROUP])) for i in starts]


def discriminator_loss(logits: Tensor, labels: Tensor, texts: int) -> Tensor:
    """Binary cross entropy of a pack's logits [n] with labels [n] (student 1), summed and divided by the texts of the
    step.

    Eq. 1 is -2 times its mean over a balanced step.
    """
    return binary_cross_entropy_with_logits(logits, labels, reduction="sum") / texts


def mask_pairs(labels: Tensor, questions: Tensor) -> Tensor:
    """[n, n] bool: row a student text, column a teacher text, both answers to one question."""
    student = labels > 0.5
    return student[:, None] & ~student[None, :] & (questions[:, None] == questions[None, :])


def bradley_terry_loss(logits: Tensor, labels: Tensor, questions: Tensor, pairs: int) -> Tensor:
    """-log sigma(z_student - z_teacher) of a pack, over all pairs that answer one question, divided by the pairs of the
    step.

    GAD's loss (arXiv 2511.10643) in our sign: its D is high for the teacher, ours for the student.
    """
    wanted = mask_pairs(labels, questions)
    return softplus(logits[None, :] - logits[:, None])[wanted].sum() / pairs


@dataclass(frozen=True)
class DiscriminatorBatch:
    """One optimizer step's texts with their labels; the packs are this rank's share."""

    packs: list[Pack]
    own: Tensor  # [texts of the packs] int64: their places among all
    labels: Tensor  # [texts] float: student 1, teacher 0; of all ranks
    questions: Tensor  # [texts] int64; of all ranks
    kind: DiscriminatorLoss  # which loss

    @property
    def count(self) -> int:
        """What the sum of all packs' losses is divided by: texts, or pairs, of all ranks."""
        if self.kind == "bce":
            return len(self.labels)
        return int(mask_pairs(self.labels, self.questions).sum())

    def loss(self, logits: Tensor, start: int) -> Tensor:
        """The share of a pack whose first text is this rank's number `start`."""
        part = self.own[start : start + len(logits)]
        if self.kind == "bce":
            return discriminator_loss(logits, self.labels[part].to(logits.device), self.count)
        labels, questions = self.labels[part].to(logits.device), self.questions[part].to(logits.device)
        return bradley_terry_loss(logits, labels, questions, self.count)


@torch.no_grad()
def score_texts(
    discriminator: DiscriminatorModel,
    collator: DiscriminatorCollator,
    texts: Sequence[Text],
    trainer: Trainer | None = None,
) -> list[float]:
    """The logit of each text; of `trainer`'s discriminator, sharded as it may be, each rank reads a share of them."""
    own = collator.share(texts)
    packs = collator.make_packs([texts[place] for place in own], tower=trainer is not None and trainer.sharded)
    scored = [(trainer.forward(partial(discriminator, pack)) if trainer else discriminator(pack)) for pack in packs]
    return collect_in_order(own, [float(logit) for logits in scored for logit in logits])


def collect_in_order(own: Sequence[int], values: Sequence[float]) -> list[float]:
    """The values of all ranks, each of which has those at its `own` places."""
    found = {
        place: value for pairs in get_ranks().gather(list(zip(own, values, strict=True))) for place, value in pairs
    }
    return [found[place] for place in range(len(found))]


def compute_accuracy(logits: Sequence[float], labels: Sequence[int]) -> float:
    """Share of texts on the right side; z = 0 counts as wrong for both sides."""
    right = [logit > 0 if label else logit < 0 for logit, label in zip(logits, labels, strict=True)]
    return sum(right) / len(right)
