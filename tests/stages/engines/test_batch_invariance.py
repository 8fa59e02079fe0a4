"""An answer of vLLM in process depends on its own request only: equal bits in any batch, on CPU."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.config.engines import Vllm
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.engines.batch_invariance import RowTiles, make_batch_invariant
from stages.engines.engine import Answer, Request
from stages.engines.vllm import VllmEngine
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import load_network, load_reader
from tests.stages.engines.test_vllm import picture

WARM = Sampling(temperature=1.0, top_p=0.95, top_k=50, max_tokens=24)


def make_requests(family: str, count: int = 24) -> list[Request]:
    """Requests of several lengths, with pictures of two widths where the model sees."""
    sees = family != "qwen2_5"
    return [
        Request(
            f"q{i}",
            [{"role": "user", "content": "<image>" * sees + "What is the sum of the digits? " * (1 + i % 3) + str(i)}],
            [picture(i, 84 + 28 * (i % 2))] if sees else [],
            WARM,
            n=1 + i % 2,
            seed=100 * i,
            log_probs=True,
        )
        for i in range(count)
    ]


def answer(engine: VllmEngine, requests: list[Request]) -> dict[str, list[Answer]]:
    return {requests[index].name: answers for index, answers in engine.generate(requests)}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl3"])
def test_answers_and_their_log_probs_are_equal_bit_by_bit_in_any_batch(
    family: str, precision: str, tiny: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    """Also after new weights, for which vLLM chooses its kernels again."""
    shutil.copytree(tiny(family).folder, tmp_path / "model")
    write_card(tmp_path / "model", family, precision, 256)
    checkpoint = open_checkpoint(tmp_path / "model")
    requests = make_requests(family)
    wide = VllmEngine(checkpoint, Runtime(), Vllm(kind="vllm", sequences=64), log_probs=True)
    few = VllmEngine(checkpoint, Runtime(), Vllm(kind="vllm", sequences=3), log_probs=True)
    try:
        for _ in range(2):
            together = answer(wide, requests)
            assert answer(wide, requests[::-1]) == together
            assert answer(few, requests) == together
            for one in requests[:3]:
                assert answer(wide, [one]) == {one.name: together[one.name]}
            network = load_network(checkpoint, load_reader(checkpoint))
            for engine in (wide, few):
                engine.update_weights((name, value * 1.01) for name, value in network.model.state_dict().items())
    finally:
        wide.close()
        few.close()


class Kernel(nn.Module):
    """A layer as vLLM leaves it, whose kernel adds the number of its rows to all it returns."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, dtype=dtype), requires_grad=False)
        self.cpu_linear = lambda rows, weight, bias: rows.sum(-1, keepdim=True) + len(rows)


@pytest.mark.parametrize(("dtype", "tile"), [(torch.float32, 2), (torch.bfloat16, 64)])
def test_a_kernel_is_called_with_the_same_number_of_rows_or_enough_of_them(dtype: torch.dtype, tile: int) -> None:
    layer = Kernel(dtype)
    make_batch_invariant(layer)
    make_batch_invariant(layer)  # as after new weights
    assert isinstance(layer.cpu_linear, RowTiles)
    for count in (1, 2, 63, 64, 65, 200):
        found = layer.cpu_linear(torch.ones(count, 3), layer.weight, None)
        called = max(count, 2) if dtype == torch.float32 else tile
        assert found.tolist() == [[3.0 + called]] * count
    assert layer.cpu_linear(torch.ones(0, 3), layer.weight, None).shape == (0, 1)


def test_a_linear_layer_of_torch_computes_a_row_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    layer, rows = nn.Linear(512, 128), torch.randn(8, 9, 512)
    plain = layer(rows)
    make_batch_invariant(nn.Sequential(layer))
    whole = layer(rows)
    assert whole.shape == plain.shape
    torch.testing.assert_close(whole, plain)
    for place in range(8):
        assert torch.equal(layer(rows[place : place + 1]), whole[place : place + 1])
