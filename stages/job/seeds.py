"""Seeds derived from what is sampled, not from earlier draws."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Returns a seed in [0, 2**63) that depends on every part and on their order.

    The parts are encoded with their types, so that `derive_seed(1, "2")` and `derive_seed("1", 2)` differ. A stage that
    resumes at step 70 draws the same values as an uninterrupted run.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
