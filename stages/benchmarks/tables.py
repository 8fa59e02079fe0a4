"""Rows of benchmark files without conversion: no type inference, no replacement; images are read on access.

Three kinds of files: VLMEvalKit's TSV, a folder of parquet shards, a folder of `datasets`' `save_to_disk`.
"""

import ast
import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.benchmarks.sample import BenchmarkError, LazyImage, make_base64_image
from stages.config.regular import explain_decoding, open_regular, read_regular
from stages.job.bounded import parse_json, show_value

CELL_LIMIT = 256 << 20  # bytes of one cell; the largest known (30 images of a row) is below 40 MB
MOST_ROWS = 1_000_000  # of a file or row group; the largest benchmark has 14,233
TABLE_LIMIT = 64 << 30  # bytes of a TSV file; the largest known has 4 GB
GROUP_LIMIT = 1 << 30  # bytes of the columns without images of a row group
BATCH_ROWS = 64  # rows of a parquet file that are decoded at a time
HEAD_LIMIT = REVISION_LIMIT = 1 << 20  # bytes of the names of columns; of revision.json
INDEX_LIMIT = 64  # an `image` cell of at most this length is the index of another row
SPLITS = ("train", "test", "testmini", "val", "validation", "dev")
_SINGLE_LETTER = re.compile(r"[A-Z]")


@dataclass(frozen=True)
class TableRow:
    """One row: values by column, "" or None if empty; column names in lower case except single letters."""

    where: str  # file and row, for messages
    values: Mapping[str, Any]
    pictures: Mapping[str, tuple[LazyImage, ...]]  # by column; only columns with an image
    config: str = ""  # folder of the shard, if the data set has several

    def text(self, column: str, default: str | None = None) -> str:
        """Returns the cell as text. Raises BenchmarkError for an empty one without a default."""
        value = self.values.get(column)
        if value is not None and value != "":
            return str(value)
        if default is None:
            raise BenchmarkError(
                f"{self.where}, column {column!r}: is empty, and a value is needed; correct or drop the row"
            )
        return default

    def literal(self, column: str) -> list[Any]:
        """Returns a list, also from the text of a Python list; [] if empty. Raises BenchmarkError for anything else."""
        value = self.values.get(column)
        if value is None or value == "":
            return []
        if isinstance(value, str):
            value = _parse_literal(value)
        if not isinstance(value, list | tuple):
            found = show_value(self.values[column])
            raise BenchmarkError(f"{self.where}, column {column!r}: expected a list, found {found}")
        return list(value)


