"""transformers and vLLM are compared on a checkpoint of others; what they do not agree on is refused."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.jobs import open_job
from stages import model as model_stage
from stages.config.image_limits import NO_LIMITS
from stages.config.model import Model
from stages.config.params import load_params
from stages.engines import sample_pass
from stages.engines.agreement import Agreement, compare_passes, judge_passes
from stages.engines.sample_pass import explain_no_room
from stages.job.failure import Failure
from stages.job.files import read_json, write_json
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reference_pass import Pass, describe_checkpoint

BUILD = {"steps": 0, "learning_rate": 1e-3, "hidden_size": 64, "layers": 2, "heads": 2}
SAMPLED = Pass([1, 2, 3], [7, 8], [-0.5, -1.0])


def test_passes_agree_within_the_bound() -> None:
    found = judge_passes([SAMPLED, replace(SAMPLED, log_probs=[-0.50009, -1.0])], 1e-4, "big")
    assert found.describe() == {"tokens": 2}
    assert found.measure()["largest_difference"] == 9e-5
    assert found.measure()["bound"] == 1e-4
    assert found.measure()["transformers"]
    assert found.measure()["vllm"]


@pytest.mark.parametrize(
    ("scored", "said"),
    [
        (replace(SAMPLED, log_probs=[-0.5, -1.00011]), r"differ by 0\.00011 in fp32, the bound is 0\.0001"),
        (replace(SAMPLED, log_probs=[-0.5, float("nan")]), "differ by nan in fp32"),
        (replace(SAMPLED, prompt_ids=[1, 2, 4]), r"differ from token 2 on: \[3\] and \[4\]"),
        (replace(SAMPLED, prompt_ids=[1, 2, 3, 9]), r"differ from token 3 on: \[\] and \[9\]"),
    ],
)
def test_passes_that_differ_are_one_line_with_the_switch(scored: Pass, said: str) -> None:
    with pytest.raises(Failure, match=rf"^models\.big\.verify: .*{said}.*set models\.big\.verify: false$") as caught:
        judge_passes([SAMPLED, scored], 1e-4, "big")
    assert "\n" not in str(caught.value)


def test_a_wide_model_may_differ_by_four_times_its_rounding() -> None:
    scored = replace(SAMPLED, log_probs=[-0.5003, -1.0])
    found = judge_passes([SAMPLED, scored, replace(SAMPLED, log_probs=[-0.5002, -1.0])], 1e-4, "big")
    assert found.bound == pytest.approx(4e-4)
    assert found.measure()["rounding"] == 1e-4
    exact = replace(SAMPLED, log_probs=[-0.50028, -1.0])
    said = r"differ by 0\.0003 in fp32, the bound is 0\.0001 \(transformers rounds by 2e-05\)"
    with pytest.raises(Failure, match=said):
        judge_passes([SAMPLED, scored, exact], 1e-4, "big")


def test_what_does_not_fit_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sample_pass, "measure_free_memory", lambda: 16 << 30)
    assert explain_no_room(10**9) is None
    assert explain_no_room(10**9, value_bytes=16) is not None
    assert explain_no_room(7 * 10**9) == "full precision needs 31 GB of memory, more than is free"


def test_the_card_says_why_nothing_was_compared() -> None:
    found = Agreement("full precision needs 31 GB of memory, more than is free")
    assert found.describe() == {"skipped": "full precision needs 31 GB of memory, more than is free"}
    assert "largest_difference" not in found.measure()


@pytest.mark.parametrize(
    ("source", "verified"),
    [
        ({"path": "x"}, True),
        ({"path": "x", "verify": False}, False),
        ({"hub": "a/b", "revision": "main"}, True),
        ({"build": BUILD}, False),
        ({"build": BUILD, "verify": True}, True),
    ],
)
def test_checkpoints_of_others_are_verified_unless_it_is_switched_off(source: dict[str, Any], verified: bool) -> None:
    assert Model.model_validate({"family": "qwen2_5", **source}).verified is verified


def test_an_endpoint_is_not_verified() -> None:
    given = {"family": "remote", "endpoint": {"provider": "them", "name": "model"}}
    assert not Model.model_validate(given).verified
    with pytest.raises(ValidationError, match="the weights of an endpoint are not here; remove verify"):
        Model.model_validate({**given, "verify": True})


@pytest.mark.slow
def test_both_compute_the_same_model(tiny: Callable[[str], Checkpoint], family: str) -> None:
    asked = describe_checkpoint(tiny(family).weights, family, 256, NO_LIMITS)
    found = compare_passes({**asked, "values": 10**6}, "big")
    assert found.skipped is None
    assert found.largest <= 1e-4
    assert found.tokens >= 1
    assert compare_passes({**asked, "values": 10**15}, "big").skipped is not None
    assert "does not fit context_tokens = 20" in str(
        compare_passes({**asked, "values": 10**6, "context_tokens": 20}, "big").skipped
    )


@pytest.mark.slow
def test_stage_model_writes_what_it_found(
    make_project: Callable[..., Path],
    tiny: Callable[[str], Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RIL_STORE", str(tmp_path / "store"))
    folder = Path(shutil.copytree(tiny("qwen2_5_vl").folder, tmp_path / "ckpt"))
    given = {"family": "qwen2_5_vl", "precision": "fp32", "context_tokens": 256, "build": None, "path": str(folder)}
    project = make_project({"models": {"student": given}})
    job = open_job("model", "student", project, load_params(project / "params.yaml"))
    model_stage.run(job)
    assert read_json(job.out / "ril.json")["verified"] == {"tokens": 8}
    assert read_json(job.reports / "metrics.json")["verified"]["largest_difference"] <= 1e-4


@pytest.mark.slow
def test_stage_model_refuses_a_checkpoint_that_vllm_reads_otherwise(
    make_project: Callable[..., Path],
    tiny: Callable[[str], Checkpoint],
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    """vLLM takes the last layer of InternVL's tower whatever `vision_feature_layer` says; transformers obeys it."""
    folder = Path(shutil.copytree(tiny("internvl3").folder, tmp_path / "ckpt"))
    config = read_json(folder / "config.json")
    assert config["vision_feature_layer"] == -1
    write_json(folder / "config.json", {**config, "vision_feature_layer": -2})
    given = {"family": "internvl3", "precision": "fp32", "context_tokens": 256, "build": None, "path": str(folder)}
    store = {"RIL_STORE": str(tmp_path / "store")}
    project = make_project({"models": {"student": given}})
    code, _, err = call(project, "flows.run", "model", "student", **store)
    assert code != 0
    said = " ".join(err.split())
    assert "Traceback" not in said
    assert re.search(
        r"models\.student\.verify: log probabilities of vLLM and transformers differ by [0-9.]+ in fp32, the bound is "
        r"0\.0001; the weights or files of this checkpoint are not read alike: restore them, or set "
        r"models\.student\.verify: false",
        said,
    )
    assert not (project / "data/model/student").exists()
    unverified = make_project({"models": {"student": {**given, "verify": False}}}, "unverified")
    code, _, err = call(unverified, "flows.run", "model", "student", **store)
    assert code == 0, err
    assert "verified" not in read_json(unverified / "data/model/student/ril.json")
