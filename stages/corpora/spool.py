"""Keeps the images of rows in a temporary file while rows are distributed, so that memory holds only their texts."""

import tempfile
from pathlib import Path

from stages.corpora.source import Canonical


class ImageSpool:
    """Images by their sha256, in a file without a name that is gone when the process ends."""

    def __init__(self, folder: Path) -> None:
        """`folder` exists and has room for all images, each once."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the spool
        self._places: dict[str, tuple[int, int]] = {}  # start and length
        self._end = 0

    def put(self, row: Canonical) -> Canonical:
        """Returns `row` without the bytes of its images, which `image_sha256` names; keeps them."""
        for image, name in zip(row["images"], row["image_sha256"], strict=True):
            if name not in self._places:
                self._file.seek(self._end)
                self._file.write(image["bytes"])
                self._places[name] = (self._end, len(image["bytes"]))
                self._end += len(image["bytes"])
        return row | {"images": [image | {"bytes": None} for image in row["images"]]}

    def take(self, row: Canonical) -> Canonical:
        """Returns `row` as it was given to `put`."""
        images = zip(row["images"], row["image_sha256"], strict=True)
        return row | {"images": [image | {"bytes": self._read(name)} for image, name in images]}

    def _read(self, name: str) -> bytes:
        start, length = self._places[name]
        self._file.seek(start)
        return self._file.read(length)
