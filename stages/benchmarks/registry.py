"""All benchmarks by id. A new benchmark is one file in stages/benchmarks/specs with a tuple SPECS, and its name in
stages/config/benchmarks.py.

Benchmarks of the tiny profile are in stages/tiny; callers register them first, so that nothing here depends on them.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from stages.benchmarks import specs
from stages.benchmarks.sample import BenchmarkError
from stages.benchmarks.spec import Spec


@cache
def load_registry() -> dict[str, Spec]:
    """Returns the benchmarks in the order of the paper's columns; those without a column come last."""
    found: dict[str, Spec] = {}
    for module in pkgutil.iter_modules(specs.__path__):
        for spec in importlib.import_module(f"{specs.__name__}.{module.name}").SPECS:
            if spec.id in found:
                raise BenchmarkError(
                    f"stages/benchmarks/specs/{module.name}.py: benchmark {spec.id!r} is already defined"
                )
            found[spec.id] = spec
    return dict(sorted(found.items(), key=lambda item: (_rank_column(item[1].column), item[0])))


COLUMNS = (
    *("AI2D", "ChartQA", "MathVista", "MMB", "MMB-CN", "MM-Vet", "MM-Vet-v2"),
    *("MMMU", "MMMU-Pro", "MMStar", "BLINK", "SEED", "SEED2+", "RWQA"),
)  # of the paper's Tables 1 and 2


def _rank_column(column: str) -> int:
    return COLUMNS.index(column) if column in COLUMNS else len(COLUMNS)


_REGISTERED: dict[str, Spec] = {}


def register(specs: Iterable[Spec]) -> None:
    """Adds benchmarks that no published table has; afterwards `find_benchmark` finds them."""
    _REGISTERED.update({spec.id: spec for spec in specs})


def find_benchmark(name: str) -> Spec:
    """Returns the benchmark with this id. Raises BenchmarkError with the list of known ids."""
    known = load_registry() | _REGISTERED
    if name not in known:
        raise BenchmarkError(f"no benchmark {name!r}; known: {', '.join(known)}")
    return known[name]
