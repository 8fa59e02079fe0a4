"""The splits of the questions."""

from typing import Literal

Split = Literal["warm_start", "imitation", "validation", "test"]
