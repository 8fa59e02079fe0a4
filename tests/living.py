"""Whether a process lives."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether it is there and no zombie; it may end while one looks."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
