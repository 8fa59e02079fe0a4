"""dvc's own failure to answer."""


class DvcFailed(RuntimeError):
    """dvc did not answer a question; the message is what it said."""
