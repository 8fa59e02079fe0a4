"""The switches of RIL's objective: the paper's values unless said otherwise, what each objective sets, what excludes
what.

docs/objectives.md gives the reason and the source of every departure.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from stages.config.block import Block

ObjectiveName = Literal["ril", "dr_grpo", "grpo", "gad", "sft"]
TeacherRows = Literal["as_student", "luffy", "sft", "when_all_wrong", "none"]
Similarity = Literal["binary", "soft", "ranked", "raw"]
Scale = Literal["none", "group"]
Normaliser = Literal["constant", "row"]
Ratio = Literal["token", "sequence", "gspo"]
Kl = Literal["k1", "k2", "k3", "full"]
KlOnTeachers = Literal["same", "none", "k1", "k2", "k3", "full"]
Correction = Literal["none", "truncate_token", "mask_token", "truncate_sequence", "mask_sequence"]
DiscriminatorLoss = Literal["bce", "bradley_terry"]
DiscriminatorUpdate = Literal["before_scoring", "after_scoring", "frozen", "none"]


@dataclass(frozen=True)
class Objective:
    """Every switch with its final value; the defaults are the paper's RIL."""

    teacher_rows: TeacherRows = "as_student"
    teacher_weight: float = 1.0
    luffy_gamma: float = 0.1
    baseline: Literal["joint", "per_source", "per_reward"] = "joint"
    scale_rewards: Scale = "none"
    loss_normaliser: Normaliser = "constant"
    similarity: Similarity = "binary"
    similarity_weight: float = 1.0
    answer_weight: float = 1.0
    similarity_gate: Literal["none", "when_correct"] = "none"
    zero_variance: Literal["keep", "drop"] = "keep"
    truncated: Literal["wrong", "masked", "as_judged"] = "wrong"
    failed_verdicts: Literal["drop_row", "drop_group"] = "drop_row"
    ratio: Ratio = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: Kl = "k3"
    kl_on_teacher_rows: KlOnTeachers = "same"
    rollout_correction: Correction = "none"
    rollout_cap: float = 3.0
    discriminator_loss: DiscriminatorLoss = "bce"
    discriminator_update: DiscriminatorUpdate = "before_scoring"
    references: bool = False  # nobody answers: a group is the question's written-out reference, which counts as right

    @property
    def judged(self) -> bool:
        """Whether the judge's verdict is part of the reward."""
        return self.answer_weight > 0 and not self.references

    @property
    def discriminated(self) -> bool:
        """Whether the discriminator's logit is part of the reward."""
        return self.discriminator_update != "none"


PAPER = Objective()
_JUDGE_ALONE: dict[str, Any] = {"teacher_rows": "none", "similarity_weight": 0.0, "discriminator_update": "none"}
OBJECTIVES: dict[str, Objective] = {
    "ril": PAPER,
    # Algorithm 1 with Dr.GRPO's loss (arXiv 2503.20783)
    "dr_grpo": replace(PAPER, **_JUDGE_ALONE),
    # Algorithm 1 with GRPO's (arXiv 2402.03300): standard deviation in the advantage, mean over each answer's tokens
    "grpo": replace(PAPER, **_JUDGE_ALONE, scale_rewards="group", loss_normaliser="row"),
    # arXiv 2511.10643: the discriminator's raw score is the reward, pairs train it after it has scored, no judge
    "gad": replace(
        PAPER,
        teacher_rows="none",
        similarity="raw",
        answer_weight=0.0,
        scale_rewards="group",
        loss_normaliser="row",
        discriminator_loss="bradley_terry",
        discriminator_update="after_scoring",
    ),
    # the warm start continued in this loop: cross entropy on references, the control for more steps alone
    "sft": replace(PAPER, teacher_rows="sft", similarity_weight=0.0, discriminator_update="none", references=True),
}


