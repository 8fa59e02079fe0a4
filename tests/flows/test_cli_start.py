"""`ril --version`, completion in a real bash, and the template that asks for `ril doctor --json`."""

import importlib.metadata
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.cli.doctor import redact
from flows.cli.main import app


def test_the_version_names_code_and_packages(ril: Callable[..., tuple[int, str, str]], root: Path) -> None:
    code, out, _ = ril("--version")
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, timeout=30
    ).stdout.strip()
    assert code == 0
    assert out.startswith("ril ")
    assert f"(commit {commit}" in out
    for name in ("torch", "transformers", "deepspeed", "dvc", "prefect"):
        assert f"{name} {importlib.metadata.version(name)}" in out
    assert f"python {sys.version.split()[0]}" in out


def test_no_library_reads_its_environment_before_ril_has_set_it() -> None:
    """The hub's client decides when it is imported whether it may use the network, and shows bars."""
    early = "{'huggingface_hub', 'transformers', 'torch', 'vllm', 'deepspeed', 'prefect', 'datasets'}"
    program = f"import flows.cli.main, sys; print(sorted({early} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def bash(root: Path) -> "Bash":
    """An interactive bash in the project's folder that has sourced the completion of `ril`."""
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    return Bash(root)


class Bash:
    """A bash at a terminal."""

    def __init__(self, folder: Path) -> None:
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            given = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "PS1": "$ ", "TERM": "dumb"}
            os.execve(str(shutil.which("bash")), ["bash", "--norc", "--noprofile", "-i"], given)
        self.type('eval "$(ril --show-completion bash)"; echo re""ady\n', "ready")

    def type(self, text: str, until: str, seconds: float = 60) -> str:
        """Types `text` and returns what the terminal shows once it shows `until`."""
        os.write(self.terminal, text.encode())
        shown, end = "", time.monotonic() + seconds
        while until not in shown:
            assert time.monotonic() < end, repr(shown)
            if select.select([self.terminal], [], [], 0.2)[0]:
                shown += os.read(self.terminal, 65_536).decode(errors="replace")
        return shown

    def close(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self.terminal)


@pytest.mark.slow
def test_bash_completes_commands_stages_and_items(bash: Bash) -> None:
    """Bash splits words at `@`, so the item of a stage is a case of its own."""
    clear = "\x15"
    try:
        bash.type("ril doc\t", "ril doctor ")
        bash.type(f"{clear}ril run disc\t", "discriminator ")
        bash.type(f"{clear}ril run teacher@in\t", "ril run teacher@internvl3 ")
        shown = bash.type(f"{clear}ril run verdict@\t\t", "@qwen2_5_vl")
        assert "@internvl3" in shown
    finally:
        bash.close()


def test_the_template_asks_for_the_report_of_doctor(root: Path) -> None:
    form = yaml.safe_load((root / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (asked,) = (one for one in form["body"] if one.get("id") == "doctor")
    assert asked["attributes"]["label"] == "`ril doctor --json`"
    assert asked["validations"]["required"]
    assert any(
        one.callback.__name__ == "run_doctor"
        for group in app.registered_groups
        for one in group.typer_instance.registered_commands
    )


def test_what_is_shown_to_others_is_shortened() -> None:
    environ = {"MY_TOKEN": "tok-123456", "HOME": "/home/somebody", "SHORT_KEY": "a"}
    texts = {
        "/srv/project/data/a b": "./data/a b",
        "/srv/project: not a folder": ".: not a folder",
        "/srv/projects/x": "/srv/projects/x".replace("/srv/", ".../"),
        "/mnt/big/models/qwen/config.json is cut": ".../qwen/config.json is cut",
        "https://me:secret@host.example/v1": "https://host.example/v1",
        "https://host.example/a/b/c/d": "https://host.example/a/b/c/d",
        "refused tok-123456": "refused [MY_TOKEN]",
        "a word": "a word",
    }
    found = redact({"list": list(texts), "number": 3}, Path("/srv/project"), environ)
    assert found == {"list": list(texts.values()), "number": 3}
