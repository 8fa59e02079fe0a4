"""The objectives that `ril.objective` selects: the paper's, and the baselines for comparison."""

from dataclasses import dataclass
from typing import Literal

ObjectiveName = Literal["ril", "dr_grpo", "grpo", "adversarial", "sft", "imitation", "opd"]


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
    "adversarial": Baseline(
        description="Discriminator reward only, with the pairwise loss, the raw score as reward and the order of GAD. "
        "It is not GAD: that also reads the prompt, has a KL weight of 0.001, and warms up on teacher text.",
        source="after arXiv 2511.10643",
    ),
    "sft": Baseline(
        description="Control for the additional steps: continues the warm start in this loop, by cross entropy on "
        "the questions' targets (the reference if a question has no target).",
        source="own control",
    ),
    "imitation": Baseline(
        description="Control for imitation alone: cross entropy on G teacher answers of the pool, each with weight 1, "
        "and the KL term. `pool.wrong: drop` leaves the ones that the judge finds right.",
        source="own control",
    ),
    "opd": Baseline(
        description="On-policy distillation: the reverse KL to the models of `ril.distillation` on the student's own "
        "answers; the advantage of a token is the mean of their log p less the student's. As published there is no KL "
        "to the start: set `ril.kl_weight: 0`.",
        source="Thinking Machines Lab 2025, after MiniLLM, arXiv 2306.08543, and GKD, arXiv 2306.13649",
    ),
}
