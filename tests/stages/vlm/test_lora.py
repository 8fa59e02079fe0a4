"""Adapters beside a frozen model: the same gradients and merged weights as peft's own, several on one model, export."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor

from stages.config.lora import Lora
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_packs
from stages.training.trainer import Trainer, save_weights
from stages.vlm.checkpoint import Checkpoint, write_card
from stages.vlm.reader import Network, Reader, load_network, load_reader
from tests.stages.rollout_fixtures import picture

Tiny = Callable[[str], Checkpoint]
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "internvl3", "qwen2_5"]
LORA = Lora(rank=4, alpha=6.0)


def make_groups(reader: Reader, sees: bool = True) -> list[Group]:
    """Two questions with three answers each."""
    mark, images = ("<image>", [picture()]) if sees else ("", [])
    questions = [[{"role": "user", "content": f"{mark}What is the sum of the digits {n}?"}] for n in range(2)]
    answers = [tuple(reader.chat.encode_response(text)) for text in ("3:3, 8:11", "16", "the sum is 5")]
    return [Group(reader.make_prompt(messages, images), tuple(answers)) for messages in questions]


def copy_weights(network: Network) -> dict[str, Tensor]:
    """The weights of the model without adapters, as they are now."""
    named = network.model.state_dict().items()
    return {name.replace(".base_layer.", "."): one.clone() for name, one in named if ".lora_" not in name}


def fill(network: Network, seed: int, spread: float = 0.05) -> dict[str, Tensor]:
    """Random weights for the adapter: its B is zero at the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in network.trained.parameters():
            one.copy_(torch.randn(one.shape, generator=generator) * spread)
    return dict(network.trained.state_dict())


def write_and_load(
    network: Network, reader: Reader, state: dict[str, Tensor], folder: Path, checkpoint: Checkpoint
) -> Network:
    """What a stage writes of a model with an adapter, loaded again."""
    save_weights(network.model, folder, dict(network.iter_weights(state)))
    reader.save(folder)
    network.save_adapter(state, folder, "base")
    family = checkpoint.family
    write_card(folder, family, "fp32", checkpoint.context_tokens)
    return load_network(Checkpoint(folder, folder, family, "fp32", 256, ""), reader)


def sum_log_probs(network: Network, groups: list[Group]) -> Tensor:
    return sum(response_log_probs(network, pack).sum() for pack in make_packs(groups, 4096))  # type: ignore[return-value]


