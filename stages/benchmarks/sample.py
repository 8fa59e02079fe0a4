"""The data types of benchmarks: samples, images, and outcomes of replies."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

State = Literal["ok", "unparsed", "judge_failed", "pending", "missing"]


class BenchmarkError(ValueError):
    """A benchmark that cannot be read or scored; the message names file, row, column, problem and remedy."""


class MissingBenchmark(BenchmarkError):
    """None of a benchmark's files was found; the message lists what to provide."""


@dataclass(frozen=True)
class LazyImage:
    """An image that is read on access; `where` names file, row and column."""

    where: str
    read: Callable[[], bytes]

    @property
    def data(self) -> bytes:
        """The encoded image as in the data set. Raises BenchmarkError if it is not one."""
        return self.read()

    @property
    def sha256(self) -> str:
        """Hash of the encoded image, as hex."""
        return hashlib.sha256(self.data).hexdigest()


def make_base64_image(where: str, text: str) -> LazyImage:
    """Returns a picture from base64, as in TSV files."""

    def read() -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise BenchmarkError(f"{where}: the image is no base64 ({error}); fetch the file again") from None

    return LazyImage(where, read)


@dataclass(frozen=True)
class Sample:
    """One row of a benchmark, in a form common to all benchmarks."""

    index: str  # unique in its benchmark
    question: str
    gold: str  # a letter if there are options, else the reference text
    options: Mapping[str, str] = field(default_factory=dict)  # by letter, in order; texts as in the file
    hint: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # such as "category": ("counting",); may have several values
    extra: Mapping[str, Any] = field(
        default_factory=dict
    )  # values for this benchmark's rules only: answer_type, precision ...
    pictures: tuple[LazyImage, ...] = field(default=(), compare=False)

    def to_row(self) -> dict[str, Any]:
        """Returns all fields except the pictures, as JSON values: the input of scoring."""
        return {key: value for key, value in asdict(replace(self, pictures=())).items() if key != "pictures"}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Sample":
        """Returns the sample of `to_row`, without pictures."""
        groups = {name: tuple(values) for name, values in row["groups"].items()}
        return cls(**{**row, "groups": groups})


@dataclass(frozen=True)
class Outcome:
    """The result of scoring a reply. A score other than 0 requires the state `ok`."""

    state: State
    score: float = 0.0  # 0 to 1
    extracted: str | None = None  # the extracted answer
    rule: str = ""  # the rule that extracted it

    @classmethod
    def from_extraction(cls, extracted: str | None, right: bool, rule: str) -> "Outcome":
        """Returns `unparsed` if nothing was extracted, else the result."""
        return cls("unparsed", rule=rule) if extracted is None else cls("ok", float(right), extracted, rule)
