"""Output of a process whose reader lives, and of one whose reader has died."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from rich.console import Console
from flows.detach_output import detach_output

if "outlast" in sys.argv:
    detach_output()
console = Console(file=sys.stderr)
print("first", flush=True)
sys.stdin.readline()
for number in range(20000):
    console.print(number)
print("last", flush=True)
Path(sys.argv[1]).write_text("went on")
"""


def begun(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.Popen(words, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_all_of_it_arrives(root: Path, tmp_path: Path) -> None:
    process = begun(root, str(tmp_path / "end"), "outlast")
    out, err = process.communicate("go\n", timeout=120)
    assert out.split() == ["first", "last"]
    assert err.split() == [str(number) for number in range(20000)]


def test_a_dead_reader_ends_nobody(root: Path, tmp_path: Path) -> None:
    for arguments, went_on in (([], False), (["outlast"], True)):
        end = tmp_path / f"end{went_on}"
        process = begun(root, str(end), *arguments)
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stderr.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert (process.wait(120) == 0) == went_on
        assert end.exists() == went_on
