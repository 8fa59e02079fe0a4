"""`ril serve-model`: a checkpoint behind OpenAI's API, for VLMEvalKit, lmms-eval and others (docs/publish.md)."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from flows.chat.candidates import require_candidate
from flows.chat.served_model import list_harness_commands, serve_model, watch_server
from flows.environment import store_folder
from stages.config.params import load_params

serve_model_app = typer.Typer()  # its commands become commands of `ril`


@serve_model_app.command("serve-model")
def serve_model_command(
    model: Annotated[str, typer.Argument(help="Entry of `evaluations`: base, warm_start, ril, a teacher.")] = "ril",
    port: Annotated[int, typer.Option(min=1024, max=65000, help="TCP port on 127.0.0.1.")] = 8000,
) -> None:
    """Serves a checkpoint with vLLM's OpenAI server on loopback, until Ctrl-C.

    Prints how VLMEvalKit and lmms-eval ask it; `ril import` scores what they write under all profiles.
    """
    root = Path.cwd()
    params, store = load_params(root / "params.yaml"), store_folder(root)
    candidate = require_candidate(root, store, params, model)
    signal.signal(signal.SIGTERM, _stop)
    try:
        with serve_model(candidate, params, store, port, _tell) as served:
            print(f"model {served.name} at {served.url}; address and key: source {served.access}")
            print("in the environment of a harness:")
            for command in list_harness_commands(served):
                print(f"  {command}")
            print("Ctrl-C ends it", flush=True)
            watch_server(served)
    except KeyboardInterrupt:
        _tell("ended")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
