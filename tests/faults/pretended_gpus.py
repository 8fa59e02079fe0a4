"""A project in which a stage runs on GPUs that are pretended: ranks and supervisors are real, vLLM is a stand-in.

`pretend_gpus` puts three modules into a copy of the project: `sitecustomize` writes down the environment with which
every Python process starts, `pretended_stage` runs a stage that counts pretended GPUs, and `pretended_vllm` is started
in place of vLLM's server and answers as it does.
"""

import json
from dataclasses import dataclass
from pathlib import Path

RECORDER = """
import json, os, sys
with open("seen/start-%d.json" % os.getpid(), "w") as file:
    json.dump({"command": sys.orig_argv, "environment": dict(os.environ)}, file)
"""

STAGE = """
import json, os, sys
import torch
torch.cuda.device_count = lambda: COUNT
from stages.engines import vllm_server
vllm_server._MODULE = "pretended_vllm"
from flows.run import main
leave = os._exit
def end(code):
    with open("seen/end-%d.json" % os.getpid(), "w") as file:
        json.dump(dict(os.environ), file)
    leave(code)
os._exit = end  # ranks other than the first end so
end(main(sys.argv[1:]))
"""

SERVER = """
import argparse, json, os, socket, socketserver
from http.server import BaseHTTPRequestHandler

parser = argparse.ArgumentParser()
parser.add_argument("--uds")
parser.add_argument("--served-model-name")
known, _ = parser.parse_known_args()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply({"version": "0"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        with open("seen/requests.txt", "a") as file:
            file.write(known.served_model_name + " " + self.path + "\\n")
        if not self.path.startswith("/inference"):
            return self.reply({"success": True})
        if asked.get("return_token_ids"):  # how it read the prompt: it can't say
            return self.reply({}, 400)
        given = asked["sampling_params"]
        end = given["stop_token_ids"][0]
        one = {"finish_reason": "stop"}
        choices = [{**one, "index": index, "token_ids": [40 + index, 41, end]} for index in range(given["n"])]
        self.reply({"choices": choices, "usage": {"prompt_tokens": len(asked["token_ids"])}})

    def log_message(self, *_):
        pass

    def address_string(self):
        return "unix"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


Server(known.uds, Handler).serve_forever()
"""


@dataclass(frozen=True)
class Seen:
    """A process of the stage, and what it was started with."""

    command: list[str]
    environment: dict[str, str]

    @property
    def model(self) -> str | None:
        """The model that it serves, if it is a server."""
        named = "--served-model-name"
        return self.command[self.command.index(named) + 1] if named in self.command else None

    @property
    def devices(self) -> str | None:
        """The GPUs that it sees."""
        return self.environment.get("CUDA_VISIBLE_DEVICES")


def pretend_gpus(project: Path, count: int) -> None:
    """Puts the modules into `project`; `python -m pretended_stage ril` then runs a stage with `count` GPUs."""
    (project / "seen").mkdir()
    (project / "sitecustomize.py").write_text(RECORDER)
    (project / "pretended_stage.py").write_text(STAGE.replace("COUNT", str(count)))
    (project / "pretended_vllm.py").write_text(SERVER)


def read_seen(project: Path) -> list[Seen]:
    """Returns the ranks and servers of the stage that ran, those of `pretended_stage` as they were at their end."""
    found = []
    for file in sorted((project / "seen").glob("start-*.json")):
        seen = Seen(**json.loads(file.read_text()))
        end = file.with_name(file.name.replace("start", "end"))
        if end.exists():
            found.append(Seen(seen.command, json.loads(end.read_text())))
        elif "flows.run" in seen.command or seen.model is not None:
            found.append(seen)
    return found
