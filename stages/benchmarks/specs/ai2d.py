"""AI2D: questions about school diagrams, whose labels are covered by the option letters ("with mask")."""

from dataclasses import replace

from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL, score_lmms_ai2d, score_ours_choice, score_vlmeval_choice
from stages.benchmarks.spec import Hub, Spec, Tsv, letter_options, make_tsv_choice_reader
from stages.benchmarks.tables import TableRow


def make_ai2d_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of lmms-lab/ai2d; its answer is a 0-based index."""
    options = letter_options(row.literal("options"))
    gold = list(options)[int(row.text("answer"))]
    return Sample(row.text("index", row.where), row.text("question"), gold, options, pictures=row.pictures["image"])


WITH_MASK = Spec(
    id="ai2d",
    title="AI2D (with mask)",
    column="AI2D",
    expected=3088,
    licence="CC BY-SA 4.0",
    tsv=(Tsv("AI2D_TEST", {"0f593e0d1c7df9a3d69bf1f947e71975": ""}),),
    hub=(Hub(("lmms-lab/ai2d", "lmms-lab-encoder/ai2d"), "test"),),
    make={"tsv": make_tsv_choice_reader("category"), "hub": make_ai2d_hub_sample},
    needs={
        "tsv": ("index", "question", "A", "B", "answer", "image"),
        "hub": ("question", "options", "answer", "image"),
    },
    scorers={OURS: score_ours_choice, VLMEVAL: score_vlmeval_choice, LMMS: score_lmms_ai2d},
)
NO_MASK = replace(
    WITH_MASK,
    id="ai2d_no_mask",
    title="AI2D (no mask)",
    column="",
    tsv=(Tsv("AI2D_TEST_NO_MASK", {"fd8f463634d4fe9fbd23b876e8eea5be": ""}),),
    hub=(Hub(("lmms-lab/ai2d-no-mask", "Efficient-Large-Model/ai2d-no-mask"), "test"),),
)
SPECS = (WITH_MASK, NO_MASK)