def repeat_rows(groups: list[Group]) -> list[Group]:
    """One group for each answer: the prompt is repeated, and attention is plain and causal."""
    return [Group(group.prompt, (answer,)) for group in groups for answer in group.responses]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_peft_on_the_repeated_form(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """The adapter as exported is loaded by peft on a fresh model, which reads each row for itself."""
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    groups = make_groups(reader, sees=family != "qwen2_5")
    network = load_network(checkpoint, reader).add_adapter("student", LORA, seed=1)
    state = fill(network, seed=2)
    network.save_adapter(state, tmp_path, "base")
    sum_log_probs(network, groups).backward()
    ours = {name: one.grad for name, one in network.trained.named_parameters()}

    fresh = load_network(checkpoint, reader)
    theirs = peft.PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter"), is_trainable=True)
    plain = Network(fresh.family, theirs.base_model.model, reader.image_token_id)
    for row in repeat_rows(groups):
        sum_log_probs(plain, [row]).backward()
    found = {
        name.split("layers.", 1)[1].replace(".default", ""): one.grad
        for name, one in theirs.named_parameters()
        if one.requires_grad
    }
    assert len(ours) == len(found) == 2 * 7 * 2  # layers, linear layers, matrices
    for name, gradient in ours.items():
        other = found[name.removeprefix("layers.")]
        assert gradient is not None
        assert float(gradient.abs().max()) > 0
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_are_those_of_peft_and_load_as_any_checkpoint(family: str, tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    groups = make_groups(reader, sees=family != "qwen2_5")
    base = load_network(checkpoint, reader)
    network = base.add_adapter("student", LORA, seed=1)
    before, state = copy_weights(base), fill(network, seed=2)
    wanted = sum_log_probs(network, groups).detach()
    loaded = write_and_load(network, reader, state, tmp_path, checkpoint)
    assert torch.allclose(sum_log_probs(loaded, groups), wanted, rtol=1e-5)
    fresh = load_network(checkpoint, reader).model
    merged = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    stored = loaded.model.state_dict()
    assert stored.keys() == merged.keys() == before.keys()
    for name, tensor in merged.items():
        assert torch.allclose(stored[name], tensor, rtol=1e-6, atol=1e-7), name
    changed = [name for name in stored if not torch.equal(stored[name], before[name])]
    assert len(changed) == 14
    assert all("language_model" in name or family == "qwen2_5" for name in changed), "nothing of the vision tower"


@pytest.mark.parametrize("family", FAMILIES)
def test_two_adapters_and_the_model_itself_take_turns(family: str, tiny: Tiny) -> None:
    """Each computes what it computes alone; one that has not learned yet is the model itself, to the last bit."""
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    groups = make_groups(reader, sees=family != "qwen2_5")
    alone = {}
    for name in ("student", "discriminator"):
        network = load_network(checkpoint, reader).add_adapter(name, LORA, seed=1)
        fill(network, seed=len(name))
        alone[name] = sum_log_probs(network, groups)
    base = load_network(checkpoint, reader)
    itself = sum_log_probs(base, groups)
    networks = {name: base.add_adapter(name, LORA, seed=1) for name in ("student", "discriminator")}
    assert torch.equal(sum_log_probs(networks["student"], groups), itself)
    for name, network in networks.items():
        fill(network, seed=len(name))
    for name in ("student", "discriminator", "student"):
        assert torch.equal(sum_log_probs(networks[name], groups), alone[name])
        assert not torch.equal(alone[name], itself)
        assert torch.equal(sum_log_probs(base, groups), itself)
    assert len({id(network.model) for network in networks.values()} | {id(base.model)}) == 1


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_trainer_changes_its_own_adapter_alone(zero_stage: int, tiny: Tiny, tmp_path: Path) -> None:
    """Two trainers on one model, in turn; a state holds the adapter only."""
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    groups, base = make_groups(reader), load_network(checkpoint, reader)
    before = copy_weights(base)
    schedule = Schedule(steps=2, learning_rate=1e-3)
    networks = {name: base.add_adapter(name, LORA, seed=1) for name in ("student", "discriminator")}
    runtime = Runtime(zero_stage=zero_stage)
    trainers = {name: Trainer(network.trained, schedule, runtime) for name, network in networks.items()}
    for name in ("student", "discriminator", "student"):
        other = trainers["discriminator" if name == "student" else "student"]
        kept, mine = other.copy_state(), trainers[name].copy_state()
        trainers[name].backward(-sum_log_probs(networks[name], groups), last=True)
        assert trainers[name].step(1e-3).grad_norm > 0
        assert all(torch.equal(one, kept[key]) for key, one in other.state_dict().items())
        assert any(not torch.equal(one, mine[key]) for key, one in trainers[name].state_dict().items())
    after = copy_weights(base)
    assert all(torch.equal(before[name], after[name]) for name in before)

    trainer, learned = trainers["student"], trainers["student"].copy_state()
    trainer.save_state(tmp_path, "student")
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    numbers = sum(one.numel() for one in learned.values())
    assert trainer.estimate_state_bytes() == 12 * numbers
    assert written < 2 * 12 * numbers + 100_000 < sum(one.numel() for one in before.values()) * 4
    fill(networks["student"], seed=3)
    trainer.load_state(tmp_path, "student")
    assert all(torch.equal(one, learned[name]) for name, one in trainer.state_dict().items())


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_adapters_learn_in_bf16(zero_stage: int, tiny: Tiny) -> None:
    """Steps below the rounding of bf16 add up: DeepSpeed keeps fp32 copies of what is trained."""
    checkpoint = tiny("internvl3")
    reader = load_reader(checkpoint)
    base = load_network(checkpoint, reader)
    base.model.bfloat16()
    groups, before = make_groups(reader), copy_weights(base)
    network = base.add_adapter("student", LORA, seed=1)
    state = fill(network, seed=2)
    start = {name: one.clone() for name, one in state.items()}
    trainer = Trainer(network.trained, Schedule(steps=40, learning_rate=1e-5), Runtime(zero_stage=zero_stage))
    losses = []
    for _ in range(40):
        loss = -sum_log_probs(network, groups) / 100
        losses.append(trainer.backward(loss, last=True))
        trainer.step(1e-5)
    moved = torch.cat([(one - start[name]).flatten().abs() for name, one in trainer.state_dict().items()])
    large = torch.cat([one.flatten().abs() for one in start.values()]) > 0.02  # 1e-5 is below half of bf16's step there
    assert float((moved[large] > 0).float().mean()) > 0.5
    assert losses[-1] < losses[0]
    after = copy_weights(base)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_recomputed_activations_are_those_of_the_adapter_that_was_active(tiny: Tiny) -> None:
    """The gradients are those without recomputing, to the last bit, and autograd keeps less than half as much."""
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    groups, gradients, kept = make_groups(reader), list[dict[str, Tensor]](), [0, 0]
    for recomputes in (False, True):

        def keep(one: Tensor, recomputes: bool = recomputes) -> Tensor:
            kept[recomputes] += one.nbytes
            return one

        base = load_network(checkpoint, reader)
        networks = [base.add_adapter(name, LORA, seed=1) for name in ("student", "discriminator")]
        runtime, found = Runtime(gradient_checkpointing=recomputes), dict[str, Tensor]()
        trainers = [Trainer(network.trained, Schedule(steps=1, learning_rate=1e-3), runtime) for network in networks]
        for number, (network, trainer) in enumerate(zip(networks, trainers, strict=True)):
            fill(network, seed=number)
            with torch.no_grad():
                sum_log_probs(base, groups)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
                loss = -sum_log_probs(network, groups)
            trainer.backward(loss, last=True)
            found |= {f"{number} {name}": one.grad for name, one in network.trained.named_parameters()}
        gradients.append(found)
    assert all(torch.equal(one, gradients[1][name]) for name, one in gradients[0].items())
    print(f"bytes kept: {kept[0]}, recomputed {kept[1]}")
    assert kept[1] < kept[0] / 2


def test_the_model_beside_an_adapter_is_frozen(tiny: Tiny) -> None:
    checkpoint = tiny("qwen2_5_vl")
    network = load_network(checkpoint, load_reader(checkpoint)).add_adapter("student", LORA, seed=1)
    learning = {name for name, one in network.model.named_parameters() if one.requires_grad}
    assert len(learning) == 28
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)


def test_an_adapter_has_the_precision_of_its_model(tiny: Tiny) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    network = load_network(checkpoint, reader)
    network.model.bfloat16()
    adapted = network.add_adapter("student", Lora(targets=("q_proj", "down_proj")), seed=1)
    state = fill(adapted, seed=2)
    assert {one.dtype for one in state.values()} == {torch.bfloat16}
    assert {name.split(".")[-3] for name in state} == {"q_proj", "down_proj"}
    merged = dict(adapted.iter_weights(state))
    assert {one.dtype for one in merged.values()} == {torch.bfloat16}
    assert not list(adapted.iter_weights({})), "as on ranks other than the first"


def test_the_first_matrix_depends_on_the_seed_alone(tiny: Tiny) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    states = [
        load_network(checkpoint, reader).add_adapter("student", LORA, seed).trained.state_dict() for seed in (1, 1, 2)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, one in states[0].items():
        second = name.endswith("lora_B.weight")
        assert torch.equal(one, states[2][name]) is second
        assert float(one.abs().max()) <= (0 if second else one.shape[1] ** -0.5)
