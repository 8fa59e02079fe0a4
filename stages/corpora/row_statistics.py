"""Statistics of source rows, gathered in one pass: some 80 bytes a row are held, no text and no image.

Quantiles are exact. Duplicates are found by hashes of 64 bits, which meet by chance once in ten million rows with a
probability of 3e-6.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.corpora.adapters import UnusableRow
from stages.corpora.images import ImageHeader, read_header
from stages.corpora.reject_kinds import RejectKinds
from stages.corpora.rows import hash_question, join_asked, split_target
from stages.corpora.scripts import find_main_script
from stages.corpora.source import Canonical

QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
MOST_ANSWERS = 100_000  # different short answers that are counted
LONGEST_ANSWER = 40  # characters of an answer that is counted as one of few


class Place(NamedTuple):
    """Where a row is in users' data."""

    file: str
    row: int  # from 0

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}" if self.file else f"row {self.row}"


class Lengths(NamedTuple):
    """Tokens of one row, or its characters where there is no tokenizer."""

    prompt: int
    answer: int
    images: tuple[int, ...] = ()  # of each image; part of `prompt`


class RowStatistics:
    """Counts and distributions of rows; `add` takes one row, `summarise` returns what was found."""

    def __init__(self, measure: Callable[[Canonical, Sequence[ImageHeader]], Lengths] | None = None) -> None:
        """`measure` returns the tokens of a row; without it lengths are characters."""
        self._measure = measure
        self.rejects = RejectKinds()
        self.usable = 0
        self._lengths = {"prompt": array("I"), "answer": array("I"), "image": array("I")}
        self._sizes = {"width": array("I"), "height": array("I"), "bytes": array("I")}
        self._formats: Counter[str] = Counter()
        self._hashes = {"ids": array("Q"), "images": array("Q"), "questions": array("Q")}
        self._owners = array("Q")  # the row of each image
        self._files: dict[str, int] = {}
        self._places = (array("I"), array("Q"))  # file and row of each usable row
        self._images_of: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._scripts: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()

    def add(self, row: Canonical | UnusableRow, place: Place) -> None:
        """Counts one row."""
        if isinstance(row, UnusableRow):
            self.rejects.add(row)
            return
        headers = [read_header(image["bytes"]) for image in row["images"]]
        question, (messages, target) = join_asked(row["messages"]), split_target(row["messages"])
        answer = target or row["answer"] or ""
        self._add_lengths(self._measure(row, headers) if self._measure else Lengths(len(question), len(answer)))
        self._add_images(row, headers)
        self._kinds[row["kind"]] += 1
        self._scripts[find_main_script(f"{question} {answer}")] += 1
        self._counts["with a system turn"] += any(message["role"] == "system" for message in messages)
        self._counts["of several turns"] += sum(message["role"] == "user" for message in messages) > 1
        self._counts["without a target of their own"] += target is None
        if len(answer) <= LONGEST_ANSWER and (answer in self._answers or len(self._answers) < MOST_ANSWERS):
            self._answers[answer] += 1
        self._hashes["ids"].append(shorten_hash(hashlib.sha256(row["id"].encode("utf-8", "surrogatepass")).hexdigest()))
        self._hashes["questions"].append(shorten_hash(hash_question(row)))
        self._places[0].append(self._files.setdefault(place.file, len(self._files)))
        self._places[1].append(place.row)
        self.usable += 1

    def _add_lengths(self, lengths: Lengths) -> None:
        self._lengths["prompt"].append(lengths.prompt)
        self._lengths["answer"].append(lengths.answer)
        self._lengths["image"].extend(lengths.images)

    def _add_images(self, row: Canonical, headers: Sequence[ImageHeader]) -> None:
        self._images_of[len(row["images"])] += 1
        for image, given, header in zip(row["images"], row["image_sha256"], headers, strict=True):
            self._sizes["width"].append(header.width)
            self._sizes["height"].append(header.height)
            self._sizes["bytes"].append(len(image["bytes"]))
            self._formats[header.format] += 1
            self._hashes["images"].append(shorten_hash(given))
            self._owners.append(self.usable)

    def summarise(self, context: int | None = None) -> dict[str, Any]:
        """Returns all statistics as JSON values.

        With `context`, lengths are tokens, and rows whose prompt and answer together are longer are counted.
        """
        rejected = len(self.rejects)
        return {
            "read": self.usable + rejected,
            "usable": self.usable,
            "rejects": {"rows": rejected, "reasons": self.rejects.tabulate()},
            "kinds": _share(self._kinds),
            "turns": dict(self._counts),
            "lengths": self._summarise_lengths(context),
            "images": self._summarise_images(),
            "scripts": _share(self._scripts),
            "answers": self._summarise_answers(),
            "duplicates": {
                name: self._count_repeats(name, self._owners if name == "images" else None) for name in self._hashes
            },
        }

    def _summarise_lengths(self, context: int | None) -> dict[str, Any]:
        prompt, answer = (np.asarray(self._lengths[name], np.int64) for name in ("prompt", "answer"))
        found: dict[str, Any] = {"unit": "tokens" if context else "characters", "context": context}
        found |= {"prompt": compute_quantiles(prompt), "answer": compute_quantiles(answer)}
        found["over_context"] = int((prompt + answer > context).sum()) if context else None
        return found

    def _summarise_images(self) -> dict[str, Any]:
        width, height, size = (np.asarray(self._sizes[name], np.int64) for name in ("width", "height", "bytes"))
        return {
            "images": len(width),
            "by_row": {str(count): rows for count, rows in sorted(self._images_of.items())},
            "width": compute_quantiles(width),
            "height": compute_quantiles(height),
            "megapixels": compute_quantiles(width * height / 1e6),
            "bytes": compute_quantiles(size),
            "formats": dict(self._formats.most_common()),
            "tokens": compute_quantiles(np.asarray(self._lengths["image"], np.int64)),
        }

    def _summarise_answers(self) -> dict[str, Any]:
        commonest = [{"answer": text, "rows": rows} for text, rows in self._answers.most_common(5) if rows > 1]
        return {"different": len(self._answers), "capped": len(self._answers) >= MOST_ANSWERS, "commonest": commonest}

    def _count_repeats(self, name: str, owners: Sequence[int] | None) -> dict[str, Any]:
        found = count_repeats(self._hashes[name], owners)
        return found | {"rows": [str(self.find_place(row)) for row in found["rows"]]}

    def find_place(self, row: int) -> Place:
        """Returns where the usable row of this number is."""
        return Place(list(self._files)[self._places[0][row]], self._places[1][row])

    def list_images(self) -> "ImageRows":
        """Returns the row of each image, by hash; for the overlap with benchmarks."""
        return ImageRows(self._hashes["images"], self._owners, lambda row: str(self.find_place(row)))


