"""Training opens no port that another machine could reach."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import psutil, torch
from stages.job.blocks import Runtime, Schedule
from stages.training import Trainer

model = torch.nn.Linear(4, 4)
trainer = Trainer(model, Schedule(steps=1, learning_rate=1e-3), Runtime())
trainer.backward(model(torch.ones(2, 4)).sum(), True)
trainer.step(1e-3)
print(*{one.laddr.ip for one in psutil.Process().net_connections() if one.status == "LISTEN"})
"""


def test_a_process_that_trains_alone_listens_on_loopback_at_most(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=240, check=True)
    assert set(done.stdout.splitlines()[-1].split()) <= {"127.0.0.1", "::1"}
