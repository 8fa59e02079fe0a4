"""`ril score` and its relatives: stored predictions to numbers, without a model, a judge, a GPU or images."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.benchmarks.contamination import Overlap, find_overlap, hash_training_images
from stages.benchmarks.exchange import LAYOUTS, Layout, export_predictions, import_predictions
from stages.benchmarks.predictions import find_records, read_benchmark_record, write_benchmark_record
from stages.benchmarks.registry import find_benchmark, load_registry
from stages.benchmarks.sample import BenchmarkError, MissingBenchmark
from stages.benchmarks.scorers import OURS, PROFILES, Profile
from stages.benchmarks.scores import average_columns, compute_benchmark_scores
from stages.benchmarks.sources import SERVER, has_files, load_benchmark
from stages.benchmarks.spec import Spec
from stages.job.files import write_json

NO_VALUE = "–"
LACKING = {"missing": "no reply", "pending": "not judged", "judge_failed": "judge failed"}  # rows that have no score
LONGEST_CELL = 1000  # characters of a cell or message
# One broken record must not hide the others: whatever a file causes is said beside the name of its benchmark.
FAULTS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
score_app = typer.Typer()  # its commands become commands of `ril`


def select_profiles(profiles: Sequence[str]) -> list[Profile]:
    """The named profiles, in the order given. Raises BenchmarkError for an unknown one."""
    unknown = [name for name in profiles if name not in PROFILES]
    if unknown:
        raise BenchmarkError(f"no profile {unknown[0]!r}; known: {', '.join(PROFILES)}")
    return [profile for name in profiles for profile in PROFILES if profile == name]


@score_app.command("score")
def score_command(
    folder: Annotated[Path, typer.Argument(help="Predictions, such as data/evaluate/ril.")],
    profile: Annotated[list[str], typer.Option(help="Rule of scoring; several give several rows.")] = [OURS],  # noqa: B006
    by: Annotated[bool, typer.Option("--by", help="Also the tables by category.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write everything as JSON to this file.")] = None,
) -> None:
    """Scores stored predictions again, without a model, judge, GPU or images.

    The exit code is 1 when a benchmark lacks replies or verdicts, and 2 when one can't be read; the others are scored.
    """
    chosen = select_profiles(profile)
    found: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    errors: dict[str, str] = {}
    for name, path in find_records(folder).items():
        try:
            scores = _score_record(path, chosen)
        except FAULTS as error:
            errors[name] = _explain(error)
        else:
            for one, numbers in scores.items():
                found[one][name] = numbers
    print(format_table(make_score_rows(found)))
    for one, numbers_of in found.items():
        print(format_average(one, average_columns(numbers_of)))
    if by:
        print(format_categories(found))
    print_unscored(found)
    _print_errors(errors)
    if out is not None:
        write_json(out, {"profiles": found, "errors": errors})
    complete = all(numbers["complete"] for numbers_of in found.values() for numbers in numbers_of.values())
    if errors or not complete:
        raise typer.Exit(2 if errors else 1)


def _score_record(path: Path, profiles: Sequence[Profile]) -> dict[str, dict[str, Any]]:
    """Returns the numbers of a record under each profile that has a rule for it."""
    record = read_benchmark_record(path)
    spec = find_benchmark(record.benchmark)
    about = {key: record.manifest.get(key) for key in ("source", "judge")}
    return {
        one: {**compute_benchmark_scores(spec, record.samples, record.replies, one, record.cot, record.judge), **about}
        for one in profiles
        if spec.needs_judge or spec.scorer(one, record.cot) is not None
    }


def print_unscored(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Says how many replies no rule could be applied to, with the first."""
    for profile, numbers_of in found.items():
        for name, numbers in numbers_of.items():
            if reasons := numbers.get("not_scored"):
                index, reason = next(iter(reasons.items()))
                print(
                    f"{name}, {profile}: {len(reasons)} unparsed, such as row {show_text(index)}: {show_text(reason)}"
                )


def _explain(error: Exception) -> str:
    """Returns an error as one line; one that is not written for users begins with its type."""
    text = str(error) if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {error}"
    return show_text(" ".join(text.split()))


def _print_errors(errors: Mapping[str, str]) -> None:
    for name, message in errors.items():
        print(f"error: {show_text(name)}: {message}", file=sys.stderr)


