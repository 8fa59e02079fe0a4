"""Ways of attending in a pack: equal in values and gradients, and memory by bytes that autograd keeps."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stages.groups import attention, merged_attention
from stages.groups.attention import group_attention
from stages.groups.group_mask import GroupMask, GroupSpan
from stages.groups.log_probs import response_log_probs
from stages.groups.merged_attention import check_kernel
from stages.groups.pack import make_packs
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader
from tests.stages.groups.test_pack import some_groups

WIDTH = 16
SHAPES = [(9, (4, 1, 6)), (5, (3,)), (7, ()), (1, (1, 1)), (3, (8, 2, 2, 5))]  # prompt, responses; of one pack


def mask_of(shapes: list[tuple[int, tuple[int, ...]]]) -> GroupMask:
    spans: list[GroupSpan] = []
    for prompt, responses in shapes:
        spans.append(GroupSpan(spans[-1].stop if spans else 0, prompt, responses))
    return GroupMask(tuple(spans))


def draw(mask: GroupMask, heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, count, mask.tokens, WIDTH, generator=generator).to(dtype).requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]


def define(query: Tensor, key: Tensor, value: Tensor, mask: GroupMask, scale: float) -> Tensor:
    """softmax(scores) @ value over one mask of the whole pack."""
    sees = torch.zeros(mask.tokens, mask.tokens, dtype=torch.bool)
    for span, tree in zip(mask.spans, mask.get_masks(query.device), strict=True):
        length = span.stop - span.start
        sees[span.start : span.stop, span.start : span.stop] = (
            torch.ones(length, length).tril().bool() if tree is None else tree
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(repeats, 1) for one in (key, value))
    return (query @ key.transpose(2, 3) * scale).masked_fill(~sees, float("-inf")).softmax(-1) @ value


def value_and_gradients(attend: Callable[..., Tensor], inputs: list[Tensor], *rest: Any) -> list[Tensor]:
    out = attend(*inputs, *rest)
    weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.fixture
def flex_backward_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses gradients of flex attention on a CPU, since the compiled kernel has none; the plain one does."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("kind", ["sdpa", "merged", "flex"])
def test_every_kind_is_the_definition(kind: str, heads: tuple[int, int], flex_backward_on_cpu: None) -> None:
    mask, scale = mask_of(SHAPES), 0.3
    inputs = draw(mask, *heads)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, _ = group_attention(None, query, key, value, None, group_mask=mask, kind=kind, scaling=scale)  # type: ignore[arg-type]
        return out.transpose(1, 2)

    found = value_and_gradients(attend, inputs)
    wanted = value_and_gradients(define, inputs, mask, scale)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-6), f"off by {(ours - theirs).abs().max():.1e}"


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=4).map(tuple)), min_size=1, max_size=5)
)
def test_merged_is_the_definition_for_any_tree(shapes: list[tuple[int, tuple[int, ...]]]) -> None:
    mask = mask_of(shapes)
    inputs = draw(mask, 4, 2, torch.float64)
    found = value_and_gradients(merged_attention.attend_merged, inputs, mask, 0.25)
    wanted = value_and_gradients(define, inputs, mask, 0.25)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("kind", ["merged", "flex"])
def test_log_probs_and_gradients_of_a_model_are_equal(
    tiny: Callable[[str], Checkpoint], family: str, kind: Any, flex_backward_on_cpu: None
) -> None:
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    (pack,) = make_packs(some_groups(reader), 10**6)
    found = []
    for one in ("sdpa", kind):
        network = load_network(checkpoint, reader)
        network.group_attention = one
        log_probs = response_log_probs(network, pack)
        log_probs.sin().sum().backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}
        found.append((log_probs.detach(), gradients))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    for name, gradient in found[0][1].items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert (gradient - found[1][1][name]).abs().max() / scale < 1e-4, name


def kept_bytes(kind: Any, mask: GroupMask, heads: int, key_heads: int) -> int:
    """Bytes that autograd keeps of one attention besides its inputs."""
    inputs, seen = draw(mask, heads, key_heads, torch.bfloat16), dict[int, int]()
    own = {one.untyped_storage().data_ptr() for one in inputs}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        group_attention(None, *inputs, None, group_mask=mask, kind=kind)  # type: ignore[arg-type]
    return sum(seen.values())


def test_merged_keeps_memory_linear_in_the_pack() -> None:
    """Prompt and 8 responses twice and four times as long."""
    found = {}
    for kind in ("sdpa", "merged"):
        found[kind] = [kept_bytes(kind, mask_of([(64 * n, (16 * n,) * 8)]), 4, 2) for n in (1, 2, 4)]
        print(f"{kind}: {found[kind]} bytes kept for 192, 384, 768 tokens")
    linear = found["merged"]
    assert linear[2] < 2.1 * linear[1] < 4.3 * linear[0]
    assert found["sdpa"][2] > 2.5 * found["sdpa"][1]
    assert found["sdpa"][2] > 3 * linear[2]


def test_a_kernel_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    check_kernel.cache_clear()
    check_kernel(device, torch.bfloat16)
    check_kernel.cache_clear()
    right = merged_attention._attend_backward

    def double(*arguments: Any) -> list[Tensor]:
        return [2 * gradient for gradient in right(*arguments)]

    monkeypatch.setattr(merged_attention, "_attend_backward", double)
    with pytest.raises(RuntimeError, match=r"runtime\.group_attention: merged attention of cpu is off by .* to sdpa"):
        check_kernel(device, torch.bfloat16)
    check_kernel.cache_clear()


# --- a GPU that is not there: shapes and arguments only, on the meta device -------------------------------------------

checked: list[tuple[Any, ...]] = []  # devices and dtypes of which the kernel was compared with the definition


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[[GroupMask, torch.dtype], list[Tensor]]:
    """Queries, keys and values without content that count as a GPU's."""
    checked.clear()
    monkeypatch.setattr(merged_attention, "check_kernel", lambda *asked: checked.append(asked))
    monkeypatch.setattr(merged_attention, "is_on_gpu", lambda _: True)
    monkeypatch.setattr(attention, "is_on_gpu", lambda _: True)

    def make(mask: GroupMask, dtype: torch.dtype) -> list[Tensor]:
        shapes = [(1, heads, mask.tokens, WIDTH) for heads in (4, 2, 2)]
        return [torch.empty(shape, dtype=dtype, device="meta", requires_grad=True) for shape in shapes]

    return make


