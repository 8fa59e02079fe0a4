"""The rows of segments: their columns, how they are written, and the one place that checks what a file holds.

A segment may come from anybody who can write to a shared store. Before anything is decoded, the file's own description
bounds rows and bytes; texts are decoded only after their total length is known, because a dictionary of parquet stores
a repeated text once.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.job.bounded import UnusableFile, check_regular, replace_surrogates, show_value
from stages.responses.key import parse_request

ANSWERS_PER_ROW_GROUP = 1024  # rows read for one answer
BYTES_PER_ROW_GROUP = 2**25  # of decoded texts and tokens; a group with longer answers has fewer rows

# What a segment may hold. Largest known: 65,536 rows by compaction, 1,024 answers of 32,768 tokens in a group.
MAX_FILE_BYTES = 2**36
MAX_ROWS = 2**18
MAX_GROUPS = 2**14
MAX_DECODED_BYTES = 2**28  # of one column of the row groups read together, before and after decoding
MAX_TOKENS = 2**26  # of the row groups read together

FIRST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # `derive_answer_key` of the request's key and the sample
        ("request_key", pa.string()),
        ("sample", pa.int32()),
        ("question_id", pa.string()),  # informative; the same answer may serve other ids
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("engine", pa.string()),
        ("engine_version", pa.string()),
        ("created_at", pa.int64()),  # nanoseconds since 1970; informative, not used for ordering
    ]
)
ADDED = [
    pa.field("model", pa.string()),  # name on the hub, or of the checkpoint's folder
    pa.field("revision", pa.string()),  # commit on the hub, or hash of the checkpoint's files
    pa.field("seconds", pa.float32()),  # wall time between two segments, divided by the answers
    pa.field("request", pa.string()),  # JSON of messages and image hashes, the input of the key
]
ANSWER_SCHEMA = pa.schema([*FIRST_SCHEMA, *ADDED])
# Half surrogates, which Unicode text can't hold, are U+FFFD in `text`; this column has the text as it was, in UTF-8
# with surrogates ("WTF-8"). Only segments with such an answer have the column; it is null in the other rows.
ORIGINAL = pa.field("original_text", pa.binary())
FULL_SCHEMA = pa.schema([*ANSWER_SCHEMA, ORIGINAL])

_OPTIONAL = {field.name for field in (*ADDED, ORIGINAL)}
_TEXTS = [field.name for field in FULL_SCHEMA if field.type in (pa.string(), pa.binary())]


class UnreadableSegment(ValueError):
    """A file that is not a complete segment; the message gives the reason."""


# --- writing --------------------------------------------------------------------------------------------------------


def write_segment(path: Path, table: pa.Table) -> None:
    """Writes `table`, which has ANSWER_SCHEMA or FULL_SCHEMA, as one parquet file with a checksum for each page."""
    write_files([table], max(table.num_rows, 1), lambda: path)


def rechunk(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yields the rows of `tables` in tables of `rows` rows, the last one smaller; nothing if there are no rows."""
    waiting: pa.Table | None = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table]).combine_chunks()
        whole = waiting.num_rows - waiting.num_rows % rows
        for start in range(0, whole, rows):
            yield waiting.slice(start, rows)
        waiting = waiting.slice(whole)
    if waiting is not None and waiting.num_rows:
        yield waiting


