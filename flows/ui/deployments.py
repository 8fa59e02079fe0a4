"""What can be started on a Prefect server, described once: for the forms of `ril serve` and for prefect.yaml.

python -m flows.ui.deployments           prints prefect.yaml
python -m flows.ui.deployments --write   writes it
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flows.ui.forms import PIPELINE, Form

RUN = "flows.ui.trigger.start"
COMPARE = "flows.ui.compare.compare_experiments"
FILE = "prefect.yaml"
_HERE = "{{ $PWD }}"
_POOL = "ril"
_EVERYTHING = "Everything that is out of date"
_HEADER = """\
# The second way beside `ril serve`: a process work pool, for a server that others run too. In the project's folder
# (pools of containers and of Kubernetes: containers/prefect.yaml):
#
#   export PREFECT_API_URL=http://SERVER:4200/api PREFECT_API_AUTH_STRING=...   (of `ril serve`: source its file)
#   prefect work-pool create --type process ril
#   prefect deploy --all
#   prefect worker start --pool ril
#
# Settings are given as JSON here (`{"ril": {"learning_rate": 0.001}}`); `ril serve` has a typed form for each stage.
# Written by `python -m flows.ui.deployments --write` from the description that `ril serve` uses.
"""


@dataclass(frozen=True)
class Startable:
    """One deployment."""

    name: str
    description: str
    parameters: dict[str, Any]
    entrypoint: str = RUN  # module.function
    limit: int | None = 1  # runs at a time; a further one waits
    tags: tuple[str, ...] = field(default=("form",))

    @property
    def file_entrypoint(self) -> str:
        """The entry point as a file and a function."""
        module, _, function = self.entrypoint.rpartition(".")
        return f"{module.replace('.', '/')}.py:{function}"


def describe_form(root: str, form: Form) -> Startable:
    """The deployment that runs what `form` asks for in the project at `root`."""
    return Startable(form.target, form.title, {"root": root, "target": form.target, "settings": form.values})


def describe_comparison(root: str) -> Startable:
    """The deployment that lists the experiments of the project at `root`."""
    title = "Experiments side by side: what was changed, what came out"
    return Startable("compare", title, {"root": root}, COMPARE, limit=None)


def list_pool_deployments() -> list[Startable]:
    """The deployments of a work pool, which has no form for each stage: everything, and one stage that is named."""
    one = "One stage; `target` says which, such as ril or teacher@internvl3"
    return [
        Startable(f"{PIPELINE}-in-pool", _EVERYTHING, {"root": _HERE, "target": PIPELINE}, tags=()),
        Startable("stage-in-pool", one, {"root": _HERE}, tags=()),
    ]


def format_prefect_yaml() -> str:
    """The text of prefect.yaml."""
    content = {
        "name": "ril",
        "deployments": [
            {
                "name": one.name,
                "description": one.description,
                "entrypoint": one.file_entrypoint,
                "parameters": one.parameters,
                "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": _HERE}}],
                "work_pool": {"name": _POOL, "job_variables": {"env": {"PYTHONPATH": _HERE}}},
                "concurrency_limit": {"limit": one.limit, "collision_strategy": "ENQUEUE"},
            }
            for one in list_pool_deployments()
        ],
    }
    return f"{_HEADER}{yaml.safe_dump(content, sort_keys=False, width=110)}"


def main() -> None:
    """Prints the file, or writes it."""
    if sys.argv[1:] == ["--write"]:
        Path(FILE).write_text(format_prefect_yaml(), encoding="utf-8")
    else:
        print(format_prefect_yaml(), end="")


if __name__ == "__main__":
    main()
