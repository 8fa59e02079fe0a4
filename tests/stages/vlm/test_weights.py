"""A checkpoint that is not whole, or holds NaN or infinity, does not load; the tensors are named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from stages.adversary.discriminator_model import WEIGHTS, DiscriminatorModel, save_discriminator
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from stages.vlm.reader import load_network, load_reader
from stages.vlm.weights import BadWeights, check_files
from tests.stages.training.poison import VALUES, poison_file

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl3", "qwen2_5")


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest, tiny: Callable[[str], Checkpoint], tmp_path: Path) -> Checkpoint:
    """A copy of the checkpoint of one family."""
    shutil.copytree(tiny(request.param).folder, tmp_path / "model")
    return open_checkpoint(tmp_path / "model")


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object], file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    edit(tensors)
    (folder / file).unlink()
    save_file(tensors, folder / file, metadata={"format": "pt"})


def load(checkpoint: Checkpoint) -> None:
    load_network(checkpoint, load_reader(checkpoint))


def inner(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if "mlp" in name)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_that_is_not_finite_is_refused(made: Checkpoint, value: float) -> None:
    name = poison_file(made.folder / "model.safetensors", value)
    for read in (load, lambda one: check_files(one.folder)):
        with pytest.raises(BadWeights, match=rf"tensor {name}: 1 of [\d,]+ values are NaN or infinite") as raised:
            read(made)
        assert str(made.folder) in str(raised.value)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "layer"])
def test_a_checkpoint_that_is_not_whole_is_refused(made: Checkpoint, fault: str) -> None:
    named = []

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        name = inner(tensors)
        named.append(name.rsplit(".", 2)[-2])
        if fault == "missing":
            del tensors[name]
        elif fault == "unknown":
            tensors["model.adapter.weight"] = torch.zeros(2)
            named[0] = "adapter"
        elif fault == "shape":
            tensors[name] = torch.zeros(3, 5)
        else:  # of a larger model
            for other in [key for key in tensors if "layers.1." in key]:
                tensors[other.replace("layers.1.", "layers.7.")] = tensors[other].clone()
            named[0] = "layers.7."

    change(made.folder, edit)
    verb = {
        "missing": "misses 1",
        "unknown": "has unknown 1",
        "shape": "has other shapes for 1",
        "layer": "has unknown",
    }
    with pytest.raises(BadWeights, match=rf"the checkpoint {verb[fault]}.* tensors: .*{named[0]}") as raised:
        load(made)
    assert "\n" not in str(raised.value)


def test_a_tied_head_need_not_be_stored_and_an_untied_one_must_be(made: Checkpoint) -> None:
    def drop_head(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[next(name for name in tensors if name.endswith("lm_head.weight"))]

    change(made.folder, drop_head)
    with pytest.raises(BadWeights, match=r"misses 1 tensors: lm_head.weight"):
        load(made)
    config = AutoConfig.from_pretrained(made.folder)
    config.tie_word_embeddings = True
    config.get_text_config().tie_word_embeddings = True
    config.save_pretrained(made.folder)
    network = load_network(made, load_reader(made))
    assert torch.equal(network.head.weight, network.text.embed_tokens.weight)  # type: ignore[union-attr,arg-type]


def test_a_whole_checkpoint_loads(made: Checkpoint) -> None:
    load(made)
    check_files(made.folder)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", *VALUES])
def test_a_discriminator_is_checked_when_read_and_when_written(
    tiny: Callable[[str], Checkpoint], tmp_path: Path, fault: str
) -> None:
    checkpoint = tiny("qwen2_5_vl")
    model = DiscriminatorModel(load_network(checkpoint, load_reader(checkpoint)), 1)
    model.save(tmp_path)
    model.load(tmp_path)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        if fault == "missing":
            del tensors["score.weight"]
        elif fault == "unknown":
            tensors["other"] = torch.zeros(2)
        elif fault == "shape":
            tensors["score.weight"] = torch.zeros(1, 3)
        else:
            tensors["score.weight"][0, 0] = VALUES[fault]

    change(tmp_path, edit, WEIGHTS)
    with pytest.raises(BadWeights, match=r"discriminator.safetensors: .*(score.weight|other)"):
        model.load(tmp_path)
    if fault in VALUES:
        broken = load_file(tmp_path / WEIGHTS)
        (tmp_path / WEIGHTS).unlink()
        with pytest.raises(BadWeights, match=r"the discriminator: tensor score.weight.*nothing is written"):
            save_discriminator(broken, tmp_path)
        assert not (tmp_path / WEIGHTS).exists()
