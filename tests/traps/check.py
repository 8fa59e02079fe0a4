"""Takes every guard of tests/traps/table.py out of a copy of the project and runs its test, which must fail; from the
root:

    python -m tests.traps.check [T28 ...] [--vllm]

Prints a line a guard and ends with 1 when a test passes without its guard. Rows that start vLLM run with --vllm only.
About six minutes on one core: torch and transformers are imported once, every test runs in a fork.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.traps.table import GUARDS, Guard

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("stages", "flows", "studies", "tests", "profiles")
PASSED, FAILED = 0, 1  # what pytest ends with


def run_test(folder: Path, test: str) -> int:
    """pytest's exit code for one test of the copy in `folder`, in a fork of this process."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(folder)
            sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
            for name in [
                name for name in sys.modules if name.partition(".")[0] in ("stages", "flows", "studies", "tests")
            ]:
                del sys.modules[name]
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
            import pytest

            code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "", test]))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def checked(folder: Path, guard: Guard) -> str:
    """ "ok", or what is wrong, for one guard."""
    file = folder / guard.file
    text = file.read_text()
    if text.count(guard.text) != 1:
        return f"the guard stands {text.count(guard.text)} times in {guard.file}"
    file.write_text(text.replace(guard.text, guard.without))
    try:
        code = run_test(folder, guard.test)
    finally:
        file.write_text(text)
    return "ok" if code == FAILED else f"the test ended with {code} without the guard; {FAILED} was to be expected"


def main(arguments: list[str]) -> int:
    """Checks the guards that were asked for, or all of them."""
    import torch
    import transformers

    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    wanted = [one for one in arguments if not one.startswith("-")]
    guards = [g for g in GUARDS if (not wanted or g.trap in wanted) and (not g.slow or "--vllm" in arguments)]
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        folder.mkdir()
        for part in COPIED:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "params.yaml", "dvc.yaml", ".dvcignore", "README.md"):
            shutil.copy(ROOT / file, folder / file)
        for test in dict.fromkeys(guard.test for guard in guards):
            if (code := run_test(folder, test)) != PASSED:
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
    sys.exit(main(sys.argv[1:]))
