"""DeepSpeed training, learning rates, checkpoints. Only this package imports deepspeed."""
