"""Which models the student can be distilled from, what is refused at the door, and who has which GPU then."""

from pathlib import Path
from typing import Any

import pytest

from flows.jobs import open_job
from stages.config.params import Params, validate_params
from stages.config.placement import place_loop
from stages.config.runtime import Runtime
from stages.config.uses import list_used_models
from stages.config.yaml import ParamsError, merge_params, read_yaml

BOTH = ["qwen2_5_vl", "internvl3"]
REMOTE = {"family": "remote", "build": None, "endpoint": {"provider": "somebody", "name": "model-1"}}
RENTED = {"kind": "openai", "base_url": "http://127.0.0.1:9"}


def load(root: Path, distillation: list[str], overlay: dict[str, Any] | None = None) -> Params:
    distilled = {"ril": {"objective": "opd", "distillation": distillation}}
    values = merge_params(read_yaml(root / "params.yaml"), distilled)
    return validate_params(merge_params(values, overlay or {}))


REFUSED: list[tuple[list[str], dict[str, Any], list[str]]] = [
    ([], {}, ["ril.distillation names no model", "name some of qwen2_5_vl, internvl3"]),
    (["judge"], {}, ["ril.distillation has 'judge'", "no model of pool.teachers", "known: qwen2_5_vl, internvl3"]),
    (["student"], {}, ["ril.distillation has 'student'", "known: "]),
    (["internvl3"], {"pool": {"teachers": ["qwen2_5_vl"]}}, ["ril.distillation has 'internvl3'", "known: qwen2_5_vl"]),
    (["student"], {"teachers": {"qwen2_5_vl": {"model": "student"}}}, ["has 'student'", "or the student"]),
    (["qwen2_5_vl", "qwen2_5_vl"], {}, ["ril.distillation has 'qwen2_5_vl' twice", "remove one"]),
    (
        ["internvl3"],
        {"models": {"internvl3": REMOTE}, "runtime": {"engines": {"internvl3": RENTED}}},
        ["'internvl3', which is an endpoint", "no log probabilities", "name a model with weights that sees images"],
    ),
    (
        ["judge"],
        {"teachers": {"internvl3": {"model": "judge"}}},
        ["'judge', which is of family 'qwen2_5' and sees no images", "name a model with weights"],
    ),
    (
        ["qwen2_5_vl"],
        {"runtime": {"engines": {"qwen2_5_vl": {"kind": "replay"}}}},
        ["runtime.engines.qwen2_5_vl is 'replay'", "set runtime.stage_engines.ril.qwen2_5_vl to vllm or vllm_server"],
    ),
]


@pytest.mark.parametrize(("distillation", "overlay", "parts"), REFUSED)
def test_what_cannot_score_is_refused_at_load(
    root: Path, distillation: list[str], overlay: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ParamsError) as caught:
        load(root, distillation, overlay)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


def test_other_objectives_do_not_read_the_list(root: Path) -> None:
    params = load(root, ["nobody"], {"ril": {"objective": "ril"}})
    assert params.distilled_models == ()
    assert not [path for path in open_job("ril", None, root, params).paths if path.startswith("data/model/q")]


def test_the_loop_may_read_the_models_and_uses_their_engines(root: Path) -> None:
    params = load(root, BOTH)
    job = open_job("ril", None, root, params)
    assert list(job.paths[-2:]) == ["data/model/qwen2_5_vl", "data/model/internvl3"]
    assert list_used_models(params, "ril") == ["student", *BOTH]
    assert list_used_models(load(root, BOTH, {"ril": {"answer_weight": 1.0}}), "ril") == ["student", "judge", *BOTH]


def test_every_teacher_has_a_gpu_and_the_student_the_others() -> None:
    server = {"kind": "vllm_server"}
    found = place_loop(Runtime(processes=2), "judge", 8, BOTH)
    assert found.ranks == (0, 1)
    assert found.engines == {"judge": (7,), "qwen2_5_vl": (6,), "internvl3": (5,), "student": (2, 3, 4)}
    two = Runtime.model_validate({"engines": {"internvl3": server | {"tensor_parallel": 2, "gpus": [1, 2]}}})
    assert place_loop(two, None, 4, ["internvl3"]).engines == {"internvl3": (1, 2), "student": (3,)}
    with pytest.raises(ValueError, match=r"GPU 0 is claimed by .*2 ranks.* and by the engine of qwen2_5_vl"):
        place_loop(Runtime(processes=2), None, 2, ["qwen2_5_vl"])


def test_a_claim_of_a_teacher_is_refused_when_parameters_are_loaded(root: Path) -> None:
    claim = {"runtime": {"engines": {"qwen2_5_vl": {"kind": "vllm", "gpus": [0]}}}}
    with pytest.raises(ParamsError, match=r"GPU 0 is claimed by .*ranks.* and by the engine of qwen2_5_vl"):
        load(root, ["qwen2_5_vl"], claim)
    load(root, ["qwen2_5_vl"], merge_params(claim, {"ril": {"objective": "ril"}}))
