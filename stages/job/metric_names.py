"""Metric names of training stages: columns of history.csv and validation.csv, keys of metrics.json.

Writers and readers import the names from here, so that no reader expects a name that is never written. They follow TRL,
verl and imitation where these have a name. A `{}` stands for a source: the student, a teacher's id, or all teachers
together (`stages.groups.response`).
"""

STEP = "step"
VALIDATION = "validation"  # share of validation questions that are answered correctly
# with `ril.validation_scoring: rules_and_judge`: share that the judge decided, and share without a verdict
VALIDATION_JUDGED, VALIDATION_FAILED = "validation/judged", "validation/failed"

# --- the update of a model -------------------------------------------------------------------------------------------
LOSS = "loss"
GRAD_NORM = "grad_norm"  # before clipping
LEARNING_RATE = "learning_rate"
# means over tokens of responses
ENTROPY = "entropy"
KL = "kl"  # k3, to the reference model
KL_FAR = "kl/far"  # share of tokens that are far from it
# log p of the student less that of a teacher of `ril.distillation`, and less their mean
REVERSE_KL_OF, REVERSE_KL = "reverse_kl/{}", "reverse_kl"
RATIO = "ratio"
CLIP_RATIO = "clip_ratio"  # share of tokens whose ratio left the clip range

# --- rewards and groups ----------------------------------------------------------------------------------------------
STUDENT_SIMILARITY, STUDENT_ANSWER = "rewards/similarity", "rewards/answer"
SIMILARITY, ANSWER = "rewards/{}/similarity", "rewards/{}/answer"
REWARD, ADVANTAGE = "rewards/{}/mean", "rewards/{}/advantage"
# of a function of `ril.rewards`, by its name: means of the student and of all teachers, and the student's failures
FUNCTION, FUNCTION_OF_TEACHERS = "rewards/function/{}", "rewards/function/{}/teacher"
FUNCTION_FAILED = "rewards/function/{}/failed"
EQUAL_REWARDS = "frac_reward_zero_std"  # share of groups whose responses all have the same reward
CORRECT_NEGATIVE_ADVANTAGE = "frac_correct_negative_advantage"  # of the student's correct responses
UNSCORED = "frac_unscored"  # share of answers that a teacher of `ril.distillation` lacks a token of
LENGTH, CUT = "completions/{}/mean_length", "completions/{}/clipped_ratio"  # in tokens; share that reached max_tokens
STUDENT_CUT = "completions/clipped_ratio"
FAILED, STUDENT_FAILED = "judge/{}/failed", "judge/failed"  # share of responses without a verdict

# --- the discriminator -----------------------------------------------------------------------------------------------
# as a reward
PASSED = "disc/passed"  # share of the student's responses that it classifies as a teacher's
REWARD_LOGIT, REWARD_ACCURACY = "disc/{}/logit", "disc/{}/acc"
# in the loop, before it is updated on a step's texts
DISC_LOSS, DISC_LOSS_OF = "disc/loss", "disc/loss_{}"
DISC_ACCURACY, DISC_ACCURACY_OF = "disc/acc", "disc/acc_{}"
DISC_LOGIT_GAP, DISC_LOGIT_GAP_OF = (
    "disc/logit_gap",
    "disc/logit_gap_{}",
)  # mean logit of the student less the teachers'
DISC_ENTROPY = "disc/entropy"
DISC_GRAD_NORM = "disc/grad_norm"
# in pre-training: on the texts of a step, and on held-out texts
TEXT_ACCURACY = "accuracy"
HELD_OUT_ACCURACY, HELD_OUT_ACCURACY_OF = "acc", "acc_{}"
HELD_OUT_LOGIT_GAP = "logit_gap"
CALIBRATION_ERROR = "calibration_error"
LENGTH_ACCURACY = "acc_length_only"  # of the best threshold on lengths alone


def for_source(name: str, source: str) -> str:
    """Returns the name of a mean over tokens (ENTROPY, KL, ...) for the responses of one source."""
    return f"{name}/{source}"


def source_of(column: str, name: str) -> str | None:
    """Returns the source in `column` if it is `name` (a pattern with one `{}`) for some source; else None."""
    before, after = name.split("{}")
    source = column[len(before) : len(column) - len(after)]
    return source if source and "/" not in source and column == f"{before}{source}{after}" else None


def for_last_update(name: str) -> str:
    """Returns the name of a mean over tokens in a step's last inner update; the plain name is for the first."""
    return f"{name}/last"
