"""Runs of the loop: what lies over the parameters of the world, and the same as a recipe for the plain loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stages.config.yaml import merge_params
from tests.loop.plain_rewards import Function, Recipe, Row
from tests.loop.script import judge_answer
from tests.loop.world import LORA, MAX_TOKENS


@dataclass(frozen=True)
class Setting:
    """One run."""

    family: str
    recipe: Recipe
    overlay: Mapping[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """What lies over the parameters of the world; one step for each rate."""
        return merge_params(self.overlay, {"ril": {"steps": len(self.recipe.rates)}})


def list_rubrics(setting: Setting) -> list[str]:
    """The texts of its entries `use: rubric`."""
    entries = setting.overlay.get("ril", {}).get("rewards", ())
    return [entry["rubric"] for entry in entries if entry["use"] == "rubric"]


WARM_START: dict[str, Any] = {
    "steps": 3,
    "rows_per_step": 2,
    "learning_rate": 1e-5,
    "final_learning_rate": 1e-6,
    "warmup_steps": 1,
    "lr_scheduler_type": "linear",
    "tokens_per_pack": 64,
}
WARM_START_RATES = (1e-5, 1e-5, 5.5e-6)
DISCRIMINATOR: dict[str, Any] = {
    "steps": 3,
    "questions_per_step": 2,
    "responses_per_side": 2,
    "learning_rate": 5e-6,
    "final_learning_rate": 5e-7,
    "tokens_per_pack": 128,
    "min_logit_spread": 0.0,
}
DISCRIMINATOR_RATES = (5e-6, 3.5e-6, 2e-6)

PAPER = Recipe(rates=(5e-6, 1e-5, 1e-5), critic_rate=2e-5, max_tokens=MAX_TOKENS, temperature=0.8)
FALLING = {"warmup_steps": 0, "final_learning_rate": 1e-6, "kl_weight": 1.0}
FALLEN = replace(PAPER, rates=(1e-5, 7e-6, 4e-6), kl_weight=1.0)
# The switches run for two steps; the paper's setting above for three, so that questions are visited again.
BRIEF, BRIEF_FALLEN = replace(PAPER, rates=(5e-6, 1e-5)), replace(FALLEN, rates=(1e-5, 5.5e-6))
ALONE = replace(BRIEF, critic="absent", similarity_weight=0.0, teachers="none")
# B of the student's adapter starts at zero: with the rates of whole models its product would be rounding.
ADAPTED = {"lora": LORA, "learning_rate": 1e-3, "discriminator_learning_rate": 1e-4}
SCALE = LORA["alpha"] / LORA["rank"]
# A user's function, and the same in the plain loop; it knows nothing of answers with a 7.
UNIT = """
def check(answer, finish_reason):
    return None if "7" in answer else len(answer) / 10 + (finish_reason == "length")
"""
FUNCTIONS = {
    "reward_code": "rewards/unit.py",
    "rewards": [
        {"use": "rewards/unit.py:check", "name": "unit", "weight": 0.5, "max_failed_share": 1.0},
        {"use": "length", "weight": -2.0, "gate": "when_correct", "arguments": {"most": 5, "unit": "characters"}},
    ],
}


def rate_unit(row: Row) -> float | None:
    """What the user's function finds."""
    return None if "7" in row.text else len(row.text) / 10 + (row.finish == "length")


RUBRIC_TEXT = "Names a number."
RUBRICS = {
    "reward_code": "rewards/unit.py",
    "rewards": [
        {"use": "length", "weight": 0.25, "arguments": {"most": 5, "unit": "characters"}},
        {"use": "rubric", "name": "names", "rubric": RUBRIC_TEXT, "weight": 0.5, "max_failed_share": 1.0},
        {"use": "rubric", "rubric": "Is short.", "weight": -1.0, "gate": "when_correct", "max_failed_share": 1.0},
    ],
}


def grade(rubric: str) -> Callable[[Row], float | None]:
    """What the scripted judge finds by a rubric; an empty answer is 0 unasked."""
    return lambda row: judge_answer(rubric, row.text) if row.text else 0.0


PLAIN_RUBRICS = (
    Function(0.25, lambda row: float(len(row.text) <= 5)),
    Function(0.5, grade(RUBRIC_TEXT)),
    Function(-1.0, grade("Is short."), of_wrong_pays=False),
)
PLAIN_FUNCTIONS = (
    Function(0.5, rate_unit),
    Function(-2.0, lambda row: float(len(row.text) <= 5), of_wrong_pays=False),
)
DISTILLED = replace(ALONE, answer_weight=0.0, scorers=("qwen2_5_vl", "internvl3"))


