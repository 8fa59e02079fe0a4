"""The block `discriminator`, and the objective of the discriminator."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from stages.config.baselines import ObjectiveName
from stages.config.block import Block
from stages.config.lora import Lora
from stages.config.schedule import Schedule
from stages.config.switch import (
    Choices,
    Departure,
    Switch,
    add_switches,
    mark_contradiction,
    read_choices,
    resolve_switches,
)

DiscriminatorLoss = Literal["bce", "bradley_terry"]
DiscriminatorUpdate = Literal["before_scoring", "after_scoring", "frozen", "none"]
Sees = Literal["response", "question", "question_and_image"]
Degenerate = Literal["unrewarded", "learned"]


@dataclass(frozen=True)
class DiscriminatorObjective:
    """The discriminator's loss and update schedule, with final values."""

    discriminator_loss: Annotated[
        DiscriminatorLoss,
        Field(
            description="`bce` is Eq. 1; `bradley_terry` compares answers to one question (GAD). "
            "If not set: the value of `ril.objective`."
        ),
        Switch(
            key="discriminator.loss",
            source="Eq. 1",
            presets={"adversarial": "bradley_terry"},
            departures=(
                Departure(
                    ("bradley_terry",),
                    "Pairs of answers to one question score 1 to 2 points higher than cross entropy.",
                    "arXiv 2511.10643",
                ),
            ),
        ),
    ] = "bce"
    discriminator_update: Annotated[
        DiscriminatorUpdate,
        Field(
            description="When the loop updates it (Table 5d): `before_scoring` as in Alg. 2, `after_scoring`, never "
            "(`frozen`), or no discriminator at all (`none`). If not set: the value of `ril.objective`."
        ),
        Switch(
            key="discriminator.update",
            source="Alg. 2",
            presets={
                "dr_grpo": "none",
                "grpo": "none",
                "adversarial": "after_scoring",
                "sft": "none",
                "imitation": "none",
                "opd": "none",
            },
            departures=(
                Departure(
                    ("after_scoring",),
                    "The discriminator does not score texts on which it has just been trained.",
                    "arXiv 2511.10643",
                ),
                Departure(("frozen",), "It stays as pre-trained: most of the gain is lost.", "Table 5d"),
                Departure(
                    ("none",),
                    "No discriminator: all of the gain is lost. Needs `ril.similarity_weight: 0` or "
                    "`ril.objective: dr_grpo`.",
                    "Table 5d",
                ),
            ),
        ),
    ] = "before_scoring"
    degenerate: Annotated[
        Degenerate,
        Field(
            description="Truncated, empty and endlessly repeating answers: `unrewarded`, so that the discriminator "
            "does not learn from them and they have no similarity reward, or `learned` and scored like all others. "
            "If not set: the value of `ril.objective`."
        ),
        Switch(
            key="discriminator.degenerate",
            source="ours: Eq. 1 is over all answers",
            presets={"adversarial": "learned"},
            departures=(
                Departure(
                    ("learned",),
                    "Eq. 1 as printed. The place of the cut reveals the source, and until the discriminator has seen "
                    "such answers half of them pass.",
                    "paper Eq. 1",
                ),
            ),
        ),
    ] = "unrewarded"
    negatives: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Broken texts per question of a step, made from its answers (two in a row, a loop, a part, "
            "scrambled), which the discriminator learns like the student's; 0 is Eq. 1 alone. If not set: the value of "
            "`ril.objective`.",
        ),
        Switch(
            key="discriminator.negatives",
            source="ours: Eq. 1 has two sides only, and a text unlike both passes as often as not",
            presets={"adversarial": 0},
            departures=(Departure((), "At 0 it is Eq. 1 as printed.", "paper Eq. 1"),),
        ),
    ] = 2

    @property
    def uses_discriminator(self) -> bool:
        """Whether the discriminator's logit is part of the reward."""
        return self.discriminator_update != "none"

    @mark_contradiction
    def _refuse_view_without_discriminator(self, given: Choices) -> str | None:
        """`discriminator.sees` needs a discriminator."""
        sees = given.values["discriminator.sees"]
        if self.uses_discriminator or sees == "response":
            return None
        return f"discriminator.sees is {sees!r}, but there is no discriminator (update 'none'); set it to response"

    @mark_contradiction
    def _refuse_learning_without_discriminator(self, given: Choices) -> str | None:
        """`discriminator.degenerate: learned` needs a discriminator."""
        if self.uses_discriminator or self.degenerate == "unrewarded":
            return None
        return (
            "discriminator.degenerate is 'learned', but there is no discriminator (update 'none'); set it to unrewarded"
        )

    @mark_contradiction
    def _refuse_negatives_without_discriminator(self, given: Choices) -> str | None:
        """`discriminator.negatives` needs a discriminator."""
        if self.uses_discriminator or not given.values["discriminator.negatives"]:
            return None
        return f"discriminator.negatives is {self.negatives}, but there is no discriminator (update 'none'); remove it"


@add_switches("discriminator", DiscriminatorObjective)
class DiscriminatorSwitches(Block):
    """Switches of the discriminator, for pre-training and the loop."""

    sees: Annotated[
        Sees,
        Switch(
            source="Fig. 3",
            departures=(
                Departure(
                    ("question", "question_and_image"),
                    "Off-topic answers can only be recognized if the question is visible.",
                    "arXiv 2511.10643 (prompt and response)",
                ),
            ),
        ),
    ] = Field(
        "response",
        description="Additional input of the discriminator; the paper's prompt contains the answer only (Fig. 3).",
    )
    pause_above: Annotated[
        float,
        Switch(
            source="the paper never pauses",
            departures=(
                Departure((), "A discriminator that is always right gives no student answer a reward.", "GAN practice"),
            ),
        ),
    ] = Field(1.0, gt=0.5, le=1, description="Updates pause above this accuracy on new answers; 1 never pauses.")
    alarm_steps: Annotated[int, Switch(source="ours: affects messages only")] = Field(
        10, ge=1, le=10_000_000, description="Consecutive steps without a useful reward before a warning."
    )


class Discriminator(Schedule, DiscriminatorSwitches):
    """Pre-training of the discriminator (Eq. 1; App. C: rate 1e-5 falling linearly to 1e-6)."""

    questions_per_step: int = Field(8, ge=1, le=1_000_000, description="Questions of one optimizer step.")
    responses_per_side: int = Field(
        4, ge=1, le=10_000, description="Student answers, and teacher answers, of each question in a step."
    )
    min_logit_spread: float = Field(
        1e-3,
        ge=0,
        le=1,
        description="Minimum standard deviation of the logits of different texts; the stage fails below it for three "
        "steps in a row, because a constant discriminator rewards nothing.",
    )
    held_out_share: float = Field(0.1, gt=0, lt=0.5, description="Share of questions held out to measure accuracy.")
    lora: Lora | None = Field(
        None, description="Trains adapters and the score head instead of the whole discriminator, here and in the loop."
    )

    def resolve(self, objective: ObjectiveName) -> DiscriminatorObjective:
        """Returns the objective: values set here, else those of `objective`."""
        return resolve_switches(DiscriminatorObjective, objective, read_choices(discriminator=self))
