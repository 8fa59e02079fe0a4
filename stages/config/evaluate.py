"""The blocks `evaluate` and `evaluations`: the models to score, and how."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.config.answer_scorer import Scoring
from stages.config.benchmarks import check_benchmark
from stages.config.block import Block
from stages.config.paths import Location
from stages.config.splits import Split
from stages.config.verdict import VerdictForm


class Evaluate(Block):
    """Evaluation on a held-out split: equal prompts for all models, greedy decoding."""

    split: Split = Field("test", description="Split to score; no stage trains on `validation` or `test`.")
    max_tokens: int = Field(
        512, ge=1, le=10_000_000, description="Token limit; longer answers are truncated and scored as they are."
    )
    shuffled_images: bool = Field(
        True, description="Repeats the evaluation with shuffled images, to show that answers depend on the images."
    )
    benchmarks: tuple[Annotated[str, AfterValidator(check_benchmark)], ...] = Field(
        (), strict=False, description="Benchmarks to run; `ril benchmarks` lists them."
    )
    folder: Location = Field(
        "datasets/benchmarks",
        description="Folder of benchmark files, tracked by DVC (for the tiny world: the code that generates them).",
    )
    profiles: tuple[Literal["ours", "vlmeval@0.0.20", "lmms@0.7.3"], ...] = Field(
        ("ours",),
        min_length=1,
        strict=False,
        description="Scoring rules; the first one gives the main score.",
    )
    style: Literal["dataset", "qwen", "internvl", "lmms"] = Field(
        "dataset", description="Prompt style of benchmarks; scores differ by up to 20 points between styles."
    )
    cot: Literal["off", "on"] = Field(
        "off", description="`on` requests reasoning steps and a marked last line; needs a larger max_tokens."
    )
    scoring: Scoring = Field(
        "rules",
        description="How answers to the split are scored: by the rule for the kind of the reference, or by it and, "
        "where it is not sure (other wording, free text), by the judge.",
    )
    judge: str = Field(
        "judge",
        description="Entry of `models` that judges what rules cannot score; preferably not the judge of training.",
    )
    judge_max_tokens: int = Field(
        256, ge=8, le=10_000_000, description="Token limit of the judge's verdict on an answer to the split."
    )
    judge_form: VerdictForm = Field(
        "tag",
        description="Form of the judge's verdicts of right or wrong, as verdict.form: plain for a judge that never "
        "writes the tag. Benchmarks whose judge extracts, matches or grades ask in their own form.",
    )
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Maximum share of rejected prompts (too long), which count as wrong; the stage fails above it.",
    )
    strict_md5: bool = Field(False, description="Rejects benchmark files whose md5 is not a published one.")


class Evaluation(Block):
    """One model to score."""

    checkpoint: str = Field(description="Folder of the model, an out of the stage that produces it.")
    title: str = Field(description="Name in tables and plots.")
