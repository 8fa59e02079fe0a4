"""What a data set of questions says about its pictures: short answers, kept as notes, from which tiny models learn.

Answers that somebody gives to the same question are alternatives, as "red" and "teal" to "What colour is the shape?";
all that are alternatives of each other are one facet of a picture. Nothing here knows a particular data set.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.corpora.markers import IMAGE_MARKER
from stages.corpora.rows import IMITATION_SPLITS, QuestionFolder, split_target

MOST_ROWS = 200_000  # of one data set; their texts and pictures are in memory
MOST_BYTES = 2**29  # of the pictures
SHORT_ANSWER = 40  # characters; longer ones are no notes
FACET_ANSWERS = 64  # a facet with more is an open vocabulary, which a tiny tower does not learn
FEWEST_PICTURES = 10  # that an answer must be given about to be a note
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class AlbumPicture:
    """The images of some questions, with their answer in each facet."""

    images: tuple[bytes, ...]
    notes: Mapping[int, str]  # by facet; without those that nobody asked for or that contradict each other


@dataclass(frozen=True)
class AlbumRow:
    """One question of the data set."""

    messages: tuple[dict[str, str], ...]  # ends with the user's turn
    answer: str
    picture: int

    @property
    def text(self) -> str:
        """The question without image markers."""
        return self.messages[-1]["content"].replace(IMAGE_MARKER, "").strip()


@dataclass(frozen=True)
class Album:
    """A data set as lessons need it."""

    rows: Sequence[AlbumRow]
    pictures: Sequence[AlbumPicture]
    facets: tuple[tuple[str, ...], ...]  # the alternatives of each, the most frequent first

    @cached_property
    def noted(self) -> list[int]:
        """The pictures of one image that have a note."""
        return [number for number, picture in enumerate(self.pictures) if len(picture.images) == 1 and picture.notes]

    @cached_property
    def described(self) -> list[int]:
        """Those that have a note in each facet."""
        return [number for number in self.noted if self.list_notes(number)]

    @cached_property
    def alternatives(self) -> dict[str, list[str]]:
        """All answers to each question, by its text, in the order of the alphabet."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            found[row.text].add(row.answer)
        return {text: sorted(answers) for text, answers in found.items()}

    def list_notes(self, picture: int) -> list[str]:
        """Returns the notes of a picture in the order of the facets; none unless all are there."""
        notes = self.pictures[picture].notes
        return [notes[facet] for facet in range(len(self.facets))] if len(notes) == len(self.facets) else []

    def describe(self) -> str:
        """Returns the counts in one line."""
        kinds = "; ".join(", ".join(facet[:8]) + ", ..." * (len(facet) > 8) for facet in self.facets)
        return (
            f"{len(self.rows):,} questions about {len(self.pictures):,} pictures, {len(self.described):,} of them "
            f"described by their answers ({kinds or 'no facet'})"
        )


def read_album(folder: Path) -> Album:
    """Returns the questions of `warm_start` and `imitation` in `folder`; the other splits are not read.

    Raises ValueError if there is no row with an answer, or there are more rows or bytes than fit.
    """
    rows: list[AlbumRow] = []
    numbers: dict[tuple[str, ...], int] = {}
    images: list[tuple[bytes, ...]] = []
    size = 0
    for split in IMITATION_SPLITS:
        for row in QuestionFolder(folder, split).iter_columns(("messages", "answer", "images", "image_sha256")):
            if (made := _make_row(row, numbers)) is None:
                continue
            rows.append(made)
            if made.picture == len(images):
                images.append(tuple(image["bytes"] for image in row["images"]))
                size += sum(map(len, images[-1]))
            if len(rows) > MOST_ROWS or size > MOST_BYTES:
                raise ValueError(
                    f"{folder} has more than {MOST_ROWS:,} questions or {MOST_BYTES:,} bytes of images, too many to "
                    "build tiny models from (world.data); give questions.splits.warm_start and imitation lower numbers"
                )
    if not rows:
        raise ValueError(
            f"no question of warm_start and imitation in {folder} has an answer to learn from (world.data)"
        )
    return make_album(rows, images)


def _make_row(row: Mapping[str, Any], numbers: dict[tuple[str, ...], int]) -> AlbumRow | None:
    """Returns a canonical row, None without an answer; new pictures are numbered in `numbers`."""
    messages, target = split_target(row["messages"])
    answer = (row["answer"] or target or "").strip()
    if not answer:
        return None
    picture = numbers.setdefault(tuple(row["image_sha256"]), len(numbers))
    return AlbumRow(tuple(messages), answer, picture)


def make_album(rows: Sequence[AlbumRow], images: Sequence[tuple[bytes, ...]]) -> Album:
    """Returns the rows with what their short answers say about each picture."""
    facets = find_facets(rows)
    places = {answer: facet for facet, answers in enumerate(facets) for answer in answers}
    said: list[defaultdict[int, set[str]]] = [defaultdict(set) for _ in images]
    for row in rows:
        if row.answer in places:
            said[row.picture][places[row.answer]].add(row.answer)
    pictures = [
        AlbumPicture(shown, {facet: next(iter(answers)) for facet, answers in found.items() if len(answers) == 1})
        for shown, found in zip(images, said, strict=True)
    ]
    return Album(rows, pictures, facets)


def find_facets(rows: Iterable[AlbumRow]) -> tuple[tuple[str, ...], ...]:
    """Returns the sets of short answers that are alternatives of each other, the most frequent facet first.

    Left out: yes and no, answers about fewer than FEWEST_PICTURES pictures, facets of one answer or of more than
    FACET_ANSWERS.
    """
    pictures: defaultdict[str, set[int]] = defaultdict(set)
    counts: Counter[str] = Counter()
    asked: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if len(row.answer) <= SHORT_ANSWER and row.answer.casefold() not in YES_NO:
            pictures[row.answer].add(row.picture)
            counts[row.answer] += 1
            asked[row.text].add(row.answer)
    known = {answer for answer, where in pictures.items() if len(where) >= FEWEST_PICTURES}
    group = {answer: answer for answer in known}  # a member of the same facet, the facet's first for itself

    def find_first(answer: str) -> str:
        while group[answer] != answer:
            answer = group[answer]
        return answer

    for answers in asked.values():
        first, *others = sorted(answers & known) or [""]
        for other in others:
            group[find_first(other)] = find_first(first)
    facets: defaultdict[str, list[str]] = defaultdict(list)
    for answer in sorted(known, key=lambda answer: (-counts[answer], answer)):
        facets[find_first(answer)].append(answer)
    fitting = [tuple(answers) for answers in facets.values() if 1 < len(answers) <= FACET_ANSWERS]
    return tuple(sorted(fitting, key=lambda answers: (-sum(counts[answer] for answer in answers), answers)))