@dataclass(frozen=True)
class DiscriminatorObjective:
    """What the discriminator learns by, and when the loop trains it."""

    loss: DiscriminatorLoss
    update: DiscriminatorUpdate

    @property
    def used(self) -> bool:
        """Whether there is a discriminator at all."""
        return self.update != "none"


class DiscriminatorSwitches(Block):
    """Of the discriminator, in pre-training and in the loop alike."""

    sees: Literal["response", "question", "question_and_image"] = Field(
        "response",
        description="What the discriminator reads beside the answer; the paper's prompt has nothing else (Fig. 3).",
    )
    loss: DiscriminatorLoss | None = Field(
        None,
        description="`bce` is Eq. 1, `bradley_terry` compares answers to one question (GAD). Without it: "
        "`ril.objective`'s.",
    )
    update: DiscriminatorUpdate | None = Field(
        None,
        description="When the loop trains it (Table 5d): `before_scoring` as in Alg. 2, `after_scoring`, never "
        "(`frozen`), or no "
        "discriminator at all (`none`). Without it: what `ril.objective` has.",
    )
    pause_above: float = Field(
        1.0, gt=0.5, le=1, description="Above this accuracy on fresh answers the loop leaves it as it is; 1 never does."
    )
    alarm_steps: int = Field(
        10, ge=1, description="Steps in a row without a useful reward after which the loop says so."
    )

    def resolved(self, objective: ObjectiveName) -> DiscriminatorObjective:
        """As given here, else as the objective of this name has it."""
        named = OBJECTIVES[objective]
        return DiscriminatorObjective(
            loss=self.loss or named.discriminator_loss, update=self.update or named.discriminator_update
        )


