"""Environment variables that the libraries read when they are imported; set before anything heavy is.

Whatever the user has set stays. After installation nothing here needs a network: no hub, no telemetry.
"""

import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.loopback import bypass_proxies

ALLOW_DOWNLOADS = "RIL_ALLOW_DOWNLOADS"

STORE = "RIL_STORE"
LAUNCHER = "RIL_LAUNCHER"  # where stages run, in place of runtime.launcher.kind: `ril run --on`
_COPIES = (".dvc", "tmp", "exps")  # where DVC makes copies for experiments, in the project's folder
# Folders that users may give by relative paths; `~` is left to the libraries that expand it.
_FOLDERS = (
    *(STORE, "XDG_CACHE_HOME", "TORCH_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH"),
)

_QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # on CPU vLLM prints one warning hundreds of times
    "TOKENIZERS_PARALLELISM": "false",  # its threads and forked workers do not go together
}
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars of loading a local file; those of a download are wanted
}
_CPU = {
    "OMP_NUM_THREADS": "1",  # two OpenMP threads on two busy cores spin against each other: 4 times slower
    "TORCHDYNAMO_DISABLE": "1",  # else vLLM compiles its sampler in C++ at the first answer: 20 s
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else vLLM pins the process that trains as well
    "DS_ACCELERATOR": "cpu",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # the CPU build of vLLM warns of its NUMA binding each time an engine starts
    "TORCH_LOGS": "-torch._library.triton",  # errors only: the CPU lock leaves triton out, and torch warns of that
}
_OPENMP = re.compile(r"lib(?:g|i)?omp\d*[-.][^:]*")  # libgomp.so.1, libiomp5.so, libomp.so
TRIGGER = "RIL_TRIGGER"  # in the environment of stages that a form started: the id of that flow run

_PREFECT = {
    "PREFECT_CLIENT_MAX_RETRIES": "1",  # a server that is gone must not hold up finished work
    "PREFECT_API_REQUEST_TIMEOUT": "5",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # never starts a server of its own: 10 s a process
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


_PATIENT = {  # of the processes that live for a server: `ril serve` and what it starts
    "PREFECT_CLIENT_MAX_RETRIES": "5",
    "PREFECT_API_REQUEST_TIMEOUT": "60",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",  # seconds until a click is noticed; Prefect's own are 10
}


def has_gpu() -> bool:
    """Whether this process will compute on an NVIDIA GPU: the GPU build is installed and a device is there."""
    if has_cpu_build():
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def has_cpu_build() -> bool:
    """Whether the packages that are installed can use no GPU."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def list_missing_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that `environ` lacks, and `no_proxy` where it leaves loopback to a proxy."""
    wanted = {**_QUIET, **_PREFECT}
    if not has_gpu():
        wanted |= _CPU
    if environ.get(ALLOW_DOWNLOADS) != "1":
        wanted |= _OFFLINE
    return {name: value for name, value in wanted.items() if name not in environ} | bypass_proxies(environ)


def leave_machine_out(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` for a process on another machine: none that is there because of this one.

    What `prepare` sets without a GPU would keep a job from its GPU; the job sets it again where it has none.
    """
    ours = {"CUDA_VISIBLE_DEVICES", *(name for name, value in _CPU.items() if environ.get(name) == value)}
    return {name: value for name, value in environ.items() if name not in ours}


def prepare() -> None:
    """Sets the variables of `list_missing_variables` in this process, and so for its children.

    Folders that the user gave as relative paths become absolute ones: an experiment runs in another folder.

    Starts this process anew where an OpenMP library was preloaded, as vLLM advises for CPUs: it has read its number of
    threads already, and with another number results differ by rounding.
    """
    missing = list_missing_variables(os.environ)
    os.environ.update(missing)
    os.environ.update(resolve_folders(os.environ, find_project(Path.cwd())))
    preloaded = _OPENMP.search(os.environ.get("LD_PRELOAD", ""))
    if "OMP_NUM_THREADS" in missing and preloaded and "torch" not in sys.modules:
        os.execv(sys.executable, sys.orig_argv)  # nosec B606: the command of this process itself


def resolve_folders(environ: Mapping[str, str], project: Path) -> dict[str, str]:
    """The variables in `environ` that name a folder by a relative path, with the path from the folder `project`."""
    given = {name: environ.get(name, "") for name in _FOLDERS}
    return {
        name: os.path.normpath(project / path)
        for name, path in given.items()
        if path and not Path(path).is_absolute() and not path.startswith("~")
    }


def print_any_text() -> None:
    """Lets this process print every character on every terminal: what its encoding lacks becomes an escape.

    A real ASCII terminal has no en dash, and no encoding has the lone surrogates that a model's reply can hold.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def leave_pandas_out() -> None:
    """Keeps this process from importing pandas, as Prefect does wherever it is installed: 0.3 s of CPU."""
    sys.modules["pandas"] = None  # type: ignore[assignment]  # what Python takes for "there is none"


def prepare_patiently() -> None:
    """As `prepare`, for a process that is nothing without its Prefect server and waits for it."""
    os.environ.update({name: value for name, value in _PATIENT.items() if name not in os.environ})
    prepare()


def prepare_children(trigger: str) -> None:
    """Lets the stages that this process starts be impatient with the server again, and tells them who started them."""
    os.environ.update(
        {name: _PREFECT[name] for name, value in _PATIENT.items() if name in _PREFECT and os.environ.get(name) == value}
    )
    os.environ[TRIGGER] = trigger


def find_project(root: Path) -> Path:
    """The project that the checkout at `root` is a copy of; `root` itself for any other checkout.

    DVC tells its stages in DVC_ROOT; for other processes the place of the copy says it.
    """
    if "DVC_STAGE" in os.environ and "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    for parent in root.parents:
        if parent.parts[-len(_COPIES) :] == _COPIES:
            return parent.parents[len(_COPIES) - 1]
    return root


def store_folder(root: Path) -> Path:
    """Folder of what outlives outs, stored answers and training state, for the project at `root`.

    RIL_STORE, else `.ril`; both are in the project's folder, also for a copy in which an experiment runs.
    """
    return find_project(root) / (os.environ.get(STORE) or ".ril")
