"""`ril data`: looks at questions before anything is trained. `ril data --help` lists everything."""

import heapq
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.data_report import find_failure, format_check
from flows.cli.data_source import SCANNED, Data, DataError, Student, find_params, open_data, open_student, pick_rows
from flows.cli.score import find_overlaps, show_text
from stages.corpora.adapters import UnusableRow, convert_rows
from stages.corpora.images import ImageHeader
from stages.corpora.row_statistics import Lengths, Place, RowStatistics
from stages.corpora.rows import make_question, split_target
from stages.corpora.source import Canonical, SourceRow, UnusableData
from stages.job.files import write_json, write_text
from stages.job.progress import Progress
from stages.job.seeds import derive_seed

SAMPLE = 20_000  # rows that are read unless another number is asked for
SWITCH_SECONDS = 2e-4  # two and a half times as fast as with the default: 600 photos in 2.9 instead of 7.4 s
PathArgument = Annotated[
    str | None,
    typer.Argument(
        help="File, folder or hub id (owner/name, owner/name@revision); without it the data of params.yaml."
    ),
]
ImagesOption = Annotated[
    str | None,
    typer.Option("--images", help="Folder or archive that image paths are relative to; else the file's folder."),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help="FIELD=COLUMN of a path, if it shall not be guessed, such as question=prompt; repeatable."
    ),
]
ParamsOption = Annotated[
    Path | None, typer.Option("--params", help="Parameters with data, models and limits; without it ./params.yaml.")
]
ModelOption = Annotated[
    str, typer.Option("--model", help="Entry of `models` whose tokenizer, template and processor are used.")
]

data_app = typer.Typer(
    help="Look at questions before anything is trained: what is in a data set, and what the student sees of it.",
    no_args_is_help=True,
)


@data_app.command("check")
def check_data(
    path: PathArgument = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, help="How many rows are read, drawn by seed if there are more.")
    ] = SAMPLE,
    every: Annotated[bool, typer.Option("--all", help="Read all rows.")] = False,
    benchmarks: Annotated[
        bool, typer.Option(help="Compare the images with those of the benchmarks in evaluate.folder.")
    ] = True,
    images: ImagesOption = None,
    column: ColumnOption = None,
    params_file: ParamsOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything as JSON here.")] = None,
    model: ModelOption = "student",
) -> None:
    """Reads rows as stage `questions` does, and prints what is in them and which cannot be used, and why.

    The exit code is 1 when no row is usable or more than questions.max_reject_share are not, 2 for a wrong argument.
    """
    params = find_params(params_file)
    root = params_file.parent if params_file else Path.cwd()
    data = open_data(path, params, root, images, column or ())
    student = open_student(model, params, root)
    most = None if every else sample
    statistics, fault = read_statistics(data, student, pick_rows(data, most, params.seed if params else 0), most)
    found = summarise_data(data, statistics, student, most) | {"fault": fault}
    if benchmarks and params is not None:
        found["overlap"] = compare_with_benchmarks(root / params.evaluate.folder, statistics)
    print(format_check(found))
    if json_file is not None:
        write_json(json_file, found)
    if message := find_failure(found, data.questions.max_reject_share):
        print(f"error: {show_text(message)}", file=sys.stderr)
        raise typer.Exit(1)


@data_app.command("show")
def show_data(
    path: PathArgument = None,
    rows: Annotated[int, typer.Option(min=1, max=200, help="How many rows, drawn by seed.")] = 24,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("data.html"),
    images: ImagesOption = None,
    column: ColumnOption = None,
    params_file: ParamsOption = None,
    model: ModelOption = "student",
) -> None:
    """Writes one offline page: images behind the model's processor, the prompt with its special tokens, the answers."""
    from stages.page.render import render_data_page  # local imports: they take seconds
    from stages.page.seen_questions import SeenQuestion, make_section, show_question

    params = find_params(params_file)
    root = params_file.parent if params_file else Path.cwd()
    data = open_data(path, params, root, images, column or ())
    student = open_student(model, params, root)
    if not isinstance(student, Student):
        raise DataError(f"a page shows what a model sees, but {student}")
    drawn, total = draw_shown_rows(data, rows, params.seed if params else 0)
    questions, rejects = list[SeenQuestion](), list[UnusableRow]()
    for checked in Progress().track(convert_rows(iter(drawn), data.questions), "rendering", total=len(drawn)):
        row = checked.found
        if isinstance(row, UnusableRow):
            rejects.append(row)
        elif len(questions) < rows:
            question = make_question(row, [image["bytes"] for image in row["images"]])
            questions.append(show_question(question, student.reader, student.context))
    if not questions:
        raise UnusableData(f"none of {len(drawn)} rows of {data.title} is usable; see why with: ril data check")
    write_text(out, render_data_page(make_section(questions, data.title, student.folder, total, rejects)))
    print(f"{len(questions)} questions are in {out}; open it in a browser")


