"""The DeepSpeed loop, learning rates, saving. Only this folder imports deepspeed."""

from stages.training.sft import sft_loss, train_sft, with_last
from stages.training.state import TrainingState, has_checkpoint
from stages.training.trainer import Trainer, learning_rate, save_weights
from stages.training.vision import train_vision

__all__ = [
    "Trainer",
    "TrainingState",
    "has_checkpoint",
    "learning_rate",
    "save_weights",
    "sft_loss",
    "train_sft",
    "train_vision",
    "with_last",
]