def show_text(text: str) -> str:
    """Returns the text as a terminal can show it: characters that are not printable, or turn others around, escaped."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:LONGEST_CELL])


def make_score_rows(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, str]]:
    """A row a benchmark and profile: the score with its 95 % half width, and what stands behind it."""
    rows = []
    for name in dict.fromkeys(name for numbers_of in found.values() for name in numbers_of):
        for profile in found:
            if name in found[profile]:
                rows.append(_make_score_row(found[profile][name]))
    return rows


def _make_score_row(numbers: Mapping[str, Any]) -> dict[str, str]:
    score, error = numbers["score"], numbers["error"]
    value = NO_VALUE if score is None else f"{score:.1f} ± {error:.1f}" if math.isfinite(error) else f"{score:.1f}"
    lacking = [f"{numbers[key]:.1f} % {what}" for key, what in LACKING.items() if numbers[key]]
    left = f" (incomplete: {', '.join(lacking)})" if lacking else ""
    row = {
        "benchmark": str(numbers["title"]),
        "profile": str(numbers["profile"]),
        "n": str(numbers["units"]),
        "score": value + left,
        **{name: f"{numbers[name]:.1f}" for name in ("unparsed", "truncated", "judge_failed")},
        "tokens": f"{numbers['tokens']:.0f}",
    }
    return row | {"judge": str(numbers.get("judge") or NO_VALUE), "source": str(numbers.get("source") or NO_VALUE)}


def format_average(profile: str, average: Mapping[str, Any]) -> str:
    """The mean over the paper's columns, or over as many as there are, with those that are lacking."""
    if average["value"] is None:
        return f"{profile}: no complete column of the fourteen"
    lacking = f"; lacking: {', '.join(average['lacking'])}" if average["lacking"] else ""
    return f"{profile}: average over {average['over']} of 14 columns {average['value']:.2f}{lacking}"


