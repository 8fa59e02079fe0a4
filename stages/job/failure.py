"""The failure of a stage whose message is written for the user."""


class Failure(RuntimeError):
    """Ends a stage; the message says in one line what failed, where, what is kept and what to do. Shown as it is."""
