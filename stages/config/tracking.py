"""The block `tracking`: where curves of training go in addition to CSV files. No stage depends on it."""

from typing import Literal

from pydantic import Field

from stages.config.block import Block

Tool = Literal["tensorboard", "wandb", "mlflow", "dvclive"]


class Tracking(Block):
    """Trackers of training, all of them without a network."""

    tools: tuple[Tool, ...] = Field(
        ("tensorboard",),
        strict=False,
        description="Trackers: `tensorboard`, and `wandb`, `mlflow`, `dvclive`, which are extras of this package.",
    )
    project: str = Field(
        "ril", min_length=1, max_length=100, description="Name of the project (wandb) or experiment (mlflow)."
    )
    mlflow_uri: str | None = Field(
        None, description="Tracking URI of mlflow; by default the SQLite file tracking/mlflow.db in the store."
    )
    tables: bool = Field(
        True, description="Also sends sampled answers with their images, at every validation (wandb, mlflow)."
    )
