"""Ranks: the processes that train together, and the collective operations between them.

Only rank 0 uses engines, store, judge, progress and files; the others compute their share of each pass. All ranks must
call the collectives below in the same order, else they deadlock. The messages are small and use gloo.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

Value = TypeVar("Value")
PORT_OF_FIRST = "RIL_PORT_OF_FIRST_RANK"  # set in the environment of ranks that the first rank started
# A rank that dies ends the others at once, and one that stands still after a while, with its name
# (flows/rank_watch.py). The limits of gloo and NCCL are for what that watch does not see, and so a little longer.
START_WAIT = timedelta(minutes=30)  # until all ranks have joined: nodes of a cluster start one after the other
MARGIN = timedelta(minutes=2)


class Meetings:
    """Collective operations that this process has entered or left, and whether it is inside of one."""

    def __init__(self) -> None:
        self.count = 0
        self._depth = 0

    @property
    def inside(self) -> bool:
        """Whether this process waits for other ranks, or computes together with them."""
        return self._depth > 0

    @contextlib.contextmanager
    def attend(self) -> Iterator[None]:
        """Marks a block in which all ranks communicate."""
        self.count, self._depth = self.count + 1, self._depth + 1
        try:
            yield
        finally:
            self.count, self._depth = self.count + 1, self._depth - 1


MEETINGS = Meetings()
WRITE_WAIT = timedelta(hours=4)  # of a thread that has written its part of a checkpoint, for the slowest rank
_STEPS, _BESIDE = "steps", "beside"
_groups: dict[str, Any] = {}  # _STEPS waits for the first rank, _BESIDE is for threads; DeepSpeed's is the default


@dataclass(frozen=True)
class Ranks:
    """Rank of this process and number of ranks; with one rank, no method communicates."""

    rank: int
    count: int
    beside: bool = False  # of threads that communicate while the ranks themselves do

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and uses engines."""
        return self.rank == 0

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """Calls `make` on the first rank only and returns its result on all ranks."""
        if self.count == 1:
            return make()
        box: list[Any] = [make() if self.first else None]
        with self._attend():
            dist.broadcast_object_list(box, group=self._group)
        return box[0]  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        """Returns the values of all ranks, in rank order."""
        if self.count == 1:
            return [value]
        boxes: list[Any] = [None] * self.count
        with self._attend():
            dist.all_gather_object(boxes, value, group=self._group)
        return boxes

    @property
    def _group(self) -> Any:
        return _groups.get(_BESIDE if self.beside else _STEPS)

    def _attend(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.beside else MEETINGS.attend()

    def sum(self, value: float) -> float:
        """Returns the sum over ranks, added in rank order, so that all ranks get the same result."""
        return sum(self.gather(value))

    def max(self, *values: int) -> list[int]:
        """Returns the maximum over ranks of each value."""
        return [max(column) for column in zip(*self.gather(values), strict=True)]

    def wait(self) -> None:
        """Blocks until all ranks have called this."""
        self.gather(None)

    def share(self, items: Sequence[Value], cost: Callable[[Value], float]) -> list[int]:
        """Returns the indices of this rank's items, ascending; a function of the costs, which all ranks know.

        Items go to the least loaded rank in order of decreasing cost, so the largest load is at most 4/3 of the optimum
        (Graham 1969). Each item belongs to exactly one rank.
        """
        if self.count == 1:
            return list(range(len(items)))
        costs = [cost(item) for item in items]
        loads, own = [0.0] * self.count, list[int]()
        for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
            rank = min(range(self.count), key=lambda rank: (loads[rank], rank))
            loads[rank] += costs[place]
            own += [place] if rank == self.rank else []
        return sorted(own)


def get_ranks() -> Ranks:
    """Returns the rank of this process; rank 0 of 1 if no process group exists."""
    if not dist.is_initialized():
        return Ranks(0, 1)
    return Ranks(dist.get_rank(), dist.get_world_size())


def get_ranks_beside() -> Ranks:
    """Returns the ranks for one thread of each, whose operations don't mix with those of the steps.

    All ranks must call this together: the first call makes a process group.
    """
    here = get_ranks()
    if here.count > 1 and _BESIDE not in _groups:
        _groups[_BESIDE] = dist.new_group(backend="gloo", timeout=WRITE_WAIT)
    return Ranks(here.rank, here.count, beside=True)


class Rendezvous:
    """Rendezvous of `count` processes on this machine, created by the first rank on a port that the OS assigns."""

    def __init__(self, count: int, devices: Sequence[Mapping[str, str]] = ()) -> None:
        """`devices` are environment variables of each rank that name its GPU; none on CPU."""
        # A socket bound to loopback: TCPStore on its own listens on all addresses, whatever address it is given.
        with socket.create_server(("127.0.0.1", 0), backlog=count) as server:
            port, handle = server.getsockname()[1], server.detach()
        self._store: Any = TCPStore("127.0.0.1", port, count, True, START_WAIT, False, master_listen_fd=handle)
        self.count, self._devices = count, devices

    def make_environment(self, rank: int) -> dict[str, str]:
        """Returns the environment variables of that rank's process."""
        own = self._devices[rank] if self._devices else {}
        return {**make_environment(rank, self.count, self._store.port), **own}

    def join(self) -> Ranks:
        """Joins as the first rank; blocks until all others have joined."""
        os.environ.update(self.make_environment(0))
        return _join(self._store, 0, self.count)


def join() -> Ranks:
    """Joins the process group that the environment names: of the first rank here, or of torchrun, deepspeed or srun."""
    port = os.environ.get(PORT_OF_FIRST)
    count = int(os.environ["WORLD_SIZE"])
    store = TCPStore("127.0.0.1", int(port), count, False, START_WAIT) if port else None  # type: ignore[attr-defined]
    return _join(store, int(os.environ["RANK"]), count)


def join_alone() -> None:
    """Creates a process group of one, in memory, so that no port is opened.

    Does nothing if a launcher has set its variables. Keeps an existing group: vLLM creates one in its process.
    """
    if "RANK" in os.environ:
        return
    # DeepSpeed requires LOCAL_RANK; RANK would signal a launcher to child processes.
    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        _join(dist.HashStore(), 0, 1)  # type: ignore[attr-defined]


def make_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Returns rank, world size and rendezvous of a process on this machine, in the variables that launchers use."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    interfaces = {name: os.environ.get(name, "lo") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    address = {"MASTER_ADDR": "127.0.0.1", PORT_OF_FIRST: str(port)}
    return {name: str(value) for name, value in place.items()} | interfaces | address


def _join(store: Any, rank: int, count: int) -> Ranks:
    import torch

    backend = "gloo"
    if torch.cuda.is_available():  # collectives of `Ranks` use gloo, so that waiting blocks no GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=START_WAIT)
    if count > 1:
        _groups[_STEPS] = dist.new_group(backend="gloo", timeout=START_WAIT)
    return get_ranks()


def limit_waits(together: timedelta, for_first: timedelta) -> None:
    """Sets the time limits of collective operations.

    `together` holds for DeepSpeed's, which all ranks reach at about the same time, `for_first` for those of `Ranks`, in
    which the others wait while the first rank samples, judges and validates.
    """
    from torch.distributed.distributed_c10d import _set_pg_timeout

    _set_pg_timeout(together + MARGIN)
    if _STEPS in _groups:
        _set_pg_timeout(for_first + MARGIN, _groups[_STEPS])


def free_cached_memory() -> None:
    """Returns the GPU memory that this rank has cached to the driver; returns when all ranks have done so."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    get_ranks().wait()
