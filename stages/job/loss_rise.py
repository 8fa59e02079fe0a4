"""Whether a loss ended above its start: training then made the model worse, however it went on in between."""

import math
from collections.abc import Sequence

RISE = 1.2  # end divided by start; a warm start that learns little ends between 0.9 and 1.05 by chance
_SHARE = 10  # start and end are means over a tenth of the steps


def explain_loss_rise(losses: Sequence[float | None]) -> str | None:
    """Returns "the loss is 182 at the end, 2.4 at the start" if it rose by more than RISE, else None."""
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(known) < 2:
        return None
    count = max(1, len(known) // _SHARE)
    start, end = sum(known[:count]) / count, sum(known[-count:]) / count
    return f"the loss is {end:.3g} at the end, {start:.3g} at the start" if end > RISE * start >= 0 else None
