"""The blocks `evaluate` and `evaluations`: which models are scored, and how."""

from typing import Literal

from pydantic import Field

from stages.config.block import Block
from stages.config.splits import Split


class Evaluate(Block):
    """How models are scored on the held-out split: the same prompts for all, greedy."""

    split: Split = Field("test", description="Split that is scored; no stage trains on `validation` or `test`.")
    max_tokens: int = Field(512, ge=1, description="Longest answer; a longer one is cut and scored as it is.")
    shuffled_images: bool = Field(
        True, description="Asks everything once more with the images exchanged, to show that answers come from seeing."
    )
    benchmarks: tuple[str, ...] = Field(
        (), strict=False, description="Benchmarks to answer; `ril benchmarks` lists them."
    )
    folder: str = Field(
        "datasets/benchmarks",
        description="Folder of benchmark files; DVC watches it (for the tiny world: the code that writes it).",
    )
    profiles: tuple[Literal["ours", "vlmeval@0.0.20", "lmms@0.7.3"], ...] = Field(
        ("ours",),
        min_length=1,
        strict=False,
        description="Rules of scoring; the first gives the headline.",
    )
    style: Literal["dataset", "qwen", "internvl", "lmms"] = Field(
        "dataset", description="Words in which benchmarks ask; another style moves scores by up to 20 points."
    )
    cot: Literal["off", "on"] = Field(
        "off", description="`on` asks for steps and a marked last line; needs a larger max_tokens."
    )
    judge: str = Field(
        "judge", description="Entry of `models` that judges where rules can't; better not the one of training."
    )
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Above this share of prompts that the model refuses (too long) it fails; they count as wrong.",
    )
    strict_md5: bool = Field(False, description="Refuses benchmark files whose md5 is none of the published ones.")


class Evaluation(Block):
    """One model that is scored."""

    checkpoint: str = Field(description="Folder of the model, an out of the stage that makes it.")
    title: str = Field(description="Name in tables and plots.")