def _parse_literal(text: str) -> Any:
    """Returns the value of a Python literal, None if the text is none, or nested too deeply for Python's parser."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def normalise_column(name: str) -> str:
    """Returns the column name used in this package: lower case, option letters in upper case."""
    bare = name.strip()
    return bare if _SINGLE_LETTER.fullmatch(bare) else bare.lower()


def require_columns(columns: Sequence[str], found: Sequence[str], where: Path) -> None:
    """Raises BenchmarkError with the names of missing columns."""
    lacking = [name for name in columns if name not in found]
    if lacking:
        raise BenchmarkError(
            f"{where}: no column {', '.join(map(repr, lacking))} among {show_names(found)}; is it the right file?"
        )


def show_names(names: Sequence[str]) -> str:
    """Returns names of columns for messages: the first few, in printable characters."""
    shown = [name[:40] if name[:40].isprintable() else ascii(name[:40]) for name in names[:20]]
    return ", ".join([*shown, "..."] if len(names) > 20 else shown)


# --- TSV ------------------------------------------------------------------------------------------------------------


def read_tsv(path: Path, columns: Sequence[str]) -> Iterator[TableRow]:
    """Yields the rows of a TSV file in order; cells may contain quoted tabs and newlines.

    An `image` cell is base64, a list literal of base64, or the index of a row whose image is shared. Raises
    BenchmarkError with file, row and column for missing columns, rows of another length, cells above CELL_LIMIT and
    invalid indices.
    """
    csv.field_size_limit(CELL_LIMIT)
    records = split_records(path)
    _, _, head = next(records, (0, 0, []))
    names = [normalise_column(name) for name in head]
    require_columns(columns, names, path)
    places: dict[str, tuple[int, int]] = {}  # location of each record by index, for shared images
    waiting: list[tuple[str, dict[str, str], str]] = []
    for number, (start, end, cells) in enumerate(records, 1):
        where = f"{path.name}, row {number}"
        if len(cells) != len(names):
            raise BenchmarkError(f"{where}: {len(cells)} cells under {len(names)} columns; quote tabs and newlines")
        values = dict(zip(names, cells, strict=True))
        image = values.pop("image", "")
        places[values.get("index", "")] = (start, end)
        if image and len(image) <= INDEX_LIMIT and not image.startswith("["):
            waiting.append((where, values, image))
            yield TableRow(where, values, {"image": (_find_shared_image(path, places, names, where, image),)})
        else:
            yield TableRow(where, values, {"image": _make_tsv_images(path, (start, end), names, where, image)})
    for where, _, image in waiting:
        if image not in places:
            raise BenchmarkError(f"{where}, column 'image': {image!r} is neither an image nor the index of a row")


def check_head(path: Path) -> None:
    """Raises BenchmarkError for a file that is too large, or whose first line is too long to be names of columns."""
    found = path.stat().st_size
    if found > TABLE_LIMIT:
        raise BenchmarkError(f"{path}: {found:,} bytes, more than {TABLE_LIMIT:,}; is it the right file?")
    with os.fdopen(open_regular(path), "rb") as handle:
        head = handle.readline(HEAD_LIMIT + 1)
    if len(head) > HEAD_LIMIT:
        raise BenchmarkError(f"{path}: its first line has more than {HEAD_LIMIT:,} bytes; is it the right file?")


def split_records(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Yields start, end and cells of each record; strips the byte order mark and CRLF."""
    pending: list[str] = []
    read = 0

    def iter_lines() -> Iterator[str]:
        nonlocal read
        with os.fdopen(open_regular(path), "rb") as handle:
            while line := handle.readline(2 * CELL_LIMIT):
                read += len(line)
                whole = line.endswith(b"\n") or len(line) < 2 * CELL_LIMIT
                try:
                    text = line.decode("utf-8-sig" if read == len(line) else "utf-8", "strict" if whole else "ignore")
                except UnicodeDecodeError as error:
                    reason = explain_decoding(error)
                    raise BenchmarkError(f"{path}, row {row}: {reason}, or fetch it again") from None
                pending.append(text)
                yield text  # the reader refuses a cell above CELL_LIMIT
                if not whole:
                    raise BenchmarkError(f"{path.name}, row {row}: a line of more than {2 * CELL_LIMIT >> 20} MiB")

    row, start = 0, 0
    reader = csv.reader(iter_lines(), delimiter="\t", strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            column = _find_last_column("".join(pending))
            limit = f"cells of at most {CELL_LIMIT >> 20} MiB are read"
            raise BenchmarkError(
                f"{path.name}, row {row}, column {column}: {error}; {limit}, quotes must be closed"
            ) from None
        if cells is None:
            return
        if cells:
            yield start, read, cells
            row += 1
        start = read
        pending.clear()


def _find_last_column(text: str) -> int:
    """Returns the number (from 1) of the column in which an incomplete record ends."""
    largest, column, begin, quoted = 0, 1, 0, False
    best = 1
    for found in re.finditer(r'["\t]', text):
        if found.group() == '"':
            quoted = not quoted
        elif not quoted:
            if found.start() - begin > largest:
                largest, best = found.start() - begin, column
            column, begin = column + 1, found.end()
    return column if len(text) - begin >= largest else best


def _check_cell(path: Path, place: tuple[int, int], column: int) -> str:
    with path.open("rb") as handle:
        handle.seek(place[0])
        text = handle.read(place[1] - place[0]).decode("utf-8-sig")
    csv.field_size_limit(CELL_LIMIT)
    return next(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))[column]


