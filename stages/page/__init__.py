"""The page about a run: gathers what the stages measured, draws it, writes one HTML file that needs nothing else."""
