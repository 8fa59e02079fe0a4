"""Data sets of the Hugging Face hub: a snapshot at a revision, downloaded only where downloads are allowed."""

from pathlib import Path

from stages.config.sources import Source
from stages.corpora.source import UnusableData
from stages.job.hub import HubError, download_snapshot

# Never read here: code, and weights in pickles
_LEFT_OUT = ("*.py", "*.pyc", "*.pkl", "*.pickle", "*.pt", "*.bin", "*.mp4", "*.safetensors")


def find_hub_snapshot(source: Source) -> Path:
    """Returns the folder of the data set at its revision; from disk unless RIL_ALLOW_DOWNLOADS=1.

    Raises UnusableData with the remedy for a data set that is not on disk and cannot be had.
    """
    try:
        return download_snapshot(str(source.hub), kind="dataset", revision=str(source.revision), ignored=_LEFT_OUT)
    except HubError as error:
        raise UnusableData(f"questions.sources: {error}, or give its folder as `path`") from error
