"""`ril store` as a person types it, and the commands of docs/sharing.md as they stand there."""

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.environment import store_folder
from stages.responses.key import derive_answer_key
from stages.responses.segments import list_segments
from stages.responses.store import Store, StoredAnswer


def stored(name: str, sample: int, text: str) -> StoredAnswer:
    request = hashlib.sha256(name.encode()).hexdigest()
    key = derive_answer_key(request, sample)
    return StoredAnswer(
        key, request, sample, name, text, (1, 2), "stop", 5, 2, "vllm", "0.32", "org/model", "0123", 0.25
    )


def fill(store: Path, segments: Sequence[Sequence[tuple[str, int, str]]], name: str = "set") -> Path:
    folder = store / "responses" / name
    for rows in segments:
        Store(folder, pytest.fail).append([stored(*row) for row in rows])
    return folder


def texts(store: Path, name: str = "set") -> dict[str, str]:
    wanted = [
        (hashlib.sha256(question.encode()).hexdigest(), sample) for question in ("a", "b", "c") for sample in range(3)
    ]
    answers = Store(store / "responses" / name, pytest.fail).fetch(wanted).values()
    return {f"{answer.question_id}{answer.sample}": answer.text for answer in answers}


def test_experiments_share_the_store_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIL_STORE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert store_folder(tmp_path) == tmp_path / ".ril"
    monkeypatch.setenv("DVC_ROOT", "/main")
    monkeypatch.setenv("DVC_STAGE", "teacher@internvl3")  # without it DVC_ROOT may be left over from another project
    assert store_folder(tmp_path) == Path("/main/.ril")
    monkeypatch.setenv("RIL_STORE", "/store")
    assert store_folder(tmp_path) == Path("/store")


SOME = [[("a", 0, "a0"), ("a", 1, "a1")], [("b", 0, "b0")]]


def test_help_lists_every_command_with_a_sentence(ril) -> None:
    code, out, _ = ril("store", "--help")
    assert code == 0
    for command in ("stats", "verify", "compact", "merge", "export", "import"):
        assert command in out
        assert ril("store", command, "--help")[0] == 0


def test_stats_verify_and_compact_tell_what_is_there(ril, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / ".ril", SOME)
    code, out, _ = ril("store", "stats")
    row = dict(zip(re.split(r"\s{2,}", out.splitlines()[0]), re.split(r"\s{2,}", out.splitlines()[1]), strict=True))
    assert (code, row["set"], row["model"], row["answers"], row["segments"]) == (0, "set", "org/model", "3", "2")
    assert (row["tokens"], row["truncated"], row["damaged"]) == ("6", "0.0%", "0")
    assert ril("store", "verify")[:2] == (0, "3 answers, all whole\n")
    before = texts(tmp_path / ".ril")
    assert "1 " in ril("store", "compact")[1].splitlines()[1]
    assert len(list_segments(folder)) == 1
    assert texts(tmp_path / ".ril") == before
    monkeypatch.setenv("RIL_STORE", str(tmp_path / ".ril"))
    monkeypatch.chdir("/")
    assert ril("store", "stats", "--only", "set")[0] == 0


def test_verify_names_what_is_damaged(ril, tmp_path: Path) -> None:
    folder = fill(tmp_path / ".ril", SOME)
    file = list_segments(folder)[0].path
    os.truncate(file, file.stat().st_size // 2)
    code, out, _ = ril("store", "verify")
    assert code == 1
    assert out.startswith(f"{file}:" if file.is_absolute() else str(file))
    assert "1 answers are whole; 1 faults" in out
    assert file.exists()


def test_merge_export_and_import(ril, tmp_path: Path) -> None:
    fill(tmp_path / ".ril", SOME)
    fill(tmp_path / "other", [[("a", 0, "theirs"), ("c", 2, "c2")]])
    assert ril("store", "merge", "other")[0] == 0
    merged = {"a0": "a0", "a1": "a1", "b0": "b0", "c2": "c2"}
    assert texts(tmp_path / ".ril") == merged
    assert ril("store", "export", "out")[0] == 0
    code, out, _ = ril("store", "import", "out", "--store", "new")
    assert (code, texts(tmp_path / "new")) == (0, merged)
    assert re.split(r"\s{2,}", out.splitlines()[1].strip()) == ["set", "4", "0", "0"]


def test_mistakes_are_a_line_and_exit_code_2(ril, tmp_path: Path) -> None:
    code, _, err = ril("store", "stats")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no stored answers; give the folder of a store" in err
    fill(tmp_path / ".ril", SOME)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for arguments, said in (
        (("stats", "--only", "nothing"), "has no set 'nothing'; sets: set"),
        (("merge", ".ril"), "is this store; give the folder of another one"),
        (("merge", "nowhere"), "nowhere holds no stored answers"),
        (("export", "full"), "full is not empty"),
        (("import", ".ril"), "no exported data set; for a store use: ril store merge"),
    ):
        code, _, err = ril("store", *arguments)
        assert (code, said in err) == (2, True), err


@pytest.mark.slow
def test_the_commands_about_sharing_work_as_they_stand(root: Path, tmp_path: Path) -> None:
    """The bash blocks of docs/sharing.md, one after another, in a project with a store, a colleague's and a mirror."""
    project = tmp_path / "project"
    fill(project / ".ril", SOME)
    fill(tmp_path / "shared/ril", [[("a", 2, "shared")]])
    fill(tmp_path / "colleague/.ril", [[("a", 0, "theirs"), ("c", 0, "c0")]])
    fill(tmp_path / "mirror", [[("c", 1, "c1")]])
    (tmp_path / "mirror/responses").rename(tmp_path / "mirror/colleague")
    lines = re.findall(r"^```bash\n(.*?)^```$", (root / "docs/sharing.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(lines) == 6
    (shared,) = (place for place, block in enumerate(lines) if "RIL_STORE" in block)
    lines[shared] = f"(\n{lines[shared]})\n"  # the folder of the team is another store; what follows is about one's own
    receiver = "rm -rf answers .ril .dvc/cache\n"
    script = "git init -q\ndvc init -q\n" + "\n".join([*lines[:-1], receiver, lines[-1]])
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "DVC_NO_ANALYTICS": "1",
        "HOME": str(tmp_path),
    }
    for name in ("RIL_STORE", "DVC_ROOT", "DVC_STAGE"):
        environment.pop(name, None)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=project, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert texts(project / ".ril") == {"a0": "a0", "a1": "a1", "b0": "b0", "c0": "c0", "c1": "c1"}
    assert texts(tmp_path / "shared/ril") == {"a2": "shared"}
