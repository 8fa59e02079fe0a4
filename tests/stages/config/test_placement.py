"""Who has which GPU in the loop, and which claims are refused when parameters are loaded."""

from pathlib import Path
from typing import Any

import pytest

from flows.profile import read_profile
from stages.config.params import Params, validate_params
from stages.config.placement import Placement, place_loop
from stages.config.runtime import Runtime
from stages.config.yaml import ParamsError, merge_params, read_yaml

SERVER = {"kind": "vllm_server"}


def place(count: int, **runtime: Any) -> Placement:
    return place_loop(Runtime.model_validate(runtime), "judge", count)


def load(root: Path, **runtime: Any) -> Params:
    return validate_params(merge_params(read_yaml(root / "params.yaml"), {"runtime": runtime}))


def test_the_papers_arrangement(root: Path) -> None:
    """Section 3: one GPU for the student's vLLM, one for the judge, six that train; all other stages use all eight."""
    params = validate_params(merge_params(read_yaml(root / "params.yaml"), read_profile(root, "paper")))
    runtime = params.runtime
    assert place_loop(runtime, "judge", 8) == Placement((2, 3, 4, 5, 6, 7), {"judge": (1,), "student": (0,)})
    assert [runtime.count_ranks(stage) for stage in ("warm_start", "discriminator", "ril")] == [8, 8, 6]
    for stage in ("rollout", "evaluate"):
        assert getattr(runtime.find_engine(stage, "student"), "gpus", None) == ()
        assert runtime.find_engine(stage, "student").kind == "vllm"  # one replica on each GPU
    assert (runtime.zero_stage, runtime.gpus) == (3, 8)


def test_the_student_samples_on_all_gpus_that_are_free() -> None:
    assert place(8, processes=4) == Placement((0, 1, 2, 3), {"judge": (7,), "student": (4, 5, 6)})
    assert place(8, rank_gpus={"ril": [6, 7]}).engines == {"judge": (5,), "student": (0, 1, 2, 3, 4)}
    two = {"student": SERVER | {"tensor_parallel": 2}, "judge": SERVER | {"gpus": [0]}}
    assert place(8, rank_gpus={"ril": [7]}, engines=two).engines == {"judge": (0,), "student": (1, 2, 3, 4, 5, 6)}
    elsewhere = {"judge": SERVER | {"urls": ["http://node7:8000"]}}
    assert place(4, processes=2, engines=elsewhere).engines == {"student": (2, 3)}
    assert place_loop(Runtime(processes=2), None, 4).engines == {"student": (2, 3)}


def test_an_engine_that_sleeps_has_all_gpus_but_those_of_others() -> None:
    asleep = {"kind": "vllm", "memory_share": 0.3, "sharing": "sleep"}
    alone = {"student": asleep, "judge": SERVER | {"gpus": [3]}}
    assert place(4, processes=3, engines=alone).engines == {"judge": (3,), "student": (0, 1, 2)}
    assert place(1, engines={"student": asleep, "judge": asleep}).engines == {"judge": (0,), "student": (0,)}


def test_the_way_of_new_weights_follows_from_device_and_adapter() -> None:
    """On a CPU as before; an adapter that vLLM does not apply is merged."""
    auto = Runtime()
    assert [auto.select_transfer(rank, on_gpu=False) for rank in (0, 16)] == ["file", "file"]
    assert [auto.select_transfer(rank, on_gpu=True) for rank in (0, 16, 1024)] == ["direct", "adapter", "direct"]
    for way in ("file", "direct", "adapter"):
        named = Runtime.model_validate({"weight_transfer": way})
        assert {named.select_transfer(16, on_gpu=True), named.select_transfer(16, on_gpu=False)} == {way}


RAY = SERVER | {"args": ["--distributed-executor-backend", "ray"]}
NO_WAYS = [
    ({"weight_transfer": "adapter"}, None, r"weight_transfer is 'adapter', but ril\.lora is off: .* take auto, or set"),
    (
        {"weight_transfer": "adapter"},
        {"quantization": "nf4"},
        r"ril\.lora\.quantization is 'nf4': the engine's weights are not rounded .* take auto",
    ),
    ({"weight_transfer": "adapter"}, {"rank": 600}, r"ril\.lora\.rank is 600, and vLLM .* up to rank 512; take auto"),
    (
        {"weight_transfer": "direct", "stage_engines": {"ril": {"student": RAY}}},
        None,
        r"'direct', but runtime\.stage_engines\.ril\.student spans machines \(Ray\): .* take auto",
    ),
    ({"weight_transfer": "nccl"}, None, "weight_transfer"),
]


