"""What a container yields."""

from typing import Any, NamedTuple

from stages.corpora.source import RowFault


class Record(NamedTuple):
    """One row of a file as its columns, or why it cannot be read."""

    file: str  # as the user wrote it, with the member behind it for an archive
    row: int  # number in the file, from 0; of a file of lines the line
    values: dict[str, Any]
    fault: RowFault | None = None
