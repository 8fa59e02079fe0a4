"""The pre-trained discriminator as a scorer of texts: the probability that a teacher wrote one.

It is the one of stage `discriminator`, before the loop: that of the loop's end is not kept.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from flows.chat.question import AskedQuestion
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text, score_texts
from stages.config.lora import get_quantization
from stages.config.params import Params
from stages.vlm.checkpoint import open_verified
from stages.vlm.reader import load_network, load_reader


class TextScorer:
    """Scores the answers to a question."""

    def __init__(self, model: DiscriminatorModel, collator: DiscriminatorCollator) -> None:
        self._model, self._collator = model.eval(), collator

    def __call__(self, question: AskedQuestion, texts: Sequence[str]) -> list[float]:
        """Returns sigmoid(-z) of each text: z > 0 is the student's side (Eq. 1)."""
        given = [Text(text, question.name, question.messages, question.images) for text in texts]
        return [1 / (1 + math.exp(min(logit, 700.0))) for logit in score_texts(self._model, self._collator, given)]


def load_text_scorer(root: Path, store: Path, params: Params) -> TextScorer:
    """Loads data/discriminator over data/warm_start.

    Raises FileNotFoundError when its stage ran without one, BadWeights for weights that do not fit.
    """
    block = params.discriminator
    checkpoint = open_verified(root / "data" / "warm_start", store)
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader, params.runtime, get_quantization(block.lora))
    if block.lora:
        network = network.add_adapter("discriminator", block.lora, seed=0)
    model = DiscriminatorModel(network, seed=0, sees=block.sees)
    model.load(root / "data" / "discriminator")
    if torch.cuda.is_available():
        model.to("cuda")
    return TextScorer(model, DiscriminatorCollator(reader, block.tokens_per_pack, block.sees))
