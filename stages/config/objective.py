"""The student's objective: all switches of the loop with their final values."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from stages.config.rewards import UNSAID, RewardObjective
from stages.config.switch import Choices, Departure, Switch, mark_contradiction

Normaliser = Literal["constant", "row"]
Ratio = Literal["token", "sequence", "gspo"]
Kl = Literal["k1", "k2", "k3", "full"]
KlOnTeachers = Literal["same", "none", "k1", "k2", "k3", "full"]
Correction = Literal["none", "truncate_token", "mask_token", "truncate_sequence", "mask_sequence"]


@dataclass(frozen=True)
class Objective(RewardObjective):
    """All switches with their final values; the defaults are the paper's RIL, but for broken texts."""

    loss_normaliser: Annotated[
        Normaliser,
        Field(
            description="`constant` divides by max_tokens (Dr.GRPO), `row` by the answer's length. "
            "If not set: the value of `ril.objective`."
        ),
        Switch(
            key="ril.loss_normaliser",
            source="Eq. 2 in Dr.GRPO's form, arXiv 2503.20783",
            presets={"grpo": "row", "adversarial": "row"},
            departures=(
                Departure(("row",), "GRPO's form, for comparison; favours long wrong answers.", "arXiv 2503.20783"),
            ),
        ),
    ] = "constant"
    ratio: Annotated[
        Ratio,
        Field(
            description="Ratio to the old policy per token, per sequence (Eq. 2 literally), or its mean (GSPO); "
            "equal at mu = 1."
        ),
        Switch(
            key="ril.ratio",
            source="Eq. 2 per token, as in Dr.GRPO: at the paper's mu = 1 all three have the same gradient",
            departures=(
                Departure(
                    ("sequence",),
                    "Eq. 2 as printed; for long answers it leaves the clip range immediately if mu > 1.",
                    "paper Eq. 2",
                ),
                Departure(("gspo",), "The geometric mean stays in range at mu > 1.", "arXiv 2507.18071"),
            ),
        ),
    ] = "token"

    @mark_contradiction
    def _refuse_mean_of_one_term(self, given: Choices) -> str | None:
        """`ril.ratio: sequence` has one term per answer; `ril.loss_normaliser: row` is a mean over tokens."""
        if self.ratio != "sequence" or self.loss_normaliser != "row":
            return None
        return (
            "ril.ratio is 'sequence', one term per answer, but ril.loss_normaliser is 'row', a mean over tokens; "
            "set ril.loss_normaliser to constant, or ril.ratio to gspo"
        )

    @mark_contradiction
    def _refuse_teacher_answers_in_distillation(self, given: Choices) -> str | None:
        """`ril.objective: opd` learns on the student's own answers."""
        if not self.distils or self.teacher_rows == "none":
            return None
        return (
            f"ril.objective is 'opd', which learns on the student's own answers, but ril.teacher_rows is "
            f"{self.teacher_rows!r}; remove it"
        )

    @mark_contradiction
    def _refuse_distillation_of_greedy_answers(self, given: Choices) -> str | None:
        """`ril.objective: opd` needs sampled answers: a `ril.sampling.temperature` above 0."""
        if not self.distils or given.values["ril.sampling"].temperature > 0:
            return None
        return (
            "ril.objective is 'opd', but ril.sampling.temperature is 0: greedy answers are no samples of the student, "
            "on which its KL could be estimated; raise it"
        )

    @mark_contradiction
    def _refuse_drops_in_distillation(self, given: Choices) -> str | None:
        """`ril.objective: opd` learns from groups with equal rewards: not with `ril.zero_variance: drop`."""
        if not self.distils or self.zero_variance == "keep":
            return None
        return (
            "ril.objective is 'opd', which also learns from groups whose rewards are all equal, but ril.zero_variance "
            f"is {self.zero_variance!r}; set it to keep"
        )

    @mark_contradiction
    def _refuse_distillation_by_row(self, given: Choices) -> str | None:
        """`ril.objective: opd` has an advantage for each token: not with `ril.ratio: sequence`."""
        if not self.distils or self.ratio != "sequence":
            return None
        return (
            "ril.ratio is 'sequence', one term per answer, but ril.objective 'opd' has an advantage for each token; "
            "set ril.ratio to token"
        )

    clip_low: Annotated[
        float,
        Field(gt=0, lt=1, description="Clip range of the ratio (§4.2); no effect with one inner update."),
        Switch(key="ril.clip_epsilon", source="§4.2"),
    ] = 0.2
    clip_high: Annotated[
        float,
        Field(gt=0, le=1e6, description="Upper clip range, if wider (DAPO: 0.28). If not set: `clip_epsilon`."),
        Switch(
            key="ril.clip_epsilon_high",
            source="§4.2",
            like="ril.clip_epsilon",
            departures=(
                Departure(
                    (), "A larger upper bound (0.28) lets unlikely tokens grow at mu > 1.", "DAPO, arXiv 2503.14476"
                ),
            ),
        ),
    ] = 0.2

    @mark_contradiction
    def _refuse_inverted_clip_range(self, given: Choices) -> str | None:
        """`ril.clip_epsilon_high` is at least `ril.clip_epsilon`."""
        if self.clip_high >= self.clip_low:
            return None
        return f"ril.clip_epsilon_high is {self.clip_high:g}, below ril.clip_epsilon ({self.clip_low:g}); raise it"

    kl: Annotated[
        Kl,
        Field(description="Estimator of the KL to the SFT student; `full` is exact and costs a second head product."),
        Switch(
            key="ril.kl",
            source=UNSAID,
            departures=(
                Departure(
                    ("k1", "k2"),
                    "k2 has the expected gradient of the KL; k1's is zero, for comparison only.",
                    "Schulman's note",
                ),
                Departure(("full",), "Exact over the vocabulary, at the cost of a second head product.", "derived"),
            ),
        ),
    ] = "k3"
    kl_on_teacher_rows: Annotated[
        KlOnTeachers,
        Field(
            description="Estimator on teacher answers: same, another, or none. k3 is a penalty there, not an estimate."
        ),
        Switch(
            key="ril.kl_on_teacher_rows",
            source=UNSAID,
            departures=(
                Departure(
                    ("none", "k1", "k2", "k3", "full"),
                    "On tokens not sampled from the student, k3 does not estimate a KL and grows exponentially.",
                    "derived",
                ),
            ),
        ),
    ] = "same"

    @property
    def has_full_kl(self) -> bool:
        """Whether a KL term is computed over the whole vocabulary."""
        return "full" in (self.kl, self.kl_on_teacher_rows)

    @mark_contradiction
    def _refuse_kl_without_teachers(self, given: Choices) -> str | None:
        """`ril.kl_on_teacher_rows` needs teacher answers."""
        if self.kl_on_teacher_rows == "same" or self.teacher_rows != "none":
            return None
        return f"ril.kl_on_teacher_rows is {self.kl_on_teacher_rows!r}, but ril.teacher_rows is 'none'; set it to same"

    @mark_contradiction
    def _refuse_estimate_without_kl(self, given: Choices) -> str | None:
        """`ril.kl` and `ril.kl_on_teacher_rows` need a `ril.kl_weight` above 0."""
        if given.values["ril.kl_weight"] > 0 or (self.kl == "k3" and self.kl_on_teacher_rows == "same"):
            return None
        return (
            f"ril.kl is {self.kl!r} and ril.kl_on_teacher_rows {self.kl_on_teacher_rows!r}, but ril.kl_weight is 0; "
            "raise it, or remove them"
        )

    rollout_correction: Annotated[
        Correction,
        Field(
            description="Importance weights of student answers: probability in the trainer, divided by the one with "
            "which vLLM sampled."
        ),
        Switch(
            key="ril.rollout_correction",
            source=UNSAID,
            departures=(
                Departure(
                    ("truncate_token", "mask_token", "truncate_sequence", "mask_sequence"),
                    "vLLM and the trainer differ in the last digits; `top_p`, `top_k` and `repetition_penalty` act in "
                    "vLLM only. The mean weight is 1 at any temperature, and at least `top_p` per token where only "
                    "that is set.",
                    "TIS",
                ),
            ),
        ),
    ] = "none"
    rollout_cap: Annotated[
        float,
        Field(
            gt=1, le=1e6, description="Bound at which `rollout_correction` truncates a weight, or above which it masks."
        ),
        Switch(key="ril.rollout_cap", source=UNSAID),
    ] = 3.0

    @mark_contradiction
    def _refuse_correction_of_greedy(self, given: Choices) -> str | None:
        """`ril.rollout_correction` needs sampled answers: a `ril.sampling.temperature` above 0."""
        if self.rollout_correction == "none" or given.values["ril.sampling"].temperature > 0:
            return None
        return (
            f"ril.rollout_correction is {self.rollout_correction!r}, but ril.sampling.temperature is 0: greedy answers "
            "are not sampled; raise it, or set the correction to none"
        )

    @mark_contradiction
    def _refuse_cap_without_correction(self, given: Choices) -> str | None:
        """`ril.rollout_cap` needs a `ril.rollout_correction`."""
        if self.rollout_correction != "none" or self.rollout_cap == 3:
            return None
        return f"ril.rollout_cap is {self.rollout_cap:g}, but ril.rollout_correction is 'none'; remove it"


PAPER = Objective()
