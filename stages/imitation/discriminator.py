"""The discriminator (§3.2): the SFT student's language model with one number in place of the vocabulary.

Student text is 1, teacher text is 0. It reads the response inside a fixed prompt (Fig. 3), not the question and not the image.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from stages.groups import Pack, packs, use_group_attention
from stages.imitation.prompts import discriminator_group
from stages.vlm import Network, Reader, text_hidden

WEIGHTS = "discriminator.safetensors"
TEXTS_PER_GROUP = 8  # texts share the prompt's tokens; more would only make the attention mask larger


class Discriminator(nn.Module):
    """Scores texts: logit z > 0 says student, z < 0 says teacher."""

    def __init__(self, network: Network, seed: int) -> None:
        """Takes over `network`'s language model; the scalar head starts small, from `seed`."""
        super().__init__()
        self.text = network.family.text_model(network.model)
        hidden = network.head.in_features
        self.score = nn.Linear(hidden, 1)
        generator = torch.Generator().manual_seed(seed % 2**63)
        with torch.no_grad():
            self.score.weight.copy_(torch.randn(1, hidden, generator=generator) * 0.02)
            self.score.bias.zero_()

    def forward(self, pack: Pack) -> Tensor:
        """Logit [texts] fp32 of every text of the pack, read at its last token."""
        use_group_attention(self.text)
        embedded = self.text.embed_tokens(pack.ids)  # type: ignore[operator]
        hidden = text_hidden(self.text, embedded, pack.positions, pack.mask)
        return self.score(hidden[pack.last]).float().squeeze(1)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Writes the weights into `folder`."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        """Reads weights that `save` wrote."""
        self.load_state_dict(load_file(folder / WEIGHTS))


def text_packs(reader: Reader, texts: Sequence[str], tokens_per_pack: int) -> list[Pack]:
    """Packs of the texts in the discriminator's prompt, in order."""
    starts = range(0, len(texts), TEXTS_PER_GROUP)
    return list(packs([discriminator_group(reader, list(texts[i : i + TEXTS_PER_GROUP])) for i in starts], tokens_per_pack))


def discriminator_loss(logits: Tensor, labels: Tensor, texts: int) -> Tensor:
    """Binary cross entropy of a pack's logits [n] with labels [n] (student 1), summed and divided by the texts of the step.

    Eq. 1 is -2 times its mean over a balanced step.
    """
    return binary_cross_entropy_with_logits(logits, labels, reduction="sum") / texts


@torch.no_grad()
def logits_of(discriminator: Discriminator, reader: Reader, texts: Sequence[str], tokens_per_pack: int) -> list[float]:
    """The logit of each text."""
    found = [discriminator(pack) for pack in text_packs(reader, texts, tokens_per_pack)]
    return [float(logit) for logits in found for logit in logits]


def accuracy(logits: Sequence[float], labels: Sequence[int]) -> float:
    """Share of texts on the right side; z = 0 counts as wrong for both sides."""
    right = [logit > 0 if label else logit < 0 for logit, label in zip(logits, labels, strict=True)]
    return sum(right) / len(right)
