"""What a machine must have before stages start, asked by `ril doctor`, `ril run`, `dvc repro` and forms alike."""
