"""MLflow, in a SQLite file or at a tracking URI; `mlflow ui --backend-store-uri <uri>` shows it."""

import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stages.trackers.tracked_run import TrackedRun

MOST_PARAMS, MOST_METRICS = 100, 1000  # of one batch, by MLflow's interface
LONGEST_PARAM = 6000  # characters
ID_TAG = "ril.id"


class MlflowRun:
    """A run of the experiment `tracking.project`."""

    def __init__(self, run: TrackedRun) -> None:
        """Raises ImportError without the extra `mlflow`."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        run.store.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=run.mlflow_uri or f"sqlite:///{run.store / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(run.project)
        place = (run.store / "mlflow").as_uri()
        experiment = known.experiment_id if known else self._client.create_experiment(run.project, place)
        for old in self._client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run.id}'"):
            self._client.delete_run(old.info.run_id)
        tags = {ID_TAG: run.id, **({"dvc.experiment": run.group} if run.group else {})}
        self._run = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, _show_param(value)) for key, value in run.settings.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + MOST_PARAMS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of one step."""
        now = int(time.time() * 1000)
        metrics = [self._metric(key, float(value), now, step) for key, value in values.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + MOST_METRICS])

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[bytes]]) -> None:
        """Writes samples/step_<step>.json, a table as MLflow shows it, and the first image of each question beside."""
        from PIL import Image

        places: list[str] = []
        for row, some in zip(rows, images, strict=True):
            name = f"samples/step_{step}/{row['question_id']}.png" if some else ""
            if name and name not in places:
                self._client.log_image(self._run, Image.open(io.BytesIO(some[0])), artifact_file=name)
            places.append(name)
        columns = ["image", *rows[0]]
        data = [[place, *row.values()] for row, place in zip(rows, places, strict=True)]
        self._client.log_dict(self._run, {"columns": columns, "data": data}, f"samples/step_{step}.json")

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")


def _show_param(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, sort_keys=True))[:LONGEST_PARAM]
