"""Every GPU profile fits its cards by calculation, docs/profiles.md has its plan, and those of 911effc are refused."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from docs.estimated import PLANNED, format_page_plan
from flows.estimate.cards import CARDS
from flows.estimate.engines import count_largest_image
from flows.estimate.models import find_models
from flows.estimate.plan import Given, PipelinePlan, plan_pipeline
from flows.estimate.profiles import find_profile_card
from flows.estimate.published import PUBLISHED
from flows.estimate.storage import Storage
from flows.estimate.table import PARTS, Estimate, GpuMemory
from flows.profile import list_profiles, read_profile
from stages.config.model import Model
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml

PROFILES = ("lora_1x24", "lora_1x80", "node_8x80", "paper")
HERE = Path(__file__).parent


def load(root: Path, name: str, changes: Mapping[str, Any] | None = None) -> Params:
    values = merge_params(read_yaml(root / "params.yaml"), read_profile(root, name))
    return validate_params(merge_params(values, changes or {}))


def plan(root: Path, name: str, changes: Mapping[str, Any] | None = None) -> PipelinePlan:
    params = load(root, name, changes)
    card = CARDS[find_profile_card(root, name) or "80"]
    return plan_pipeline(params, Given(root, root / "no store", find_models(root, params), card))


def estimate(root: Path, name: str, changes: Mapping[str, Any] | None = None) -> Estimate:
    return plan(root, name, changes).memory


def test_every_profile_of_a_published_student_is_estimated(root: Path) -> None:
    sentences = list_profiles(root)
    published = {name for name in sentences if load(root, name).models["student"].hub}
    assert published == set(PROFILES) == {name for name in sentences if find_profile_card(root, name)}


@pytest.mark.parametrize("name", PROFILES)
def test_no_gpu_of_any_stage_exceeds_its_card(root: Path, name: str) -> None:
    found = estimate(root, name)
    assert found.list_shortfalls() == []
    params = load(root, name)
    seen = {row.stage.partition(":")[0] for row in found.rows}
    wanted = {"warm_start", "rollout", "discriminator", "ril", "evaluate"}
    assert wanted <= seen
    here = {"teacher": [teacher.model for teacher in params.teachers.values()], "verdict": [params.verdict.model]}
    for stage, models in here.items():
        assert (stage in seen) == any(params.models[model].endpoint is None for model in models)
    for row in found.rows:
        assert set(row.parts) <= set(PARTS)
        assert all(value >= 0 for value in row.parts.values())
        assert set(row.gpus) <= set(range(params.runtime.gpus))
    assert {gpu for row in found.rows if row.stage.startswith("ril") for gpu in row.gpus} == set(
        range(params.runtime.gpus)
    ), "every GPU has work in the loop"


@pytest.mark.parametrize("name", PLANNED)
def test_the_page_has_the_plans_of_the_command(root: Path, name: str) -> None:
    page = (root / "docs" / "profiles.md").read_text()
    assert format_page_plan(root, name) in page, "update it with: python -m docs.estimated"


def test_every_profile_has_its_plan_on_the_page(root: Path) -> None:
    assert {"tiny", *list_profiles(root)} - set(PLANNED) == {"recommended", "easy_vqa"}, "these change no size"


@pytest.mark.parametrize(
    ("family", "values", "tokens"),
    [
        ("qwen2_5_vl", {"context_tokens": 4096}, 2048),
        ("qwen2_5_vl", {"context_tokens": 65_536}, 16_384),
        ("qwen2_5_vl", {"context_tokens": 65_536, "max_pixels": 784_000}, 1000),
        ("internvl3", {"context_tokens": 8192, "max_tiles": 6}, 1792),
    ],
)
def test_the_largest_image_of_an_engine_has_the_models_limits(family: str, values: dict[str, int], tokens: int) -> None:
    source = {"family": family, "hub": "a/b", "revision": "main"}
    assert count_largest_image(Model.model_validate(source | values)) == tokens


WHOLE = {"warm_start": {"lora": None, "freeze_vision": False}}
KEPT = {"runtime": {"gradient_checkpointing": False}}
THREE = {"reference": "replicated", "rank_gpus": {"ril": [2, 3, 4]}}
LONG = {"ril": {"tokens_per_pack": 16384}}
AWAKE = {"runtime": {"stage_engines": {"ril": {"student": {"memory_share": 0.5, "sharing": "memory"}}}}}
# What makes each profile too large, and what is said.
FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("lora_1x24", KEPT, "warm_start, GPUs 0, backward of the head: "),
    ("lora_1x24", AWAKE, "ril, GPUs 0, student, backward of the head: "),
    ("lora_1x24", WHOLE, "warm_start, GPUs 0, step: "),
    ("lora_1x80", WHOLE, r"warm_start, GPUs 0, step: \d+\.\d GB are needed and the card has 84\.9"),
    ("lora_1x80", KEPT | LONG, "ril, GPUs 0, student, backward of the head: "),
    ("lora_1x80", {"models": {"internvl3": {"hub": "OpenGVLab/InternVL3-38B-hf"}}}, "KV cache of internvl3 holds 0"),
    ("node_8x80", KEPT, "warm_start, GPUs 0-7, backward"),
    ("node_8x80", {"runtime": {"rank_gpus": {"ril": [2, 3]}}}, "ril, GPUs 2-3, student, "),
    ("paper", KEPT, "discriminator, GPUs 0-7, backward"),
    ("paper", {"runtime": {"zero_stage": 1, "optimizer_states": "resident", **THREE}}, "ril, GPUs 2-4, "),
    ("paper", {"runtime": {"engines": {"qwen2_5_vl": {"tensor_parallel": 1}}}}, "KV cache of qwen2_5_vl holds 0"),
]


@pytest.mark.parametrize(("name", "changes", "words"), FAULTS)
def test_what_does_not_fit_is_named(root: Path, name: str, changes: dict[str, Any], words: str) -> None:
    said = "\n".join(map(str, estimate(root, name, changes).list_shortfalls()))
    assert re.search(words, said), said


def test_what_cannot_be_estimated_is_refused(root: Path) -> None:
    with pytest.raises(ParamsError, match=r"models\.student\.hub is 'a/b', whose shape is not known here"):
        find_models(root, load(root, "lora_1x80", {"models": {"student": {"hub": "a/b"}}}))
    with pytest.raises(ParamsError, match=r"models\.student\.precision is 'fp32'"):
        estimate(root, "lora_1x80", {"models": {"student": {"precision": "fp32"}}})
    with pytest.raises(ParamsError, match=r"runtime\.gpus is 0"):
        estimate(root, "lora_1x80", {"runtime": {"gpus": 0}})


# Billions of weights as the hub shows them for each model; of tied ones with one matrix for embeddings and head.
SIZES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33.5,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73.4,
    "OpenGVLab/InternVL3-1B-hf": 0.938,
    "OpenGVLab/InternVL3-2B-hf": 2.09,
    "OpenGVLab/InternVL3-8B-hf": 7.94,
    "OpenGVLab/InternVL3-14B-hf": 15.1,
    "OpenGVLab/InternVL3-38B-hf": 38.4,
    "OpenGVLab/InternVL3-78B-hf": 78.4,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "Qwen/Qwen3-VL-32B-Instruct": 33.4,
    "OpenGVLab/InternVL3_5-1B-HF": 1.06,
    "OpenGVLab/InternVL3_5-2B-HF": 2.35,
    "OpenGVLab/InternVL3_5-4B-HF": 4.73,
    "OpenGVLab/InternVL3_5-8B-HF": 8.53,
    "OpenGVLab/InternVL3_5-14B-HF": 15.1,
    "OpenGVLab/InternVL3_5-38B-HF": 38.4,
    "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
    "Qwen/Qwen2.5-3B-Instruct": 3.09,
    "Qwen/Qwen2.5-7B-Instruct": 7.62,
    "Qwen/Qwen2.5-14B-Instruct": 14.8,
    "Qwen/Qwen2.5-32B-Instruct": 32.8,
    "Qwen/Qwen2.5-72B-Instruct": 72.7,
    "Qwen/Qwen3-0.6B": 0.596,
    "Qwen/Qwen3-1.7B": 1.72,
    "Qwen/Qwen3-4B": 4.02,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-14B": 14.8,
    "Qwen/Qwen3-32B": 32.8,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.135,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 0.362,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71,
}


def test_published_shapes_have_the_weights_that_the_hub_shows() -> None:
    assert {name: pytest.approx(shape.weights / 1e9, rel=4e-3) for name, shape in PUBLISHED.items()} == SIZES


def test_what_host_memory_and_disk_hold(root: Path) -> None:
    """The states of two 7B models are 176 GB: on disk a set for each kept one and the one being written."""

    def find(**runtime: Any) -> Storage:
        return plan(root, "node_8x80", {"runtime": runtime}).find("ril").storage

    resident, swapped = find(optimizer_states="resident"), find(optimizer_states="swapped")
    assert resident.checkpoint == pytest.approx(176.2e9, rel=1e-3)
    assert resident.seconds == pytest.approx(88, abs=0.5)
    assert swapped.host - resident.host == resident.checkpoint
    assert resident.checkpoints == pytest.approx(3 * resident.checkpoint, rel=1e-3)
    assert resident.out.high == pytest.approx(2 * 8.292e9, rel=1e-3)
    assert find(reference="offloaded").host - find().host == pytest.approx(2 * 8.292e9, rel=1e-3)


def test_settings_for_less_memory_take_what_they_say(root: Path) -> None:
    """Per GPU of six: a divided reference 5/6 of 16.6 GB less, offloaded states and sums 16 bytes a weight of D."""

    def find_parts(**runtime: Any) -> Mapping[str, float]:
        rows = estimate(root, "node_8x80", {"runtime": runtime}).rows
        return next(row.parts for row in rows if row.gpus == (2, 3, 4, 5, 6, 7))

    whole, divided = find_parts(reference="replicated"), find_parts()
    assert whole["reference"] - divided["reference"] == pytest.approx(16.584e9 * 5 / 6, rel=1e-3)
    offloaded = find_parts(optimizer_states="offloaded")
    assert offloaded["optimizer"] == 0
    assert divided["discriminator"] - offloaded["discriminator"] == pytest.approx(16 * 7.0706e9 / 6, rel=1e-3)
    small = find_parts(deepspeed={"zero_optimization": {"reduce_bucket_size": 100_000_000}})
    assert divided["discriminator"] - small["discriminator"] == 2 * 400_000_000


# What a profile of commit 911effc says about GPUs that was not said there: who shares, which it did without a word.
SHARED = {"kind": "vllm", "sharing": "memory", "memory_share": 0.4}
UNSAID: dict[str, dict[str, Any]] = {
    "single_gpu": {"runtime": {"gpus": 1, "stage_engines": {"ril": {"student": SHARED, "judge": SHARED}}}},
    "paper": {
        "runtime": {
            "gpus": 8,
            "stage_engines": {
                "ril": {"student": {"kind": "vllm_server", "gpus": [0], "sharing": "memory", "memory_share": 0.9}}
            },
        }
    },
}


def refuse(root: Path, name: str, changes: Mapping[str, Any]) -> tuple[PipelinePlan, str]:
    values = merge_params(read_yaml(root / "params.yaml"), read_yaml(HERE / "refused" / f"{name}.yaml"))
    params = validate_params(merge_params(values, changes))
    made = plan_pipeline(params, Given(root, root / "no store", find_models(root, params), CARDS["80"]))
    return made, "\n".join(map(str, made.memory.list_shortfalls()))


def find_row(made: PipelinePlan, stage: str, gpu: int) -> GpuMemory:
    return next(row for row in made.memory.rows if row.stage == stage and gpu in row.gpus)


@pytest.mark.parametrize(("name", "gpus"), [("single_gpu", 1), ("paper", 8)])
def test_profiles_of_911effc_claim_a_gpu_twice(root: Path, name: str, gpus: int) -> None:
    with pytest.raises(ParamsError, match=r"GPU 0 is claimed by the \d ranks of stage ril and by the engine of"):
        refuse(root, name, {"runtime": {"gpus": gpus}})


def test_the_single_gpu_of_911effc_has_too_little_memory(root: Path) -> None:
    """Sums of the audit: 68.0 GB in the backward pass, 38 of activations; the loop 95.3 at rest, engines 67.9."""
    made, said = refuse(root, "single_gpu", UNSAID["single_gpu"])
    # Checkpointing does something now, and the step of ZeRO 0 took 24.1 bytes a weight, not 22: 90.5 GB then.
    assert re.search(r"warm_start, GPUs 0, step: 8\d\.\d GB are needed and the card has 84\.9", said)
    assert re.search(r"ril, GPUs 0, .*: 190\.\d GB are needed", said)
    loop = find_row(made, "ril", 0).parts
    resting = sum(loop[part] for part in ("weights", "optimizer", "reference", "discriminator"))
    updated = 8 * made.models["student"].shape.text.weights  # in the discriminator's update, beside what rests
    assert (resting - updated) / 1e9 == pytest.approx(95.3, rel=0.01)
    assert (loop["engine weights"] + loop["engine work"] + loop["KV cache"]) / 1e9 == pytest.approx(67.9, rel=0.01)
    unchecked = merge_params(UNSAID["single_gpu"], {"runtime": {"gradient_checkpointing": False}})
    warm = find_row(refuse(root, "single_gpu", unchecked)[0], "warm_start", 0).parts
    kept = sum(warm[part] for part in ("weights", "optimizer", "gradients"))
    assert kept / 1e9 == pytest.approx(68.0, rel=0.01)
    assert warm["activations"] / 1e9 == pytest.approx(38, rel=0.03)


def test_the_paper_of_911effc_has_too_little_memory_on_gpu_0(root: Path) -> None:
    """Sums of the audit: the engine 76.4 GB, a whole reference 16.6, activations without checkpointing 103."""
    made, said = refuse(root, "paper", UNSAID["paper"])
    assert re.search(r"ril, GPUs 0, .*: 1\d\d\.\d GB are needed and the card has 84\.9", said)
    loop = find_row(made, "ril", 0).parts
    assert (loop["engine weights"] + loop["engine work"] + loop["KV cache"]) / 1e9 == pytest.approx(76.4, rel=0.01)
    assert loop["reference"] / 1e9 == pytest.approx(16.6, rel=0.01)
    unchecked = merge_params(UNSAID["paper"], {"runtime": {"gradient_checkpointing": False}})
    made, said = refuse(root, "paper", unchecked)
    assert find_row(made, "discriminator", 0).parts["activations"] / 1e9 == pytest.approx(103, rel=0.02)
    assert "discriminator, GPUs 0-5, backward" in said
