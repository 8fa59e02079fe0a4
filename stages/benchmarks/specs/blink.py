"""BLINK (val): fourteen visual tasks, up to four images a question. Its labels were corrected in 2025: two
generations.
"""

from stages.benchmarks.aggregate import macro, micro
from stages.benchmarks.prompts import CHOICE, Part, option_lines
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL, lmms_blink, ours_choice, vlmeval_choice
from stages.benchmarks.spec import Hub, Spec, Tsv, lettered_options, numbered_pictures, tsv_choice
from stages.benchmarks.tables import Row


def hub_sample(row: Row) -> Sample:
    """A row of BLINK-Benchmark/BLINK, whose answer stands in brackets."""
    options, gold = lettered_options(row.literal("choices")), row.text("answer").strip("()")
    groups = {"category": (row.text("sub_task", row.config),)}
    prompt = {"prompt": row.text("prompt", row.text("question"))}
    return Sample(row.text("idx"), row.text("question"), gold, options, "", groups, prompt, numbered_pictures(row))


def lmms_prompt(sample: Sample) -> list[Part]:
    """lmms-eval's note and the data set's own prompt; TSV files lack it, so that question and options stand in its
    place.
    """
    letters = ", ".join(sample.options)
    note = f"Note: You only need to respond with {letters} without providing any additional information."
    listed = "\n".join([sample.question, *option_lines(sample, "({}) {}")])
    return [*sample.pictures, f"{note}\n{sample.extra.get('prompt', listed)}"]


_TASKS = macro("category")

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
        make={"tsv": tsv_choice("category"), "hub": hub_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "category", "image"),
            "hub": ("idx", "question", "choices", "answer", "image_1"),
        },
        prompts={**CHOICE, "lmms": lmms_prompt},
        scorers={OURS: ours_choice, VLMEVAL: vlmeval_choice, LMMS: lmms_blink},
        headline={OURS: _TASKS, VLMEVAL: micro, LMMS: _TASKS},
        beside={"mean of rows": micro, "mean of tasks": _TASKS},
    ),
)
