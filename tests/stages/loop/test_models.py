"""What the loop trains and with which settings: the student with its reference, the discriminator as it was written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.adversary.discriminator_model import DiscriminatorModel
from stages.config.discriminator import Discriminator
from stages.config.lora import Lora
from stages.config.ril import Ril
from stages.engines.engine import StartOptions
from stages.engines.start import make_null_engine
from stages.job.job import Job
from stages.loop import models as loop_models
from stages.loop.models import choose_base, load_adversary, load_policy
from stages.vlm.checkpoint import Checkpoint, open_checkpoint
from stages.vlm.quantization import is_quantized
from stages.vlm.reader import load_network, load_reader

Project = Callable[[str, Mapping[str, Any]], Job]


def open_parts(job: Job) -> tuple[Checkpoint, Any, Any]:
    """The student's checkpoint, its reader and the objective."""
    checkpoint = open_checkpoint(job.root / "data" / "warm_start")
    return checkpoint, load_reader(checkpoint), job.block(Ril).resolve(job.block(Discriminator))


@pytest.mark.parametrize("freezes", [True, False])
def test_the_reference_is_another_model_and_the_tower_is_trained_on_demand_only(
    loop_project: Project, freezes: bool
) -> None:
    job = loop_project("ril", {"ril": {"freeze_vision": freezes}})
    policy = load_policy(job, *open_parts(job))
    assert policy.reference.model is not policy.student.model
    weights = dict(policy.reference.model.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in policy.student.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in policy.reference.model.parameters())
    assert policy.student.trains_vision is not freezes
    assert all(parameter.requires_grad for parameter in policy.student.text.parameters())
    assert policy.block.freeze_vision is freezes


@pytest.mark.parametrize(
    ("student", "discriminator", "copies"), [(False, False, 3), (True, False, 2), (False, True, 2), (True, True, 1)]
)
def test_with_adapters_models_share_one_copy_of_the_weights(
    loop_project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    student: bool,
    discriminator: bool,
    copies: int,
) -> None:
    """And with neither trained yet, all of them are the SFT student."""
    lora = {"lora": {"rank": 4}}
    job = loop_project("ril", {"ril": lora if student else {}, "discriminator": lora if discriminator else {}})
    checkpoint, reader, objective = open_parts(job)
    network = load_network(checkpoint, reader)
    written = DiscriminatorModel(
        network.add_adapter("discriminator", Lora(rank=4), seed=1) if discriminator else network, seed=5
    )
    (tmp_path / "data" / "discriminator").mkdir()
    written.save(tmp_path / "data" / "discriminator")
    for start in ("start_trainable", "start_engine"):
        monkeypatch.setattr(loop_models, start, lambda *_: make_null_engine(checkpoint))
    with loop_models.open_models(job, objective) as models:
        policy, adversary = models.policy, models.adversary
        assert adversary is not None
        texts = [policy.student.text, policy.reference.text, adversary.discriminator.text]
        assert len({weights.data_ptr() for text in texts for weights in [text.embed_tokens.weight]}) == copies
        assert (policy.reference.model is policy.student.model) is student
        assert not any(
            one.requires_grad for name, one in policy.reference.model.named_parameters() if "lora" not in name
        )
        pushed = dict(policy.iter_weights())
        assert pushed.keys() == network.family.load_model(checkpoint.weights, torch.float32).state_dict().keys()
        for name, value in load_network(checkpoint, reader).model.state_dict().items():
            assert torch.equal(pushed[name], value)
        assert adversary.discriminator.score.weight.equal(written.score.weight)
        small = sum(one.numel() for one in policy.reference.model.parameters()) / 4
        for trainer, adapted in zip(models.trainers.values(), (student, discriminator), strict=True):
            assert (sum(one.numel() for one in trainer.model.parameters()) < small) is adapted


