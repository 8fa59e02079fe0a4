"""Which keys of DeepSpeed pass through, and what is said about the others."""

from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from stages.config.deepspeed import OffloadKeys, ZeroKeys
from stages.config.params import Params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml

ZERO_3 = {"zero_stage": 3}


def load(root: Path, runtime: dict[str, Any], **blocks: Any) -> Params:
    return validate_params(merge_params(read_yaml(root / "params.yaml"), {"runtime": runtime, **blocks}))


def zero(**keys: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": keys}}


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"deepspeed": {"train_batch_size": 8}}, ["runtime.deepspeed: train_batch_size", "tokens_per_pack"]),
        ({"deepspeed": {"gradient_accumulation_steps": 2}}, ["gradient_accumulation_steps", "questions_per_step"]),
        ({"deepspeed": {"gradient_clipping": 1.0}}, ["gradient_clipping", "set max_grad_norm of each block instead"]),
        ({"deepspeed": {"optimizer": {"type": "Lion"}}}, ["optimizer", "learning_rate"]),
        ({"deepspeed": {"scheduler": {}}}, ["scheduler", "lr_scheduler_type"]),
        ({"deepspeed": {"bf16": {"enabled": True}}}, ["bf16", "models.<id>.precision"]),
        ({"deepspeed": {"fp16": {"enabled": True}}}, ["fp16", "models.<id>.precision"]),
        ({"deepspeed": {"prescale_gradients": True}}, ["prescale_gradients", "changes results", "remove it"]),
        ({"deepspeed": {"steps_per_print": 1}}, ["steps_per_print", "has one value here"]),
        ({"deepspeed": {"zero_optimisation": {}}}, ["did you mean 'zero_optimization'"]),
        (zero(stage=2), ["runtime.deepspeed.zero_optimization: stage", "set runtime.zero_stage instead"]),
        (zero(zero_quantized_weights=True), ["zero_quantized_weights", "changes results"]),
        (zero(reduce_bucket=5), ["runtime.deepspeed.zero_optimization.reduce_bucket", "did you mean 'reduce_"]),
        (zero(reduce_bucket_size=0), ["reduce_bucket_size = 0", "greater than or equal to 1"]),
        (zero(reduce_bucket_size="auto"), ["reduce_bucket_size = 'auto'", "valid integer"]),
        (zero(offload_optimizer={"device": "nvme"}), ["device", "runtime.optimizer_states"]),
        (zero(cpu_offload=True), ["cpu_offload", "runtime.optimizer_states"]),
        (
            {"optimizer_states": "swapped"},
            ["optimizer_states is 'swapped'", "set zero_stage to 1"],
        ),
    ],
)
def test_what_is_refused_is_named_with_its_remedy(root: Path, runtime: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ParamsError) as refused:
        load(root, runtime)
    assert "\n" not in str(refused.value)
    for part in said:
        assert part in str(refused.value)


@pytest.mark.parametrize("block", ["ril", "discriminator"])
def test_a_base_of_adapters_is_not_divided(root: Path, block: str) -> None:
    adapters = {block: {"lora": {"rank": 4}}}
    assert load(root, ZERO_3, **adapters).runtime.reference == "replicated"
    with pytest.raises(ParamsError, match=rf"runtime.reference is 'sharded', but with {block}.lora .* to replicated"):
        load(root, ZERO_3 | {"reference": "sharded"}, **adapters)


def test_all_keys_are_deepspeeds(root: Path) -> None:
    """Each that passes exists in the installed version under that name."""
    given: dict[str, Any] = dict.fromkeys(ZeroKeys.model_fields, 1)
    given |= {name: True for name, field in ZeroKeys.model_fields.items() if field.annotation == bool | None}
    given |= {"offload_optimizer": {"pin_memory": False}, "offload_param": {"pin_memory": False}}
    passed = load(root, zero(**given)).runtime.deepspeed.zero_optimization.model_dump()
    assert passed == given
    assert set(OffloadKeys.model_fields) == {"pin_memory"}
    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert not set(given) - known