def _make_tsv_images(
    path: Path, place: tuple[int, int], names: Sequence[str], where: str, image: str
) -> tuple[LazyImage, ...]:
    if not image:
        return ()
    column = list(names).index("image")
    where = f"{where}, column 'image'"
    count = len(_parse_image_list(image, where)) if image.startswith("[") else None

    def picture(number: int | None) -> LazyImage:
        def read() -> bytes:
            cell = _check_cell(path, place, column)
            text = cell if number is None else _parse_image_list(cell, where)[number]
            return make_base64_image(where if number is None else f"{where}, image {number + 1}", text).data

        return LazyImage(where, read)

    return (picture(None),) if count is None else tuple(picture(number) for number in range(count))


def _parse_image_list(cell: str, where: str) -> list[str]:
    found = _parse_literal(cell)
    if not isinstance(found, list):
        raise BenchmarkError(f"{where}: starts like a list of images but is not one; fetch the file again")
    return [str(one) for one in found]


def _find_shared_image(
    path: Path, places: Mapping[str, tuple[int, int]], names: Sequence[str], where: str, index: str
) -> LazyImage:
    where = f"{where}, column 'image'"

    def read() -> bytes:
        if index not in places:
            raise BenchmarkError(f"{where}: {index!r} is neither an image nor the index of a row")
        cell = _check_cell(path, places[index], list(names).index("image"))
        if len(cell) <= INDEX_LIMIT:
            raise BenchmarkError(f"{where}: row {index!r}, whose image it shares, has no image")
        return make_base64_image(where, cell).data

    return LazyImage(where, read)


# --- parquet and save_to_disk ---------------------------------------------------------------------------------------


def read_folder(path: Path, split: str, columns: Sequence[str], config: str = "") -> Iterator[TableRow]:
    """Yields the rows of one split (and config, if there are several) in a folder of parquet or `save_to_disk`.

    Image columns are structs of bytes and path, or lists of them. Raises BenchmarkError if there is nothing to read.
    """
    arrow = sorted(path.rglob("*.arrow"))
    shards = _select_split(path, arrow or sorted(path.rglob("*.parquet")), split, config)
    if not shards:
        raise BenchmarkError(
            f"{path}: no parquet or arrow file of split {split!r}{f' and config {config!r}' if config else ''}"
        )
    for shard in shards:
        try:
            yield from _read_arrow_rows(shard, columns) if arrow else _read_parquet_rows(shard, columns)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BenchmarkError(f"{shard}: can't be read ({' '.join(str(error).split())}); fetch it again") from None


def _select_split(root: Path, files: Sequence[Path], split: str, config: str) -> list[Path]:
    def parts(file: Path) -> tuple[str, ...]:
        return file.relative_to(root).parts

    def split_of(file: Path) -> str:
        named = re.match(r"([a-z]+)-", file.name)
        folders = [part for part in parts(file)[:-1] if part in SPLITS]
        return named.group(1) if named and named.group(1) in SPLITS else folders[-1] if folders else ""

    if config and any(config in parts(file) for file in files):
        files = [file for file in files if config in parts(file)]
    known = [file for file in files if split_of(file)]
    return [file for file in known if split_of(file) == split] if known else list(files)


def _find_image_columns(schema: pa.Schema) -> dict[str, bool]:
    """Returns the columns that hold images, and whether each holds lists."""
    found = {}
    for column in schema:
        kind = column.type
        many = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        inner = kind.value_type if many else kind
        if pa.types.is_struct(inner) and {"bytes", "path"} <= {inner.field(i).name for i in range(inner.num_fields)}:
            found[column.name] = many
    return found


