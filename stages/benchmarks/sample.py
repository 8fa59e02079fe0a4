"""What a benchmark is made of: samples, and what became of the reply to each."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

State = Literal["ok", "unparsed", "judge_failed", "pending", "missing"]


class BenchmarkError(ValueError):
    """A benchmark that can't be read or scored; the message names file, row, column, what is wrong and the remedy."""


class MissingBenchmark(BenchmarkError):
    """None of a benchmark's files is where it was looked for; the message says what to put there."""


@dataclass(frozen=True)
class LazyImage:
    """An image that is read when it is needed; `where` names file, row and column."""

    where: str
    read: Callable[[], bytes]

    @property
    def data(self) -> bytes:
        """The encoded image as the data set holds it. Raises BenchmarkError when it is none."""
        return self.read()

    @property
    def sha256(self) -> str:
        """Hash of the encoded image, as hex."""
        return hashlib.sha256(self.data).hexdigest()


def make_base64_image(where: str, text: str) -> LazyImage:
    """A picture from base64, as TSV files hold them."""

    def read() -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise BenchmarkError(f"{where}: the image is no base64 ({error}); fetch the file again") from None

    return LazyImage(where, read)


@dataclass(frozen=True)
class Sample:
    """One row of a benchmark in a form that all of them share."""

    index: str  # unique in its benchmark
    question: str
    gold: str  # a letter where there are options, else the reference text
    options: Mapping[str, str] = field(default_factory=dict)  # by letter, in order; texts as they are in the file
    hint: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # "category": ("counting",); several where it has several
    extra: Mapping[str, Any] = field(
        default_factory=dict
    )  # what only this benchmark's rules need: answer_type, precision ...
    pictures: tuple[LazyImage, ...] = field(default=(), compare=False)

    def to_row(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON values: what scoring needs."""
        return {key: value for key, value in asdict(replace(self, pictures=())).items() if key != "pictures"}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Sample":
        """The sample of `to_row`, without pictures."""
        groups = {name: tuple(values) for name, values in row["groups"].items()}
        return cls(**{**row, "groups": groups})


@dataclass(frozen=True)
class Outcome:
    """What became of a reply. A score other than 0 needs the state `ok`."""

    state: State
    score: float = 0.0  # 0 to 1
    extracted: str | None = None  # what was taken for the answer
    rule: str = ""  # which rule took it

    @classmethod
    def from_extraction(cls, extracted: str | None, right: bool, rule: str) -> "Outcome":
        """`unparsed` when nothing was extracted, else right or wrong."""
        return cls("unparsed", rule=rule) if extracted is None else cls("ok", float(right), extracted, rule)
