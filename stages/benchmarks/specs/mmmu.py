"""MMMU (validation) and MMMU-Pro in both settings: college questions of 30 subjects."""

import re

from stages.benchmarks import scorers
from stages.benchmarks.aggregate import macro
from stages.benchmarks.prompts import DIRECTLY, MMMU, SHORT, Asks, Part, numbered_first, option_lines
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, VLMEVAL
from stages.benchmarks.spec import Hub, Spec, Tsv, lettered_options, numbered_pictures, tsv_choice
from stages.benchmarks.tables import Row

_SUBJECT = re.compile(r"^[a-z]+_(.+)_\d+$")
_PRO_DIRECT = "Answer with the option letter from the given choices directly."
_VISION = (
    "Answer with the option letter from the given choices directly. The last line of your response should be of "
    "the following "
    "format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
)


def hub_sample(row: Row) -> Sample:
    """A row of MMMU/MMMU or lmms-lab/MMMU; open questions have no options."""
    found = _SUBJECT.match(row.text("id"))
    subject = found.group(1) if found else row.config
    options = {} if row.text("question_type") == "open" else lettered_options(row.literal("options"))
    gold, pictures = row.text("answer"), numbered_pictures(row)
    return Sample(row.text("id"), row.text("question"), gold, options, "", {"category": (subject,)}, pictures=pictures)


def pro_sample(row: Row) -> Sample:
    """A row of MMMU-Pro; in the vision setting question and options are in the picture and the question's text is
    empty.
    """
    options = lettered_options(row.literal("options"))
    pictures = numbered_pictures(row) or row.pictures.get("image", ())
    groups = {"category": (row.text("subject", "none"),)}
    return Sample(row.text("id"), row.text("question", ""), row.text("answer"), options, "", groups, pictures=pictures)


def lmms_mmmu(sample: Sample) -> list[Part]:
    """lmms-eval's prompt: options, blank line, the sentence for its kind of question."""
    lines = [sample.question, *option_lines(sample), "", DIRECTLY if sample.options else SHORT]
    return [*sample.pictures, "\n".join(lines)]


def pro_lmms(sample: Sample) -> list[Part]:
    """MMMU-Pro's own direct prompt."""
    return [*sample.pictures, "\n".join([sample.question, *option_lines(sample), "", _PRO_DIRECT])]


def vision(sample: Sample) -> list[Part]:
    """The picture and the authors' sentence; nothing of the question stands in the text."""
    return [*sample.pictures, _VISION]


_SUBJECTS = macro("category")
_VISION_PROMPTS: dict[str, Asks] = dict.fromkeys(("dataset", "qwen", "internvl", "lmms"), vision)

SPECS = (
    Spec(
        id="mmmu",
        title="MMMU (validation)",
        column="MMMU",
        expected=900,
        licence="Apache-2.0",
        tsv=(Tsv("MMMU_DEV_VAL", {"585e8ad75e73f75dcad265dfd0417d64": ""}, split="validation"),),
        hub=(Hub(("MMMU/MMMU", "lmms-lab/MMMU", "lmms-lab-encoder/MMMU"), "validation"),),
        make={"tsv": tsv_choice("category", split="validation"), "hub": hub_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "split", "image"),
            "hub": ("id", "question", "options", "answer", "question_type", "image_1"),
        },
        prompts={**MMMU, "lmms": numbered_first(lmms_mmmu)},
        scorers={OURS: scorers.ours_choice, VLMEVAL: scorers.vlmeval_mmmu, LMMS: scorers.lmms_mmmu},
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
        make={"tsv": tsv_choice("category"), "hub": pro_sample},
        needs={
            "tsv": ("index", "question", "A", "B", "answer", "image"),
            "hub": ("id", "question", "options", "answer", "subject", "image_1"),
        },
        prompts={**MMMU, "lmms": numbered_first(pro_lmms)},
        scorers={OURS: scorers.ours_choice, VLMEVAL: scorers.vlmeval_choice, LMMS: scorers.lmms_mmmu},
        cot_scorers={VLMEVAL: scorers.vlmeval_cot},
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
        make={"tsv": tsv_choice("category"), "hub": pro_sample},
        needs={"tsv": ("index", "answer", "image"), "hub": ("id", "options", "answer", "subject", "image")},
        prompts=_VISION_PROMPTS,  # type: ignore[arg-type]  # keys are styles
        scorers={OURS: scorers.ours_choice, VLMEVAL: scorers.vlmeval_choice, LMMS: scorers.same_text},
        cot_scorers={VLMEVAL: scorers.vlmeval_cot},
        beside={"mean of subjects": _SUBJECTS},
    ),
)
