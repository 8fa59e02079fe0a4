"""MM-Vet and MM-Vet v2: open questions, graded 0.0 to 1.0 by a judge; there is no score without one."""

import re

from stages.benchmarks.prompts import MakePrompt, PromptPart, Style, ask_plain, place_images
from stages.benchmarks.sample import Sample
from stages.benchmarks.spec import Hub, Spec, Tsv, read_numbered_images
from stages.benchmarks.tables import TableRow

_V2_IMAGE = re.compile(r"<image_(\d+)>")
_REASON = (
    "First please perform reasoning, and think step by step to provide best answer to the following "
    "question: \n\n"
)  # lmms-eval


def make_mmvet_tsv_sample(row: TableRow) -> Sample:
    """Returns the sample of a TSV row; `category` lists the capabilities, separated by commas."""
    return _make_sample(
        row, row.text("index"), row.text("category", "") or row.text("capability"), row.pictures["image"]
    )


def make_mmvet_hub_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of whyu/mm-vet or lmms-lab/MMVet."""
    index = row.text("question_id", "") or row.text("id", row.where)
    return _make_sample(row, index, row.values["capability"], row.pictures["image"])


def make_mmvet_v2_sample(row: TableRow) -> Sample:
    """Returns the sample of a row of whyu/mm-vet-v2 or our TSV; <image_0>, <image_1> ... name pictures."""
    pictures = read_numbered_images(row) or row.pictures.get("image", ())
    index = row.text("index", "") or row.text("id")
    return _make_sample(row, index, row.values.get("capability") or row.text("category"), pictures)


def _make_sample(row: TableRow, index: str, capability: object, pictures: tuple) -> Sample:  # type: ignore[type-arg]
    values = capability.split(",") if isinstance(capability, str) else list(capability)  # type: ignore[call-overload]
    groups = {"capability": tuple(str(one).strip() for one in values)}
    return Sample(index, row.text("question"), row.text("answer"), groups=groups, pictures=pictures)


def ask_mmvet_interleaved(sample: Sample) -> list[PromptPart]:
    """Splits the question at `<IMG>` and inserts the pictures there."""
    pieces = [
        piece for part in sample.question.split("<IMG>") for piece in place_images(part, sample.pictures, _V2_IMAGE, 0)
    ]
    return pieces if any(not isinstance(piece, str) for piece in pieces) else [*sample.pictures, *pieces]


def ask_mmvet_images_first(sample: Sample) -> list[PromptPart]:
    """Returns the pictures, then the text with its markers (lmms-eval)."""
    return [*sample.pictures, sample.question.replace("<IMG>", "")]


def ask_mmvet_with_reasons(sample: Sample) -> list[PromptPart]:
    """Returns lmms-eval's prompt, which requests reasoning first."""
    return [*sample.pictures, f"{_REASON}{sample.question}"]


_V1: dict[Style, MakePrompt] = {
    "dataset": ask_plain,
    "qwen": ask_plain,
    "internvl": ask_plain,
    "lmms": ask_mmvet_with_reasons,
}
_V2: dict[Style, MakePrompt] = {
    "dataset": ask_mmvet_interleaved,
    "qwen": ask_mmvet_interleaved,
    "internvl": ask_mmvet_interleaved,
    "lmms": ask_mmvet_images_first,
}

SPECS = (
    Spec(
        id="mmvet",
        title="MM-Vet",
        column="MM-Vet",
        expected=218,
        licence="CC BY-NC 4.0",
        tsv=(Tsv("MMVet", {"748aa6d4aa9d4de798306a63718455e3": ""}),),
        hub=(Hub(("whyu/mm-vet", "lmms-lab/MMVet", "lmms-lab-encoder/MMVet"), "test"),),
        make={"tsv": make_mmvet_tsv_sample, "hub": make_mmvet_hub_sample},
        needs={"tsv": ("index", "question", "answer", "image"), "hub": ("question", "answer", "capability", "image")},
        prompts=_V1,
        scorers={},
        judge="grade",
        groups=("capability",),
    ),
    Spec(
        id="mmvet_v2",
        title="MM-Vet v2",
        column="MM-Vet-v2",
        expected=517,
        licence="CC BY-NC 4.0",
        tsv=(Tsv("MMVetV2", {}),),  # unofficial: VLMEvalKit has none, so no md5 is known
        hub=(Hub(("whyu/mm-vet-v2",), "test"),),
        make={"tsv": make_mmvet_v2_sample, "hub": make_mmvet_v2_sample},
        needs={
            "tsv": ("index", "question", "answer", "image"),
            "hub": ("id", "question", "answer", "capability", "image_0"),
        },
        prompts=_V2,
        scorers={},
        judge="grade",
        groups=("capability",),
    ),
)
