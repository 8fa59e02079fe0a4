"""ChartQA: short answers about charts, numbers within 5 %."""

from stages.benchmarks.prompts import SHORT, followed_by
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL, clean_relaxed, lmms_relaxed, ours_relaxed, vlmeval_relaxed
from stages.benchmarks.spec import Hub, Spec, Tsv
from stages.benchmarks.tables import Row

_SPLITS = {
    "human_test": "test_human",
    "augmented_test": "test_augmented",
    "human": "test_human",
    "augmented": "test_augmented",
}


def sample(row: Row) -> Sample:
    """A row under any of the three sets of names that are in use: TSV, lmms-lab/ChartQA, ahmed-masry/ChartQA."""
    split = row.text("split", "") or row.text("type")
    return Sample(
        index=row.text("index", "") or row.text("imgname", "") or row.where,
        question=row.text("question", "") or row.text("query"),
        gold=row.text("answer", "") or row.text("label"),
        groups={"split": (_SPLITS.get(split, split),)},
        pictures=row.pictures["image"],
    )


def hub_sample(row: Row) -> Sample:
    """A row of the hub; several questions share an image's name there, so the row's place is its index."""
    return Sample(**{**sample(row).__dict__, "index": row.text("index", row.where)})


SPECS = (
    Spec(
        id="chartqa",
        title="ChartQA (test)",
        column="ChartQA",
        expected=2500,
        licence="GPL-3.0",
        tsv=(Tsv("ChartQA_TEST", {"c902e0aa9be5582a7aad6dcf52734b42": ""}),),
        hub=(Hub(("lmms-lab/ChartQA", "lmms-lab-encoder/ChartQA"), "test"),),
        make={"tsv": sample, "hub": hub_sample},
        needs={"tsv": ("index", "question", "answer", "image"), "hub": ("image",)},
        prompts={
            "dataset": followed_by(f"\n{SHORT}"),
            "qwen": followed_by("\nPlease try to answer the question with short words or phrases if possible."),
            "internvl": followed_by(f"\n{SHORT}"),
            "lmms": followed_by("\nAnswer the question with a single word."),
        },
        scorers={OURS: ours_relaxed, VLMEVAL: vlmeval_relaxed, LMMS: lmms_relaxed},
        judge="none",
        second={"clean": clean_relaxed},
        groups=("split",),
    ),
)
