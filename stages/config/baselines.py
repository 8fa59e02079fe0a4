"""The objectives that `ril.objective` selects: the paper's, and the baselines for comparison."""

from dataclasses import dataclass
from typing import Literal

ObjectiveName = Literal["ril", "dr_grpo", "grpo", "gad", "sft"]


@dataclass(frozen=True)
class Baseline:
    """Description of an objective. Each switch declares the values that an objective gives it (`Switch.presets`)."""

    description: str
    source: str


BASELINES: dict[ObjectiveName, Baseline] = {
    "ril": Baseline(
        description="Similarity to the teachers and the judge's verdict, over G student and G teacher answers.",
        source="Eq. 2",
    ),
    "dr_grpo": Baseline(
        description="Algorithm 1: judge reward only, with the loss of Dr.GRPO.", source="arXiv 2503.20783"
    ),
    "grpo": Baseline(
        description="Algorithm 1 with the loss of GRPO: advantages divided by their standard deviation, mean over the "
        "tokens of each answer.",
        source="arXiv 2402.03300",
    ),
    "gad": Baseline(
        description="Discriminator reward only: its raw score is the reward; it is trained on pairs after scoring.",
        source="arXiv 2511.10643",
    ),
    "sft": Baseline(
        description="Control for the additional steps: continues the warm start in this loop, by cross entropy on "
        "the questions' targets (the reference if a question has no target).",
        source="own control",
    ),
}
