"""What a stage is told and how it reports: parameters, paths, fingerprint, progress, seeds."""

from stages.job.job import Job, MissingInput, maker_of
from stages.job.order import places_of_step
from stages.job.params import Params, ParamsError, load_params, merged, read_yaml, validated
from stages.job.progress import Progress
from stages.job.seeds import seed_for
from stages.job.table import STAGES, Stage

__all__ = [
    "STAGES",
    "Job",
    "MissingInput",
    "Params",
    "ParamsError",
    "Progress",
    "Stage",
    "load_params",
    "maker_of",
    "merged",
    "places_of_step",
    "read_yaml",
    "seed_for",
    "validated",
]
