"""The synthetic data set: pictures, what is asked about them, how answers are written."""
