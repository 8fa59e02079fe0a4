"""`ril store`: looks after the stored answers. `ril store --help` lists everything."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.environment import store_folder
from stages.job.progress import Progress

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of the store; without it RIL_STORE, else .ril here.", show_default=False),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Only this set; may be given several times. Without it: all.")
]

store_app = typer.Typer(
    help="Look after the stored answers: the store is the folder RIL_STORE, else .ril. All of this may run "
    "beside stages that "
    "read and write.",
    no_args_is_help=True,
)


class StoreError(ValueError):
    """A store that is not there, or not whole; the message says what to do."""


@store_app.command("stats")
def show_statistics(store: StoreOption = None, only: Only = None) -> None:
    """Shows what the store holds: sets, answers, tokens, seconds they took, and what compacting would gain."""
    from stages.responses.sets import compute_set_statistics

    progress = Progress()
    rows = []
    for folder in _select_sets(_find_root(store), only):
        found = compute_set_statistics(folder, progress.say, _make_tracker(progress, f"reading {folder.name}"))
        rows.append(
            {
                "set": folder.name,
                "model": ", ".join(name.partition(" ")[0] for name in found.models) or "?",
                "answers": found.answers,
                "truncated": f"{found.truncated_share:.1%}",
                "tokens": found.completion_tokens,
                "seconds": round(found.seconds),
                "segments": found.segments,
                "damaged": found.damaged,
                "duplicates": found.duplicates,
                "refused": found.refused,
                "MiB": round(found.disk_bytes / 2**20, 1),
                "index MiB": round(found.index_bytes / 2**20, 1),
                "unfinished": found.leftovers,
            }
        )
    _print_table(rows)


@store_app.command("verify")
def verify_store(store: StoreOption = None, only: Only = None) -> None:
    """Reads every byte: checksums, and whether keys are the hashes of what stands beside them. Exit code 1 on a
    fault.
    """
    from stages.job.bounded import Fault
    from stages.responses.segments import list_segments
    from stages.responses.sets import find_faults, find_strays

    progress = Progress()
    root = _find_root(store)
    sets = _select_sets(root, only)
    broken: list[Fault] = [] if only else list(find_strays(sets[0].parent))
    answers = 0

    def iter_counts(folder: Path) -> Iterator[int]:
        for found in find_faults(folder):
            if isinstance(found, Fault):
                broken.append(found)
            else:
                yield found

    for folder in sets:
        answers += sum(
            progress.track(iter_counts(folder), f"verifying {folder.name}", total=len(list_segments(folder)))
        )
    for fault in broken:
        print(fault)
    if broken:
        print(
            f"{answers} answers are whole; {len(broken)} faults. Stages pass over these files: the answers of a damaged"
        )
        print(
            "segment are asked again. Put a whole copy of a file in its place (nothing else changes), or move it away."
        )
        raise typer.Exit(1)
    print(f"{answers} answers, all whole")


@store_app.command("compact")
def compact_store_command(store: StoreOption = None, only: Only = None) -> None:
    """Makes few large segments of many small ones; no answer changes. Stages may read and write meanwhile."""
    from stages.responses.compact import compact
    from stages.responses.space import explain_unwritable

    progress = Progress()
    rows = []
    for folder in _select_sets(_find_root(store), only):
        try:
            done = compact(folder, progress.say, _make_tracker(progress, f"compacting {folder.name}"))
        except FileNotFoundError as error:
            raise StoreError(
                f"another compaction of {folder} was faster ({error}); nothing is lost, try again later"
            ) from error
        except OSError as error:
            raise StoreError(str(explain_unwritable(folder, error))) from error
        rows.append(
            {
                "set": folder.name,
                "segments before": done.before,
                "after": done.after,
                "answers": done.answers,
                "duplicates dropped": done.duplicates,
                "unfinished files removed": done.leftovers,
            }
        )
    _print_table(rows)


@store_app.command("merge")
def merge_store_command(
    other: Annotated[Path, typer.Argument(help="Folder of another store; it is only read.")],
    store: StoreOption = None,
) -> None:
    """Adds the answers of another store. Where both have one, the one that is here stays: no projection changes."""
    _merge(other, store)


@store_app.command("export")
def export_store_command(
    folder: Annotated[Path, typer.Argument(help="New folder for the data set.")],
    store: StoreOption = None,
    only: Only = None,
) -> None:
    """Writes a Hugging Face data set: parquet files and a card. `datasets.load_dataset(FOLDER)` reads it."""
    from stages.responses.dataset import export_dataset

    progress = Progress()
    try:
        counted = export_dataset(
            _select_sets(_find_root(store), only), folder, progress.say, _make_tracker(progress, "exporting")
        )
    except (OSError, ValueError) as error:
        raise StoreError(" ".join(str(error).split())) from error
    print(
        f"{sum(found.answers for found in counted)} answers in {len(counted)} sets are in {folder}; its "
        "README.md is the card"
    )


@store_app.command("import")
def import_store_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set that `ril store export` wrote.")],
    store: StoreOption = None,
) -> None:
    """Adds the answers of an exported data set; what is here stays as it is."""
    if not (folder / "README.md").is_file():
        raise StoreError(
            f"{folder} has no README.md, so it is no exported data set; for a store use: ril store merge {folder}"
        )
    _merge(folder, store)


def _merge(other: Path, store: Path | None) -> None:
    from stages.responses.merge import merge

    progress = Progress()
    try:
        rows = [
            vars(done)
            for done in merge(_find_root(store) / "responses", other, progress.say, _make_tracker(progress, "reading"))
        ]
    except (OSError, ValueError) as error:
        raise StoreError(str(error)) from error
    _print_table([{name.replace("_", " "): value for name, value in row.items()} for row in rows])
    if any(row["damaged"] for row in rows):
        print("not everything was taken: what is damaged is named above, all else is in the store")
        raise typer.Exit(1)


def _find_root(store: Path | None) -> Path:
    return store or store_folder(Path.cwd())


def _select_sets(root: Path, only: list[str] | None) -> list[Path]:
    from stages.responses.sets import find_sets

    try:
        sets = find_sets(root)
    except OSError as error:
        raise StoreError(str(error)) from error
    names = [folder.name for folder in sets]
    unknown = [name for name in only or [] if name not in names]
    if unknown:
        raise StoreError(f"{root} has no set {unknown[0]!r}; sets: {', '.join(names)}")
    return [folder for folder in sets if not only or folder.name in only]


def _make_tracker(progress: Progress, title: str) -> Callable[[Iterable[int]], Iterator[int]]:
    def track(numbers: Iterable[int]) -> Iterator[int]:
        return progress.track(list(numbers), title)

    return track


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Prints rows as an aligned table on standard output."""
    heads = list(rows[0])
    cells = [heads, *([str(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(heads))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
