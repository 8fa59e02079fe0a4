"""The synthetic data set in the formats of real benchmarks."""
