"""MMMU (validation) and MMMU-Pro in both settings: college questions of 30 subjects."""

import re

from stages.benchmarks import scorers
from stages.benchmarks.aggregate import macro_average
from stages.benchmarks.prompts import DIRECTLY, MMMU, SHORT, MakePrompt, PromptPart, format_options, move_numbered_first
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL
from stages.benchmarks.spec import Hub, Spec, Tsv, letter_options, make_tsv_choice_reader, read_numbered_images
from stages.benchmarks.tables import TableRow

_SUBJECT = re.compile(r"^[a-z]+_(.+)_\d+$")
_PRO_DIRECT = "Answer with the option letter from the given choices directly."
_VISION = (
    "Answer with the option letter from the given choices directly. The last line of your response should be of "
    "the following "
    "format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
)


def make_mmmu_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of MMMU/MMMU or lmms-lab/MMMU; open questions have no options."""
    found = _SUBJECT.match(row.text("id"))
    subject = found.group(1) if found else row.config
    options = {} if row.text("question_type") == "open" else letter_options(row.literal("options"))
    gold, pictures = row.text("answer"), read_numbered_images(row)
    return Sample(row.text("id"), row.text("question"), gold, options, "", {"category": (subject,)}, pictures=pictures)


def make_mmmu_pro_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of MMMU-Pro; in the vision setting the text of the question is empty."""
    options = letter_options(row.literal("options"))
    pictures = read_numbered_images(row) or row.pictures.get("image", ())
    groups = {"category": (row.text("subject", "none"),)}
    return Sample(row.text("id"), row.text("question", ""), row.text("answer"), options, "", groups, pictures=pictures)


def ask_lmms_mmmu(sample: Sample) -> list[PromptPart]:
    """Returns lmms-eval's prompt: options, blank line, the sentence for the type of question."""
    lines = [sample.question, *format_options(sample), "", DIRECTLY if sample.options else SHORT]
    return [*sample.pictures, "\n".join(lines)]


def ask_lmms_mmmu_pro(sample: Sample) -> list[PromptPart]:
    """Returns MMMU-Pro's own direct prompt."""
    return [*sample.pictures, "\n".join([sample.question, *format_options(sample), "", _PRO_DIRECT])]


def ask_mmmu_vision(sample: Sample) -> list[PromptPart]:
    """Returns the picture and the authors' sentence; the text contains nothing of the question."""
    return [*sample.pictures, _VISION]


_SUBJECTS = macro_average("category")
_VISION_PROMPTS: dict[str, MakePrompt] = dict.fromkeys(("dataset", "qwen", "internvl", "lmms"), ask_mmmu_vision)

SPECS = (
    Spec(
        id="mmmu",
        title="MMMU (validation)",
        column="MMMU",
        expected=900,
        licence="Apache-2.0",
        tsv=(Tsv("MMMU_DEV_VAL", {"585e8ad75e73f75dcad265dfd0417d64": ""}, split="validation"),),
        hub=(Hub(("MMMU/MMMU", "lmms-lab/MMMU", "lmms-lab-encoder/MMMU"), "validation"),),
        make={"tsv": make_tsv_choice_reader("category", split="validation"), "hub": make_mmmu_hub_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "split", "image"),
            "hub": ("id", "question", "options", "answer", "question_type", "image_1"),
        },
        prompts={**MMMU, "lmms": move_numbered_first(ask_lmms_mmmu)},
        scorers={OURS: scorers.score_ours_choice, VLMEVAL: scorers.score_vlmeval_mmmu, LMMS: scorers.score_lmms_mmmu},
        beside={"mean of subjects": _SUBJECTS},
    ),
    Spec(
        id="mmmu_pro_standard",
        title="MMMU-Pro (standard, 10 options)",
        column="MMMU-Pro",
        expected=1730,
        licence="Apache-2.0",
        tsv=(Tsv("MMMU_Pro_10c", {"22cee868fe6b680d14b99bfff6db8172": ""}),),
        hub=(Hub(("MMMU/MMMU_Pro",), "test", "standard (10 options)"),),
        make={"tsv": make_tsv_choice_reader("category"), "hub": make_mmmu_pro_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "image"),
            "hub": ("id", "question", "options", "answer", "subject", "image_1"),
        },
        prompts={**MMMU, "lmms": move_numbered_first(ask_lmms_mmmu_pro)},
        scorers={OURS: scorers.score_ours_choice, VLMEVAL: scorers.score_vlmeval_choice, LMMS: scorers.score_lmms_mmmu},
        cot_scorers={VLMEVAL: scorers.score_vlmeval_cot},
        beside={"mean of subjects": _SUBJECTS},
    ),
    Spec(
        id="mmmu_pro_vision",
        title="MMMU-Pro (vision)",
        column="MMMU-Pro",
        expected=1730,
        licence="Apache-2.0",
        tsv=(Tsv("MMMU_Pro_V", {"d01441a87b3dbe721b5a04652ae38009": ""}),),
        hub=(Hub(("MMMU/MMMU_Pro",), "test", "vision"),),
        make={"tsv": make_tsv_choice_reader("category"), "hub": make_mmmu_pro_sample},
        needs={"tsv": ("index", "answer", "image"), "hub": ("id", "options", "answer", "subject", "image")},
        prompts=_VISION_PROMPTS,  # type: ignore[arg-type]  # keys are styles
        scorers={OURS: scorers.score_ours_choice, VLMEVAL: scorers.score_vlmeval_choice, LMMS: scorers.score_same_text},
        cot_scorers={VLMEVAL: scorers.score_vlmeval_cot},
        beside={"mean of subjects": _SUBJECTS},
    ),
)