@pytest.mark.parametrize("way", ["auto", "adapter"])
def test_the_engine_gets_merged_weights_or_the_adapter_alone(
    loop_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """On a CPU by setting. The engine is told of the rank when it starts."""
    overlay = {"ril": {"lora": {"rank": 4}, "objective": "grpo"}}
    job = loop_project("ril", overlay | {"runtime": {"weight_transfer": way}})
    checkpoint, _, objective = open_parts(job)
    engine: Any = make_null_engine(checkpoint)
    started: list[StartOptions] = []
    pushed: dict[str, Mapping[str, torch.Tensor]] = {}

    def update_weights(named: Any) -> int:
        pushed["weights"] = dict(named)
        return 1

    def update_adapter(save: Callable[[Path], None], size: int) -> int:
        save(tmp_path / "sent")
        pushed["adapter"] = load_file(tmp_path / "sent" / "adapter" / "adapter_model.safetensors")
        assert size == sum(one.nbytes for one in pushed["adapter"].values())
        return size

    engine.update_weights, engine.update_adapter = update_weights, update_adapter
    monkeypatch.setattr(loop_models, "start_trainable", lambda *given: started.append(given[-1]) or engine)
    monkeypatch.setattr(loop_models, "start_engine", lambda *_: make_null_engine(checkpoint))
    with loop_models.open_models(job, objective) as models:
        sent = models.push_weights()
        trained = models.policy.trainer.state_dict()
    assert [one.adapter_rank for one in started] == [4 if way == "adapter" else 0]
    assert list(pushed) == ["adapter" if way == "adapter" else "weights"]
    if way == "adapter":
        assert sent == sum(one.nbytes for one in trained.values())
        assert {name.partition("layers.")[2] for name in pushed["adapter"]} == {
            name.partition("layers.")[2] for name in trained
        }


@pytest.mark.parametrize(
    ("student", "discriminator", "copies"),
    [("nf4", "nf4", 1), ("nf4", "none", 2), ("none", "nf4", 2), ("nf4", None, 2), (None, "nf4", 3)],
)
def test_models_share_weights_of_one_precision(
    loop_project: Project, tmp_path: Path, student: str | None, discriminator: str | None, copies: int
) -> None:
    """Quantized are the reference of a student with `nf4` and the base of a discriminator with it."""
    pytest.importorskip("bitsandbytes")
    blocks = {
        name: {"lora": {"rank": 4, "quantization": value}}
        for name, value in (("ril", student), ("discriminator", discriminator))
        if value is not None
    }
    job = loop_project("ril", blocks)
    checkpoint, reader, objective = open_parts(job)
    network = load_network(checkpoint, reader, quantization="nf4" if discriminator == "nf4" else "none")
    written = network.add_adapter("discriminator", Lora(rank=4), seed=1) if discriminator else network
    (tmp_path / "data" / "discriminator").mkdir()
    DiscriminatorModel(written, seed=5).save(tmp_path / "data" / "discriminator")
    policy = load_policy(job, checkpoint, reader, objective)
    base = choose_base(job, checkpoint, reader, policy.reference)
    adversary = load_adversary(job, base, reader, objective)
    texts = [policy.student.text, policy.reference.text, adversary.discriminator.text]
    assert len({weights.data_ptr() for text in texts for weights in [text.embed_tokens.weight]}) == copies
    found = [any(is_quantized(layer) for layer in text.modules()) for text in texts]
    assert found == [student == "nf4", student == "nf4", discriminator == "nf4"]


@pytest.mark.parametrize("objective", ["ril", "adversarial"])
def test_the_discriminator_is_the_pre_trained_one_with_settings_of_its_own(
    loop_project: Project, tmp_path: Path, objective: str
) -> None:
    overlay = {"objective": objective, "inner_updates": 3, "discriminator_learning_rate": 3e-5, "learning_rate": 7e-5}
    job = loop_project("ril", {"ril": overlay, "discriminator": {"sees": "question_and_image", "pause_above": 0.9}})
    checkpoint, reader, resolved = open_parts(job)
    written = DiscriminatorModel(load_network(checkpoint, reader), seed=5, sees="question_and_image")
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.add_(0.01)
    (tmp_path / "data" / "discriminator").mkdir()
    written.save(tmp_path / "data" / "discriminator")
    adversary = load_adversary(job, load_network(checkpoint, reader), reader, resolved)
    loaded = adversary.discriminator.state_dict()
    assert loaded.keys() == written.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in written.state_dict().items())
    settings = adversary.settings
    assert (settings.inner_updates, settings.learning_rate, settings.pause_above) == (3, 3e-5, 0.9)
    assert (settings.loss, adversary.collator.together) == (
        ("bradley_terry", True) if objective == "adversarial" else ("bce", False)
    )
    assert adversary.collator.sees == "question_and_image"
