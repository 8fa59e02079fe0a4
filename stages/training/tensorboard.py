"""The curves of a training stage for TensorBoard, beside the CSV that it writes at its end.

    tensorboard --logdir .ril/tensorboard

Event files hold wall times, so they are no output of a stage: they lie in the store, by stage and fingerprint, where
those of experiments in temporary folders stay as well. tensorboardX writes them; TensorBoard itself is not needed for
that.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.job.metric_names import STEP

EVENT_FOLDER = "tensorboard"
CURVE_RECORDS = ("history", "validation")  # records whose rows are numbers by step
FLUSH_SECONDS = 10


class TensorBoardWriter:
    """One loop's event file. Scalars have the names of the CSV's columns."""

    def __init__(self, folder: Path | None, records: Mapping[str, Sequence[Mapping[str, Any]]], first: int) -> None:
        """Goes on after `first` steps, whose rows are in `records`; what an earlier run wrote of later ones is shown no
        more.

        Without a folder nothing is written.
        """
        self._written = {name: len(records.get(name, ())) for name in CURVE_RECORDS}
        self._writer: Any = None
        if folder is None:
            return
        if not first:
            shutil.rmtree(folder, ignore_errors=True)
        from tensorboardX import SummaryWriter

        purged = first + 1 if first else None
        # a name of its own: without the suffix two runs that start in one second write to one file
        self._writer = SummaryWriter(
            str(folder), purge_step=purged, flush_secs=FLUSH_SECONDS, filename_suffix=f".{first}"
        )

    def write(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Adds the rows that are new since the last call; what is no finite number is left out."""
        if self._writer is None:
            return
        for name in CURVE_RECORDS:
            rows = records.get(name, ())
            for row in rows[self._written[name] :]:
                for key, value in row.items():
                    if key != STEP and value is not None and math.isfinite(value):
                        self._writer.add_scalar(key, value, row[STEP])
            self._written[name] = len(rows)

    def close(self) -> None:
        """Writes out what is waiting."""
        if self._writer is not None:
            self._writer.close()
