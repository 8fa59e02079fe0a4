"""Weights & Biases, off-line: `wandb sync` uploads a run from the store."""

import io
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from stages.trackers.tracked_run import TrackedRun


class WandbRun:
    """A run in <store>/wandb/<id>; training steps are the axis of all curves."""

    def __init__(self, run: TrackedRun) -> None:
        """Starts wandb's own process. Raises ImportError without the extra `wandb`."""
        import wandb

        self._wandb = wandb
        folder = run.store / "wandb" / run.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.environ["WANDB_DATA_DIR"] = str(
            folder
        )  # images of tables wait there for `wandb sync`, not in the home folder
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            group=run.group,
            config=dict(run.settings),
            dir=str(folder),
            settings=wandb.Settings(mode="offline", console="off", silent=True, x_disable_stats=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of one step."""
        self._run.log({"step": step, **values})

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[bytes]]) -> None:
        """Writes a table `samples`, with a column for each image of a question."""
        most = max(len(some) for some in images)
        columns = [*(f"image_{number + 1}" for number in range(most)), *rows[0]]
        table = self._wandb.Table(columns=columns, allow_mixed_types=True)
        for row, some in zip(rows, images, strict=True):
            shown = [self._wandb.Image(Image.open(io.BytesIO(one))) for one in some]
            table.add_data(*shown, *[None] * (most - len(shown)), *row.values())
        self._run.log({"step": step, "samples": table})

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=0 if finished else 1)
