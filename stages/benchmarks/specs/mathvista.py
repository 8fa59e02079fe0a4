"""MathVista (testmini): mathematics with pictures; options, whole numbers, rounded numbers, lists."""

from stages.benchmarks import scorers
from stages.benchmarks.prompts import ask_plain
from stages.benchmarks.rules.vlmeval import letter_choices
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL
from stages.benchmarks.spec import Hub, NumberFields, Spec, Tsv, letter_options
from stages.benchmarks.tables import TableRow


def make_mathvista_tsv_sample(row: TableRow) -> Sample:
    """Returns the sample of a TSV row, whose question is the whole query."""
    options = letter_options(row.literal("choices"))
    kind = {
        "question_type": row.text("question_type"),
        "answer_type": row.text("answer_type"),
        "precision": _parse_precision(row.text("precision", "")),
        "answer_option": row.text("answer_option", ""),
    }
    groups = {"task": (row.text("task", "none"),), "skills": tuple(map(str, row.literal("skills"))) or ("none",)}
    return Sample(
        row.text("index"), row.text("question"), row.text("answer"), options, "", groups, kind, row.pictures["image"]
    )


def make_mathvista_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of AI4Math/MathVista; its query has hint, question and choices."""
    texts = [str(one) for one in row.literal("choices")]
    gold, metadata = row.text("answer"), row.values.get("metadata") or {}
    letters = [letter for letter, text in letter_choices(texts).items() if text == gold]
    kind = {
        "question_type": row.text("question_type"),
        "answer_type": row.text("answer_type"),
        "precision": row.values.get("precision"),
        "answer_option": letters[0] if letters else "",
    }
    groups = {"task": (str(metadata.get("task", "none")),), "skills": tuple(metadata.get("skills") or ("none",))}
    options = letter_options(texts)
    return Sample(row.text("pid"), row.text("query"), gold, options, "", groups, kind, row.pictures["decoded_image"])


def _parse_precision(text: str) -> float | None:
    return float(text) if text else None


SPECS = (
    Spec(
        id="mathvista",
        title="MathVista (testmini)",
        column="MathVista",
        expected=1000,
        licence="CC BY-SA 4.0",
        tsv=(Tsv("MathVista_MINI", {"f199b98e178e5a2a20e7048f5dcb0464": ""}),),
        hub=(Hub(("AI4Math/MathVista",), "testmini"),),
        make={"tsv": make_mathvista_tsv_sample, "hub": make_mathvista_hub_sample},
        needs={
            "tsv": ("index", "question", "answer", "choices", "question_type", "answer_type", "image"),
            "hub": ("pid", "query", "answer", "choices", "question_type", "answer_type", "precision", "decoded_image"),
        },
        prompts={"dataset": ask_plain, "qwen": ask_plain, "internvl": ask_plain, "lmms": ask_plain},
        scorers={
            OURS: scorers.score_ours_mathvista,
            VLMEVAL: scorers.score_vlmeval_mathvista,
            LMMS: scorers.score_lmms_mathvista,
        },
        judge="extract",
        extracted={
            OURS: scorers.score_ours_mathvista,
            VLMEVAL: scorers.score_vlmeval_mathvista_extraction,
            LMMS: scorers.score_lmms_mathvista_extraction,
        },
        groups=("task", "skills"),
        fields=NumberFields,
    ),
)
