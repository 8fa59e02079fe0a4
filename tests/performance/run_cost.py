"""What it costs that a `ril run` is a flow run: `python -m tests.performance.run_cost [--minutes 17] [--stages 20]`.

Starts what `ril run` starts for the UI, a server with a new database and the process that tells it, and plays a run of
so many stages to it, two at a time: each writes its journal as a stage does, with a loop whose bar moves, a line every
15 s, the latest metrics every half minute and a table. Prints the CPU time of both processes. Stages have no part in
it beside the lines of their journals, whose time is printed too.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from flows.environment import prepare
from flows.run_journal import JOURNAL, JournalProgress, open_journal
from flows.ui.recorded_run import show_run

PROCESSES = {"server": "flows.ui.prefect_server", "recorder": "flows.ui.run_recorder"}
LOOK_SECONDS, STEP_SECONDS = 0.5, 0.25
METRICS = 40  # of one step of the loop


def play_stage(folder: Path, number: int, seconds: float) -> float:
    """Writes the journal of a stage that takes `seconds`; returns the CPU seconds of that."""
    used, path = 0.0, folder / f"{time.time_ns()}-{number}{JOURNAL}"
    with open_journal(path, stage="warm_start", item=None, name=f"stage {number}", tags=["warm_start"]) as journal:
        progress, said = JournalProgress(journal), time.monotonic()

        def iter_steps() -> Iterator[int]:
            end, step = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                time.sleep(STEP_SECONDS)
                step += 1
                yield step

        for step in progress.track(iter_steps(), "training", round(seconds / STEP_SECONDS)):
            begun = time.thread_time()
            if time.monotonic() - said > 15:
                said = time.monotonic()
                journal.write("line", text=f"training: step {step}")
            rows = [{"step": step, **{f"metric {one}": step / 7 for one in range(METRICS)}}]
            progress.show_latest("latest history", rows * 8)
            used += time.thread_time() - begun
        journal.write("table", title="result", rows=[{"split": "test", "rows": 1}])
        journal.write("end", state="completed", text="")
    return used


def play(root: Path, minutes: float, stages: int) -> tuple[dict[str, float], float]:
    """CPU seconds of each process of PROCESSES, and of the journals of all stages."""
    used, journals = dict.fromkeys(PROCESSES, 0.0), [0.0]
    os.chdir(root)
    with show_run(root, [], False) as end_run:
        folder = Path(os.environ["RIL_JOURNALS"])

        def play_half(first: int) -> None:
            for number in range(first, stages, 2):
                journals[0] += play_stage(folder, number, minutes * 60 * 2 / stages)

        threads = [threading.Thread(target=play_half, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(LOOK_SECONDS)
            for process in psutil.Process().children(recursive=True):
                try:
                    line, times = " ".join(process.cmdline()), process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                for name, module in PROCESSES.items():
                    if module in line:
                        used[name] = max(used[name], times.user + times.system)
        end_run(0)
    return used, journals[0]


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=17.0, help="how long the run takes")
    parser.add_argument("--stages", type=int, default=20)
    given = parser.parse_args()
    prepare()
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "params.yaml").write_text("seed: 0\n")
        used, journals = play(root, given.minutes, given.stages)
    told = ", ".join(f"{name} {value:.1f} s" for name, value in used.items())
    share = sum(used.values()) / (given.minutes * 60)
    print(f"{given.stages} stages in {given.minutes:g} minutes: CPU: {told}, journals {journals:.2f} s; {share:.1%}")


if __name__ == "__main__":
    main()