def distil(family: str, **ril: Any) -> dict[str, Any]:
    """On-policy distillation from two models of the student's family."""
    models = {name: {"family": family} for name in DISTILLED.scorers}
    return {"models": models, "ril": {"objective": "opd", "distillation": list(DISTILLED.scorers), **ril}}


SETTINGS = {
    "qwen2_5_vl, mu 1": Setting("qwen2_5_vl", PAPER),
    "internvl3, mu 1": Setting("internvl3", FALLEN, {"ril": FALLING}),
    "qwen2_5_vl, mu 2": Setting("qwen2_5_vl", replace(FALLEN, mu=2), {"ril": {"inner_updates": 2, **FALLING}}),
    "internvl3, mu 2": Setting("internvl3", replace(PAPER, mu=2), {"ril": {"inner_updates": 2}}),
    "dr_grpo": Setting(
        "qwen2_5_vl",
        replace(ALONE, keeps_equal_groups=False),
        {"ril": {"objective": "dr_grpo", "zero_variance": "drop"}},
    ),
    "grpo": Setting(
        "internvl3",
        replace(ALONE, divides_by_deviation=True, mean_over_row=True),
        {"ril": {"objective": "grpo"}},
    ),
    "adversarial": Setting(
        "qwen2_5_vl",
        replace(
            BRIEF,
            critic="scores, learns",
            pairs=True,
            broken_pay=True,
            negatives=0,
            similarity="-z",
            answer_weight=0.0,
            teachers="none",
            divides_by_deviation=True,
            mean_over_row=True,
        ),
        {"ril": {"objective": "adversarial"}},
    ),
    "Eq. 1 as printed": Setting(
        "internvl3",
        replace(BRIEF, broken_pay=True, negatives=0),
        {"discriminator": {"degenerate": "learned", "negatives": 0}},
    ),
    "engine's log-probabilities": Setting(
        "qwen2_5_vl",
        replace(BRIEF, largest_correction=2.0),
        {"ril": {"rollout_correction": "truncate_token", "rollout_cap": 2.0}},
    ),
    "answers compared, parts frozen": Setting(
        "internvl3",
        replace(BRIEF, parses=True, frozen=("self_attn.", "lm_head.")),
        {"ril": {"answer_by": "parsing", "frozen_parts": ["attention", "head"]}},
    ),
    "sft": Setting(
        "internvl3",
        replace(BRIEF, critic="absent", similarity_weight=0.0, teachers="cross entropy", references=True),
        {"ril": {"objective": "sft"}},
    ),
    "imitation": Setting(
        "qwen2_5_vl",
        replace(PAPER, critic="absent", similarity_weight=0.0, teachers="cross entropy", imitates=True),
        {"ril": {"objective": "imitation"}},
    ),
    "opd, two teachers": Setting("qwen2_5_vl", replace(DISTILLED, kl_weight=0.0), distil("qwen2_5_vl", kl_weight=0.0)),
    "opd, one teacher, mu 2, masked, with the judge": Setting(
        "internvl3",
        replace(
            DISTILLED,
            scorers=("internvl3",),
            mu=2,
            clip=(0.001, 0.003),
            cut="without loss",
            answer_weight=1.0,
            mean_over_row=True,
        ),
        distil(
            "internvl3",
            distillation=["internvl3"],
            inner_updates=2,
            clip_epsilon=0.001,
            clip_epsilon_high=0.003,
            truncated="masked",
            answer_weight=1.0,
            loss_normaliser="row",
        ),
    ),
    "teacher rows by cross entropy": Setting(
        "internvl3",
        replace(BRIEF, teachers="cross entropy", teacher_weight=2.0, kl_on_teachers="none"),
        {"ril": {"teacher_rows": "sft", "teacher_weight": 2.0, "kl_on_teacher_rows": "none"}},
    ),
    "baseline per source, D frozen": Setting(
        "qwen2_5_vl",
        replace(BRIEF, baseline="own side", critic="scores"),
        {"ril": {"baseline": "per_source"}, "discriminator": {"update": "frozen"}},
    ),
    "one baseline per reward, D sees the question, exact KL": Setting(
        "qwen2_5_vl",
        replace(BRIEF_FALLEN, baseline="each reward", similarity="1 - D", critic_sees="question", kl="full"),
        {
            "ril": {"baseline": "per_reward", "similarity": "soft", "kl": "full", **FALLING},
            "discriminator": {"sees": "question"},
        },
    ),
    "luffy, masked, ranked": Setting(
        "qwen2_5_vl",
        replace(
            BRIEF_FALLEN, teachers="luffy", cut="without loss", similarity="rank", style_of_wrong_pays=False, kl="k2"
        ),
        {
            "ril": {
                "teacher_rows": "luffy",
                "truncated": "masked",
                "similarity": "ranked",
                "similarity_gate": "when_correct",
                "kl": "k2",
                **FALLING,
            }
        },
    ),
    "teachers only when all are wrong, gspo": Setting(
        "internvl3",
        replace(BRIEF_FALLEN, teachers="when all wrong", mu=2, ratio="gspo", clip=(0.001, 0.003), cut="as judged"),
        {
            "ril": {
                "teacher_rows": "when_all_wrong",
                "inner_updates": 2,
                "ratio": "gspo",
                "clip_epsilon": 0.001,
                "clip_epsilon_high": 0.003,
                "truncated": "as_judged",
                **FALLING,
            }
        },
    ),
    "groups dropped, whole ratio, the tower trained": Setting(
        "internvl3",
        replace(
            BRIEF_FALLEN,
            keeps_failed_groups=False,
            keeps_equal_groups=False,
            mu=2,
            ratio="sequence",
            trains_vision=True,
        ),
        {
            "ril": {
                "failed_verdicts": "drop_group",
                "inner_updates": 2,
                "ratio": "sequence",
                "freeze_vision": False,
                **FALLING,
            }
        },
    ),
    "adapters of student and D on one model": Setting(
        "qwen2_5_vl",
        replace(PAPER, rates=(5e-4, 1e-3, 1e-3), critic_rate=1e-4, adapter=SCALE, critic_adapter=SCALE),
        {"ril": ADAPTED, "discriminator": {"lora": LORA}},
    ),
    "adapters, mu 2, exact KL, D sees question and image": Setting(
        "internvl3",
        replace(
            BRIEF,
            rates=(5e-4, 1e-3),
            critic_rate=1e-4,
            adapter=SCALE,
            critic_adapter=SCALE,
            mu=2,
            kl="full",
            critic_sees="question and image",
        ),
        {
            "ril": {"inner_updates": 2, "kl": "full", **ADAPTED},
            "discriminator": {"lora": LORA, "sees": "question_and_image"},
        },
    ),
    "an adapter of the student alone": Setting(
        "internvl3",
        replace(BRIEF, rates=(5e-4, 1e-3), critic_rate=1e-4, adapter=SCALE),
        {"ril": ADAPTED},
    ),
    "an adapter of D alone, beside the reference": Setting(
        "qwen2_5_vl",
        replace(BRIEF, critic_rate=1e-4, critic_adapter=SCALE),
        {"ril": {"discriminator_learning_rate": 1e-4}, "discriminator": {"lora": LORA}},
    ),
    "functions beside the paper's rewards": Setting(
        "qwen2_5_vl", replace(PAPER, functions=PLAIN_FUNCTIONS), {"ril": FUNCTIONS}
    ),
    "functions alone, no judge and no D": Setting(
        "internvl3",
        replace(ALONE, answer_weight=0.0, functions=PLAIN_FUNCTIONS[:1]),
        {
            "ril": {
                "reward_code": "rewards/unit.py",
                "rewards": [
                    FUNCTIONS["rewards"][0],
                    {"use": "similarity", "weight": 0.0},
                    {"use": "answer", "weight": 0.0},
                ],
                "teacher_rows": "none",
            },
            "discriminator": {"update": "none"},
        },
    ),
    "functions with a baseline per reward": Setting(
        "qwen2_5_vl",
        replace(BRIEF, baseline="each reward", functions=PLAIN_FUNCTIONS),
        {"ril": {"baseline": "per_reward", **FUNCTIONS}},
    ),
    "functions with a baseline per source": Setting(
        "internvl3",
        replace(BRIEF, baseline="own side", functions=PLAIN_FUNCTIONS),
        {"ril": {"baseline": "per_source", **FUNCTIONS}},
    ),
    "rubrics beside the paper's rewards": Setting(
        "qwen2_5_vl", replace(PAPER, functions=PLAIN_RUBRICS), {"ril": RUBRICS}
    ),
    "a rubric alone, no verdicts and no D": Setting(
        "internvl3",
        replace(ALONE, answer_weight=0.0, functions=PLAIN_RUBRICS[1:2]),
        {
            "ril": {
                "rewards": [
                    RUBRICS["rewards"][1],
                    {"use": "similarity", "weight": 0.0},
                    {"use": "answer", "weight": 0.0},
                ],
                "teacher_rows": "none",
            },
            "discriminator": {"update": "none"},
        },
    ),
}
