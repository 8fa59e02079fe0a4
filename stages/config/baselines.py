"""The objectives that `ril.objective` names: the paper's, and the baselines that it is compared with."""

from dataclasses import dataclass
from typing import Literal

ObjectiveName = Literal["ril", "dr_grpo", "grpo", "gad", "sft"]


@dataclass(frozen=True)
class Baseline:
    """What an objective is. Which values it gives the switches is declared with each switch (`Switch.presets`)."""

    description: str
    source: str


BASELINES: dict[ObjectiveName, Baseline] = {
    "ril": Baseline(
        description="Similarity to the teachers and the judge's verdict, over G student and G teacher answers.",
        source="Eq. 2",
    ),
    "dr_grpo": Baseline(
        description="Algorithm 1: the judge alone, with the loss of Dr.GRPO.", source="arXiv 2503.20783"
    ),
    "grpo": Baseline(
        description="Algorithm 1 with the loss of GRPO: standard deviation in the advantage, mean over each answer's "
        "tokens.",
        source="arXiv 2402.03300",
    ),
    "gad": Baseline(
        description="The discriminator alone: its raw score is the reward, and pairs train it after it has scored.",
        source="arXiv 2511.10643",
    ),
    "sft": Baseline(
        description="The control for more steps alone: the warm start goes on in this loop, by cross entropy on the "
        "questions' targets (references, where a question has no target).",
        source="own control",
    ),
}
