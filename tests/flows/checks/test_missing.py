"""A machine on which ten things are missing: the same list from `ril doctor`, `ril run` and `dvc repro`, before
anything starts; and what is not missing is not claimed to be.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from flows.checks.preflight import read_targets
from stages.config.params import load_params
from stages.config.yaml import merge_params, read_yaml

KEY, PLANTED = "THEIR_API_KEY", "sk-planted-0123456789abcdef"
# Where each of the ten is looked for, what is said, and the remedy.
TEN = [
    ("folder", "is not a folder", "remove it"),
    ("data", "questions.path: datasets/questions.json is not there", "put it there, or correct questions.path"),
    ("data", "questions.images: datasets/images is not there", "put it there, or correct questions.images"),
    ("model", "models.student.path: ", "put the checkpoint there, or correct models.student.path"),
    ("model", "models.qwen2_5_vl.path: ", "download the file again"),
    ("model", "models.judge.hub: model 'somebody/judge' at 'main' is not on this machine", "or set models.judge.path"),
    ("key", f"{KEY}: is not set, and runtime.engines.internvl3.api_key names it", f"export {KEY}=..."),
    ("gpu", "runtime.rank_gpus.ril: needs 8 GPUs, and there is none", "run it where there are 8"),
    ("compiler", "PATH: no C compiler", "install gcc, or set CC"),
    ("package", "runtime.vision_attention: flash_attention_2 needs the package flash_attn", "or take auto"),
]
OVERLAY: dict[str, Any] = {
    "world": {"code": "stages/model.py", "builds": "stages/model.py"},
    "questions": {"kind": "llava", "path": "datasets/questions.json", "images": "datasets/images"},
    "selection": {"teacher": "qwen2_5_vl"},
    "evaluate": {"benchmarks": [], "folder": "stages/evaluate.py"},
    "runtime": {
        "engines": {"internvl3": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": KEY}},
        "rank_gpus": {"ril": [6, 7]},
        "vision_attention": "flash_attention_2",
    },
}


@dataclass
class Bare:
    """A project, and the environment of a container in which little is installed."""

    project: Path
    environment: dict[str, str]

    def run(self, *words: str, **variables: str) -> tuple[int, str]:
        """Runs Python with these arguments; exit code and all that it says."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.project,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=180,
        )
        return done.returncode, done.stdout + done.stderr

    def edit(self, overlay: Mapping[str, Any]) -> None:
        path = self.project / "params.yaml"
        path.write_text(yaml.safe_dump(merge_params(read_yaml(path), overlay), sort_keys=False))


@pytest.fixture
def bare(tmp_path: Path, make_project: Callable[..., Path]) -> Bare:
    project = make_project(OVERLAY)
    for source in ({"student": {"path": "../models/student"}}, {"qwen2_5_vl": {"path": "../models/cut"}}):
        replace_model(project, source)
    replace_model(project, {"judge": {"hub": "somebody/judge", "revision": "main"}})
    replace_model(project, {"internvl3": {"family": "remote", "endpoint": {"provider": "they", "name": "big"}}})
    cut = tmp_path / "models" / "cut"
    cut.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        (cut / name).write_text("{}")
    Tokenizer(WordLevel({"?": 0}, unk_token="?")).save(str(cut / "tokenizer.json"))
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (cut / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    (tmp_path / "store").write_text("a file where the store is to be")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "sh"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tools / "python").chmod(0o755)
    with Repo.init(str(project), no_scm=True):
        pass
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "RIL_", "PREFECT_"))}
    given = {"PATH": str(tools), "PYTHONPATH": str(project), "HF_HOME": str(tmp_path / "hub"), "CC": ""}
    return Bare(project, kept | given | {"RIL_STORE": str(tmp_path / "store")})


def replace_model(project: Path, source: Mapping[str, Any]) -> None:
    """Gives a model another source; keys of the tiny one that do not belong to it go."""
    path = project / "params.yaml"
    values = read_yaml(path)
    for name, given in source.items():
        values["models"][name] = {"family": values["models"][name]["family"], "context_tokens": 512, **given}
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def select_missing(said: str) -> list[str]:
    """What `ril doctor` calls missing, without its columns."""
    return [line.removeprefix("missing").strip() for line in said.splitlines() if line.startswith("missing")]


def select_listed(said: str) -> list[str]:
    """The list that `ril run` and stages print, in the form of `select_missing`."""
    lines = said.split("are missing:\n")[1].split("\nnot known before a run")[0].splitlines()
    return [line.replace(": ", " ", 1).partition(" (for ")[0] for line in lines]


def squeeze(line: str) -> str:
    return " ".join(line.split())


def test_ten_things_are_ten_lines_with_ten_remedies_from_every_command(bare: Bare) -> None:
    code, said = bare.run("-m", "flows.cli", "doctor")
    found = [squeeze(line) for line in select_missing(said)]
    assert code == 1
    assert "\x1b" not in said, "no colours in a pipe"
    assert said.splitlines()[-1] == "10 missing"
    for line, (topic, what, remedy) in zip(found, TEN, strict=True):
        assert line.startswith(topic)
        assert what in line
        assert remedy in line
    begun = time.monotonic()
    code, said = bare.run("-m", "flows.cli", "run")
    assert code == 2
    assert [squeeze(line) for line in select_listed(said)] == found
    assert time.monotonic() - begun < 30, "5 s on a quiet machine"
    assert not (bare.project / ".ril" / "logs").exists(), "dvc was not started"
    code, said = bare.run("-m", "dvc", "repro")
    assert code != 0
    assert [squeeze(line) for line in select_listed(said)] == found
    assert said.count("Running stage") == 1
    assert not list(bare.project.glob("data/*/*")), "nothing was made"