def write_files(tables: Iterable[pa.Table], rows_per_file: int, next_path: Callable[[], Path]) -> list[Path]:
    """Writes rows with ANSWER_SCHEMA or FULL_SCHEMA into files of `rows_per_file` rows; `next_path` returns each path.

    All tables have the same schema.
    """
    files: list[Path] = []
    groups = rechunk(tables, ANSWERS_PER_ROW_GROUP)
    for first in groups:
        files.append(next_path())
        with pq.ParquetWriter(files[-1], first.schema, compression="zstd", write_page_checksum=True) as writer:
            for group in chain([first], islice(groups, max(-(-rows_per_file // ANSWERS_PER_ROW_GROUP), 1) - 1)):
                for part in _split_by_bytes(group):
                    writer.write_table(part, row_group_size=ANSWERS_PER_ROW_GROUP)
    return files


def _split_by_bytes(table: pa.Table) -> Iterator[pa.Table]:
    """Yields the rows in tables of at most BYTES_PER_ROW_GROUP, or of one row that is larger."""
    if table.nbytes <= BYTES_PER_ROW_GROUP or table.num_rows == 1:
        yield table
        return
    half = table.num_rows // 2
    yield from _split_by_bytes(table.slice(0, half))
    yield from _split_by_bytes(table.slice(half))


# --- reading --------------------------------------------------------------------------------------------------------


def open_segment(path: Path) -> pq.ParquetFile:
    """Opens the file at `path`; raises UnreadableSegment if it is not a segment, FileNotFoundError if it is gone."""
    try:
        check_regular(path, MAX_FILE_BYTES)
        with pq.ParquetFile(path, thrift_container_size_limit=MAX_GROUPS) as file:
            metadata, schema = file.metadata, file.schema_arrow
        columns = [metadata.schema.column(place).path.split(".")[0] for place in range(metadata.num_columns)]
        known = any(schema.equals(one) for one in (ANSWER_SCHEMA, FIRST_SCHEMA, FULL_SCHEMA))
        if not known or columns != schema.names:  # a file says both, and pyarrow believes the first
            raise UnreadableSegment("its columns are not those of stored answers")
        if not 0 <= metadata.num_rows <= MAX_ROWS:
            raise UnreadableSegment(f"it declares {metadata.num_rows:,} rows, more than the limit of {MAX_ROWS:,}")
        encoded = [name for name in schema.names if name in _TEXTS]
        return pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True, read_dictionary=encoded)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnusableFile) as error:
        raise UnreadableSegment(_describe_error(error)) from error
    except UnicodeError as error:  # from names in the file's description, or the file's own name
        raise UnreadableSegment(f"a name in it is not text ({_describe_error(error)})") from error


def read_groups(file: pq.ParquetFile, groups: list[int], columns: list[str]) -> pa.Table:
    """Returns `columns` of some row groups, null where an older segment lacks them.

    Raises UnreadableSegment, with row, column and value, if they do not hold what stored answers hold.
    """
    names = [name for name in file.schema_arrow.names if name in columns]
    _check_sizes(file, groups, names)
    try:
        table = file.read_row_groups(groups, columns=names, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableSegment(_describe_error(error)) from error
    if table.num_rows != sum(file.metadata.row_group(group).num_rows for group in groups):
        raise UnreadableSegment(f"it declares other numbers of rows than the {table.num_rows:,} that are there")
    table = pa.table([_decode_column(name, table[name]) for name in names], schema=pa.schema(_fields(names)))
    first = sum(file.metadata.row_group(group).num_rows for group in range(groups[0])) if groups else 0
    if wrong := find_wrong_row(table):
        raise UnreadableSegment(f"row {first + wrong[0]}: {wrong[1]}")
    for name in columns:
        if name not in names:
            table = table.append_column(FULL_SCHEMA.field(name), pa.nulls(table.num_rows, FULL_SCHEMA.field(name).type))
    return table.select(columns)


def _fields(names: Iterable[str]) -> list[pa.Field]:
    return [FULL_SCHEMA.field(name) for name in names]


def _check_sizes(file: pq.ParquetFile, groups: list[int], names: list[str]) -> None:
    """Raises UnreadableSegment if the file declares more bytes or values in these columns than may be decoded."""
    parts = [file.metadata.row_group(group) for group in groups]
    if not parts:
        return
    for name in names:
        place = file.schema_arrow.names.index(name)  # the name in the chunk itself is not checked by pyarrow
        chunks = [part.column(place) for part in parts]
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        if not 0 <= size <= MAX_DECODED_BYTES:
            raise UnreadableSegment(f"{name} declares {size:,} bytes, more than the limit of {MAX_DECODED_BYTES:,}")
        count = sum(chunk.num_values for chunk in chunks)
        limit = MAX_TOKENS if name == "token_ids" else MAX_ROWS
        if not 0 <= count <= limit:
            raise UnreadableSegment(f"{name} declares {count:,} values, more than the limit of {limit:,}")


def _decode_column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns texts decoded from their dictionary. Raises UnreadableSegment if they would be too long together."""
    if name not in _TEXTS:
        return column
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary)
        total += pc.sum(lengths.take(chunk.indices).cast(pa.int64())).as_py() or 0
    if total > MAX_DECODED_BYTES:
        raise UnreadableSegment(f"{name} has {total:,} bytes, more than the limit of {MAX_DECODED_BYTES:,}")
    return column.cast(FULL_SCHEMA.field(name).type)


def find_wrong_row(table: pa.Table) -> tuple[int, str] | None:
    """Returns index and fault of the first row that is no stored answer, judged by the columns of `table`; or None.

    Each value is of its kind and not missing, and `key` is the hash of `request_key` and `sample` where all are there.
    """
    found: list[tuple[int, str]] = []
    for name in table.column_names:
        column = table[name]
        if name not in _OPTIONAL and column.null_count:
            found.append((_first(column.is_null()), f"{name} is missing"))
        elif (bad := _find_wrong_value(name, column)) is not None:
            value = column[bad].as_py()
            found.append((bad, f"{name} is {show_value(value)}, which is not {_EXPECTED.get(name, 'a value of it')}"))
    if not found and {"key", "request_key", "sample"} <= set(table.column_names):
        triples = zip(*(table[name].to_pylist() for name in ("key", "request_key", "sample")), strict=True)
        for row, (key, request, sample) in enumerate(triples):
            if key != hashlib.sha256(f"{request}:{sample}".encode()).hexdigest():
                found.append((row, f"key is {key}, which is not the hash of request_key and sample"))
                break
    return min(found, default=None)


_EXPECTED = {
    "key": "a sha256",
    "request_key": "a sha256",
    "sample": "0 or more",
    "prompt_tokens": "0 or more",
    "completion_tokens": "0 or more",
    "token_ids": "a list of numbers from 0",
    "finish_reason": "stop or length",
    "seconds": "a number from 0",
    "request": "the JSON of messages and images",
    "original_text": "the form before `text` was made valid Unicode",
}


def _find_wrong_value(name: str, column: pa.ChunkedArray) -> int | None:
    """Returns the first row of `column` that has a value that stored answers can't have; None if there is none."""
    if name in ("key", "request_key"):
        good = pc.match_substring_regex(column, "^[0-9a-f]{64}$")
    elif name in ("sample", "prompt_tokens", "completion_tokens"):
        good = pc.greater_equal(column, 0)
    elif name == "finish_reason":
        good = pc.is_in(column, pa.array(["stop", "length"]))
    elif name == "seconds":
        good = pc.and_(pc.is_finite(column), pc.greater_equal(column, 0))
    elif name == "token_ids":
        return _find_wrong_tokens(column)
    elif name == "request":
        wrong = [value for value in column.unique().to_pylist() if value and not _is_request(value)]
        good = pc.invert(pc.is_in(column, pa.array(wrong, pa.string())))
    elif name == "original_text":
        wrong = [value for value in column.unique().to_pylist() if value is not None and not _is_wtf8(value)]
        good = pc.invert(pc.is_in(column, pa.array(wrong, pa.binary())))
    else:
        return None
    bad = pc.invert(pc.fill_null(good, fill_value=True))
    return _first(bad) if pc.any(bad).as_py() else None


def _find_wrong_tokens(column: pa.ChunkedArray) -> int | None:
    start = 0
    for chunk in column.chunks:
        values = chunk.flatten()
        bad = pc.fill_null(pc.less(values, 0), fill_value=True)
        if pc.any(bad).as_py():
            return start + pc.list_parent_indices(chunk)[_first(bad)].as_py()
        start += len(chunk)
    return None


def _first(mask: pa.ChunkedArray | pa.Array) -> int:
    """Returns the index of the first true value."""
    return pc.index(mask, pa.scalar(value=True)).as_py()


def _is_request(text: str) -> bool:
    try:
        parse_request(text)
    except UnusableFile:
        return False
    return True


def _is_wtf8(data: bytes) -> bool:
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return replace_surrogates(text) != text


def decode_samples(column: pa.ChunkedArray) -> np.ndarray:
    """Returns sample numbers; raises UnreadableSegment when one is missing."""
    if column.null_count:
        raise UnreadableSegment("the number of a sample is missing")
    return column.to_numpy()


def decode_digests(keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Returns the first 16 bytes of hex keys as rows of two integers; raises UnreadableSegment if one is not a sha256.

    Half a sha256 identifies requests: among 1e9 requests, the chance of a collision is 1e-21.
    """
    array = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if array.null_count:
        raise UnreadableSegment("a key is missing")
    if not len(array):
        return np.empty((0, 2), np.uint64)
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    if (np.diff(offsets) != 64).any():
        raise UnreadableSegment("a key is no sha256")
    letters = np.frombuffer(array.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 64)[:, :32]
    values = _make_hex_table()[letters]
    if (values > 15).any():
        raise UnreadableSegment("a key is no sha256")
    return ((values[:, 0::2] << 4) | values[:, 1::2]).view(">u8").astype(np.uint64)


def _make_hex_table() -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    for value, letter in enumerate(b"0123456789abcdef"):
        table[letter] = value
    return table


def _describe_error(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.isprintable() else ascii(text)  # pyarrow quotes what the file says