def test_on_a_gpu_sdpa_never_gets_mask_and_grouped_keys(
    monkeypatch: pytest.MonkeyPatch, pretended: Callable[[GroupMask, torch.dtype], list[Tensor]]
) -> None:
    calls = []

    def record(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        calls.append(SimpleNamespace(repeated=key.shape[1] == query.shape[1], **options))
        return query

    monkeypatch.setattr(attention, "scaled_dot_product_attention", record)
    mask = mask_of(SHAPES)
    group_attention(None, *pretended(mask, torch.bfloat16), None, group_mask=mask, kind="sdpa")  # type: ignore[arg-type]
    assert len(calls) == len(SHAPES)
    for call, (_, responses) in zip(calls, SHAPES, strict=True):
        assert (call.attn_mask is not None) == call.repeated == (len(responses) > 1)
        assert call.enable_gqa == (call.attn_mask is None)


class Recorder(TorchDispatchMode):
    """Notes the calls of flash kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_flash_attention" in str(function):
            self.calls.append((str(function), tuple(args[0].shape)))
        return function(*args, **(kwargs or {}))


def test_auto_on_a_gpu_calls_the_flash_kernel_twice(
    monkeypatch: pytest.MonkeyPatch, pretended: Callable[[GroupMask, torch.dtype], list[Tensor]]
) -> None:
    """One call for what is causal, one for prompts; backward too. The kernel takes no fp32, which goes to SDPA."""
    mask = mask_of(SHAPES)
    several = sum(sum(responses) for _, responses in SHAPES if len(responses) > 1)
    inputs = pretended(mask, torch.bfloat16)
    with Recorder() as recorder:
        out, _ = group_attention(None, *inputs, None, group_mask=mask)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(out.sum(), inputs)
    assert checked == [(torch.device("meta"), torch.bfloat16)]
    assert out.shape == (1, mask.tokens, 4, WIDTH)
    assert [one.shape for one in gradients] == [one.shape for one in inputs]
    whole, part = (mask.tokens, 4, WIDTH), (several, 4, WIDTH)
    forward, backward = "aten._flash_attention_forward.default", "aten._flash_attention_backward.default"
    assert recorder.calls == [(forward, whole), (forward, part), (backward, whole), (backward, part)]
    with Recorder() as recorder:
        group_attention(None, *pretended(mask, torch.float32), None, group_mask=mask)  # type: ignore[arg-type]
    assert recorder.calls == []


@pytest.mark.parametrize(("response", "kind"), [(511, "sdpa"), (512, "merged")])
def test_auto_on_a_cpu_merges_long_groups_only(monkeypatch: pytest.MonkeyPatch, response: int, kind: str) -> None:
    """1,024 tokens are the limit: one prompt token more or less decides, and short groups keep their bytes."""
    mask = mask_of([*SHAPES, (2, (response, 511))])
    taken: list[str] = []
    for name, way in (("sdpa", "sdpa_by_group"), ("merged", "attend_merged")):
        monkeypatch.setattr(attention, way, lambda *_, name=name: taken.append(name) or torch.zeros(1, 4, 1, WIDTH))
    group_attention(None, *draw(mask, 4, 2), None, group_mask=mask)  # type: ignore[arg-type]
    assert taken == [kind]


def test_a_layer_that_drops_the_mask_of_a_pack_computes_nothing() -> None:
    """Rather an error than attention over all groups of a pack."""
    mask = mask_of(SHAPES)
    with pytest.raises(KeyError, match="group_mask"):
        group_attention(None, *draw(mask, 4, 2), None)  # type: ignore[arg-type]
