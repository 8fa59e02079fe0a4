"""MM-Vet and MM-Vet v2: open questions, graded 0.0 to 1.0 by a judge; without one there is no score."""

import re

from stages.benchmarks.prompts import Asks, Part, Style, placed, plain
from stages.benchmarks.sample import Sample
from stages.benchmarks.spec import Hub, Spec, Tsv, numbered_pictures
from stages.benchmarks.tables import Row

_V2_IMAGE = re.compile(r"<image_(\d+)>")
_REASON = (
    "First please perform reasoning, and think step by step to provide best answer to the following "
    "question: \n\n"
)  # lmms-eval


def tsv_sample(row: Row) -> Sample:
    """A row of the TSV file; `category` holds the capabilities, with commas between."""
    return _sample(row, row.text("index"), row.text("category", "") or row.text("capability"), row.pictures["image"])


def hub_sample(row: Row) -> Sample:
    """A row of whyu/mm-vet or lmms-lab/MMVet."""
    index = row.text("question_id", "") or row.text("id", row.where)
    return _sample(row, index, row.values["capability"], row.pictures["image"])


def v2_sample(row: Row) -> Sample:
    """A row of whyu/mm-vet-v2, or of our own TSV of it; markers <image_0>, <image_1> ... name the pictures."""
    pictures = numbered_pictures(row) or row.pictures.get("image", ())
    index = row.text("index", "") or row.text("id")
    return _sample(row, index, row.values.get("capability") or row.text("category"), pictures)


def _sample(row: Row, index: str, capability: object, pictures: tuple) -> Sample:  # type: ignore[type-arg]
    values = capability.split(",") if isinstance(capability, str) else list(capability)  # type: ignore[call-overload]
    groups = {"capability": tuple(str(one).strip() for one in values)}
    return Sample(index, row.text("question"), row.text("answer"), groups=groups, pictures=pictures)


def interleaved(sample: Sample) -> list[Part]:
    """The question cut at `<IMG>`, with the pictures where the authors put them."""
    pieces = [piece for part in sample.question.split("<IMG>") for piece in placed(part, sample.pictures, _V2_IMAGE, 0)]
    return pieces if any(not isinstance(piece, str) for piece in pieces) else [*sample.pictures, *pieces]


def images_first(sample: Sample) -> list[Part]:
    """The pictures, then the text with its markers (lmms-eval)."""
    return [*sample.pictures, sample.question.replace("<IMG>", "")]


def reasoned(sample: Sample) -> list[Part]:
    """lmms-eval's request to reason first."""
    return [*sample.pictures, f"{_REASON}{sample.question}"]


_V1: dict[Style, Asks] = {"dataset": plain, "qwen": plain, "internvl": plain, "lmms": reasoned}
_V2: dict[Style, Asks] = {"dataset": interleaved, "qwen": interleaved, "internvl": interleaved, "lmms": images_first}

SPECS = (
    Spec(
        id="mmvet",
        title="MM-Vet",
        column="MM-Vet",
        expected=218,
        licence="CC BY-NC 4.0",
        tsv=(Tsv("MMVet", {"748aa6d4aa9d4de798306a63718455e3": ""}),),
        hub=(Hub(("whyu/mm-vet", "lmms-lab/MMVet", "lmms-lab-encoder/MMVet"), "test"),),
        make={"tsv": tsv_sample, "hub": hub_sample},
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
        make={"tsv": v2_sample, "hub": v2_sample},
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
