"""The Dockerfile, the manifests for Kubernetes and the deployments for work pools fit each other and the project.

No image is built here: shells parse what it runs, and its entry point is run.
"""

import fnmatch
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.cli.main import app
from stages.config.params import load_params

VERSIONS = ("1.31", "1.37")  # of Kubernetes: the first with podFailurePolicy for good, and a current one
MANIFESTS = ("volumes", "run", "stage")


def read_instructions(root: Path) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with their continued lines joined."""
    lines = [line for line in (root / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def list_arguments(instructions: list[tuple[str, str]]) -> dict[str, str]:
    return dict(rest.partition("=")[::2] for word, rest in instructions if word == "ARG")


# --- the image -------------------------------------------------------------------------------------------------------


def test_the_image_has_locked_packages_volumes_and_no_root(root: Path) -> None:
    instructions = read_instructions(root)
    known = "ARG FROM SHELL RUN USER WORKDIR COPY ENV VOLUME STOPSIGNAL ENTRYPOINT CMD"
    assert {word for word, _ in instructions} <= set(known.split())
    users = [rest for word, rest in instructions if word == "USER"]
    assert users == ["ril"], "never root again after it"
    (volumes,) = [json.loads(rest) for word, rest in instructions if word == "VOLUME"]
    assert volumes == ["/project", "/store", "/cache"]
    made = next(rest for word, rest in instructions if word == "RUN" and "useradd" in rest)
    for folder in (*volumes, "/opt/ril"):
        assert folder in made.partition("install --directory")[2].partition("&&")[0], "made before it is a volume"
    assert "safe.directory /project" in made
    assert {"git", "make", "g++", "libnuma1"} <= set(made.split()), "README, and what vLLM's CPU build links to"
    (installed,) = [rest for word, rest in instructions if word == "RUN" and "make install" in rest]
    assert 'PROFILE="${PROFILE}"' in installed
    assert list_arguments(instructions)["PROFILE"] == "cpu"
    assert not re.search(r"pip install|curl|wget", " ".join(rest for _, rest in instructions)), "the locks alone"
    assert re.fullmatch(r"python:3\.11-[a-z-]+", list_arguments(instructions)["BASE"])


def test_what_the_image_runs_is_shell_and_what_it_copies_is_there(root: Path) -> None:
    ignored = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for word, rest in read_instructions(root):
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True, timeout=30)
        elif word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                assert (root / source).exists(), source
                assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), source
        elif word in ("ENTRYPOINT", "CMD"):
            words = json.loads(rest)
            paths = [root / part.removeprefix("/opt/ril/") for part in words if part.startswith("/opt/ril/")]
            assert all(path.is_file() and os.access(path, os.X_OK) for path in paths)
    for needed in ("flows", "stages", "params.yaml", "dvc.yaml", ".git", "requirements", "containers"):
        assert not any(fnmatch.fnmatch(needed, pattern) for pattern in ignored), needed


def test_variables_of_the_image_are_those_that_the_project_reads(root: Path) -> None:
    (line,) = [rest for word, rest in read_instructions(root) if word == "ENV"]
    variables = dict(word.partition("=")[::2] for word in shlex.split(line))
    assert variables["PYTHONPATH"] == "/project", "the code of the project that is mounted, not that of the image"
    assert variables["RIL_STORE"] == "/store"
    assert variables["PATH"].startswith("/opt/ril/.venv/bin:")
    assert {"HF_HOME", "XDG_CACHE_HOME", "DVC_SITE_CACHE_DIR", "PREFECT_HOME"} <= variables.keys()
    assert all(variables[name].startswith("/cache") for name in ("HF_HOME", "XDG_CACHE_HOME", "DVC_SITE_CACHE_DIR"))


def test_the_dev_container_is_this_image(root: Path) -> None:
    told = json.loads((root / ".devcontainer" / "devcontainer.json").read_text())
    folder = root / ".devcontainer"
    assert (folder / told["build"]["dockerfile"]).resolve() == root / "Dockerfile"
    assert (folder / told["build"]["context"]).resolve() == root
    assert told["build"]["args"].keys() <= list_arguments(read_instructions(root)).keys()
    assert told["workspaceFolder"] == "/project"
    assert told["remoteUser"] == "ril"


# --- its entry point -------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path, root: Path) -> Path:
    """What an image has in /opt/ril, as far as the entry point looks."""
    folder = tmp_path / "image"
    (folder / "containers").mkdir(parents=True)
    (folder / "containers" / "entrypoint").write_bytes((root / "containers" / "entrypoint").read_bytes())
    (folder / "containers" / "entrypoint").chmod(0o755)
    (folder / "dvc.yaml").write_text("stages: {}\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True, timeout=30)
    return folder


def enter(image: Path, project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [image / "containers" / "entrypoint", *words],
        env={**os.environ, "RIL_PROJECT": str(project)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_empty_volume_becomes_a_clone_and_a_project_stays(image: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "lost+found").mkdir(parents=True)
    first = enter(image, project, "sh", "-c", "pwd; exit 7")
    assert (first.returncode, first.stdout.strip()) == (7, str(project)), first.stderr
    log = subprocess.run(["git", "-C", str(project), "log", "--format=%s"], capture_output=True, text=True, timeout=30)
    assert log.stdout == "one\n"
    remotes = subprocess.run(["git", "-C", str(project), "remote"], capture_output=True, text=True, timeout=30)
    assert remotes.stdout == ""
    (project / "dvc.yaml").write_text("mine\n")
    assert enter(image, project, "cat", "dvc.yaml").stdout == "mine\n"


def test_a_folder_with_something_else_is_refused(image: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "thesis.tex").touch()
    refused = enter(image, project, "true")
    assert refused.returncode == 2
    assert "has files and no dvc.yaml" in refused.stderr
    assert [path.name for path in project.iterdir()] == ["thesis.tex"]


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def read_manifests(root: Path, name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((root / "containers" / "kubernetes" / f"{name}.yaml").read_text()))


def validate_manifest(manifest: Mapping[str, Any], version: str) -> None:
    """By Kubernetes' own schemas, unknown fields refused."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="it is in both locks: make install")
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_the_manifests(name: str, version: str, root: Path) -> None:
    for manifest in read_manifests(root, name):
        validate_manifest(manifest, version)


