"""Training opens no port that another machine could reach."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import psutil, torch
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.training.trainer import Trainer

model = torch.nn.Linear(4, 4)
trainer = Trainer(model, Schedule(steps=1, learning_rate=1e-3), Runtime())
trainer.backward(model(torch.ones(2, 4)).sum(), True)
trainer.step(1e-3)
print(*{one.laddr.ip for one in psutil.Process().net_connections() if one.status == "LISTEN"})
"""


@pytest.mark.slow
def test_a_process_that_trains_alone_listens_on_loopback_at_most(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=240, check=True
    )
    assert set(done.stdout.splitlines()[-1].split()) <= {"127.0.0.1", "::1"}


MEETING = """
import os, subprocess, sys
import psutil
from stages.training.ranks import Rendezvous

join = "from stages.training.ranks import join; join().gather(1)"
meeting = Rendezvous(2)
environment = os.environ | meeting.make_environment(1)
other = subprocess.Popen([sys.executable, "-c", join], env=environment, stdout=subprocess.DEVNULL)
meeting.join().gather(0)
processes = [psutil.Process(), psutil.Process(other.pid)]
print(*{one.laddr.ip for process in processes for one in process.net_connections() if one.status == "LISTEN"})
other.wait(60)
"""


def test_processes_that_train_together_listen_on_loopback_alone(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEETING], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert set(done.stdout.splitlines()[-1].split()) == {"127.0.0.1"}
