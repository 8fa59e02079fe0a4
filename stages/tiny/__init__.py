"""All that only the tiny profile touches: the synthetic data set, how tiny models are built and trained."""
