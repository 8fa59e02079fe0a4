"""ChartQA: short answers about charts, numbers within 5 %."""

from stages.benchmarks.prompts import SHORT, append_sentence
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import (
    LMMS,
    OURS,
    VLMEVAL,
    score_clean_relaxed,
    score_lmms_relaxed,
    score_ours_relaxed,
    score_vlmeval_relaxed,
)
from stages.benchmarks.spec import Hub, Spec, Tsv
from stages.benchmarks.tables import TableRow

_SPLITS = {
    "human_test": "test_human",
    "augmented_test": "test_augmented",
    "human": "test_human",
    "augmented": "test_augmented",
}


def make_chartqa_sample(row: TableRow) -> Sample:
    """Returns the sample of a row with one of three naming schemes: TSV, lmms-lab/ChartQA, ahmed-masry/ChartQA."""
    split = row.text("split", "") or row.text("type")
    return Sample(
        index=row.text("index", "") or row.text("imgname", "") or row.where,
        question=row.text("question", "") or row.text("query"),
        gold=row.text("answer", "") or row.text("label"),
        groups={"split": (_SPLITS.get(split, split),)},
        pictures=row.pictures["image"],
    )


def make_chartqa_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a hub row; questions share image names there, so the position is the index."""
    return Sample(**{**make_chartqa_sample(row).__dict__, "index": row.text("index", row.where)})


SPECS = (
    Spec(
        id="chartqa",
        title="ChartQA (test)",
        column="ChartQA",
        expected=2500,
        licence="GPL-3.0",
        tsv=(Tsv("ChartQA_TEST", {"c902e0aa9be5582a7aad6dcf52734b42": ""}),),
        hub=(Hub(("lmms-lab/ChartQA", "lmms-lab-encoder/ChartQA"), "test"),),
        make={"tsv": make_chartqa_sample, "hub": make_chartqa_hub_sample},
        needs={"tsv": ("index", "question", "answer", "image"), "hub": ("image",)},
        prompts={
            "dataset": append_sentence(f"\n{SHORT}"),
            "qwen": append_sentence("\nPlease try to answer the question with short words or phrases if possible."),
            "internvl": append_sentence(f"\n{SHORT}"),
            "lmms": append_sentence("\nAnswer the question with a single word."),
        },
        scorers={OURS: score_ours_relaxed, VLMEVAL: score_vlmeval_relaxed, LMMS: score_lmms_relaxed},
        judge="none",
        second={"clean": score_clean_relaxed},
        groups=("split",),
    ),
)
