"""Checkpoints of another family, and those whose attention packs don't compute, are refused by their config.json."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import CONFIG_MAPPING, AutoConfig

from stages.config.model import TEXT_FAMILIES, Model
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.contents import RefusedCheckpoint
from stages.vlm.reader import FAMILIES
from stages.vlm.support import _REASONS, check_supported
from tests.checkpoints.internvl import INTERNVL
from tests.checkpoints.published import Published
from tests.checkpoints.qwen import QWEN
from tests.checkpoints.refused import REFUSED
from tests.checkpoints.walk import describe_family
from tests.conftest import SEEING

SINGLE = {"family": "qwen2_5_vl", "path": "x"}


def refuse(folder: Path, family: str, config: Mapping[str, Any], context: int = 4096) -> str:
    """The one line by which a folder with this config.json is refused as models.student."""
    (folder / "config.json").write_text(json.dumps(config))
    model = Model.model_validate({"family": family, "path": str(folder), "context_tokens": context})
    with pytest.raises(RefusedCheckpoint) as caught:
        check_supported(folder, model, "student")
    said = str(caught.value)
    assert said.startswith("models.student: ")
    assert str(folder / "config.json") in said
    assert "\n" not in said
    return said


def accept(folder: Path, family: str, config: Mapping[str, Any], context: int = 4096) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    model = Model.model_validate({"family": family, "path": str(folder), "context_tokens": context})
    check_supported(folder, model, "student")


def default_config(kind: str) -> dict[str, Any]:
    """config.json as transformers writes that of a model type."""
    return dict(json.loads(AutoConfig.for_model(kind).to_json_string(use_diff=False)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_takes_what_it_builds(tiny: Callable[[str], Checkpoint], family: str, tmp_path: Path) -> None:
    accept(tmp_path, family, json.loads((tiny(family).weights / "config.json").read_text()))


@pytest.mark.parametrize("family", SEEING)
def test_a_family_takes_its_model_types_as_transformers_describes_them(family: str, tmp_path: Path) -> None:
    for kind in FAMILIES[family].model_types:
        accept(tmp_path, family, default_config(kind))


def test_a_language_model_without_a_type_is_that_of_its_class(tmp_path: Path) -> None:
    accept(tmp_path, "qwen2_5_vl", {"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 64}})


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "smollm3", "gpt_oss", "gemma3_text", "qwen3_next"])
def test_a_judge_may_attend_as_it_likes(family: str, kind: str, tmp_path: Path) -> None:
    """vLLM computes it; nothing here trains it."""
    assert FAMILIES[family].attention == "any"
    accept(tmp_path, family, default_config(kind), context=65_536)


@pytest.mark.parametrize("family", SEEING)
def test_the_folder_of_another_family_is_refused_with_both_names(
    tiny: Callable[[str], Checkpoint], family: str, tmp_path: Path
) -> None:
    config = json.loads((tiny(family).weights / "config.json").read_text())
    for other in FAMILIES:
        if other == family:
            continue
        said = refuse(tmp_path, other, config)
        assert f"family is {other}, but" in said
        assert f"says model_type {config['model_type']}; set models.student.family to {family}, or" in said


@pytest.mark.parametrize("kind", _REASONS)
def test_model_types_that_are_refused_by_reason_are_types_of_transformers(kind: str, tmp_path: Path) -> None:
    assert kind in CONFIG_MAPPING
    said = refuse(tmp_path, "qwen3_vl", {"model_type": kind})
    where = tmp_path / "config.json"
    assert f"family is qwen3_vl, but {where} says model_type {kind}, which can't be used here: " in said
    assert _REASONS[kind] in said
    assert said.endswith("name it with family: remote, as a teacher or judge")


def test_a_type_that_nobody_knows_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    said = refuse(tmp_path, "qwen3_vl", {"model_type": "blip"})
    assert "says model_type blip, and families that see images have qwen2_5_vl, qwen3_vl, internvl; use another" in said
    assert "family: remote" in said
    said = refuse(tmp_path, "text", {"model_type": "blip", "vision_config": {}})
    assert "says model_type blip, which reads images, and text has models that read text only" in said


@pytest.mark.parametrize("published", [*QWEN, *INTERNVL], ids=lambda one: one.name)
def test_published_configs_are_taken(published: Published, tmp_path: Path) -> None:
    accept(tmp_path, describe_family(published.name), published.config)


REFUSED_BY_NAME = {"gemma-3-4b-it": "in both directions", "SmolVLM-Instruct": "rows and columns of tiles"}


@pytest.mark.parametrize("published", REFUSED, ids=lambda one: one.name)
def test_published_configs_that_no_family_reads_are_refused_with_the_reason(
    published: Published, tmp_path: Path
) -> None:
    for family in SEEING:
        said = refuse(tmp_path, family, published.config)
        assert f"model_type {published.config['model_type']}, which can't be used here: " in said
        assert REFUSED_BY_NAME.get(published.name, "an image has other tokens beside a second one") in said
    assert "which reads images" in refuse(tmp_path, "text", published.config)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"model_type": "gpt_oss"}, "its attention has sinks"),
        ({"model_type": "qwen3_moe"}, "route tokens to experts"),
        ({"model_type": "internlm3"}, "language models of qwen2, qwen3"),
    ],
)
def test_the_language_model_inside_is_looked_at(text: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """InternVL3.5 comes with several; those of 20B and 30B can't be trained here."""
    said = refuse(tmp_path, "internvl3", {"model_type": "internvl", "text_config": text})
    assert f"has a language model of model_type {text['model_type']}: " in said
    assert reason in said


