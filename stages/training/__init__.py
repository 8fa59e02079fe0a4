"""The DeepSpeed loop, learning rates, saving. Only this folder imports deepspeed."""

from stages.training.passes import Idle, even_packs, prompt_cost
from stages.training.ranks import Ranks, ranks
from stages.training.sft import sft_loss, sft_step, train_sft
from stages.training.state import TrainingState, has_checkpoint
from stages.training.trainer import Trainer, learning_rate, save_weights
from stages.training.vision import train_vision

__all__ = [
    "Idle",
    "Ranks",
    "Trainer",
    "TrainingState",
    "even_packs",
    "has_checkpoint",
    "learning_rate",
    "prompt_cost",
    "ranks",
    "save_weights",
    "sft_loss",
    "sft_step",
    "train_sft",
    "train_vision",
]