def test_what_other_stages_need_is_not_asked_for(bare: Bare) -> None:
    """A run of the teacher alone needs neither the ranks' GPUs nor the judge."""
    _, said = bare.run("-m", "flows.cli", "run", "teacher@internvl3")
    listed = select_listed(said)
    assert not [line for line in listed if line.startswith(("gpu", "package", "model models.judge"))]
    assert any(line.startswith("key") for line in listed)
    _, said = bare.run("-m", "flows.cli", "run", "teacher@internvl3", **{KEY: PLANTED})
    assert not [line for line in select_listed(said) if line.startswith("key")]
    assert PLANTED not in said


def test_the_report_for_others_has_neither_secrets_nor_whole_paths(bare: Bare, tmp_path: Path) -> None:
    variables = {KEY: PLANTED, "https_proxy": "http://me:hunter22@proxy.example:3128/", "HF_TOKEN": "hf_hunter2222"}
    code, said = bare.run("-m", "flows.cli", "doctor", "--json", **variables)
    found = json.loads(said)
    assert code == 1
    assert found["missing"] == len([one for one in found["found"] if one["state"] == "missing"]) == 9
    assert {"python", "torch", "dvc", "prefect"} <= found["versions"].keys()
    for text in (PLANTED, "hunter", str(tmp_path), sys.prefix):
        assert text not in said
    assert "proxy.example:3128" in said, "what the proxy is, is told"


def test_what_will_be_downloaded_is_not_missing_unless_the_hub_is(bare: Bare) -> None:
    off = {"RIL_ALLOW_DOWNLOADS": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": ""}
    _, said = bare.run("-m", "flows.cli", "doctor", **off)
    assert "note     model     models.judge.hub: somebody/judge at main not here, will be downloaded" in said
    (hub,) = (line for line in select_missing(said) if line.startswith("hub"))
    assert "http://127.0.0.1:9: does not answer" in hub
    assert not [line for line in select_missing(said) if "models.judge" in line]


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        ("python -m dvc --wait-for-lock repro", []),
        ("python /bin/dvc repro -f ril teacher@internvl3", ["ril", "teacher@internvl3"]),
        ("python -m dvc repro dvc.yaml:pool", ["pool"]),
        ("python -m dvc exp run --temp --name ril -S seed=1 pool", ["pool"]),
        ("python -m dvc repro --downstream pool", []),
    ],
)
def test_the_command_line_of_dvc_says_what_is_to_run(root: Path, words: str, targets: list[str]) -> None:
    assert read_targets(words.split(), load_params(root / "params.yaml")) == targets


@pytest.mark.slow
def test_what_is_up_to_date_needs_nothing(bare: Bare) -> None:
    """A stage that will not run may lack its key; only what runs is asked for."""
    stage = {"foreach": ["internvl3"], "do": {"cmd": "echo 1 > out.txt", "outs": ["out.txt"], "params": ["seed"]}}
    other = {"cmd": "echo 1 > pool.txt", "outs": ["pool.txt"], "params": ["pool"]}
    (bare.project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"teacher": stage, "pool": other}}))
    del bare.environment["RIL_STORE"]
    assert bare.run("-m", "dvc", "repro", "teacher@internvl3")[0] == 0
    words = ["-m", "flows.cli", "run", "teacher@internvl3", "--only"]
    code, said = bare.run(*words)
    assert (code, "up to date" in said) == (0, True), said
    code, said = bare.run("-m", "flows.cli", "run", "teacher@internvl3", "pool", "--only")
    assert (code, (bare.project / "pool.txt").is_file()) == (0, True), said
    code, said = bare.run(*words, "--force")
    assert code == 2
    assert f"1 thing is missing:\nkey: {KEY}: is not set" in said
    bare.edit({"seed": 1})
    assert bare.run(*words)[0] == 2, "now it would run"
    assert bare.run(*words, **{KEY: PLANTED})[0] == 0


def test_parameters_that_can_not_be_used_are_told_with_the_rest(bare: Bare) -> None:
    bare.edit({"ril": {"steps": "many", "grop": 4}})
    code, said = bare.run("-m", "flows.cli", "doctor", "--quiet")
    assert code == 1
    assert len(select_missing(said)) == 2
    assert "ril.grop = 4 is not a known key; did you mean 'group'?" in said


def test_a_benchmark_without_files_is_missing(bare: Bare) -> None:
    (bare.project / "benches").mkdir()
    bare.edit({"evaluate": {"benchmarks": ["ai2d"], "folder": "benches"}})
    _, said = bare.run("-m", "flows.cli", "run")
    (line,) = (line for line in select_listed(said) if "ai2d" in line)
    assert line.startswith("data evaluate.benchmarks: ai2d has no file in benches; put there")


def test_without_dvc_that_is_told(bare: Bare) -> None:
    shutil.rmtree(bare.project / ".dvc")
    code, said = bare.run("-m", "flows.cli", "run")
    assert code == 2
    assert "dvc .dvc: DVC is not set up in this folder; git init && dvc init" in select_listed(said)
