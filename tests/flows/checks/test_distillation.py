"""Models with another tokenizer than the student's are found before hours of answers, as far as files are there."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from flows.checks.distillation import check_distillation
from flows.checks.finding import Finding
from flows.checks.needs import check_needs
from flows.jobs import list_needed_jobs
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml

WORDS = {"<unk>": 0, "sum": 1, "of": 2}
OTHERS = {"<unk>": 0, "of": 1, "sum": 2}


def write_model(project: Path, name: str, words: Mapping[str, int], family: str = "qwen2_5_vl") -> None:
    """A built model's card and tokenizer."""
    folder = project / "data" / "model" / name
    folder.mkdir(parents=True)
    (folder / "ril.json").write_text(json.dumps({"family": family}))
    Tokenizer(WordLevel(dict(words), unk_token="<unk>")).save(str(folder / "tokenizer.json"))


def find(project: Path, targets: list[str], **ril: Any) -> list[Finding]:
    overlay = {"ril": {"objective": "opd", "distillation": ["qwen2_5_vl"], **ril}}
    params = validate_params(merge_params(read_yaml(project / "params.yaml"), overlay))
    return list(check_distillation(params, list_needed_jobs(project, params, targets)))


@pytest.fixture
def project(make_project: Callable[..., Path]) -> Path:
    return make_project({})


def test_another_tokenizer_is_found_before_anything_starts(project: Path) -> None:
    """Among all that is missing, too, for the runs that reach the loop; other objectives don't look."""
    write_model(project, "student", WORDS)
    write_model(project, "qwen2_5_vl", OTHERS)
    (found,) = find(project, ["ril"])
    assert (found.topic, found.state, found.where, found.stages) == ("model", "missing", "ril.distillation", ("ril",))
    assert found.what == (
        "qwen2_5_vl does not have the tokenizer of the student (student): 3 and 3 tokens, and 'of' is token 2 of "
        "student and 1 of qwen2_5_vl"
    )
    assert found.remedy.startswith("distil from models with the student's tokenizer only")
    overlay = {"ril": {"objective": "opd"}}
    params = validate_params(merge_params(read_yaml(project / "params.yaml"), overlay))
    assert found in check_needs(project, params, list_needed_jobs(project, params))
    assert find(project, ["pool"]) == []
    assert find(project, ["ril"], objective="dr_grpo") == []


def test_equal_ones_and_files_that_say_nothing_are_passed_over(project: Path) -> None:
    assert find(project, ["ril"]) == []
    write_model(project, "student", WORDS)
    assert find(project, ["ril"]) == [], "the teacher is not made yet"
    write_model(project, "qwen2_5_vl", WORDS)
    assert find(project, ["ril"]) == []
    write_model(project, "internvl3", OTHERS)
    assert find(project, ["ril"], distillation=["internvl3"]) == [], "of another family: an earlier run has left it"


def test_pinned_models_are_compared(project: Path, tmp_path: Path) -> None:
    write_model(project, "student", WORDS)
    there = tmp_path / "teacher"
    there.mkdir()
    (there / "config.json").write_text("{}")
    Tokenizer(WordLevel(OTHERS, unk_token="<unk>")).save(str(there / "tokenizer.json"))
    values = read_yaml(project / "params.yaml")
    values["models"]["qwen2_5_vl"] = {
        "family": "qwen2_5_vl", "precision": "fp32", "context_tokens": 256, "path": str(there)
    }  # fmt: skip
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert [one.where for one in find(project, ["ril"])] == ["ril.distillation"]


def test_a_pinned_model_with_more_tokens_than_a_built_one_is_found_before_that_is_built(
    project: Path, tmp_path: Path
) -> None:
    there = tmp_path / "teacher"
    there.mkdir()
    (there / "config.json").write_text("{}")
    pinned = {"family": "qwen2_5_vl", "precision": "fp32", "context_tokens": 256, "path": str(there)}
    values = read_yaml(project / "params.yaml")
    values["models"]["qwen2_5_vl"] = pinned
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for count, said in ((512, []), (513, ["qwen2_5_vl has 513 tokens, and student is built with 512 at most"])):
        words = {"<unk>": 0, **{f"word {number}": number for number in range(1, count)}}
        Tokenizer(WordLevel(words, unk_token="<unk>")).save(str(there / "tokenizer.json"))
        assert [one.what.rpartition(": ")[2] for one in find(project, ["ril"])] == said
