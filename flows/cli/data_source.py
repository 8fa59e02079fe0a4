"""The data and the student that `ril data` looks at: a path, a hub id, or what params.yaml names."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count as count_up
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

from stages.config.params import Params, load_params
from stages.config.questions import Questions
from stages.config.sources import Part, Source
from stages.config.splits import Split
from stages.corpora.adapters import read_source_rows
from stages.corpora.source import Canonical, SourceRow
from stages.job.seeds import derive_seed

HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
SCANNED = 10  # times as many rows as are read are looked at: a draw from all would read terabytes of photos
SPLITS: tuple[Split, ...] = ("warm_start", "imitation", "validation", "test")


class DataError(ValueError):
    """A mistake in what `ril data` was asked for; the message says what to give."""


@dataclass(frozen=True)
class Data:
    """Source rows with what is known about them before they are read."""

    title: str
    questions: Questions  # limits on rows
    rows: Callable[[], Iterator[SourceRow]]
    count: int | None = None  # number of rows, where the files say it
    guesses: tuple[Any, ...] = ()  # stages/corpora/formats/sources.py::Guess of each field


@dataclass(frozen=True)
class Student:
    """The processor of a model of params.yaml."""

    reader: Any  # stages/vlm/reader.py::Reader
    folder: str
    context: int


def find_params(file: Path | None) -> Params | None:
    """Returns the parameters in `file`, or in ./params.yaml; None if none is named and none is there."""
    if file is None and not Path("params.yaml").is_file():
        return None
    if file is not None and not file.is_file():
        raise DataError(f"--params {file}: no such file")
    return load_params(file or Path("params.yaml"))


def open_data(
    path: str | None, params: Params | None, root: Path, images: str | None = None, columns: Sequence[str] = ()
) -> Data:
    """Returns the data at `path` with images in `images`, or without it the data of params.yaml in `root`.

    `columns` are pairs field=column. Raises DataError if neither is there, UnusableData as the readers.
    """
    if path is not None:
        return _open_source(path, params, images, read_columns(columns))
    for option, given, key in (("--images", images, "images"), ("--column", columns, "sources[].columns")):
        if given:
            raise DataError(f"{option} belongs to a path; for the data of params.yaml set questions.{key}")
    if params is None:
        raise DataError("no params.yaml here: name the data (a file, a folder or a hub id), or give --params FILE")
    questions = params.questions
    if questions.kind == "world":
        rows = partial(_iter_world_rows, params)
        count = sum(map(int, questions.splits.values()))  # `all` is refused for this kind
        return Data("the tiny world (questions.kind: world)", questions, rows, count)
    if questions.kind == "sources":
        return _open_sources("questions.sources", questions, root)
    return Data(f"{questions.path} ({questions.kind})", questions, partial(read_source_rows, questions, root))


def read_columns(pairs: Sequence[str]) -> dict[Part, str]:
    """Returns the columns by field of texts such as "question=prompt". Raises DataError for an unknown field."""
    columns = {cast(Part, field): column for field, _, column in (pair.partition("=") for pair in pairs)}
    for field, column in columns.items():
        if field not in get_args(Part) or not column:
            raise DataError(f"--column {field}={column}: write FIELD=COLUMN; fields: {', '.join(get_args(Part))}")
    return columns


def _open_source(path: str, params: Params | None, images: str | None, columns: dict[Part, str]) -> Data:
    found = HUB_ID.fullmatch(path)
    # Not validated: users may look at data anywhere, also where no stage would read them.
    if Path(path).exists():
        source = Source.model_construct(path=path, images=images, columns=columns)
    elif found:
        revision = found["revision"] or "main"
        source = Source.model_construct(hub=found["name"], revision=revision, images=images, columns=columns)
    else:
        raise DataError(f"{path}: no such file or folder; the id of a data set on the hub looks like owner/name")
    given = params.questions.model_dump() if params else {"max_reject_share": 0.01}
    place = Path(path) if Path(path).is_dir() else Path(path).parent
    beside = place / "images" if (place / "images").is_dir() else place  # where most people have them
    of_source = {"kind": "sources", "sources": [source], "path": str(place), "images": images or str(beside)}
    return _open_sources(path, Questions.model_construct(**{**given, **of_source}), Path.cwd())


def _open_sources(title: str, questions: Questions, root: Path) -> Data:
    from stages.corpora.formats.sources import open_source

    opened = [open_source(source, questions, root) for source in questions.sources]
    counts = [one.count for one in opened if one.count is not None]

    def rows() -> Iterator[SourceRow]:
        """The sources take turns, so that the first rows are of all of them."""
        left = {place: one.rows() for place, one in enumerate(opened)}
        while left:
            for place, source in list(left.items()):
                if (row := next(source, None)) is None:
                    del left[place]
                else:
                    yield row._replace(source=place)

    guesses = tuple(guess for one in opened for guess in one.guesses)
    return Data(title, questions, rows, sum(counts) if len(counts) == len(opened) else None, guesses)


def _iter_world_rows(params: Params) -> Iterator[SourceRow]:
    from stages.tiny.world_rows import iter_world_rows

    for split in SPLITS:
        drawn = iter_world_rows(params.world, split)
        for row in islice(drawn, int(params.questions.splits[split])):
            yield SourceRow(row["id"], partial(_pass, row), split=split)


def _pass(row: Canonical) -> Canonical:
    return row


def pick_rows(data: Data, most: int | None, seed: int) -> Iterator[tuple[int, SourceRow]]:
    """Yields at most `most` rows with their numbers, in order.

    They are drawn by seed from the first SCANNED * `most` rows; they are the first ones where the files do not say how
    many rows there are.
    """
    numbered = zip(count_up(), data.rows(), strict=False)
    if most is None or data.count is None or data.count <= most:
        yield from islice(numbered, most)
        return
    chosen = random.Random(derive_seed(seed, "data", "sample")).sample(range(min(data.count, SCANNED * most)), most)
    wanted, last = set(chosen), max(chosen)
    yield from (pair for pair in islice(numbered, last + 1) if pair[0] in wanted)


def open_student(name: str, params: Params | None, root: Path) -> Student | str:
    """Returns the processor of a model, or why there is none here and what makes it.

    Raises DataError if params.yaml has no such model, or one that sees no images.
    """
    if params is None:
        return "there is no params.yaml here that names a model"
    if name not in params.models:
        raise DataError(f"--model {name}: no such entry of models; entries: {', '.join(params.models)}")
    if params.models[name].endpoint is not None:
        return f"models.{name} is at an endpoint, and its tokenizer is not here"
    folder = f"data/model/{name}"
    if not (root / folder / "ril.json").is_file():
        return f"{folder} is not there yet; make it with: dvc repro model@{name}"
    from stages.vlm.checkpoint import open_checkpoint
    from stages.vlm.reader import load_reader

    try:
        checkpoint = open_checkpoint(root / folder)
    except FileNotFoundError as error:
        return " ".join(str(error).split())
    reader = load_reader(checkpoint)
    if reader.image_token_id < 0:
        raise DataError(
            f"--model {name}: family {params.models[name].family} reads text only; name a model that sees images"
        )
    return Student(reader, folder, checkpoint.context_tokens)
