"""A real Slurm on this machine: munge, controller and one node with two GPUs that are none, in a temporary folder.

`python -m tests.flows.slurm.cluster COMMAND ...` starts one, runs COMMAND as a user of it, and ends it.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DAEMONS = ("munged", "slurmctld", "slurmd")
PACKAGES = "Debian: slurmctld slurmd slurm-client munge"
CONFIGURATION = """\
ClusterName=ril
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=15
MinJobAge=300
ReturnToService=2
GresTypes=gpu
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Sockets=1 CoresPerSocket=4 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=60 PriorityTier=1 State=UP
PartitionName=high Nodes={host} MaxTime=60 PriorityTier=10 PreemptMode=off State=UP
"""


class Cluster:
    """Slurm's daemons, and its commands as a user of them types them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for part in ("state", "spool"):
            (folder / part).mkdir()
        ports = [_find_port(), _find_port()]
        text = CONFIGURATION.format(
            host=self.host, folder=folder, user=_name_self(), controller_port=ports[0], node_port=ports[1]
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def start(self) -> None:
        """Starts everything and waits until the node takes jobs."""
        munge = ["--foreground", "--force", f"--socket={self.folder}/munge.socket"]
        munge += [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.start_daemon("munged", *munge)
        self.until(lambda: (self.folder / "munge.socket").exists(), 20, "munged does not listen")
        self.start_controller()
        self.start_daemon("slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", self.host)
        self.until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False), 60, "the node takes no jobs")

    def start_controller(self) -> None:
        """Starts the controller."""
        self.start_daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))

    def start_daemon(self, name: str, *arguments: str) -> None:
        """Starts one daemon, which the kernel ends with this process."""
        with (self.folder / f"{name}.out").open("ab") as out:
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", find_daemon(name), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def end_daemon(self, name: str) -> None:
        """Ends one daemon."""
        process = self._running.pop(name)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def stop(self) -> None:
        """Ends all jobs and daemons."""
        self.clear()
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self._running:
                self.end_daemon(name)

    def clear(self) -> None:
        """Ends all jobs."""
        self.run("scancel", "--me", check=False)
        end = time.monotonic() + 60
        while self.run("squeue", "-h", check=False).strip() and time.monotonic() < end:
            time.sleep(0.2)

    def run(self, *words: str, check: bool = True) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(words, env=self.environment, cwd="/", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done.stdout

    def list_states(self) -> dict[int, str]:
        """The state of each job that has not ended."""
        rows = (line.split() for line in self.run("squeue", "-h", "-o", "%i %T").splitlines())
        return {int(number): state for number, state in rows}

    def until(self, condition: Callable[[], Any], seconds: float, complaint: str) -> Any:
        """Waits for `condition` and returns what it says."""
        end = time.monotonic() + seconds
        while not (answer := condition()):
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.*o*g")))
            assert time.monotonic() < end, f"{complaint} in {seconds:.0f} s\n{logs}"
            time.sleep(0.1)
        return answer


def find_daemon(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _name_self() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def list_absent_daemons() -> list[str]:
    """Returns what a cluster needs and this machine lacks."""
    return [name for name in (*DAEMONS, "setpriv") if find_daemon(name) is None]


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster for this block."""
    # Below /tmp itself: the path of a socket has at most 107 bytes, and munge wants a folder that all may enter.
    folder = Path(tempfile.mkdtemp(prefix="ril-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    one = Cluster(folder)
    try:
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Runs a command beside a cluster; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for example: ril run --on slurm")
    command = parser.parse_args().command
    if not command:
        parser.error("no command")
    if absent := list_absent_daemons():
        print(f"not installed: {', '.join(absent)} ({PACKAGES})", file=sys.stderr)
        return 1
    with running_cluster() as cluster:
        return subprocess.run(command, env=cluster.environment).returncode


if __name__ == "__main__":
    sys.exit(main())
