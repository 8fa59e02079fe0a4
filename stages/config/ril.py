"""The block `ril`: the loop."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from stages.config.answer_scorer import Scoring
from stages.config.baselines import ObjectiveName
from stages.config.block import Block
from stages.config.discriminator import DiscriminatorSwitches
from stages.config.lora import Lora
from stages.config.objective import Objective
from stages.config.own_rewards import FUNCTION_CODE, apply_listed_weights, find_wrong_entry
from stages.config.paths import Location
from stages.config.sampling import Sampling
from stages.config.schedule import Schedule
from stages.config.switch import Choices, Departure, Switch, add_switches, read_choices, resolve_switches

Part = Literal["embedding", "attention", "ffn_gate", "ffn_up", "ffn_down", "layer_norm", "head"]


@add_switches("ril", Objective)
class Switches(Block):
    """Switches of the student's objective."""

    objective: ObjectiveName = Field(
        "ril",
        description="`ril` (Eq. 2), or a baseline: `dr_grpo`, `grpo` (judge only), `adversarial` (discriminator only), "
        "`sft`, `imitation`, `opd` (reverse KL to `distillation`).",
    )
    kl_weight: Annotated[
        float,
        Switch(
            source="Table 5b",
            departures=(Departure((), "At 0 the student falls far below its initial score.", "Table 5b"),),
        ),
    ] = Field(0.01, ge=0, le=1000, description="beta of Eq. 2; the paper's Table 5b shows collapse at 0.")

    def resolve(self, discriminator: DiscriminatorSwitches) -> Objective:
        """Returns all switches with their final values: set here, else by `objective`, else the default."""
        return resolve_switches(Objective, self.objective, self.read_choices(discriminator))

    def read_choices(self, discriminator: DiscriminatorSwitches) -> Choices:
        """Returns the values of the file, with the weights that `rewards` lists."""
        return apply_listed_weights(read_choices(ril=self, discriminator=discriminator))


class Ril(Schedule, Switches):
    """The loop: sample, update the discriminator, reward, update the student (Alg. 2, Eq. 2)."""

    questions_per_step: int = Field(
        144, ge=1, le=1_000_000, description="Questions of one optimizer step (App. C: 4 x 6 x 6 = 144)."
    )
    group: int = Field(
        4, ge=1, le=10_000, description="G: student answers per question, and as many teacher answers (§3.3)."
    )
    inner_updates: Annotated[
        int,
        Switch(
            source="App. C",
            departures=(
                Departure(
                    (),
                    "More updates score worse. The old log-probs are those of the first inner update, so no extra pass "
                    "is needed.",
                    "Table 5a",
                ),
            ),
        ),
    ] = Field(1, ge=1, le=16, description="mu: updates on one set of answers (Table 5a: 1 is best).")
    discriminator_learning_rate: float = Field(1e-6, gt=0, lt=1, description="Constant rate of the discriminator.")
    freeze_vision: bool = Field(
        True, description="Freezes the vision tower with its projector (Table 5c lists language parts only)."
    )
    frozen_parts: tuple[Part, ...] = Field(
        (), strict=False, description="Parts of the language model that are not trained (Table 5c); none in the paper."
    )
    lora: Lora | None = Field(
        None, description="Trains adapters instead of the student's own weights, which are then those of the reference."
    )
    distillation: tuple[str, ...] = Field(
        (),
        strict=False,
        max_length=16,
        description="With `objective: opd`, entries of `models` that the student is distilled from: models of teachers "
        "in `pool.teachers` with the student's tokenizer. Several count alike.",
    )
    reward_code: Location = Field(
        FUNCTION_CODE,
        description="File or folder of your functions in `rewards`, tracked by DVC; without any the file of the ready "
        "functions.",
    )
    sampling: Sampling = Field(description="Sampling of the student's answers.")
    validation_every: int = Field(
        50, ge=1, le=10_000_000, description="Steps between greedy evaluations on the validation split."
    )
    validation_scoring: Scoring = Field(
        "rules",
        description="How validation scores answers: as `evaluate.scoring`, with the judge of the loop.",
    )
    keep: Literal["best", "last", "both"] = Field(
        "last",
        description="Checkpoint that becomes the model, by validation; `both` keeps the best, and the last in "
        "data/ril/last.",
    )
    samples_per_step: int = Field(
        2, ge=0, le=1_000_000, description="Questions per step whose answers are kept for the report."
    )
    validation_samples: int = Field(
        0, ge=0, le=1_000_000, description="Validation questions whose answers are kept in data/ril/validation."
    )
    max_empty_share: float = Field(
        0.5, ge=0, le=1, description="Maximum share of a step's student answers without text; the stage fails above it."
    )
    max_reject_share: float = Field(
        0.01, ge=0, le=1, description="Maximum share of questions that exceed the context; the stage fails above it."
    )

    @model_validator(mode="after")
    def _check_rewards(self) -> Self:
        if line := find_wrong_entry(self.rewards, self.model_fields_set):  # type: ignore[attr-defined]
            raise ValueError(line)
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.freeze_vision and set(self.frozen_parts) == set(get_args(Part)):
            raise ValueError("frozen_parts names every part and freeze_vision is true: nothing is trained; remove one")
        if self.lora and not self.freeze_vision:
            raise ValueError("lora trains the language model only, but freeze_vision is false; set it to true")
        if self.lora and self.frozen_parts:
            raise ValueError(
                f"lora freezes all parts of the model, but frozen_parts is {', '.join(self.frozen_parts)}; remove it, "
                "and name the trained layers in lora.targets"
            )
        return self
