"""Takes every guard of tests/traps/table.py out of a copy of the project and runs its test, which must fail.

    python -m tests.traps.check [T28 ...] [--vllm]

Prints a line a guard and ends with 1 when a test passes without its guard. Rows that start vLLM run with --vllm only.
About six minutes on one core: libraries are imported once, every test runs in a fork.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.copies import FAILED, PASSED, copy_checkout, import_libraries, replacing, run_tests
from tests.traps.table import GUARDS, Guard

SECONDS = 600.0  # for one test


def checked(folder: Path, guard: Guard) -> str:
    """ "ok", or what is wrong, for one guard."""
    try:
        with replacing(folder / guard.file, guard.text, guard.without):
            code = run_tests(folder, [guard.test], SECONDS).code
    except ValueError as error:
        return f"{error}: {guard.file}"
    return "ok" if code == FAILED else f"the test ended with {code} without the guard; {FAILED} was to be expected"


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the guards that were asked for, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.traps.check", description=str(__doc__).splitlines()[0])
    names = sorted({guard.trap for guard in GUARDS}, key=lambda name: (len(name), name))
    parser.add_argument("traps", nargs="*", metavar="TRAP", help=f"traps to check, all by default: {names[0]} ...")
    parser.add_argument("--vllm", action="store_true", help="also those that start vLLM")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.traps) - set(names)):
        parser.error(f"no guard of {', '.join(unknown)}; there are {', '.join(names)}")
    import torch
    import transformers

    import_libraries()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    wanted = options.traps or names
    guards = [guard for guard in GUARDS if guard.trap in wanted and (options.vllm or not guard.slow)]
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        copy_checkout(folder)
        for test in dict.fromkeys(guard.test for guard in guards):
            if (code := run_tests(folder, [test], SECONDS).code) != PASSED:
                print(f"{test} ends with {code} although every guard is in its place", flush=True)
                wrong += 1
        for guard in guards:
            said = checked(folder, guard)
            wrong += said != "ok"
            print(f"{guard.trap:4} {said:8} {guard.file}  {guard.test.rsplit('::')[-1]}", flush=True)
    traps = {guard.trap for guard in guards}
    print(f"{len(guards)} guards of {len(traps)} traps, {wrong} wrong", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
