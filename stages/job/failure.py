"""The failure of a stage whose message is written for the user, and what a full disk looks like."""

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "disk is full")  # libraries that drop the number


class Failure(RuntimeError):
    """Ends a stage; the message says in one line what failed, where, what is kept and what to do. Shown as it is."""


def find_full_disk(error: BaseException | None) -> BaseException | None:
    """Returns the error of a full disk among `error` and those that it came from, None when there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        if any(text in str(error) for text in _FULL_TEXTS):
            return error
        error = error.__cause__ or error.__context__
    return None
