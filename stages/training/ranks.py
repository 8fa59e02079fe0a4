"""The processes that train together, each a rank: who this one is, and the few things they tell each other.

Rank 0 alone talks to engines, store, judge, progress and files; the others do their share of every pass. All ranks call
the functions below in the same order, else they wait for each other; what they exchange is small and goes through gloo.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

Value = TypeVar("Value")
PORT_OF_FIRST = "RIL_PORT_OF_FIRST_RANK"  # in the environment of ranks that the first one started
WAIT = timedelta(
    hours=24
)  # ranks wait while the first one samples, judges and validates; one that died ends them at once


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; with one process nothing below communicates."""

    rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this process writes files and asks engines."""
        return self.rank == 0

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on the first rank, on all of them; the others do not call it."""
        if self.count == 1:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box)
        return box[0]  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        """Each rank's value, in order of ranks."""
        if self.count == 1:
            return [value]
        boxes: list[Any] = [None] * self.count
        dist.all_gather_object(boxes, value)
        return boxes

    def sum(self, value: float) -> float:
        """Sum over ranks, in their order, so that it is the same number everywhere."""
        return sum(self.gather(value))

    def max(self, *values: int) -> list[int]:
        """The largest over ranks of each value."""
        return [max(column) for column in zip(*self.gather(values), strict=True)]

    def wait(self) -> None:
        """Returns when every rank is here."""
        self.gather(None)

    def share(self, items: Sequence[Value], cost: Callable[[Value], float]) -> list[int]:
        """Places of the items that are this rank's, ascending: a function of the items' costs alone, which all ranks
        know.

        The dearest item goes to the rank with least to do, then the next; so no rank has more than 4/3 of what the best
        sharing gives the busiest (Graham 1969). Every item is one rank's.
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
    """This process's place; rank 0 of 1 where no others were started."""
    if not dist.is_initialized():
        return Ranks(0, 1)
    return Ranks(dist.get_rank(), dist.get_world_size())


class Rendezvous:
    """Where `count` processes of this machine meet; the first rank makes it, on a port that is free by construction."""

    def __init__(self, count: int) -> None:
        # A socket of ours: by itself TCPStore listens at all addresses of the machine, whatever address it is given.
        with socket.create_server(("127.0.0.1", 0), backlog=count) as server:
            port, handle = server.getsockname()[1], server.detach()
        self._store: Any = TCPStore("127.0.0.1", port, count, True, WAIT, False, master_listen_fd=handle)
        self.count = count

    def make_environment(self, rank: int) -> dict[str, str]:
        """Variables of that rank's process."""
        return make_environment(rank, self.count, self._store.port)

    def join(self) -> Ranks:
        """Waits, as the first rank, until all others have joined."""
        os.environ.update(self.make_environment(0))
        return _join(self._store, 0, self.count)


def join() -> Ranks:
    """Joins the group that the environment names: that of the first rank here, or a launcher's (torchrun,
    deepspeed).
    """
    port = os.environ.get(PORT_OF_FIRST)
    count = int(os.environ["WORLD_SIZE"])
    store = TCPStore("127.0.0.1", int(port), count, False, WAIT) if port else None  # type: ignore[attr-defined]
    return _join(store, int(os.environ["RANK"]), count)


def join_alone() -> None:
    """One process needs a group too: one that meets nobody, so that no port is opened.

    Nothing where a launcher has set the variables for one, or where there is a group already: vLLM makes one in its
    process.
    """
    if "RANK" in os.environ:
        return
    os.environ.setdefault(
        "LOCAL_RANK", "0"
    )  # DeepSpeed insists; RANK would tell child processes that a launcher started them
    if not dist.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        _join(dist.HashStore(), 0, 1)  # type: ignore[attr-defined]


def make_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What a process of this machine is told about its place, in the variables that launchers use, and where the others
    meet.
    """
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    interfaces = {name: os.environ.get(name, "lo") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    address = {"MASTER_ADDR": "127.0.0.1", PORT_OF_FIRST: str(port)}
    return {name: str(value) for name, value in place.items()} | interfaces | address


def _join(store: Any, rank: int, count: int) -> Ranks:
    import torch

    backend = "gloo"
    if torch.cuda.is_available():  # what ranks tell each other stays on gloo, so that waiting for it blocks no GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=WAIT)
    return get_ranks()
