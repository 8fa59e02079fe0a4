"""A vision tower from nothing: it first learns to tell what stands at each image token, before any language model reads
it.

Released models start from trained towers too. Without this, 400 steps of 32 rows passed on a plateau where no picture
was seen; 150 steps of this tell 98 % of the digits and all bars of held-out pictures.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.job.progress import Progress
from stages.training.guard import StepGuard
from stages.training.trainer import Trainer, learning_rate
from stages.vlm.family import Pixels
from stages.vlm.reader import Network

IGNORED = -1


class Probe(nn.Module):
    """The tower with one linear classifier for each thing to be told."""

    def __init__(self, network: Network, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.tower = nn.ModuleList(network.family.get_vision_modules(network.model))
        self.heads = nn.ModuleList(nn.Linear(network.head.in_features, count) for count in classes)

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Sum over classifiers of the mean cross entropy; features [tokens, n * hidden], targets [tokens, classifiers].

        Only the first `hidden` columns are told apart: those that the projector gives.
        """
        features = features[:, : self.heads[0].in_features]
        losses = [
            cross_entropy(head(features), wanted, ignore_index=IGNORED)
            for head, wanted in self._pair_classifiers(targets)
        ]
        return torch.stack(losses).sum()

    def _pair_classifiers(self, targets: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """Classifiers with targets of their own in this batch."""
        pairs = zip(self.heads, targets.unbind(1), strict=True)
        return [(head, wanted) for head, wanted in pairs if bool((wanted != IGNORED).any())]


def train_vision(
    network: Network,
    schedule: Schedule,
    runtime: Runtime,
    make_batch: Callable[[int], tuple[Pixels, Tensor]],
    classes: tuple[int, ...],
    progress: Progress,
) -> float:
    """Trains tower and projector on (images, targets [image tokens, classifiers]) of each step; returns the last loss.

    Afterwards the projector is scaled so that image features are as long as text embeddings: 30 times longer, as
    training leaves them, nothing that attention adds at an image token is felt, and the language model does not learn
    to look.
    """
    probe = Probe(network, classes)
    # Too small to be sharded.
    alone = runtime.model_copy(update={"zero_stage": 0, "optimizer_states": "resident"})
    trainer = Trainer(probe, schedule, alone)
    trainer.guard = StepGuard("vision tower", say=progress.say)
    device = next(probe.parameters()).device  # the rest of the model may be elsewhere still
    loss = torch.zeros(())
    for step in progress.track(range(schedule.steps), "training the vision tower"):
        trainer.guard.step = step
        pixels, targets = make_batch(step)
        loss = probe.loss(network.encode_images(pixels.to(device)), targets.to(device))
        trainer.backward(loss, last=True)
        trainer.step(learning_rate(schedule, step))
    with torch.no_grad():
        embeddings = network.family.get_text_model(network.model).embed_tokens.weight  # type: ignore[union-attr]
        features = network.encode_images(make_batch(0)[0].to(device))[:, : network.head.in_features]
        ratio = embeddings.norm(dim=1).mean() / features.norm(dim=1).mean()  # type: ignore[operator]
        for parameter in network.family.get_projection(network.model).parameters():
            parameter.mul_(ratio)
    return float(loss.detach())
