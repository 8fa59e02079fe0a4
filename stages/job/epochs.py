"""Selects the items of a step: shuffled epochs, as a function of the step, so that resuming needs no state."""

import functools
import random
from array import array

from stages.job.seeds import derive_seed


@functools.lru_cache(maxsize=2)  # a step can end one epoch and begin the next; 4 million questions are 16 MB each
def _shuffle_epoch(count: int, seed: int, epoch: int) -> "array[int]":
    places = array("I", range(count))
    random.Random(derive_seed("epoch", seed, epoch)).shuffle(places)
    return places


def pick_places(count: int, wanted: int, step: int, seed: int) -> list[int]:
    """Returns the indices in [0, count) of the `wanted` items of step `step` (from 0); each epoch is shuffled."""
    drawn = range(step * wanted, (step + 1) * wanted)
    return [_shuffle_epoch(count, seed, number // count)[number % count] for number in drawn]
