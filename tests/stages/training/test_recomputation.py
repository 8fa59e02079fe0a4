"""Gradient checkpointing: what autograd keeps in each trained module, also sharded over ranks, and equal losses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stages.adversary.adversary import Adversary
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text
from stages.config.build import Build
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, Pack, make_pack
from stages.tiny.builds.shapes import build_tiny
from stages.training.passes import PaddingGroups
from stages.training.ranks import get_ranks
from stages.training.recomputation import recompute_layers
from stages.training.sft import run_sft_step
from stages.training.trainer import Trainer
from stages.vlm.reader import Network, Reader
from tests.stages.conftest import TEXTS
from tests.stages.training.spawned import run_ranks
from tests.stages.training.test_ranks import LIMIT, own, question, rows

LAYERS = 4
STEPS = 3
# Bytes kept without checkpointing over bytes kept with it must exceed this; the larger the model, the larger the ratio.
LEAST = {"student": 5.0, "discriminator": 5.0, "tower": 3.0}
# With four mergers, which are no layers, on a tower of four layers; the published one has 27.
LEAST_OF = {("qwen3_vl", "tower"): 1.9}


class Kept:
    """Bytes that autograd keeps for the backward pass; each storage counts once, weights don't count."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._seen = model, dict[int, int]()

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    @property
    def bytes(self) -> int:
        return sum(self._seen.values())

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        # Asked every time: under ZeRO-3 weights come and go.
        if all(place != parameter.untyped_storage().data_ptr() for parameter in self._model.parameters()):
            self._seen[place] = tensor.untyped_storage().nbytes()
        return tensor


def make_model(family: str, folder: Path) -> tuple[Reader, Network]:
    build = Build(
        steps=0,
        learning_rate=1e-3,
        hidden_size=64,
        layers=LAYERS,
        heads=2,
        vision_hidden_size=32,
        vision_layers=LAYERS,
    )
    return build_tiny(family, build, TEXTS, 256, 1, folder)


def make_step_pack(reader: Reader) -> Pack:
    """Three questions, one with an image, each with four answers."""
    prompts = reader.make_prompts([question(0, number) for number in range(3)])
    groups = [
        Group(prompt, tuple(row.token_ids for row in rows(reader, 0, number))) for number, prompt in enumerate(prompts)
    ]
    return make_pack(groups, range(3))


def compute_student(network: Network, pack: Pack) -> torch.Tensor:
    with torch.no_grad():
        assert pack.pixels is not None
        features = network.encode_images(pack.pixels)
    return response_log_probs(network, pack, features).sum()


def compute_tower(network: Network, pack: Pack) -> torch.Tensor:
    assert pack.pixels is not None
    return network.encode_images(pack.pixels).square().sum()


def compute_logits(discriminator: nn.Module, pack: Pack) -> torch.Tensor:
    logits: torch.Tensor = discriminator(pack)
    return logits.sum()


def run_module(module: str, network: Network, pack: Pack, recompute: bool) -> tuple[int, torch.Tensor, Any]:
    """Returns bytes kept by the forward pass, its result, and all gradients."""
    model: nn.Module = network.model
    compute: Callable[[], torch.Tensor]
    if module == "discriminator":
        model = DiscriminatorModel(network, seed=1, sees="question_and_image")
        compute = partial(compute_logits, model, pack)
    else:
        compute = partial(compute_tower if module == "tower" else compute_student, network, pack)
    if recompute:
        assert recompute_layers(model) == 2 * LAYERS
    kept = Kept(model)
    with kept.counting():
        result = compute()
    result.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return kept.bytes, result.detach(), gradients


