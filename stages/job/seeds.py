"""Seeds that are functions of what is drawn, not of what was drawn before."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order.

    The parts are written with their types, so that `derive_seed(1, "2")` and `derive_seed("1", 2)` differ. A stage that
    resumes at step 70 draws at step 70 what an undisturbed run draws there.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
