"""Guards against traps of docs/traps.md that no other test holds; tests/traps/check.py takes each guard out and runs
its test.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.adversary.discriminator_model import Text
from stages.config.build import Build
from stages.config.ril import Ril
from stages.config.sampling import Sampling
from stages.engines.engine import Answer
from stages.groups import head, log_probs
from stages.groups.log_probs import response_log_probs
from stages.groups.pack import Group, make_packs
from stages.groups.response import STUDENT, Response
from stages.job.epochs import pick_places
from stages.loop.rollouts import make_student_response
from stages.policy.batch import RewardedGroup
from stages.policy.metrics import reward_metrics
from stages.policy.policy import Policy
from stages.policy.rewards import score_group
from stages.tiny.builds.shapes import build_tiny
from stages.training.trainer import StepResult
from stages.vlm import checkpoint
from stages.vlm.checkpoint import Checkpoint, open_checkpoint, write_card
from stages.vlm.reader import Network, load_network, load_reader

TEXTS = ["The digits are 3, 8 and 5: 3:3, 8:11, 5:16, so the sum is 16.", "What is the sum of the digits in the image?"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A checkpoint of a family with random weights."""
    made: dict[str, Path] = {}

    def make(family: str) -> Checkpoint:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            build = Build(
                steps=0, learning_rate=1e-3, hidden_size=64, layers=2, heads=2, vision_hidden_size=32, vision_layers=1
            )
            _, network = build_tiny(family, build, TEXTS, 256, 1, folder)
            network.head.weight.data.mul_(10)
            network.model.save_pretrained(folder)
            write_card(folder, family, "fp32", 256)
            made[family] = folder
        return open_checkpoint(made[family])

    return make


def picture(width: int = 84, height: int = 84) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_t1_every_vision_token_is_banned(small: Callable[[str], Checkpoint], family: str) -> None:
    reader = load_reader(small(family))
    assert reader.image_token_id in reader.chat.banned_token_ids
    assert {reader.chat.tokenizer.convert_tokens_to_ids(t) for t in reader.family.vision_tokens} >= set(
        reader.chat.banned_token_ids
    )
    assert len(reader.chat.banned_token_ids) >= 3


def test_t4_images_and_places_must_agree(small: Callable[[str], Checkpoint]) -> None:
    made = small("qwen2_5_vl")
    reader = load_reader(made)
    network = load_network(made, reader)
    prompt = reader.make_prompt([{"role": "user", "content": "<image>?"}], [picture()])
    wrong = replace(prompt, ids=torch.where(prompt.ids == reader.image_token_id, 5, prompt.ids))
    (pack,) = make_packs([Group(wrong, ((1, 2),))], 4096)
    with pytest.raises(ValueError, match="0 image tokens, 9 image features"):
        response_log_probs(network, pack)


def test_t6_sampled_ids_are_kept() -> None:
    ids = (7, 7, 300, 2)  # no tokenizer would write the text so
    assert make_student_response(Answer(0, "some text", ids, "stop", 3, 4)).token_ids == ids


def test_t8_a_prompts_pixels_are_its_own(small: Callable[[str], Checkpoint], family: str) -> None:
    reader = load_reader(small(family))
    turns = [[{"role": "user", "content": "<image>" * count}] for count in (1, 2, 1)]
    images = [[picture(84, 84)], [picture(140, 56), picture(56, 112)], [picture(56, 84)]]
    together = reader.make_prompts(list(zip(turns, images, strict=True)))
    for one, turn, some in zip(together, turns, images, strict=True):
        alone = reader.make_prompt(turn, some)
        assert one.pixels is not None
        assert alone.pixels is not None
        assert torch.equal(one.pixels.values, alone.pixels.values)


Loop = Callable[..., dict[str, float]]


@pytest.fixture
def step(small: Callable[[str], Checkpoint]) -> Loop:
    """One update of a student on two questions with one image each; returns what was logged."""
    made = small("qwen2_5_vl")
    reader = load_reader(made)

    class Once:
        sharded = False

        def forward(self, compute: Callable[[], Any]) -> Any:
            return compute()

        def backward(self, loss: torch.Tensor, last: bool, ids: Sequence[str]) -> float:
            loss.backward()
            return float(loss.detach())

        def step(self, rate: float) -> StepResult:
            return StepResult(1.0, 1.0)

    def run(student: Network | None = None, **changed: Any) -> dict[str, float]:
        student = student or load_network(made, reader)
        reference = load_network(made, reader)
        reference.model.requires_grad_(False)
        student.freeze_vision()
        rows = [
            Response(s, t, tuple(reader.chat.encode_response(t)), "stop", v)
            for s, t, v in ((STUDENT, "28", 0), ("t", "so 5", 1))
        ]
        prompts = reader.make_prompts([([{"role": "user", "content": "<image>sum?"}], [picture()])] * 2)
        groups = [RewardedGroup(prompt, tuple(score_group(rows, [1.0, -1.0]))) for prompt in prompts]
        values: dict[str, Any] = {"sampling": Sampling(max_tokens=16), **changed}
        block = Ril(steps=2, learning_rate=1e-3, discriminator_learning_rate=1e-3, tokens_per_pack=64, **values)
        return Policy(student, reference, Once(), block).update(groups, 0.0)  # type: ignore[arg-type]

    return run


