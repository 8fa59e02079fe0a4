"""A stage as a Slurm job."""
