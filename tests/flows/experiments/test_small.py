from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_x(make_study: Callable[..., Path], call) -> None:
    project = make_study()
    out = call(project, "flows.cli", "experiments", "run", "small", "--jobs", "2")
    print(out[1]); print(out[2])
    import os
    os.system(f"cat {project}/.ril/logs/*; ls -R {project}/docs; head -c 3000 {project}/docs/results/small/*/*")
    assert 0