def draw_shown_rows(data: Data, most: int, seed: int) -> tuple[list[tuple[int, SourceRow]], int | None]:
    """Returns at least `most` rows of the first SAMPLE, drawn by seed, and how many rows there are, if that is known.

    A quarter more are drawn, in the place of rows that cannot be used.
    """
    wanted = most + most // 4 + 1
    kept: list[tuple[int, int, SourceRow]] = []
    total = 0
    for number, row in enumerate(islice(data.rows(), SAMPLE)):
        heapq.heappush(kept, (-derive_seed(seed, "data", number), number, row))
        if len(kept) > wanted:
            heapq.heappop(kept)
        total += 1
    drawn = [(number, row) for _, number, row in sorted(kept, key=lambda one: -one[0])]
    return drawn, data.count or (total if total < SAMPLE else None)


def read_statistics(
    data: Data, student: Student | str, picked: Iterator[tuple[int, SourceRow]], most: int | None
) -> tuple[RowStatistics, str | None]:
    """Returns the statistics of the picked rows, and why reading ended early; None if it did not."""
    statistics = RowStatistics(partial(measure_row, student) if isinstance(student, Student) else None)
    total = min(filter(None, (data.count, most)), default=None) if data.count is not None else None
    rows = Progress().track(convert_rows(picked, data.questions), f"reading {data.title}", total=total)
    number = 0
    before = sys.getswitchinterval()
    # The threads that decode hold the interpreter's lock for the default of 5 ms whenever this one encodes a text.
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        for origin, found, _ in rows:
            statistics.add(found, Place(origin.file, origin.row if origin.row >= 0 else number))
            number += 1
    except UnusableData as error:
        return statistics, str(error)
    finally:
        sys.setswitchinterval(before)
    return statistics, None


def measure_row(student: Student, row: Canonical, headers: Sequence[ImageHeader]) -> Lengths:
    """Returns the tokens of the student's prompt, of its images, and of the target or reference with its end."""
    messages, target = split_target(row["messages"])
    images = student.reader.count_image_tokens([header[:2] for header in headers])
    answer = len(student.reader.chat.encode_response(target or row["answer"] or ""))
    return Lengths(student.reader.count_tokens(messages, images), answer, images)


def summarise_data(data: Data, statistics: RowStatistics, student: Student | str, most: int | None) -> dict[str, Any]:
    """Returns everything that `ril data check` prints, as JSON values."""
    known = student if isinstance(student, Student) else None
    found = statistics.summarise(known.context if known else None)
    found["lengths"] |= {"model": known.folder if known else None, "why_no_tokens": None if known else student}
    return {
        "data": data.title,
        "rows": data.count,
        "drawn_from": min(data.count, SCANNED * most) if most and data.count and data.count > most else None,
        "first": most if data.count is None and most is not None and found["read"] >= most else None,
        "guesses": [asdict(guess) for guess in data.guesses],
        **found,
        "overlap": None,
    }


def compare_with_benchmarks(folder: Path, statistics: RowStatistics) -> dict[str, Any]:
    """Returns the samples of benchmarks in `folder` whose image is, byte for byte, in the data."""
    found, broken, absent = find_overlaps(folder, {"data": statistics.list_images()}, download=False)
    return {"folder": str(folder), "found": [asdict(one) for one in found], "broken": broken, "absent": absent}
