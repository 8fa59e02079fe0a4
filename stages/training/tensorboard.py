"""TensorBoard curves of a training stage, in addition to the CSV that it writes at the end.

    tensorboard --logdir .ril/tensorboard

Event files contain wall times, so they are not stage outputs: they are kept in the store, by stage and fingerprint,
which also preserves those of experiments in temporary folders. tensorboardX writes them; TensorBoard is optional.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.job.metric_names import STEP

EVENT_FOLDER = "tensorboard"
CURVE_RECORDS = ("history", "validation")  # records whose rows are numbers by step
FLUSH_SECONDS = 10


class TensorBoardWriter:
    """Writes the event file of one loop. Scalars have the names of the CSV columns."""

    def __init__(self, folder: Path | None, records: Mapping[str, Sequence[Mapping[str, Any]]], first: int) -> None:
        """Resumes after `first` steps, whose rows are in `records`; later steps of an earlier run are purged.

        If `folder` is None, nothing is written.
        """
        self._written = {name: len(records.get(name, ())) for name in CURVE_RECORDS}
        self._writer: Any = None
        if folder is None:
            return
        if not first:
            shutil.rmtree(folder, ignore_errors=True)
        from tensorboardX import SummaryWriter

        purged = first + 1 if first else None
        # without the suffix, two runs that start in the same second write to the same file
        self._writer = SummaryWriter(
            str(folder), purge_step=purged, flush_secs=FLUSH_SECONDS, filename_suffix=f".{first}"
        )

    def write(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Writes the rows added since the last call, NaN and infinity too; None was not measured."""
        if self._writer is None:
            return
        for name in CURVE_RECORDS:
            rows = records.get(name, ())
            for row in rows[self._written[name] :]:
                for key, value in row.items():
                    if key != STEP and value is not None:
                        self._writer.add_scalar(key, value, row[STEP])
            self._written[name] = len(rows)

    def close(self) -> None:
        """Flushes and closes the event file."""
        if self._writer is not None:
            self._writer.close()
