"""Data sets of the Hugging Face hub: a snapshot at a revision, downloaded only where downloads are allowed."""

import os
from pathlib import Path
from typing import Any

from stages.config.plain import make_printable
from stages.config.sources import Source
from stages.corpora.source import UnusableData
from stages.job.hub import download_snapshot

# Never read here: code, and weights in pickles
_LEFT_OUT = ("*.py", "*.pyc", "*.pkl", "*.pickle", "*.pt", "*.bin", "*.mp4", "*.safetensors")
_DOWNLOADS = "RIL_ALLOW_DOWNLOADS"


def find_hub_snapshot(source: Source) -> Path:
    """Returns the folder of the data set at its revision; from disk unless RIL_ALLOW_DOWNLOADS=1.

    Raises UnusableData with the remedy for a data set that is not on disk, is gated or private, or does not exist.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = str(source.hub), str(source.revision)
    offline = os.environ.get(_DOWNLOADS) != "1"
    place = f"questions.sources: data set {name!r} at {revision!r}"
    try:
        return download_snapshot(name, kind="dataset", revision=revision, ignored=_LEFT_OUT, offline=offline)
    except GatedRepoError as error:
        raise UnusableData(
            f"{place} is gated: accept its terms at https://huggingface.co/datasets/{name}, then `hf auth login` or "
            "set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UnusableData(f"{place}: the hub has no such revision; correct `revision`") from error
    except RepositoryNotFoundError as error:
        raise UnusableData(
            f"{place}: the hub has no such data set, or it is private; correct `hub`, or log in with `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        cause = _explain_cause(error)
        remedy = (
            f"downloads are off; set {_DOWNLOADS}=1 to download it"
            if offline
            else f"the hub could not be asked ({cause}); try again"
        )
        raise UnusableData(f"{place} is not on this machine, and {remedy}, or give its folder as `path`") from error
    except HFValidationError as error:
        raise UnusableData(f"{place}: no id of the hub ({make_printable(str(error))}); correct `hub`") from error
    except (HfHubHTTPError, OSError) as error:
        raise UnusableData(f"{place}: {make_printable(str(error))}; try again") from error


def _explain_cause(error: BaseException) -> str:
    cause: Any = error.__cause__ or error
    return make_printable(f"{type(cause).__name__}: {cause}")[:120]
