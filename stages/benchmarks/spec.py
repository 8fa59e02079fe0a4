"""The definition of a benchmark: source, prompts, scoring and averages. One `Spec` per benchmark."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from stages.benchmarks.aggregate import Aggregate, micro_average
from stages.benchmarks.prompts import CHOICE_PROMPTS as CHOICE_PROMPTS
from stages.benchmarks.prompts import MakePrompt, Style
from stages.benchmarks.sample import BenchmarkError, LazyImage, Outcome, Sample
from stages.benchmarks.scorers import CHOICE_SCORERS, LMMS, OURS, VLMEVAL, Profile, Scorer
from stages.benchmarks.tables import TableRow
from stages.job.bounded import show_value

JudgeJob = Literal["none", "letter", "extract", "grade", "verdict"]  # the judge's task if rules do not decide
MakeSample = Callable[[TableRow], Sample | None]  # None: the row has another split or type and is skipped
Extracted = Callable[[Sample, str], Outcome]


@dataclass(frozen=True)
class Tsv:
    """A file of VLMEvalKit, and its known md5s."""

    name: str  # without ".tsv"
    md5s: Mapping[str, str]  # label of this file version in tables by md5; "" if there is only one
    split: str = ""  # rows of another `split` are skipped
    folder: str = "VLMEval"  # on the publishing server


@dataclass(frozen=True)
class Hub:
    """A data set on the hub, as a folder of shards."""

    names: tuple[str, ...]  # owner/name; the others are mirrors
    split: str
    config: str = ""
    revision: str = "main"


@dataclass(frozen=True)
class Spec:
    """One benchmark."""

    id: str
    title: str
    column: str  # in the tables of the paper
    expected: int  # rows that are asked
    licence: str
    make: Mapping[Literal["tsv", "hub"], MakeSample]
    needs: Mapping[Literal["tsv", "hub"], tuple[str, ...]]  # required columns
    tsv: tuple[Tsv, ...] = ()
    hub: tuple[Hub, ...] = ()
    prompts: Mapping[Style, MakePrompt] = field(default_factory=lambda: CHOICE_PROMPTS)
    scorers: Mapping[Profile, Scorer] = field(default_factory=lambda: CHOICE_SCORERS)
    cot_scorers: Mapping[Profile, Scorer] = field(default_factory=dict)  # for step-by-step prompts, if different
    judge: JudgeJob = "letter"
    extracted: Mapping[Profile, Extracted] = field(default_factory=dict)  # scores a judge's extraction
    headline: Mapping[Profile, Aggregate] = field(
        default_factory=lambda: dict.fromkeys((OURS, VLMEVAL, LMMS), micro_average)
    )
    beside: Mapping[str, Aggregate] = field(default_factory=dict)  # additional averages, by name
    second: Mapping[str, Scorer] = field(default_factory=dict)  # additional scores by other rules, never the main score
    groups: tuple[str, ...] = ("category",)  # tables to print
    fields: type[BaseModel] | None = None  # what `Sample.extra` must hold for this benchmark's rules
    circular: bool = False  # all rows of a question are scored together
    world: bool = False  # part of the tiny world and of no published table

    @property
    def needs_judge(self) -> bool:
        """Whether the benchmark has no score without a judge."""
        return self.judge in ("grade", "verdict")

    def scorer(self, profile: Profile, cot: bool) -> Scorer | None:
        """The rule of a profile; None if that harness has none (it needs a judge, or lacks the benchmark)."""
        return (self.cot_scorers.get(profile) if cot else None) or self.scorers.get(profile)


class QuestionField(BaseModel):
    """Which question a rotation belongs to."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)
    question: str


def _check_precision(value: str | float | None) -> str | float | None:
    """Returns the value if it is a number of decimals, 0 to 20, also as text or float ("1", 1.0), or nothing."""
    text = "" if value is None else str(value).removesuffix("" if isinstance(value, str) else ".0")
    if text and not (text.isascii() and text.isdigit() and len(text) <= 2 and int(text) <= 20):
        raise ValueError("a number of decimals, 0 to 20, is needed")
    return value


class NumberFields(BaseModel):
    """The form of an answer in MathVista."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)
    question_type: str
    answer_type: str
    precision: Annotated[str | int | float | None, AfterValidator(_check_precision)]
    answer_option: str


def check_sample(spec: Spec, sample: Sample, where: str) -> None:
    """Raises BenchmarkError if the rules of `spec` cannot be applied to the sample; `where` names its row."""
    if spec.fields is None:
        return
    try:
        spec.fields.model_validate(dict(sample.extra))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = str(first["loc"][0])
        found = show_value(sample.extra.get(key))
        raise BenchmarkError(
            f"{where}, {key!r}: {first['msg']}, found {found}, for {spec.title}; correct or drop the row"
        ) from None


def make_tsv_choice_reader(*groups: str, split: str = "") -> MakeSample:
    """Returns a reader of TSV rows with options A, B, ...; only empty cells are no option ("None" is one)."""

    def make(row: TableRow) -> Sample | None:
        if split and row.text("split", split) != split:
            return None
        options = {one: row.text(one) for one in string.ascii_uppercase if row.text(one, "")}
        return Sample(
            index=row.text("index"),
            question=row.text("question", ""),
            gold=row.text("answer"),
            options=options,
            hint=row.text("hint", ""),
            groups=read_grouping_columns(row, groups),
            pictures=row.pictures.get("image", ()),
        )

    return make


def read_grouping_columns(row: TableRow, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the values of the grouping columns that the row has."""
    return {name: (row.text(name),) for name in names if row.text(name, "")}


def letter_options(texts: Sequence[object]) -> dict[str, str]:
    """Returns options A, B, ... of a list."""
    return dict(zip(string.ascii_uppercase, map(str, texts), strict=False))


def read_numbered_images(row: TableRow, prefix: str = "image_") -> tuple[LazyImage, ...]:
    """Returns the pictures of the columns image_1, image_2, ... in numeric order, without empty ones."""
    names = [name for name in row.pictures if name.startswith(prefix) and name.removeprefix(prefix).isdigit()]
    ordered = sorted(names, key=lambda name: int(name.removeprefix(prefix)))
    return tuple(picture for name in ordered for picture in row.pictures[name])
