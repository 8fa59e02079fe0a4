"""How many threads of this process can compute at a time."""

import os


def count_cores() -> int:
    """Returns the cores that this process may use; the training processes of a machine share its cores."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
