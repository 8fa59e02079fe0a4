"""A stand-in for srun: starts the tasks of a job step on this machine, with the variables that Slurm gives them.

    python srun.py --nodes 2 --ntasks-per-node 6 --gpus-per-node 8 --kill-on-bad-exit python -m flows.run ril

The second node is this machine, too. Ends with the first exit code that is not 0, and then ends the other tasks.
"""

import argparse
import os
import subprocess
import sys


def main() -> int:
    """Runs the step."""
    parser = argparse.ArgumentParser()
    for option in ("nodes", "ntasks-per-node", "gpus-per-node"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--kill-on-bad-exit", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    count = given.nodes * given.ntasks_per_node
    step = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NODELIST": "localhost,node2" if given.nodes > 1 else "localhost",
    }
    tasks = []
    for rank in range(count):
        node, local = divmod(rank, given.ntasks_per_node)
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
        tasks.append(subprocess.Popen(given.command, env={**os.environ, **step, **own}))
    code = next((code for task in tasks if (code := task.wait())), 0)
    for task in tasks:
        task.kill()
    return code


if __name__ == "__main__":
    sys.exit(main())
