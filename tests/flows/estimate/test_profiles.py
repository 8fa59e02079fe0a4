"""Every GPU profile fits its cards by calculation, and docs/profiles.md has the tables."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.estimate.engines import count_largest_image
from flows.estimate.profiles import PROFILES, estimate_profile, find_published_shapes, format_profile
from flows.estimate.shapes import PUBLISHED
from flows.estimate.table import CARDS, PARTS, Estimate, estimate_memory
from flows.profile import list_profiles, read_profile
from stages.config.model import Model
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml


def load(root: Path, name: str, changes: Mapping[str, Any] | None = None) -> Params:
    values = merge_params(read_yaml(root / "params.yaml"), read_profile(root, name))
    return validate_params(merge_params(values, changes or {}))


def estimate(root: Path, name: str, changes: Mapping[str, Any] | None = None) -> Estimate:
    return estimate_profile(load(root, name, changes), name)


def test_every_profile_of_a_published_student_is_estimated(root: Path) -> None:
    sentences = list_profiles(root)
    published = {name for name in sentences if load(root, name).models["student"].hub}
    assert published == set(PROFILES)
    for name, card in PROFILES.items():
        assert f"{card} GB" in sentences[name]


@pytest.mark.parametrize("name", PROFILES)
def test_no_gpu_of_any_stage_exceeds_its_card(root: Path, name: str) -> None:
    found = estimate(root, name)
    assert found.list_faults() == []
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


@pytest.mark.parametrize("name", PROFILES)
def test_the_page_has_the_tables_of_the_code(root: Path, name: str) -> None:
    page = (root / "docs" / "profiles.md").read_text()
    block = f"<!-- estimate {name} -->\n{format_profile(root, name)}\n<!-- /estimate {name} -->"
    assert block in page, "update it with: python docs/estimated.py"


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
    faults = estimate(root, name, changes).list_faults()
    assert re.search(words, "\n".join(faults)), faults


def test_what_cannot_be_estimated_is_refused(root: Path) -> None:
    with pytest.raises(ParamsError, match=r"models\.student\.hub is 'a/b', whose shape is not known here"):
        find_published_shapes(load(root, "lora_1x80", {"models": {"student": {"hub": "a/b"}}}))
    fp32 = load(root, "lora_1x80", {"models": {"student": {"precision": "fp32"}}})
    with pytest.raises(ValueError, match=r"models\.student\.precision is 'fp32'"):
        estimate_memory(fp32, find_published_shapes(fp32), CARDS[80])
    with pytest.raises(ValueError, match=r"runtime\.gpus is 0"):
        estimate(root, "lora_1x80", {"runtime": {"gpus": 0}})


# Billions of weights as the hub shows them for each model.
SIZES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33.5,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73.4,
    "OpenGVLab/InternVL3-2B-hf": 2.09,
    "OpenGVLab/InternVL3-8B-hf": 7.94,
    "OpenGVLab/InternVL3-14B-hf": 15.1,
    "OpenGVLab/InternVL3-38B-hf": 38.4,
    "OpenGVLab/InternVL3-78B-hf": 78.4,
    "Qwen/Qwen2.5-7B-Instruct": 7.62,
    "Qwen/Qwen2.5-32B-Instruct": 32.8,
    "Qwen/Qwen2.5-72B-Instruct": 72.7,
}


def test_published_shapes_have_the_weights_that_the_hub_shows() -> None:
    assert {name: pytest.approx(shape.weights / 1e9, rel=3e-3) for name, shape in PUBLISHED.items()} == SIZES


def test_what_host_memory_and_disk_hold(root: Path) -> None:
    """The states of two 7B models are 176 GB: on disk a set for each kept one and the one being written."""
    resident, swapped = (
        estimate(root, "node_8x80", {"runtime": {"optimizer_states": one}}) for one in ("resident", "swapped")
    )
    assert resident.storage.checkpoint == pytest.approx(176.2e9, rel=1e-3)
    assert resident.storage.seconds == pytest.approx(88, abs=0.5)
    assert swapped.storage.host - resident.storage.host == resident.storage.checkpoint
    assert resident.storage.disk == pytest.approx(3 * resident.storage.checkpoint + 4 * 8.292e9, rel=1e-3)
    away = estimate(root, "node_8x80", {"runtime": {"reference": "offloaded"}}).storage
    assert away.host - resident.storage.host == pytest.approx(2 * 8.292e9, rel=1e-3)


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