QWEN = {"model_type": "qwen2", "num_hidden_layers": 28, "max_window_layers": 21, "sliding_window": 2048}
ATTENTION: dict[str, tuple[dict[str, Any], str]] = {
    "sliding layers": ({**QWEN, "use_sliding_window": True}, "2,048 tokens back"),
    "sliding by name": ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 512}, "512 tokens"),
    "linear": ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types has linear_attention"),
    "both ways": ({"use_bidirectional_attention": True}, "in both directions"),
    "not causal": ({"is_causal": False}, "in both directions"),
    "capped": ({"attn_logit_softcapping": 50.0}, "caps scores"),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_that_packs_do_not_compute_is_refused(case: str, tmp_path: Path) -> None:
    config, reason = ATTENTION[case]
    inner = {"model_type": "qwen3", **config}
    said = refuse(tmp_path, "internvl3", {"model_type": "internvl", "text_config": inner}, context=8192)
    assert reason in said
    assert "family: remote" in said


def test_a_window_as_long_as_the_context_hides_nothing(tmp_path: Path) -> None:
    sliding = {**QWEN, "use_sliding_window": True}
    layers = ["full_attention"] * 2

    def wrap(text: dict[str, Any]) -> dict[str, Any]:
        return {"model_type": "internvl", "text_config": text}

    accept(tmp_path, "internvl3", wrap(sliding), context=2048)
    said = refuse(tmp_path, "internvl3", wrap(sliding), context=2049)
    assert "lower models.student.context_tokens to 2048" in said
    accept(tmp_path, "internvl3", wrap({**QWEN, "use_sliding_window": False}), context=8192)
    accept(tmp_path, "internvl3", wrap({**sliding, "max_window_layers": 28}), context=8192)
    accept(tmp_path, "internvl3", wrap({"model_type": "qwen3", "layer_types": layers, "sliding_window": 64}))
    flat = {**sliding, "model_type": "qwen2_5_vl"}
    accept(tmp_path, "qwen2_5_vl", flat, context=2048)
    assert "2,048 tokens back" in refuse(tmp_path, "qwen2_5_vl", flat, context=4096)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": 3}'])
def test_a_config_without_a_type_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RefusedCheckpoint, match=r"config\.json has no model_type; restore"):
        check_supported(tmp_path, Model.model_validate(SINGLE), "student")
    (tmp_path / "config.json").unlink()
    with pytest.raises(RefusedCheckpoint, match=r"config\.json has no model_type; restore"):
        check_supported(tmp_path, Model.model_validate(SINGLE), "student")


@pytest.mark.slow
def test_stage_model_refuses_it(
    tiny: Callable[[str], Checkpoint], make_project: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    """A Qwen3-VL under qwen2_5_vl, by the command that a user runs: one line, no card."""
    given = {"family": "qwen2_5_vl", "build": None, "path": "given", "precision": "fp32", "context_tokens": 256}
    project = make_project({"models": {"student": given}})
    shutil.copytree(tiny("qwen3_vl").weights, project / "given")
    code, _, err = call(project, "flows.run", "model", "student")
    assert code != 0
    line = f"models.student: family is qwen2_5_vl, but {project / 'given' / 'config.json'} says model_type qwen3_vl; "
    assert line + "set models.student.family to qwen3_vl" in err
    assert not (project / "data/model/student/ril.json").exists()
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["student"]["family"] = "qwen3_vl"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    code, _, err = call(project, "flows.run", "model", "student")
    assert code == 0, err
    assert json.loads((project / "data/model/student/ril.json").read_text())["family"] == "qwen3_vl"