def _read_parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[TableRow]:
    parquet = pq.ParquetFile(file)
    images = _find_image_columns(parquet.schema_arrow)
    require_columns(columns, [normalise_column(name) for name in parquet.schema_arrow.names], file)
    plain = [name for name in parquet.schema_arrow.names if name not in images]
    number = 0
    for group in range(parquet.num_row_groups):
        _check_group(parquet.metadata.row_group(group), plain, file)
        batches = parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=plain)
        values = [row for batch in batches for row in batch.to_pylist()]
        flags = {
            name: _count_images(parquet.read_row_group(group, columns=[name])[name], many)
            for name, many in images.items()
        }
        for place, row in enumerate(values):
            number += 1
            where = f"{file.name}, row {number}"
            pictures = {
                normalise_column(name): tuple(
                    _make_parquet_image(file, group, name, place, one if images[name] else None, where)
                    for one in range(count[place])
                )
                for name, count in flags.items()
            }
            yield TableRow(
                where, {normalise_column(key): value for key, value in row.items()}, pictures, file.parent.name
            )


def _check_group(group: Any, names: Sequence[str], file: Path) -> None:
    """Raises BenchmarkError for a row group whose columns without images would take too much memory."""
    columns = [group.column(place) for place in range(group.num_columns)]
    total = sum(one.total_uncompressed_size for one in columns if one.path_in_schema.split(".")[0] in names)
    if total > GROUP_LIMIT or group.num_rows > MOST_ROWS:
        raise BenchmarkError(
            f"{file}: a row group has {group.num_rows:,} rows and {total:,} bytes without images, more than "
            f"{MOST_ROWS:,} or {GROUP_LIMIT:,}; is it the right file?"
        )


def _count_images(column: pa.ChunkedArray, many: bool) -> list[int]:
    """Returns the number of images in each row."""
    if many:
        return [0 if one is None else len(one) for one in column.to_pylist()]
    return [int(valid) for valid in column.is_valid().to_pylist()]


@lru_cache(maxsize=4)
def _read_image_group(file: Path, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(file).read_row_group(group, columns=[column])[column]


def _make_parquet_image(file: Path, group: int, column: str, place: int, number: int | None, where: str) -> LazyImage:
    where = f"{where}, column {column!r}"

    def read() -> bytes:
        return _read_image_bytes(_read_image_group(file, group, column)[place].as_py(), number, where)

    return LazyImage(where, read)


def _read_image_bytes(value: Any, number: int | None, where: str) -> bytes:
    image = value if number is None else value[number]
    if not image or not image["bytes"]:
        raise BenchmarkError(f"{where}: holds a path and no bytes; save the data set with its images embedded")
    return bytes(image["bytes"])


def _read_arrow_rows(file: Path, columns: Sequence[str]) -> Iterator[TableRow]:
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
    images = _find_image_columns(table.schema)
    require_columns(columns, [normalise_column(name) for name in table.schema.names], file)
    plain = table.drop_columns(list(images)).to_pylist()
    for place, row in enumerate(plain):
        where = f"{file.parent.name}/{file.name}, row {place + 1}"
        pictures = {
            normalise_column(name): _make_arrow_images(table, name, place, many, where) for name, many in images.items()
        }
        yield TableRow(where, {normalise_column(key): value for key, value in row.items()}, pictures, file.parent.name)


def _make_arrow_images(table: pa.Table, column: str, place: int, many: bool, where: str) -> tuple[LazyImage, ...]:
    cell = table[column][place]
    if not cell.is_valid:
        return ()
    where = f"{where}, column {column!r}"

    def picture(number: int | None) -> LazyImage:
        return LazyImage(where, lambda: _read_image_bytes(table[column][place].as_py(), number, where))

    return tuple(picture(number) for number in range(len(cell))) if many else (picture(None),)


def read_revision(path: Path) -> str:
    """Returns the revision recorded in a downloaded data set, "" if there is none."""
    note = path / "revision.json"
    if not note.is_file():
        return ""
    try:
        value = parse_json(read_regular(note, REVISION_LIMIT).decode())
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{note}: {error}; delete it or fetch the data set again") from None
    return str(value.get("revision", ""))[:100] if isinstance(value, dict) else ""
