"""The model card: everything on it is from the run, nothing is invented, and its commands run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from flows.publish.card import format_cell, format_score, make_model_card, tabulate_scores
from flows.publish.facts import MeasuredScore, PublishError, collect_facts
from stages.config.params import load_params
from stages.job.files import read_json, write_json
from tests.flows.tiny_run import copy_run

Ril = Callable[..., tuple[int, str, str]]


def read_card(project: Path, checkpoint: str = "data/ril/model", licence: str | None = None) -> ModelCard:
    facts = collect_facts(project, load_params(project / "params.yaml"), checkpoint)
    return ModelCard(make_model_card(facts, "org/model", licence))


def set_card(project: Path, entry: str, **values: Any) -> None:
    """Changes the card of an entry of `models`, as if it was pinned otherwise."""
    path = project / "data" / "model" / entry / "ril.json"
    write_json(path, {**read_json(path), **values})


def test_the_metadata_are_those_of_the_hub(tiny_run: Path) -> None:
    card = read_card(tiny_run)
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0"  # trained here from random weights
    assert "base_model" not in data
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-text-to-text"
    assert {"ril", "arxiv:2510.19307"} <= set(data["tags"])
    (index,) = data["model-index"]
    assert index["name"] == "model"
    (result,) = index["results"]
    assert result["metrics"][0]["value"] == 75.0
    assert "95 % interval 65.5 to 84.5, 80 rows" in result["metrics"][0]["name"]


def test_scores_have_intervals_and_what_has_none_is_said(tiny_run: Path) -> None:
    text = read_card(tiny_run).text
    head = text.index("| benchmark | scored by | rows | **RIL student** | Base student |\n|---|---|---|---|---|\n")
    row = "| held-out questions (test) | rules | 80 | 75.0 (65.5 to 84.5) | 50.0 (39.0 to 61.0) |\n"
    assert text.index(row) > head
    assert "Not measured: Warm-started student: not evaluated ('dvc repro evaluate@warm_start')" in text
    assert "Not measured: RIL student, tiny_choice: no file" in text


def make_score(model: str, title: str, value: float, half_width: float, remark: str = "") -> MeasuredScore:
    return MeasuredScore(model, model == "own", title, value, half_width, 4, "ours", remark=remark)


def test_a_benchmark_is_a_row_and_a_model_a_column() -> None:
    scores = [
        make_score("own", "A", 25.0, 42.4, "20.0 with another image"),
        make_score("own", "B", 100.0, 0.0),
        make_score("other|one", "B", 0.0, 0.0, "incomplete"),
        make_score("other|one", "C", 40.0, float("nan")),
    ]
    models, rows = tabulate_scores(scores)
    assert models == ["**own**", "other\\|one"]
    assert [(row.title, [format_score(one) for one in row.scores]) for row in rows] == [
        ("A", ["25.0 (0.0 to 67.4); 20.0 with another image", ""]),
        ("B", ["100.0 (51.0 to 100.0)", "0.0 (0.0 to 49.0); incomplete"]),  # Wilson's, of 4 rows
        ("C", ["", "40.0"]),
    ]


def test_settings_are_those_that_are_not_the_defaults(tiny_run: Path) -> None:
    text = read_card(tiny_run).text
    assert "| ril.learning_rate | 0.0003 | none |" in text
    assert "| verdict.form | plain | tag |" in text
    assert "ril.kl_weight" not in text  # 0.01 is the default
    assert re.search(r"stage ril ran with code [0-9a-f]{12}; stage warm_start ran with code [0-9a-f]{12}\.", text)


def test_a_run_again_has_the_same_card_to_the_byte(tiny_run: Path) -> None:
    first, second = read_card(tiny_run), read_card(tiny_run)
    assert first.content == second.content
    assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d", first.content)
    assert str(tiny_run) not in first.content


def test_teachers_and_base_of_the_hub_bring_their_licences(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    for entry, hub in (("student", "Qwen/Qwen2.5-VL-3B-Instruct"), ("internvl3", "OpenGVLab/InternVL3-38B-hf")):
        set_card(project, entry, hub=hub, revision="c" * 40)
    set_card(project, "qwen2_5_vl", endpoint={"provider": "rented", "name": "Qwen/Qwen2.5-VL-72B-Instruct"})
    card = read_card(project)
    data = card.data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "qwen-research")
    assert data["license_link"].endswith("Qwen2.5-VL-3B-Instruct/blob/main/LICENSE")
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen2.5-VL-3B-Instruct", "finetune")
    rows = [line for line in card.text.splitlines() if "| teacher |" in line or "| base |" in line]
    assert any("InternVL3-38B-hf | teacher | unknown | unknown |" in row for row in rows)
    assert any("not allowed: research and evaluation only" in row for row in rows)
    assert any("an endpoint of rented | teacher | Qwen License Agreement |" in row for row in rows)
    assert "**Improved using Qwen.**" in card.text
    assert read_card(project, licence="mit").data.license == "mit"


def test_an_unknown_licence_of_the_base_is_no_licence(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    set_card(project, "student", hub="somebody/model", revision="c" * 40)
    data = read_card(project).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "unknown")


def test_scores_of_another_content_of_the_folder_are_left_out(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    write_json(project / "data" / "evaluate" / "ril" / "tiny_open" / "manifest.json", {"model": "f" * 64})
    card = read_card(project)
    assert "model-index" not in card.data.to_dict()
    assert "its scores are of an earlier content of data/ril/model (ffffffffffff)" in card.text
    assert "dvc repro evaluate@ril" in card.text


def test_a_warm_start_has_a_card_without_teachers(tiny_run: Path) -> None:
    text = read_card(tiny_run, "data/warm_start").text
    assert "| teacher |" not in text
    assert "start of\nreinforcement and imitation learning" in text


def test_no_value_becomes_markup() -> None:
    assert format_cell("a | b\n<script>`x`") == "a \\| b &lt;script>'x'"
    assert format_cell(None) == format_cell("") == "unknown"
    assert format_cell(["a", 1]) == '["a", 1]'


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("data/model/student", "data/model/student is not trained here; checkpoints that are: data/ril/model"),
        ("data/ril/last", "data/ril/last is missing; make it with: dvc repro ril"),
    ],
)
def test_what_was_not_trained_here_has_no_card(tiny_run: Path, checkpoint: str, said: str) -> None:
    with pytest.raises(PublishError, match=re.escape(said)):
        read_card(tiny_run, checkpoint)


def test_a_missing_report_is_named_with_its_stage(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    (project / "reports" / "pool" / "metrics.json").unlink()
    with pytest.raises(PublishError, match=r"reports/pool/metrics\.json is missing.*dvc repro pool"):
        read_card(project)


# --- the commands on the card ---------------------------------------------------------------------------------------


def take_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def push(project: Path, folder: Path, call: Callable[..., tuple[int, str, str]]) -> str:
    code, out, err = call(project, "flows.cli", "push", str(folder))
    assert code == 0, out + err
    return (folder / "README.md").read_text()


def run_block(block: str, folder: Path) -> str:
    Image.new("RGB", (84, 84), (200, 30, 30)).save(folder / "picture.png")
    # Without a size of its cache vLLM reserves 92 % of a CPU's memory, which other tests may hold. Its build for CPUs
    # does not compile with this PyTorch ("aot_compile is not supported").
    block = block.replace("max_model_len=", "enforce_eager=True, max_model_len=")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"{block}\n"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_a_card_load_the_pushed_checkpoint(
    tiny_run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """transformers and vLLM answer alike from the folder as it was pushed; no code of the project is on the path."""
    card = push(tiny_run, tmp_path / "pushed", call)
    with_transformers, with_vllm = take_blocks(card, "python")
    answers = [run_block(block, tmp_path) for block in (with_transformers, with_vllm)]
    assert answers[0].strip()
    assert answers[0].strip().splitlines()[-1] == answers[1].strip().splitlines()[-1]


@pytest.mark.slow
def test_the_serve_command_of_a_card_is_one_that_vllm_takes(
    tiny_run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    (command,) = take_blocks(push(tiny_run, tmp_path / "pushed", call), "sh")
    words = shlex.split(command)
    assert words[:2] == ["vllm", "serve"]
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:])
    assert parsed.model_tag == str(tmp_path / "pushed")
    assert (parsed.dtype, parsed.max_model_len) == ("float32", 256)


def test_ril_card_shows_what_push_writes(tiny_run: Path, tmp_path: Path, ril: Ril, monkeypatch: Any) -> None:
    monkeypatch.chdir(tiny_run)
    code, out, err = ril("card")
    assert code == 0, err
    assert yaml.safe_load(out.split("---")[1])["pipeline_tag"] == "image-text-to-text"
    code, _, err = ril("card", "--out", str(tmp_path / "card.md"))
    assert code == 0, err
    assert (tmp_path / "card.md").read_text() == out
    code, out, err = ril("card", "--checkpoint", "data/nothing")
    assert code == 2
    assert err.startswith("error: data/nothing is not trained here")