def test_t11_features_are_computed_once_a_step(step: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Network] = []
    real = Network.encode_images
    monkeypatch.setattr(Network, "encode_images", lambda self, pixels: calls.append(self) or real(self, pixels))
    step(inner_updates=3)
    assert len(calls) == 2, "two packs, each once for student, reference and three inner updates"
    calls.clear()
    step(freeze_vision=False)
    assert len(calls) == 4


def test_t11_images_of_many_prompts_are_processed_in_one_call(
    small: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = load_reader(small("qwen2_5_vl"))
    calls: list[int] = []
    real = reader.family.make_pixels
    monkeypatch.setattr(
        reader.family, "make_pixels", lambda processor, images: calls.append(len(images)) or real(processor, images)
    )
    reader.make_prompts([([{"role": "user", "content": "<image>"}], [picture()])] * 5)
    assert calls == [5]


def test_t14_log_probs_are_at_the_temperature_of_sampling(step: Loop, small: Callable[[str], Checkpoint]) -> None:
    made = small("qwen2_5_vl")
    reader = load_reader(made)
    gradients = []
    for temperature in (1.0, 2.0):
        student = load_network(made, reader)
        step(student, sampling=Sampling(max_tokens=16, temperature=temperature))
        gradients.append(student.head.weight.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert not torch.allclose(gradients[0], gradients[1])


def test_t19_models_are_trained_without_dropout(small: Callable[[str], Checkpoint], family: str) -> None:
    made = small(family)
    assert not any(module.training for module in load_network(made, load_reader(made)).model.modules())


def test_t21_logits_exist_for_one_tile_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    real = head._logits
    monkeypatch.setattr(head, "ROWS_PER_TILE", 7)
    monkeypatch.setattr(head, "_logits", lambda hidden, *rest: rows.append(len(hidden)) or real(hidden, *rest))
    log_probs.token_log_probs(torch.randn(30, 8), torch.randn(50, 8), torch.randint(50, (30,)))
    assert max(rows) == 7
    assert sum(rows) == 30


def test_t26_the_number_format_is_that_of_the_card(small: Callable[[str], Checkpoint]) -> None:
    made = small("qwen2_5_vl")
    assert {p.dtype for p in load_network(made, load_reader(made)).model.parameters()} == {torch.float32}
    assert load_network(replace(made, precision="bf16"), load_reader(made)).head.weight.dtype == torch.bfloat16


def test_t31_both_rewards_are_logged_for_every_source() -> None:
    rows = [Response(source, "x", (1,), "stop", 1) for source in (STUDENT, "teacher_a", "teacher_b")]
    names = reward_metrics([rows], [score_group(rows, [1.0, -1.0, -1.0])])
    for source in (STUDENT, "teacher_a", "teacher_b"):
        assert {f"rewards/{source}/{part}" for part in ("similarity", "answer", "advantage")} <= set(names)
        assert {f"disc/{source}/logit", f"disc/{source}/acc", f"completions/{source}/mean_length"} <= set(names)


def test_t32_the_share_of_groups_without_variance_is_logged() -> None:
    rows = [Response(STUDENT, "x", (1,), "stop", verdict) for verdict in (1, 1)]
    flat, mixed = score_group(rows, [1.0, 1.0]), score_group(rows, [1.0, -1.0])
    assert reward_metrics([rows], [flat, mixed, mixed, mixed])["frac_reward_zero_std"] == 0.25


def test_t33_nothing_of_an_end_token_or_blank_is_left_in_a_text(small: Callable[[str], Checkpoint]) -> None:
    chat = load_reader(small("qwen2_5_vl")).chat
    ids = [*chat.encode_text("  so the sum is 16. \n"), *chat.stop_token_ids]
    assert chat.decode(ids) == "so the sum is 16."


def test_t40_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    undisturbed = [pick_places(10, 4, step, 3) for step in range(12)]
    assert [pick_places(10, 4, step, 3) for step in (11, 7, 2)] == [undisturbed[11], undisturbed[7], undisturbed[2]]
    assert sorted(place for step in undisturbed[:5] for place in step) == sorted([*range(10)] * 2), (
        "two whole epochs, none skipped"
    )
    assert undisturbed[0] != undisturbed[5]


def test_t42_what_is_printed_of_a_text_holds_no_image() -> None:
    assert len(repr(Text("short", "q", (), (b"x" * 100_000,)))) < 200


def test_t43_nothing_is_fetched_unless_downloads_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def stub(name: str, local_files_only: bool, **_: object) -> str:
        asked.append(local_files_only)
        return "/nowhere"

    monkeypatch.setattr("huggingface_hub.snapshot_download", stub)
    monkeypatch.delenv("RIL_ALLOW_DOWNLOADS", raising=False)
    checkpoint.find_hub_folder("a/b", "c")
    monkeypatch.setenv("RIL_ALLOW_DOWNLOADS", "1")
    checkpoint.find_hub_folder("a/b", "c")
    assert asked == [True, False]
