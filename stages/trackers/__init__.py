"""Trackers of training: the same numbers in each, in threads of their own, so that none can stop a run."""
