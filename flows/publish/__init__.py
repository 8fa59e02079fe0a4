"""Publishing a trained model: its card, its files, the hub."""