def test_the_check_of_manifests_can_fail(root: Path) -> None:
    (job,) = read_manifests(root, "run")
    job["spec"]["template"]["spec"]["container"] = []
    with pytest.raises(Exception, match="container"):
        validate_manifest(job, VERSIONS[0])


def iter_pods(root: Path) -> Iterator[dict[str, Any]]:
    for name in ("run", "stage"):
        yield from (job["spec"]["template"]["spec"] for job in read_manifests(root, name))
    yield render_pool(root)["spec"]["template"]["spec"]


def test_pods_mount_what_the_image_keeps_and_end_in_time(root: Path) -> None:
    claims = {claim["metadata"]["name"] for claim in read_manifests(root, "volumes")}
    grace = load_params(root / "params.yaml").runtime.grace_seconds
    for pod in iter_pods(root):
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/project", "/store", "/cache", "/dev/shm"} == set(mounts.values())
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounts.keys() == volumes.keys()
        mounted = [one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "emptyDir" not in one]
        assert set(mounted) == claims
        assert pod["terminationGracePeriodSeconds"] > grace + 30
        assert pod["securityContext"]["runAsNonRoot"]
        arguments = list_arguments(read_instructions(root))
        assert pod["securityContext"]["runAsUser"] == int(arguments["USER_ID"])
        assert container["resources"]["limits"]["nvidia.com/gpu"]


@pytest.mark.parametrize("name", ["run", "stage"])
def test_jobs_run_commands_that_there_are(name: str, root: Path) -> None:
    (job,) = read_manifests(root, name)
    program, *words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert program == "ril"
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    values = command.make_context("ril", words[1:]).params
    stages = values["stages"] or []
    assert all(item in load_params(root / "params.yaml").teachers for item in (one.partition("@")[2] for one in stages))
    ended = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert ended["values"] == [2, 3], "unusable parameters, and a cap of budget"


# --- work pools ------------------------------------------------------------------------------------------------------


def read_pool(root: Path) -> dict[str, Any]:
    return json.loads((root / "containers" / "prefect" / "kubernetes.json").read_text())


def render_pool(root: Path) -> dict[str, Any]:
    """The Job that a worker of the Kubernetes pool makes, with the defaults of its template."""
    from prefect.utilities.templating import apply_values

    pool = read_pool(root)
    values = {key: one["default"] for key, one in pool["variables"]["properties"].items() if "default" in one}
    values |= {"image": "ril:gpu", "name": "run", "command": ["prefect", "flow-run", "execute"], "labels": {"a": "b"}}
    values |= {"env": [{"name": "PREFECT_API_URL", "value": "http://server:4200/api"}]}
    return apply_values(pool["job_configuration"]["job_manifest"], values)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_a_worker_makes_of_the_pool(version: str, root: Path) -> None:
    validate_manifest(render_pool(root), version)


def list_docker_variables() -> set[str]:
    """What a Docker work pool of this Prefect knows."""
    import prefect

    views = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    told = json.loads((views / "aggregate-worker-metadata.json").read_text())
    return set(told["prefect-docker"]["docker"]["default_base_job_configuration"]["variables"]["properties"])


def test_deployments_in_containers_start_what_forms_start_with_variables_that_pools_have(root: Path) -> None:
    known = {"ril-docker": list_docker_variables(), "ril-kubernetes": set(read_pool(root)["variables"]["properties"])}
    deployments = yaml.safe_load((root / "containers" / "prefect.yaml").read_text())["deployments"]
    assert {one["work_pool"]["name"] for one in deployments} == known.keys()
    for one in deployments:
        assert one["entrypoint"] == "flows/ui/trigger.py:start"
        assert one["parameters"]["root"] == "/project"
        assert one["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "/project"}}]
        assert one["work_pool"]["job_variables"].keys() <= known[one["work_pool"]["name"]]
        assert one["work_pool"]["job_variables"]["image"] in ("ril:cpu", "ril:gpu")
        assert one["concurrency_limit"]["limit"] == 1
