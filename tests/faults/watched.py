"""Runs `flows.run <stage> [item]` and kills it with SIGKILL at a chosen moment, for the tests of resuming.

    python tests/faults/watched.py <moment> <number> <stage> [item]

A moment is the middle of the call number <number> of: student | discriminator | model (writing that model's state),
loop (all models written, nothing else), commit (a checkpoint complete, not yet in its place), sync (new weights on
their way into vLLM), record (a step's answers being written), resume (state half loaded). Or `after`: <number> seconds
after the loop has begun; then standard error says where that was.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flows.run
from stages.engines.vllm import VllmEngine
from stages.training import state
from stages.training.trainer import Trainer


def kill_at(owner: Any, name: str, number: int, chosen: Callable[..., bool] = lambda *_: True) -> None:
    """SIGKILL to this process at the start of that call of `owner.name`, of those that are `chosen`."""
    original, seen = getattr(owner, name), [0]

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        seen[0] += chosen(*arguments)
        if chosen(*arguments) and seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, wrapped)


def kill_later(seconds: float) -> None:
    """SIGKILL to this process so long after its training loop has begun."""
    original = state.TrainingState.iter_steps

    def kill() -> None:
        time.sleep(seconds)
        faulthandler.dump_traceback()
        os.kill(os.getpid(), signal.SIGKILL)

    def steps(self: state.TrainingState, count: int, title: str) -> Iterator[int]:
        threading.Thread(target=kill, daemon=True).start()
        return original(self, count, title)

    state.TrainingState.iter_steps = steps  # type: ignore[method-assign]


def main() -> int:
    call, number, *rest = sys.argv[1:]
    if call in ("student", "discriminator", "model"):
        kill_at(Trainer, "save_state", int(number), lambda _trainer, _folder, name, _state: name == call)
    elif call == "loop":
        kill_at(state, "_write_loop", int(number))
    elif call == "commit":
        own = state.TrainingState
        kill_at(own, "_check_owned", int(number), lambda _: threading.current_thread().name == "checkpoint")
    elif call == "sync":
        kill_at(VllmEngine, "update_weights", int(number))
    elif call == "record":
        kill_at(state, "write_text", int(number))
    elif call == "resume":
        kill_at(Trainer, "load_state", int(number))
    elif call == "after":
        kill_later(float(number))
    else:
        raise SystemExit(f"unknown call {call!r}")
    sys.path.insert(0, str(Path.cwd()))
    return flows.run.main(rest)


if __name__ == "__main__":
    sys.exit(main())
