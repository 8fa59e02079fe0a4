"""The memory of this machine that processes can still take."""

from pathlib import Path

import psutil

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def measure_free_memory() -> int:
    """Returns the bytes that this process may still take: of the machine, and of the control groups that it is in.

    A group limits those below it (a step of Slurm, a container of Kubernetes). Files in /dev/shm count in the group of
    the process that writes them; pages of files that were read count as free, because the kernel gives them away.
    """
    free = [psutil.virtual_memory().available]
    own = OWN_GROUP.read_text().splitlines() if OWN_GROUP.is_file() else []
    for line in own:
        if line.startswith("0::/"):  # version 2
            group = GROUPS / line.removeprefix("0::/")
            for place in [group, *group.parents][: len(group.parts) - len(GROUPS.parts) + 1]:
                limit = place / "memory.max"
                if limit.is_file() and (most := limit.read_text().strip()) != "max":
                    free.append(int(most) - int((place / "memory.current").read_text()) + _count_file_pages(place))
    return min(free)


def _count_file_pages(group: Path) -> int:
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(statistics["inactive_file"])
