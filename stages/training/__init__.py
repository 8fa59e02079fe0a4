"""The DeepSpeed loop, learning rates, saving. Only this folder imports deepspeed."""