def format_categories(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Scores by category."""
    lines = []
    for profile, numbers_of in found.items():
        for numbers in numbers_of.values():
            beside = [{"": name, "n": "", "score": f"{value:.1f}"} for name, value in numbers["beside"].items()]
            rows = [
                {"": f"{group}: {value}", "n": str(part["n"]), "score": f"{part['score']:.1f}"}
                for group, values in numbers["by"].items()
                for value, part in values.items()
            ]
            lines.append(f"\n{numbers['title']}, {profile}\n{format_table([*rows, *beside])}")
    return "\n".join(lines)


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows under heads, in columns."""
    if not rows:
        return "nothing"
    heads = list(rows[0])
    lines = [heads, *([show_text(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


@score_app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(help="Predictions of A, such as data/evaluate/ril.")],
    second: Annotated[Path, typer.Argument(help="Predictions of B, such as data/evaluate/base.")],
    profile: Annotated[str, typer.Option(help="Rule of scoring.")] = OURS,
) -> None:
    """A less B on the same rows: 95 % bootstrap interval of the paired difference, wins and losses, McNemar's p."""
    from stages.benchmarks.comparing import compare_records

    (rule,) = select_profiles([profile])
    folders = find_records(first), find_records(second)
    shared = [name for name in folders[0] if name in folders[1]]
    if not shared:
        raise BenchmarkError(f"{first} and {second} have no benchmark in common")
    rows, errors = list[dict[str, str]](), dict[str, str]()
    for name in shared:
        try:
            one, other = (read_benchmark_record(there[name]) for there in folders)
            found = compare_records(one, other, rule)
        except FAULTS as error:
            errors[name] = _explain(error)
            continue
        rows.append(
            {
                "benchmark": find_benchmark(found.benchmark).title,
                "n": str(found.pairs),
                "A": f"{found.first:.1f}",
                "B": f"{found.second:.1f}",
                "A - B": f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}]",
                "wins": str(found.wins),
                "losses": str(found.losses),
                "McNemar p": NO_VALUE if found.p_value is None else f"{found.p_value:.3g}",
                "left out": str(found.left_out),
            }
        )
    print(format_table(rows))
    print(f"profile {rule}; every row counts the same; intervals hold for the choice of rows, not for that of the seed")
    _print_errors(errors)
    if errors:
        raise typer.Exit(2)


def list_published() -> list[Spec]:
    """All benchmarks but those that the tiny world writes itself."""
    return [spec for spec in load_registry().values() if not spec.world]


@score_app.command("benchmarks")
def list_benchmarks() -> None:
    """Lists the benchmarks, and which files or data sets they are read from."""
    rows = []
    for spec in list_published():
        files = [
            (f"{tsv.name}.tsv", f"{md5} {label}".strip(), f"{SERVER}/{tsv.folder}/{tsv.name}.tsv")
            for tsv in spec.tsv
            for md5, label in tsv.md5s.items()
        ]
        for name, md5, address in files or [(NO_VALUE, NO_VALUE, NO_VALUE)]:
            hub = spec.hub[0].names[0] if spec.hub else NO_VALUE
            rows.append(
                {"id": spec.id, "rows": str(spec.expected), "data set": hub, "file": name, "md5": md5, "from": address}
            )
    print(format_table(rows))


@score_app.command("export")
def export_predictions_command(
    folder: Annotated[Path, typer.Argument(help="Predictions, such as data/evaluate/ril.")],
    to: Annotated[Path, typer.Argument(help="Folder for the files.")],
    layout: Annotated[str, typer.Option(help="vlmeval (TSV) or lmms (samples in JSONL).")] = "vlmeval",
    model: Annotated[str, typer.Option(help="Name of the model in the files' names.")] = "model",
) -> None:
    """Writes predictions in the layout of another harness, one file a benchmark."""
    form = _parse_layout(layout)
    errors = dict[str, str]()
    for name, path in find_records(folder).items():
        try:
            print(export_predictions(read_benchmark_record(path), form, to, model))
        except FAULTS as error:
            errors[name] = _explain(error)
    _print_errors(errors)
    if errors:
        raise typer.Exit(2)


def _parse_layout(name: str) -> Layout:
    for layout in LAYOUTS:
        if layout == name:
            return layout
    raise BenchmarkError(f"no layout {name!r}; known: {', '.join(LAYOUTS)}")


@score_app.command("import")
def import_predictions_command(
    file: Annotated[Path, typer.Argument(help="Predictions of VLMEvalKit (.tsv) or lmms-eval (samples .jsonl).")],
    benchmark: Annotated[str, typer.Argument(help="Which benchmark they answer, such as mmstar.")],
    data: Annotated[Path, typer.Argument(help="Folder of benchmark files.")],
    to: Annotated[Path, typer.Argument(help="Folder for the predictions; `ril score` reads it.")],
) -> None:
    """Takes over predictions that another harness wrote, so that they can be scored under every profile."""
    if not file.is_file():
        raise BenchmarkError(f"{file}: no such file; give predictions that VLMEvalKit or lmms-eval wrote")
    record = import_predictions(file, load_benchmark(find_benchmark(benchmark), data).samples, benchmark)
    write_benchmark_record(to / benchmark, record)
    print(f"{len(record.replies)} replies to {len(record.samples)} rows: {to / benchmark}")


def find_overlaps(
    data: Path, splits: Mapping[str, Mapping[str, str]], download: bool = True
) -> tuple[list[Overlap], dict[str, str], list[str]]:
    """The images that benchmarks in `data` share with each split; which can't be read, and why; which are not there.

    `splits` has where an image is by its hash. Without `download` no benchmark is fetched from the hub.
    """
    found, broken, absent = list[Overlap](), dict[str, str](), list[str]()
    for spec in list_published():
        try:
            if not download and not has_files(spec, data):
                raise MissingBenchmark(spec.id)
            samples = load_benchmark(spec, data).samples
            found += [find_overlap(spec.id, samples, name, trained) for name, trained in splits.items()]
        except MissingBenchmark:
            absent.append(spec.id)
        except BenchmarkError as error:
            broken[spec.id] = str(error)
    return found, broken, absent


@score_app.command("contamination")
def contamination_command(
    data: Annotated[Path, typer.Argument(help="Folder of benchmark files.")],
    questions: Annotated[Path, typer.Option(help="Folder of the training data's splits.")] = Path("data/questions"),
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON to this file.")] = None,
) -> None:
    """Images that are, byte for byte, in training data and in a benchmark; 1 as exit code when there are any.

    Fails when not one of the benchmarks could be read: then nothing was checked.
    """
    folders = sorted({file.parent for file in questions.glob("*/*.parquet")})
    if not folders:
        raise BenchmarkError(f"{questions}: no split with parquet files; run: dvc repro questions")
    splits = {path.name: hash_training_images(path) for path in folders}
    found, broken, absent = find_overlaps(data, splits)
    if not found:
        reasons = [f"{name}: {message}" for name, message in broken.items()]
        raise BenchmarkError(
            "\n".join([f"{data} holds no benchmark that can be read, so nothing was checked", *reasons])
        )
    print(format_table([{key: str(value) for key, value in asdict(one).items()} for one in found]))
    for name, message in broken.items():
        print(f"not checked: {name}: {message}")
    if absent:
        print(f"not checked, not in {data}: {', '.join(absent)} (`ril benchmarks` lists their files)")
    if out is not None:
        write_json(
            out,
            {
                "overlaps": [asdict(one) for one in found],
                "not_checked": {**broken, **dict.fromkeys(absent, "not there")},
            },
        )
    if any(one.shared for one in found):
        raise typer.Exit(1)
