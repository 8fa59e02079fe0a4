"""The switches of rewards: the answers in a group, their rewards, and the baseline."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from stages.config.discriminator import DiscriminatorObjective
from stages.config.own_rewards import RUBRIC, Gate, Reward
from stages.config.switch import Choices, Departure, Switch, mark_contradiction

TeacherRows = Literal["as_student", "luffy", "sft", "when_all_wrong", "none"]
AdvantageBaseline = Literal["joint", "per_source", "per_reward"]
Scale = Literal["none", "group"]
Similarity = Literal["binary", "soft", "ranked", "raw"]
AnswerBy = Literal["judge", "parsing"]
ZeroVariance = Literal["keep", "drop"]
Truncated = Literal["wrong", "masked", "as_judged"]
FailedVerdicts = Literal["drop_row", "drop_group"]
UNSAID = "ours: the paper does not say"


@dataclass(frozen=True)
class RewardObjective(DiscriminatorObjective):
    """The reward of the answers to one question, with the final value of each switch."""

    references: Annotated[
        bool,
        Field(description="Nothing is sampled: a group is the question's target, which counts as correct."),
        Switch(source="Alg. 2", presets={"sft": True}),
    ] = False
    imitates: Annotated[
        bool,
        Field(description="Nothing is sampled: a group is G teacher answers, which all count as correct."),
        Switch(source="Alg. 2", presets={"imitation": True}),
    ] = False
    distils: Annotated[
        bool,
        Field(description="Rewards, if any are set, add their advantage to that of each token."),
        Switch(source="Eq. 2", presets={"opd": True}),
    ] = False
    teacher_rows: Annotated[
        TeacherRows,
        Field(
            description="Use of teacher answers: as the student's own (`as_student`, Eq. 2), with LUFFY's ratio, by "
            "cross entropy, only if no student answer is correct, or not at all. "
            "If not set: the value of `ril.objective`."
        ),
        Switch(
            key="ril.teacher_rows",
            source="Eq. 2",
            presets={
                "dr_grpo": "none",
                "grpo": "none",
                "adversarial": "none",
                "sft": "sft",
                "imitation": "sft",
                "opd": "none",
            },
            departures=(
                Departure(
                    ("luffy",),
                    "Teacher text is off-policy; p / (p + 0.1) instead of the ratio keeps entropy that naive mixing "
                    "loses.",
                    "arXiv 2504.14945",
                ),
                Departure(
                    ("sft",),
                    "Imitation has a separate weight (its share of the largest reward) and does not change the "
                    "student's baseline.",
                    "ms-swift CHORD",
                ),
                Departure(
                    ("when_all_wrong",),
                    "The paper motivates teacher answers with questions that the student never answers correctly.",
                    "paper §1",
                ),
                Departure(
                    ("none",),
                    "Training on teacher text reduces generalisation outside its domain.",
                    "arXiv 2606.18216",
                ),
            ),
        ),
    ] = "as_student"

    @mark_contradiction
    def _refuse_teachers_in_sft(self, given: Choices) -> str | None:
        """`ril.objective: sft` learns from references only, `imitation` from teacher answers only."""
        if self.samples or (self.teacher_rows == "sft" and self.answer_weight > 0 and self.similarity_weight == 0):
            return None
        return (
            f"ril.objective is {given.values['ril.objective']!r}, which learns from "
            f"{'references' if self.references else 'teacher answers'} only, by cross entropy, but ril.teacher_rows is "
            f"{self.teacher_rows!r}, ril.answer_weight {self.answer_weight:g} and ril.similarity_weight "
            f"{self.similarity_weight:g}; remove them"
        )

    @mark_contradiction
    def _refuse_when_all_wrong_without_judge(self, given: Choices) -> str | None:
        """`ril.teacher_rows: when_all_wrong` needs the judge."""
        if self.teacher_rows != "when_all_wrong" or self.answer_weight > 0:
            return None
        return (
            "ril.teacher_rows is 'when_all_wrong', but ril.answer_weight is 0, so that nothing is judged; "
            "raise ril.answer_weight or set ril.teacher_rows to as_student"
        )

    teacher_weight: Annotated[
        float,
        Field(gt=0, le=1000, description="Weight of teacher answers if `teacher_rows` is `sft`."),
        Switch(key="ril.teacher_weight", source="ours: the paper has no such term"),
    ] = 1.0

    @mark_contradiction
    def _refuse_weight_without_sft(self, given: Choices) -> str | None:
        """`ril.teacher_weight` needs `ril.teacher_rows: sft`."""
        if self.teacher_rows == "sft" or self.teacher_weight == 1:
            return None
        return (
            f"ril.teacher_weight is {self.teacher_weight:g}, but ril.teacher_rows is {self.teacher_rows!r}; remove it"
        )

    luffy_gamma: Annotated[
        float,
        Field(gt=0, le=1000, description="gamma of LUFFY's ratio p / (p + gamma), if `teacher_rows` is `luffy`."),
        Switch(key="ril.luffy_gamma", source="arXiv 2504.14945"),
    ] = 0.1

    @mark_contradiction
    def _refuse_gamma_without_luffy(self, given: Choices) -> str | None:
        """`ril.luffy_gamma` needs `ril.teacher_rows: luffy`."""
        if self.teacher_rows == "luffy" or self.luffy_gamma == 0.1:
            return None
        return (
            f"ril.luffy_gamma is {self.luffy_gamma:g}, but ril.teacher_rows is {self.teacher_rows!r}, not 'luffy'; "
            "remove it"
        )

    baseline: Annotated[
        AdvantageBaseline,
        Field(
            description="Baseline of the advantage: the mean of all 2G rewards (Eq. 2), the mean of its source, or "
            "one per reward (GDPO)."
        ),
        Switch(
            key="ril.baseline",
            source="Eq. 2",
            departures=(
                Departure(
                    ("per_source",),
                    "If the teachers are correct, a correct student answer gets a negative advantage; "
                    "against the mean of its own source it does not.",
                    "derived",
                ),
                Departure(
                    ("per_reward",),
                    "The sum rates a wrong teacher-like answer like a correct student-like one; here each reward is "
                    "scaled separately first.",
                    "arXiv 2601.05242",
                ),
            ),
        ),
    ] = "joint"

    @mark_contradiction
    def _refuse_per_source_of_one(self, given: Choices) -> str | None:
        """`ril.baseline: per_source` needs teacher answers in the group."""
        if self.baseline != "per_source" or self.teacher_rows not in ("none", "sft"):
            return None
        return (
            f"ril.baseline is 'per_source', but with ril.teacher_rows {self.teacher_rows!r} a group has student "
            "answers only; set ril.baseline to joint"
        )

    @mark_contradiction
    def _refuse_per_reward_of_one(self, given: Choices) -> str | None:
        """`ril.baseline: per_reward` needs both rewards, or one and an entry of `ril.rewards`."""
        weights = [self.similarity_weight, self.answer_weight, *(one.weight for one in self.functions)]
        if self.baseline != "per_reward" or sum(weight != 0 for weight in weights) > 1:
            return None
        return (
            "ril.baseline is 'per_reward', but ril.similarity_weight or ril.answer_weight is 0; set ril.baseline "
            "to joint"
        )

    scale_rewards: Annotated[
        Scale,
        Field(
            description="`group` divides advantages by the group's standard deviation (GRPO). "
            "If not set: the value of `ril.objective`."
        ),
        Switch(
            key="ril.scale_rewards",
            source="Eq. 2",
            presets={"grpo": "group", "adversarial": "group"},
            departures=(
                Departure(
                    ("group",), "GRPO's form, for comparison; favours easy and hard questions.", "arXiv 2402.03300"
                ),
            ),
        ),
    ] = "none"

    @mark_contradiction
    def _refuse_scaling_twice(self, given: Choices) -> str | None:
        """`ril.baseline: per_reward` scales each reward separately, so `ril.scale_rewards` cannot be set with it."""
        if self.baseline != "per_reward" or "ril.scale_rewards" not in given.written:
            return None
        return (
            f"ril.scale_rewards is {self.scale_rewards!r}, but ril.baseline 'per_reward' scales reward by reward; "
            "remove it"
        )

    similarity: Annotated[
        Similarity,
        Field(
            description="`binary` is 1[D < 0.5], `soft` 1 - D, `ranked` the rank in the group, `raw` the logit. "
            "If not set: the value of `ril.objective`."
        ),
        Switch(
            key="ril.similarity",
            source="§3.3",
            presets={"adversarial": "raw"},
            departures=(
                Departure(
                    ("soft",),
                    "1 - D ranks answers if the binary reward is the same for all.",
                    "paper Fig. 6 (worse there)",
                ),
                Departure(
                    ("ranked",), "The rank in the group keeps that order but not the scale of D.", "arXiv 2512.22238"
                ),
                Departure(("raw",), "GAD's reward.", "arXiv 2511.10643"),
            ),
        ),
    ] = "binary"

    @mark_contradiction
    def _refuse_unbounded_weight(self, given: Choices) -> str | None:
        """`ril.teacher_rows: sft` weights by reward, and `ril.similarity: raw` is unbounded."""
        if self.teacher_rows != "sft" or self.similarity != "raw":
            return None
        return (
            "ril.teacher_rows is 'sft', which weighs by reward, but ril.similarity 'raw' has no bounds; set it to soft"
        )

    similarity_weight: Annotated[
        float,
        Field(ge=0, le=1000, description="Weight of the similarity reward. If not set: the value of `ril.objective`."),
        Switch(
            key="ril.similarity_weight",
            source="§3.3",
            presets={"dr_grpo": 0.0, "grpo": 0.0, "sft": 0.0, "imitation": 0.0, "opd": 0.0},
            departures=(Departure((), "Style should count less than correctness.", "derived"),),
        ),
    ] = 1.0
    answer_weight: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="Weight of the judge's verdict; 0 disables the judge. "
            "If not set: the value of `ril.objective`.",
        ),
        Switch(
            key="ril.answer_weight",
            source="§3.3",
            presets={"adversarial": 0.0, "opd": 0.0},
            departures=(Departure((), "Correctness should count more than style.", "derived"),),
        ),
    ] = 1.0

    answer_by: Annotated[
        AnswerBy,
        Field(
            description="Who decides whether an answer is correct: the judge, or `parsing`, which compares it with the "
            "reference as validation does; for teacher answers too."
        ),
        Switch(
            key="ril.answer_by",
            source="§3.3",
            departures=(
                Departure(
                    ("parsing",),
                    "Needs no judge; in the paper nearly all of the gain is lost.",
                    "Table 5e",
                ),
            ),
        ),
    ] = "judge"

    @mark_contradiction
    def _refuse_parsing_without_answer_reward(self, given: Choices) -> str | None:
        """`ril.answer_by: parsing` needs the answer reward."""
        if self.answer_by == "judge" or (self.answer_weight > 0 and self.samples):
            return None
        return (
            f"ril.answer_by is {self.answer_by!r}, but ril.objective {given.values['ril.objective']!r} with "
            f"ril.answer_weight {self.answer_weight:g} has no answer reward; remove it"
        )

    @mark_contradiction
    def _refuse_similarity_without_discriminator(self, given: Choices) -> str | None:
        """`ril.similarity_weight` above 0 needs a discriminator."""
        if self.similarity_weight == 0 or self.uses_discriminator:
            return None
        return (
            f"ril.similarity_weight is {self.similarity_weight:g}, but ril.objective {given.values['ril.objective']!r} "
            "with discriminator.update 'none' has no discriminator; set ril.similarity_weight to 0, or ril.objective "
            "to 'dr_grpo' (Table 5d, none)"
        )

    @mark_contradiction
    def _refuse_unused_discriminator(self, given: Choices) -> str | None:
        """A discriminator needs a `ril.similarity_weight` above 0."""
        if self.similarity_weight > 0 or not self.uses_discriminator:
            return None
        return (
            f"ril.similarity_weight is 0, but discriminator.update is {self.discriminator_update!r}: it would be "
            "trained for nothing; set discriminator.update to none"
        )

    @mark_contradiction
    def _refuse_no_reward(self, given: Choices) -> str | None:
        """One of the two rewards must have a weight above 0, or an entry of `ril.rewards` any; not with `opd`."""
        if self.has_rewards or self.distils:
            return None
        return "ril.answer_weight is 0 and ril.similarity_weight too: there is no reward; raise one of them"

    similarity_gate: Annotated[
        Gate,
        Field(
            description="`when_correct` counts similarity for correct answers only, so that style alone has no reward."
        ),
        Switch(
            key="ril.similarity_gate",
            source="§3.3",
            departures=(
                Departure(
                    ("when_correct",),
                    "Style alone should have no reward; it learned faster at tiny scale.",
                    "own trials",
                ),
            ),
        ),
    ] = "none"

    @mark_contradiction
    def _refuse_kind_without_similarity(self, given: Choices) -> str | None:
        """`ril.similarity` and `ril.similarity_gate` need a `ril.similarity_weight` above 0."""
        if self.similarity_weight > 0 or (self.similarity_gate == "none" and "ril.similarity" not in given.written):
            return None
        return (
            f"ril.similarity_gate is {self.similarity_gate!r} and ril.similarity {self.similarity!r}, but "
            "ril.similarity_weight is 0; raise it, or remove them"
        )

    @mark_contradiction
    def _refuse_gate_without_judge(self, given: Choices) -> str | None:
        """`ril.similarity_gate: when_correct` needs the judge."""
        if self.similarity_gate != "when_correct" or self.answer_weight > 0:
            return None
        return (
            "ril.similarity_gate is 'when_correct', but ril.answer_weight is 0, so that nothing is judged; "
            "raise ril.answer_weight or set ril.similarity_gate to none"
        )

    functions: Annotated[
        tuple[Reward, ...],
        Field(
            strict=False,
            max_length=32,
            description="Rewards in addition to those of the objective, with weight, gate and curve of their own: a "
            "ready function, one of yours, or a rubric for the judge (docs/rewards.md). Entries `similarity` and "
            "`answer` give the weights of these two, in place of `similarity_weight` and `answer_weight`.",
        ),
        Switch(
            key="ril.rewards",
            source="§3.3: similarity and answer",
            departures=(
                Departure((), "What can be computed need not be judged, such as units, boxes, formats.", "own"),
            ),
        ),
    ] = ()

    @mark_contradiction
    def _refuse_functions_of_references(self, given: Choices) -> str | None:
        """`ril.rewards` needs a group of answers: not with `ril.objective: sft` and `imitation`, nor
        `ril.teacher_rows: sft`.
        """
        if not self.functions or self.teacher_rows != "sft":
            return None
        return (
            f"ril.rewards has {self.functions[0].title!r}, but ril.teacher_rows is 'sft', which weighs by the share "
            "of the largest reward, and this one has none; remove one of them"
        )

    @mark_contradiction
    def _refuse_function_gate_without_answers(self, given: Choices) -> str | None:
        """`gate: when_correct` of an entry of `ril.rewards` needs the answer reward."""
        gated = next((one.title for one in self.functions if one.gate == "when_correct"), None)
        if gated is None or self.answer_weight > 0:
            return None
        return (
            f"ril.rewards: gate of {gated!r} is 'when_correct', but ril.answer_weight is 0, so that nothing is judged; "
            "raise it, or set gate to none"
        )

    zero_variance: Annotated[
        ZeroVariance,
        Field(description="Groups whose rewards are all equal: kept for the KL term, or dropped (DAPO)."),
        Switch(
            key="ril.zero_variance",
            source=UNSAID,
            departures=(
                Departure(
                    ("drop",),
                    "Groups with equal rewards have no policy term, only a KL term.",
                    "DAPO, arXiv 2503.14476",
                ),
            ),
        ),
    ] = "keep"
    truncated: Annotated[
        Truncated,
        Field(
            description="Answers truncated at max_tokens: no answer reward, masked in the loss (DAPO), or as judged."
        ),
        Switch(
            key="ril.truncated",
            source=UNSAID,
            departures=(
                Departure(
                    ("masked",),
                    "The end of a truncated answer is unknown; it is masked in the loss and counts in the mean.",
                    "DAPO, arXiv 2503.14476",
                ),
                Departure(("as_judged",), "The judge may find the answer before the truncation.", "derived"),
            ),
        ),
    ] = "wrong"
    failed_verdicts: Annotated[
        FailedVerdicts,
        Field(description="An answer without a verdict is dropped, or its whole group is; it never counts as 0."),
        Switch(
            key="ril.failed_verdicts",
            source=UNSAID,
            departures=(Departure(("drop_group",), "A mean over fewer rows is noisier.", "derived"),),
        ),
    ] = "drop_row"

    @property
    def has_rewards(self) -> bool:
        """Whether answers have any reward."""
        return self.similarity_weight > 0 or self.answer_weight > 0 or any(one.weight for one in self.functions)

    @property
    def samples(self) -> bool:
        """Whether the student answers in the loop."""
        return not (self.references or self.imitates)

    @property
    def uses_judge(self) -> bool:
        """Whether the judge's verdict is part of the reward."""
        return self.answer_weight > 0 and self.samples and self.answer_by == "judge"

    @property
    def rubrics(self) -> tuple[Reward, ...]:
        """The functions whose values are the judge's."""
        return tuple(one for one in self.functions if one.use == RUBRIC)

    @property
    def asks_judge(self) -> bool:
        """Whether the loop needs the judge: for verdicts, for rubrics, or for both."""
        return self.uses_judge or bool(self.rubrics)
