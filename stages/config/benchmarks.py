"""The names of all benchmarks, so that a name that nothing has is refused when parameters are loaded.

The benchmarks themselves are in stages/benchmarks/specs and stages/tiny/benchmarks, which parameters cannot import.
"""

import difflib

TINY_BENCHMARKS = ("tiny_choice", "tiny_number", "tiny_open", "tiny_judged")
BENCHMARKS = (
    *("ai2d", "ai2d_no_mask", "blink", "chartqa", "mathvista", "mmbench_cn", "mmbench_en", "mmmu"),
    *("mmmu_pro_standard", "mmmu_pro_vision", "mmstar", "mmvet", "mmvet_v2", "realworldqa", "seedbench"),
    *("seedbench2_plus", *TINY_BENCHMARKS),
)


def check_benchmark(name: str) -> str:
    """Returns `name`; raises ValueError with a close or all known names if no benchmark has it."""
    if name in BENCHMARKS:
        return name
    close = difflib.get_close_matches(name, BENCHMARKS, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(BENCHMARKS)}"
    raise ValueError(f"no benchmark has this name; {remedy}")