class Switches(Block):
    """Of the student's objective."""

    objective: ObjectiveName = Field(
        "ril",
        description="`ril` (Eq. 2), or a baseline: `dr_grpo`, `grpo` (judge alone), `gad` (discriminator alone), "
        "`sft`.",
    )
    teacher_rows: TeacherRows | None = Field(
        None,
        description="What teacher answers do to the student: trained on as its own (`as_student`, Eq. 2), with "
        "LUFFY's ratio, by "
        "cross entropy, only where no student answer is right, or nothing. Without it: what the objective has.",
    )
    teacher_weight: float = Field(1.0, gt=0, description="Weight of teacher answers where `teacher_rows` is `sft`.")
    luffy_gamma: float = Field(
        0.1, gt=0, description="gamma of LUFFY's ratio p / (p + gamma), where `teacher_rows` is `luffy`."
    )
    baseline: Literal["joint", "per_source", "per_reward"] = Field(
        "joint",
        description="What is taken off a reward: the mean of all 2G (Eq. 2), of its own side, or by reward (GDPO).",
    )
    scale_rewards: Scale | None = Field(
        None,
        description="`group` divides advantages by the group's standard deviation (GRPO). Without it: the objective's.",
    )
    loss_normaliser: Normaliser | None = Field(
        None,
        description="`constant` divides by max_tokens (Dr.GRPO), `row` by the answer's length. Without it: the "
        "objective's.",
    )
    similarity: Similarity | None = Field(
        None,
        description="`binary` is 1[D < 0.5], `soft` 1 - D, `ranked` the rank in the group, `raw` the logit. "
        "Without it: the "
        "objective's.",
    )
    similarity_weight: float | None = Field(
        None, ge=0, description="Weight of the similarity reward. Without it: the objective's."
    )
    answer_weight: float | None = Field(
        None, ge=0, description="Weight of the judge's verdict; 0 leaves the judge out. Without it: the objective's."
    )
    similarity_gate: Literal["none", "when_correct"] = Field(
        "none",
        description="`when_correct` counts similarity for right answers only, so that style alone earns nothing.",
    )
    zero_variance: Literal["keep", "drop"] = Field(
        "keep", description="Groups whose rewards are all equal: kept for the KL term, or left out (DAPO)."
    )
    truncated: Literal["wrong", "masked", "as_judged"] = Field(
        "wrong",
        description="Answers cut at max_tokens: no answer reward, also out of the loss (DAPO), or as the judge says.",
    )
    failed_verdicts: Literal["drop_row", "drop_group"] = Field(
        "drop_row",
        description="An answer without verdict leaves its group, or takes the group with it; it is never a zero.",
    )
    ratio: Ratio = Field(
        "token",
        description="Ratio to the old student by token, by sequence (Eq. 2 literally), or its mean (GSPO); same "
        "at mu = 1.",
    )
    clip_epsilon: float = Field(
        0.2, gt=0, lt=1, description="Clip range of the ratio (§4.2); idle at one inner update."
    )
    clip_epsilon_high: float | None = Field(
        None, gt=0, description="Upper clip range where it is to be wider (DAPO: 0.28). Without it: clip_epsilon."
    )
    kl_weight: float = Field(0.01, ge=0, description="beta of Eq. 2; the paper's Table 5b shows collapse at 0.")
    kl: Kl = Field(
        "k3", description="How KL to the SFT student is estimated; `full` is exact and costs a second head product."
    )
    kl_on_teacher_rows: KlOnTeachers = Field(
        "same",
        description="The same on teacher answers, another estimate, or none: there k3 is a penalty, not an estimate.",
    )
    rollout_correction: Correction = Field(
        "none", description="Weights that correct for what vLLM and the trainer see differently; student answers only."
    )
    rollout_cap: float = Field(
        3.0, gt=1, description="Where `rollout_correction` cuts a weight, or drops what is above."
    )

    def resolved(self, discriminator: DiscriminatorSwitches) -> Objective:
        """Every switch with its final value: as given here, else as `objective` has it."""
        named = OBJECTIVES[self.objective]
        same = ("teacher_rows", "scale_rewards", "loss_normaliser", "similarity", "similarity_weight", "answer_weight")
        given: dict[str, Any] = {name: getattr(self, name) for name in same}
        given |= {"discriminator_loss": discriminator.loss, "discriminator_update": discriminator.update}
        always = (
            "teacher_weight", "luffy_gamma", "baseline", "similarity_gate", "zero_variance", "truncated",
            "failed_verdicts", "ratio", "kl", "kl_on_teacher_rows", "rollout_correction", "rollout_cap",
        )  # fmt: skip
        return replace(
            named,
            **{name: value for name, value in given.items() if value is not None},
            **{name: getattr(self, name) for name in always},
            clip_low=self.clip_epsilon,
            clip_high=self.clip_epsilon if self.clip_epsilon_high is None else self.clip_epsilon_high,
        )