@pytest.mark.parametrize("module", list(LEAST))
def test_layers_keep_their_inputs_only(family: str, module: str, tmp_path: Path) -> None:
    found = {}
    for recompute in (False, True):
        reader, network = make_model(family, tmp_path)
        found[recompute] = run_module(module, network, make_step_pack(reader), recompute)
    (every, result, gradients), (few, same, recomputed) = found[False], found[True]
    print(f"{family} {module}: {every:,} bytes kept, {few:,} with checkpointing, ratio {every / few:.1f}")
    assert every / few > LEAST_OF.get((family, module), LEAST[module])
    assert torch.equal(result, same)
    assert gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_dropout_of_a_checkpoint_stays_off(tmp_path: Path) -> None:
    """The layers are told that they train; what is inside of them is not."""
    reader, network = make_model("qwen2_5_vl", tmp_path)
    for module in network.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    recompute_layers(network.model)
    pack = make_step_pack(reader)
    assert torch.equal(compute_student(network, pack), compute_student(network, pack))
    inside = [module for module in network.text.modules() if type(module).__name__ == "Qwen2_5_VLAttention"]
    assert len(inside) == LAYERS
    assert not any(module.training for module in inside)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runtime\.gradient_checkpointing: no layer of Linear can"):
        recompute_layers(nn.Linear(2, 2))


# --- two ranks, ZeRO-3 ------------------------------------------------------------------------------------------------


def train_sharded(recompute: bool, folder: Path) -> dict[str, Any]:
    """SFT with a trained tower, then the discriminator: losses and norms, and bytes that the passes keep."""
    runtime = Runtime(zero_stage=3, gradient_checkpointing=recompute)
    schedule = Schedule(steps=STEPS, learning_rate=1e-3, tokens_per_pack=160)
    reader, network = make_model("qwen2_5_vl", folder)
    trainer, idle = Trainer(network.model, schedule, runtime), PaddingGroups(reader)
    found: dict[str, Any] = {"student and tower": [], "discriminator": [], "kept": {}}
    kept = Kept(network.model)
    for step in range(STEPS):
        prompts = reader.make_prompts([question(step, number) for number in range(3)])
        groups = [Group(prompt, (rows(reader, step, number)[3].token_ids,)) for number, prompt in enumerate(prompts)]
        with kept.counting():
            done = run_sft_step(network, trainer, own(groups, [g.tokens for g in groups]), schedule, step, idle)
        found["student and tower"] += list(done)
    found["kept"]["student and tower"] = kept.bytes
    reader, network = make_model("qwen2_5_vl", folder)
    discriminator = DiscriminatorModel(network, seed=1)
    critic, collator = Trainer(discriminator, schedule, runtime), DiscriminatorCollator(reader, 96)
    kept, adversary = Kept(discriminator), Adversary(discriminator, critic, collator)
    for step in range(STEPS):
        answers = [(number, row) for number in range(3) for row in rows(reader, step, number)]
        texts = [Text(row.text, str(number)) for number, row in answers]
        with kept.counting():
            adversary.backward(collator.collate(texts, [row.source for _, row in answers], "bce"), texts)
        found["discriminator"] += list(critic.step(1e-3))
    found["kept"]["discriminator"] = kept.bytes
    assert all(parameter.ds_tensor is not None for parameter in discriminator.parameters()), "nothing is sharded"
    return found


def train_rank(folder: str) -> None:
    here = get_ranks()
    own_folder = Path(folder) / str(here.rank)
    own_folder.mkdir()
    found = {recompute: here.gather(train_sharded(recompute, own_folder)) for recompute in (False, True)}
    if here.first:
        torch.save(found, f"{folder}/found.pt")


@pytest.mark.slow
def test_ranks_keep_less_and_lose_nothing(tmp_path: Path) -> None:
    run_ranks(train_rank, 2, tmp_path, (str(tmp_path),), LIMIT)
    found = torch.load(tmp_path / "found.pt")
    for rank, (plain, recomputed) in enumerate(zip(found[False], found[True], strict=True)):
        for part in ("student and tower", "discriminator"):
            assert plain[part] == recomputed[part], "losses and norms differ"
            assert len(set(plain[part])) == 2 * STEPS
            every, few = plain["kept"][part], recomputed["kept"][part]
            print(f"rank {rank}, {part}: {every:,} bytes kept, {few:,} with checkpointing, ratio {every / few:.1f}")
            assert every / few > 3
