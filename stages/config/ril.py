"""The block `ril`: the loop."""

from typing import Annotated, Literal

from pydantic import Field

from stages.config.baselines import ObjectiveName
from stages.config.block import Block
from stages.config.discriminator import DiscriminatorSwitches
from stages.config.objective import Objective
from stages.config.sampling import Sampling
from stages.config.schedule import Schedule
from stages.config.switch import Departure, Switch, add_switches, read_choices, resolve_switches


@add_switches("ril", Objective)
class Switches(Block):
    """Of the student's objective."""

    objective: ObjectiveName = Field(
        "ril",
        description="`ril` (Eq. 2), or a baseline: `dr_grpo`, `grpo` (judge alone), `gad` (discriminator alone), "
        "`sft`.",
    )
    kl_weight: Annotated[
        float,
        Switch(
            source="Table 5b",
            departures=(Departure((), "At 0 the student falls far below its start.", "Table 5b"),),
        ),
    ] = Field(0.01, ge=0, description="beta of Eq. 2; the paper's Table 5b shows collapse at 0.")

    def resolve(self, discriminator: DiscriminatorSwitches) -> Objective:
        """Every switch with its final value: as given here, else as `objective` has it."""
        return resolve_switches(Objective, self.objective, read_choices(ril=self, discriminator=discriminator))


class Ril(Schedule, Switches):
    """The loop: sample, update the discriminator, reward, update the student (Alg. 2, Eq. 2)."""

    questions_per_step: int = Field(144, ge=1, description="Questions of one optimizer step (App. C: 4 x 6 x 6 = 144).")
    group: int = Field(4, ge=1, description="G: student answers a question, and as many teacher answers (§3.3).")
    inner_updates: Annotated[
        int,
        Switch(
            source="App. C",
            departures=(
                Departure(
                    (),
                    "The more there are, the worse. The old log-probs are the first inner update's own, so no pass is "
                    "run for them.",
                    "Table 5a",
                ),
            ),
        ),
    ] = Field(1, ge=1, le=16, description="mu: updates on one set of answers (Table 5a: 1 is best).")
    discriminator_learning_rate: float = Field(1e-6, gt=0, lt=1, description="Constant rate of the discriminator.")
    freeze_vision: bool = Field(
        True, description="Leaves the vision tower as it is (Table 5c lists language parts only)."
    )
    sampling: Sampling = Field(description="How the student's answers are drawn.")
    validation_every: int = Field(50, ge=1, description="Steps between greedy evaluations on the validation split.")
    keep: Literal["best", "last", "both"] = Field(
        "last",
        description="Which checkpoint becomes the model, by validation; `both` is the best, with the last in "
        "data/ril/last.",
    )
    samples_per_step: int = Field(2, ge=0, description="Questions a step whose answers are kept for the report.")
    max_reject_share: float = Field(
        0.01, ge=0, le=1, description="Above this share of questions that are longer than the model it fails."
    )