class ImageRows(Mapping[str, str]):
    """Where an image is, by its sha256: 16 bytes an image; the hashes are compared in 64 bits."""

    def __init__(self, hashes: Sequence[int], owners: Sequence[int], name: Callable[[int], str]) -> None:
        """`owners` has the row of each image, `name` says where a row is."""
        known = np.asarray(hashes, np.uint64)
        order = np.argsort(known, kind="stable")
        self._hashes, self._owners, self._name = known[order], np.asarray(owners, np.uint64)[order], name

    def __getitem__(self, name: str) -> str:
        wanted = np.uint64(shorten_hash(name))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            raise KeyError(name)
        return self._name(int(self._owners[place]))

    def __iter__(self) -> Iterator[str]:
        raise TypeError("only the first 64 bits of each hash are held")

    def __len__(self) -> int:
        return len(self._hashes)


def count_repeats(hashes: Sequence[int], owners: Sequence[int] | None = None) -> dict[str, Any]:
    """Returns how many values are different, how many came before, and two rows with an equal value.

    `owners` are the rows of the values; without it each value is a row. With it, a value twice in one row is no repeat.
    """
    values = np.asarray(hashes, np.uint64)
    rows = np.arange(len(values), dtype=np.uint64) if owners is None else np.asarray(owners, np.uint64)
    pairs = np.unique(np.stack([values, rows], 1), axis=0) if len(values) else np.empty((0, 2), np.uint64)
    again = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    example = pairs[again[np.argmin(pairs[again, 1])] + np.array([0, 1]), 1].tolist() if len(again) else []
    return {"different": len(pairs) - len(again), "repeated": len(again), "rows": example}


def compute_quantiles(values: np.ndarray) -> dict[str, float] | None:
    """Returns the quantiles of QUANTILES; None without values."""
    if not len(values):
        return None
    found = np.quantile(values, list(QUANTILES.values()), method="nearest").tolist()
    return dict(zip(QUANTILES, found, strict=True))


def shorten_hash(given: str) -> int:
    """Returns the first 64 bits of a hash in hexadecimal digits."""
    return int(given[:16], 16)


def _share(counts: Counter[str]) -> dict[str, float]:
    total = counts.total()
    return {name: count / total for name, count in counts.most_common(20)}
