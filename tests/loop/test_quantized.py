"""The loop on a quantized student is the loop on a student with the weights that the quantized one computes with."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.vlm.checkpoint import open_checkpoint, write_card
from stages.vlm.lora import iter_base_weights
from stages.vlm.reader import load_network, load_reader
from tests.loop.recording import record_loop
from tests.loop.script import ScriptedStudent
from tests.loop.world import LORA, make_job, write_adapter

pytest.importorskip("bitsandbytes")

RATES = {"learning_rate": 1e-3, "discriminator_learning_rate": 1e-4, "steps": 2}


def test_a_quantized_loop_is_that_of_the_rounded_student(
    make_world: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first answer the engine gets the rounded weights; the file that it starts from has others."""
    folder = make_world("internvl3")
    student = folder / "data" / "warm_start"
    write_adapter(student, folder / "data" / "discriminator")
    first: list[dict[str, Tensor]] = []
    update = ScriptedStudent.update_weights

    def take_first(engine: ScriptedStudent, named: Iterable[tuple[str, Tensor]]) -> None:
        """Its answers depend on the number of pushes, so the one before the first step does not count."""
        if first:
            update(engine, named)
        else:
            assert not engine.validated
            first.append({name: value.clone() for name, value in named})

    lora = {"lora": {**LORA, "quantization": "nf4"}}
    with monkeypatch.context() as patch:
        patch.setattr(ScriptedStudent, "update_weights", take_first)
        ours = record_loop(make_job("ril", folder, {"ril": {**RATES, **lora}, "discriminator": lora}))

    checkpoint = open_checkpoint(student)
    network = load_network(checkpoint, load_reader(checkpoint), quantization="nf4")
    rounded = dict(iter_base_weights(network.model))
    plain = load_network(checkpoint, load_reader(checkpoint)).model
    assert sum(not torch.equal(rounded[name], one) for name, one in plain.state_dict().items()) == 14
    plain.load_state_dict(rounded)
    plain.save_pretrained(student)  # type: ignore[operator]
    write_card(student, "internvl3", "fp32", checkpoint.context_tokens)
    lora = {"lora": LORA}
    theirs = record_loop(make_job("ril", folder, {"ril": {**RATES, **lora}, "discriminator": lora}))
    assert all(torch.equal(first[0][name], one) for name, one in rounded.items())
    assert first[0].keys() == rounded.keys()
    assert len(ours.student.pushes) == len(theirs.student.pushes) == 2
    for mine, other in zip(ours.student.pushes, theirs.student.pushes, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert ours.samples == theirs.samples
    assert ours.history == theirs.history
    assert ours.validation == theirs.validation
