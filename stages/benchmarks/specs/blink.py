"""BLINK (val): fourteen visual tasks, up to four images per question. Labels were corrected in 2025: two versions."""

from stages.benchmarks.aggregate import macro_average, micro_average
from stages.benchmarks.prompts import CHOICE_PROMPTS, PromptPart, format_options
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL, score_lmms_blink, score_ours_choice, score_vlmeval_choice
from stages.benchmarks.spec import Hub, Spec, Tsv, letter_options, make_tsv_choice_reader, read_numbered_images
from stages.benchmarks.tables import TableRow


def make_blink_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of BLINK-Benchmark/BLINK, whose answer is in brackets."""
    options, gold = letter_options(row.literal("choices")), row.text("answer").strip("()")
    groups = {"category": (row.text("sub_task", row.config),)}
    prompt = {"prompt": row.text("prompt", row.text("question"))}
    return Sample(row.text("idx"), row.text("question"), gold, options, "", groups, prompt, read_numbered_images(row))


def ask_lmms_blink(sample: Sample) -> list[PromptPart]:
    """Returns lmms-eval's note and the data set's prompt; TSV files lack it, so question and options are used."""
    letters = ", ".join(sample.options)
    note = f"Note: You only need to respond with {letters} without providing any additional information."
    listed = "\n".join([sample.question, *format_options(sample, "({}) {}")])
    return [*sample.pictures, f"{note}\n{sample.extra.get('prompt', listed)}"]


_TASKS = macro_average("category")

SPECS = (
    Spec(
        id="blink",
        title="BLINK (val)",
        column="BLINK",
        expected=1901,
        licence="Apache-2.0",
        tsv=(
            Tsv(
                "BLINK",
                {
                    "d5e8af148b10ac69f535ff7b23f3f989": "labels v2025",
                    "3b6649b6a662184ea046908e5506260e": "labels v2024: about 90 % of Relative_Reflectance is wrong",
                },
            ),
        ),
        hub=(Hub(("BLINK-Benchmark/BLINK",), "val"),),
        make={"tsv": make_tsv_choice_reader("category"), "hub": make_blink_hub_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "category", "image"),
            "hub": ("idx", "question", "choices", "answer", "image_1"),
        },
        prompts={**CHOICE_PROMPTS, "lmms": ask_lmms_blink},
        scorers={OURS: score_ours_choice, VLMEVAL: score_vlmeval_choice, LMMS: score_lmms_blink},
        headline={OURS: _TASKS, VLMEVAL: micro_average, LMMS: _TASKS},
        beside={"mean of rows": micro_average, "mean of tasks": _TASKS},
    ),
)