def contradiction(switches: Switches, discriminator: DiscriminatorSwitches) -> str | None:
    """The first pair of switches that contradict each other, as one line with key, value and remedy; None when all
    agree.
    """
    found = switches.resolved(discriminator)
    mine = switches.model_fields_set
    name = switches.objective
    no_teachers = found.teacher_rows == "none"
    rules: tuple[tuple[bool, str], ...] = (
        (
            found.references and (found.teacher_rows != "sft" or found.answer_weight == 0),
            "ril.objective is 'sft', which learns from references alone, but ril.teacher_rows is "
            f"{found.teacher_rows!r} and "
            f"ril.answer_weight {found.answer_weight:g}; remove them",
        ),
        (
            found.similarity_weight > 0 and not found.discriminated,
            f"ril.similarity_weight is {found.similarity_weight:g}, but ril.objective {name!r} with "
            "discriminator.update 'none' "
            "has no discriminator; set ril.similarity_weight to 0, or ril.objective to 'dr_grpo' (Table 5d, none)",
        ),
        (
            found.similarity_weight == 0 and found.discriminated,
            f"ril.similarity_weight is 0, but discriminator.update is {found.discriminator_update!r}: it would "
            "be trained for "
            "nothing; set discriminator.update to none",
        ),
        (
            found.similarity_weight == 0 and found.answer_weight == 0,
            "ril.answer_weight is 0 and ril.similarity_weight too: nothing is rewarded; raise one of them",
        ),
        (
            found.similarity_weight == 0 and (found.similarity_gate != "none" or bool({"similarity"} & mine)),
            f"ril.similarity_gate is {found.similarity_gate!r} and ril.similarity {found.similarity!r}, but "
            "ril.similarity_weight is 0; raise it, or remove them",
        ),
        (
            found.similarity_gate == "when_correct" and found.answer_weight == 0,
            "ril.similarity_gate is 'when_correct', but ril.answer_weight is 0, so that nothing is judged; "
            "raise ril.answer_weight or set ril.similarity_gate to none",
        ),
        (
            found.teacher_rows == "when_all_wrong" and found.answer_weight == 0,
            "ril.teacher_rows is 'when_all_wrong', but ril.answer_weight is 0, so that nothing is judged; "
            "raise ril.answer_weight or set ril.teacher_rows to as_student",
        ),
        (
            found.clip_high < found.clip_low,
            f"ril.clip_epsilon_high is {found.clip_high:g}, below ril.clip_epsilon ({found.clip_low:g}); raise it",
        ),
        (
            found.baseline == "per_source" and found.teacher_rows in ("none", "sft"),
            f"ril.baseline is 'per_source', but with ril.teacher_rows {found.teacher_rows!r} a group has student "
            "answers only; "
            "set ril.baseline to joint",
        ),
        (
            found.baseline == "per_reward" and 0 in (found.similarity_weight, found.answer_weight),
            "ril.baseline is 'per_reward', but ril.similarity_weight or ril.answer_weight is 0; set ril.baseline "
            "to joint",
        ),
        (
            found.baseline == "per_reward" and "scale_rewards" in mine,
            f"ril.scale_rewards is {found.scale_rewards!r}, but ril.baseline 'per_reward' scales reward by "
            "reward; remove it",
        ),
        (
            found.kl_on_teacher_rows != "same" and no_teachers,
            f"ril.kl_on_teacher_rows is {found.kl_on_teacher_rows!r}, but ril.teacher_rows is 'none'; set it to same",
        ),
        (
            switches.kl_weight == 0 and (found.kl != "k3" or found.kl_on_teacher_rows != "same"),
            f"ril.kl is {found.kl!r} and ril.kl_on_teacher_rows {found.kl_on_teacher_rows!r}, but ril.kl_weight is 0; "
            "raise it, or remove them",
        ),
        (
            found.teacher_rows != "sft" and found.teacher_weight != 1,
            f"ril.teacher_weight is {found.teacher_weight:g}, but ril.teacher_rows is {found.teacher_rows!r}; "
            "remove it",
        ),
        (
            found.teacher_rows != "luffy" and "luffy_gamma" in mine and found.luffy_gamma != 0.1,
            f"ril.luffy_gamma is {found.luffy_gamma:g}, but ril.teacher_rows is {found.teacher_rows!r}, not "
            "'luffy'; remove it",
        ),
        (
            found.teacher_rows == "sft" and found.similarity == "raw",
            "ril.teacher_rows is 'sft', which weighs by reward, but ril.similarity 'raw' has no bounds; set it to soft",
        ),
        (
            found.ratio == "sequence" and found.loss_normaliser == "row",
            "ril.ratio is 'sequence', one term an answer, but ril.loss_normaliser is 'row', a mean over tokens; "
            "set ril.loss_normaliser to constant, or ril.ratio to gspo",
        ),
        (
            found.rollout_correction == "none" and found.rollout_cap != 3,
            f"ril.rollout_cap is {found.rollout_cap:g}, but ril.rollout_correction is 'none'; remove it",
        ),
        (
            found.discriminator_update == "none" and discriminator.sees != "response",
            f"discriminator.sees is {discriminator.sees!r}, but there is no discriminator (update 'none'); set "
            "it to response",
        ),
    )
    return next((message for broken, message in rules if broken), None)
