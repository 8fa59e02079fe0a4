"""DVCLive: `dvc exp show`, `dvc plots` and the VS Code extension show the curves while training goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.job.files import write_text
from stages.trackers.tracked_run import TrackedRun

FOLDER = "dvclive"  # in the project; not in .gitignore, because DVC looks into no folder that Git ignores
SHOWN = "metrics: [metrics.json]\nplots: [{plots/metrics: {x: step}}]\n"


class DvcliveRun:
    """Files in dvclive/<stage>, with a dvc.yaml that names metrics and plots; no stage, no experiment of its own."""

    def __init__(self, run: TrackedRun) -> None:
        """Raises ImportError without the extra `dvclive`."""
        from dvclive import Live

        folder = run.root / FOLDER / run.name
        self._live = Live(str(folder), resume=False, report=None, save_dvc_exp=False, dvcyaml=False)
        write_text(folder / "dvc.yaml", SHOWN)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of one step, and the latest ones to metrics.json."""
        self._live.step = step
        for key, value in values.items():
            self._live.log_metric(key, value)
        self._live.next_step()

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[bytes]]) -> None:
        """Writes nothing: DVC shows no tables of texts and images."""

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._live.end()
