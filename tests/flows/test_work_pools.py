"""The deployments of containers/prefect.yaml on a real Prefect server, as its comments say."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.prefect, pytest.mark.slow]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, make_served: Callable[[Path], Any]) -> Iterator[Any]:
    """A server of its own: the pools would be seen by other tests."""
    one = make_served(tmp_path_factory.mktemp("pools"))
    yield one
    one.kill()


def test_pools_and_deployments_are_made_as_the_file_says(own: Any, root: Path) -> None:
    shutil.copytree(root / "containers", own.project / "containers")
    text = (root / "containers" / "prefect.yaml").read_text()
    commands = re.findall(r"^#   (prefect .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    environment = own.environment() | own.variables()
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(words, cwd=own.project, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
    for entry in yaml.safe_load(text)["deployments"]:
        made = own.deployment(f"start/{entry['name']}")
        assert made["work_pool_name"] == entry["work_pool"]["name"]
        assert made["job_variables"]["image"] == entry["work_pool"]["job_variables"]["image"]
        assert made["entrypoint"] == "flows/ui/trigger.py:start"
        assert made["parameters"]["root"] == "/project"
    pool = own.ask("/work_pools/ril-kubernetes")
    mounts = pool["base_job_template"]["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    assert {mount["mountPath"] for mount in mounts["volumeMounts"]} == {"/project", "/store", "/cache", "/dev/shm"}
