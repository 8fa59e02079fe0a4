"""SEED-Bench (images) and SEED-Bench-2-Plus."""

from stages.benchmarks.aggregate import macro_average
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import (
    LMMS,
    OURS,
    VLMEVAL,
    score_lmms_first_character,
    score_ours_choice,
    score_vlmeval_choice,
)
from stages.benchmarks.spec import Hub, Spec, Tsv, make_tsv_choice_reader
from stages.benchmarks.tables import TableRow

DIMENSIONS = (
    *("Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location", "Instances Counting"),
    *("Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding"),
)  # question_type_id 1 to 9


def make_seed_hub_sample(row: TableRow) -> Sample | None:
    """Returns the sample of a row of lmms-lab/SEED-Bench (columns choice_a ...); None for videos."""
    if row.text("data_type") != "image":
        return None
    kind = int(row.text("question_type_id"))
    groups = {"category": (DIMENSIONS[kind - 1] if 1 <= kind <= len(DIMENSIONS) else str(kind),)}
    options = {one: row.text(f"choice_{one.lower()}") for one in "ABCD"}
    index = row.text("question_id")
    return Sample(
        index, row.text("question"), row.text("answer"), options, groups=groups, pictures=row.pictures["image"]
    )


def make_seed_plus_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of SEED-Bench-2-Plus (columns choice_A ...); case of the type varies."""
    options = {
        one: row.text(f"choice_{one.lower()}") for one in "ABCD"
    }  # all names except single letters are in lower case
    groups = {"category": (row.text("question_image_type").capitalize(),)}
    index = row.text("question_id")
    return Sample(
        index, row.text("question"), row.text("answer"), options, groups=groups, pictures=row.pictures["image"]
    )


_SCORERS = {OURS: score_ours_choice, VLMEVAL: score_vlmeval_choice, LMMS: score_lmms_first_character}
_TSV_NEEDS = ("index", "question", "A", "B", "answer", "image")
_CHOICES = tuple(f"choice_{one}" for one in "abcd")

SPECS = (
    Spec(
        id="seedbench",
        title="SEED-Bench (image)",
        column="SEED",
        expected=14233,
        licence="CC BY-NC 4.0",
        tsv=(Tsv("SEEDBench_IMG", {"68017231464752261a2526d6ca3a10c0": ""}, folder="benchmarks/SEEDBench"),),
        hub=(Hub(("lmms-lab/SEED-Bench", "lmms-lab-encoder/SEED-Bench"), "test"),),
        make={"tsv": make_tsv_choice_reader("category"), "hub": make_seed_hub_sample},
        needs={"tsv": _TSV_NEEDS, "hub": ("question_id", "question", *_CHOICES, "answer", "data_type", "image")},
        scorers=_SCORERS,
        beside={"mean of dimensions": macro_average("category")},
    ),
    Spec(
        id="seedbench2_plus",
        title="SEED-Bench-2-Plus",
        column="SEED2+",
        expected=2277,
        licence="CC BY-NC 4.0",
        tsv=(Tsv("SEEDBench2_Plus", {"e32d3216dc4f452b0fe497a52015d1fd": ""}, folder="benchmarks/SEEDBench"),),
        hub=(Hub(("doolayer/SEED-Bench-2-Plus", "AILab-CVC/SEED-Bench-2-plus"), "test"),),
        make={"tsv": make_tsv_choice_reader("category"), "hub": make_seed_plus_sample},
        needs={
            "tsv": _TSV_NEEDS,
            "hub": ("question_id", "question", *_CHOICES, "answer", "question_image_type", "image"),
        },
        scorers=_SCORERS,
        beside={"mean of categories": macro_average("category")},
    ),
)