@pytest.mark.parametrize(("runtime", "lora", "line"), NO_WAYS)
def test_a_way_of_new_weights_that_there_is_not_is_refused(
    root: Path, runtime: dict[str, Any], lora: dict[str, Any] | None, line: str
) -> None:
    overlay = {"runtime": runtime, "ril": {"lora": lora, "freeze_vision": True}}
    with pytest.raises(ParamsError, match=line):
        validate_params(merge_params(read_yaml(root / "params.yaml"), overlay))


def test_on_cpu_nothing_is_placed() -> None:
    assert place(0, processes=4) == Placement((0, 1, 2, 3), {})


CLAIMS = [
    (
        {"processes": 6, "stage_engines": {"ril": {"student": SERVER | {"gpus": [0]}}}},
        [
            "GPU 0 is claimed by the 6 ranks of stage ril and by the engine of student",
            "(runtime.stage_engines.ril.student)",
            "give one of them other GPUs (runtime.rank_gpus.ril, runtime.stage_engines.ril.student.gpus)",
            "runtime.stage_engines.ril.student.sharing sleep or memory, with memory_share",
        ],
    ),
    (
        {"engines": {"student": SERVER | {"gpus": [4, 5]}, "judge": SERVER | {"gpus": [5, 6]}}},
        ["GPU 5 is claimed by the engine of judge", "and by the engine of student (runtime.engines.student)"],
    ),
    ({"gpus": 8, "processes": 8}, ["GPU 0 is claimed by the 8 ranks", "the engine of judge (runtime.engines.judge)"]),
    ({"gpus": 1}, ["GPU 0 is claimed by the 1 ranks of stage ril and by the engine of judge"]),
    (
        {
            "engines": {
                "student": SERVER | {"gpus": [0], "memory_share": 0.6, "sharing": "sleep"},
                "judge": SERVER | {"gpus": [0], "memory_share": 0.5, "sharing": "memory"},
            }
        },
        ["GPU 0: the engine of judge (runtime.engines.judge) and the engine of student", "take 1.1 of its memory"],
    ),
    ({"gpus": 4, "rank_gpus": {"ril": [3, 4]}}, ["runtime.rank_gpus.ril names GPU 4, but runtime.gpus is 4"]),
    ({"gpus": 4, "engines": {"judge": SERVER | {"gpus": [7]}}}, ["runtime.engines.judge.gpus names GPU 7"]),
    (
        {"engines": {"judge": SERVER | {"gpus": [4, 5], "tensor_parallel": 4}}},
        ["the engine of judge (runtime.engines.judge) needs 4 GPUs and has 2"],
    ),
    ({"rank_gpus": {"ril": [2, 2]}}, ["runtime.rank_gpus.ril", "has 2 twice"]),
    ({"engines": {"judge": {"kind": "vllm", "sharing": "sleep"}}}, ["sharing is 'sleep' without memory_share"]),
    (
        {"stage_engines": {"ril": {"judge": SERVER | {"replica": 2}}}},
        ["runtime.stage_engines.ril.judge.replica = 2", "did you mean 'replicas'?"],
    ),
    ({"stage_engines": {"ril": {"nobody": SERVER}}}, ["runtime.stage_engines.ril is 'nobody', not an entry of models"]),
    ({"stage_engines": {"pool": {"judge": SERVER}}}, ["runtime.stage_engines.pool"]),
    (
        {"stage_engines": {"ril": {"student": SERVER | {"port": 9000}}}},
        ["runtime.stage_engines.ril.student.port is 9000; servers of a model in training"],
    ),
    (
        {"engines": {"judge": SERVER | {"port": 9000, "sharing": "sleep", "memory_share": 0.2}}},
        ["runtime.engines.judge.port is 9000; servers that sleep let any caller run code"],
    ),
]


@pytest.mark.parametrize(("runtime", "parts"), CLAIMS)
def test_a_claim_that_cannot_be_met_is_refused_with_both_names(
    root: Path, runtime: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ParamsError) as refused:
        load(root, **runtime)
    (line,) = str(refused.value).splitlines()
    for part in parts:
        assert part in line


def test_a_way_of_sharing_that_is_declared_is_accepted(root: Path) -> None:
    share = SERVER | {"gpus": [0], "memory_share": 0.4}
    engines = {"student": share | {"sharing": "sleep"}, "judge": share | {"sharing": "memory"}}
    params = load(root, gpus=2, processes=2, engines=engines)
    assert place_loop(params.runtime, "judge", 2).engines == {"student": (0,), "judge": (0,)}


@pytest.mark.parametrize("name", ["lora_1x24", "lora_1x80", "node_8x80", "paper"])
def test_no_profile_claims_a_gpu_twice(root: Path, name: str) -> None:
    params = validate_params(merge_params(read_yaml(root / "params.yaml"), read_profile(root, name)))
    assert params.runtime.gpus > 0, "so that every claim is checked"
    assert "student" in place_loop(params.runtime, params.verdict.model, params.runtime.gpus).engines
