"""What must change the key of an answer, and what must not."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.config.endpoint import Endpoint
from stages.config.evaluate import Evaluate, Evaluation
from stages.config.image_limits import ImageLimits
from stages.config.model import Model
from stages.config.questions import Questions
from stages.config.rollout import Rollout
from stages.config.runtime import Runtime
from stages.config.sampling import Sampling
from stages.config.teacher import Teacher
from stages.config.verdict import Verdict
from stages.corpora.rows import Question
from stages.responses import answers
from stages.responses.key import GenerationSpec, derive_answer_key, derive_request_seed
from stages.responses.requested import RequestedAnswers
from stages.responses.template import Template
from stages.vlm.checkpoint import Checkpoint, hash_content

MESSAGES = [{"role": "user", "content": "<image>What is the sum?"}]
IMAGES = ["ab" * 32]
ASKED = GenerationSpec(
    model="hub/model@0123",
    family="qwen2_5_vl",
    precision="bf16",
    context_tokens=4096,
    template="cd" * 32,
    banned=(7, 8),
    sampling=Sampling(),
    draw=0,
)
KEY = derive_answer_key(ASKED.request_key(MESSAGES, IMAGES), 0)

# --- every setting, and whether another value of it asks for new answers
# ------------------------------------------------

SAME, NEW = False, True
TEACHER = Teacher(model="teacher", sampling=Sampling())
QUESTION = Question(
    "q1", (b"png",), ("ab" * 32,), ({"role": "user", "content": "<image>Sum?"},), None, "3", "mine", "sum"
)

# (block, field, another value, whether the keys of the answers change)
TABLE: list[tuple[str, str, Any, bool]] = [
    ("Sampling", "temperature", 0.5, NEW),
    ("Sampling", "top_p", 0.9, NEW),
    ("Sampling", "top_k", 50, NEW),
    ("Sampling", "repetition_penalty", 1.1, NEW),
    ("Sampling", "max_tokens", 16, NEW),
    ("Sampling", "pattern", "[01]", NEW),
    ("Teacher", "model", "the same model under another id", SAME),
    ("Teacher", "responses", 8, SAME),  # more of them: those that are there keep their keys
    ("Teacher", "draw", 1, NEW),
    ("Teacher", "sampling", Sampling(max_tokens=16), NEW),
    ("Teacher", "max_reject_share", 0.5, SAME),
    ("Teacher", "max_empty_share", 0.5, SAME),
    ("Teacher", "max_same_share", 0.5, SAME),
    ("Rollout", "responses", 8, SAME),
    ("Rollout", "draw", 1, NEW),
    ("Rollout", "sampling", Sampling(max_tokens=16), NEW),
    ("Rollout", "max_reject_share", 0.5, SAME),
    ("Rollout", "max_empty_share", 0.5, SAME),
    ("Rollout", "max_same_share", 0.5, SAME),
    ("Checkpoint", "folder", Path("/elsewhere"), SAME),
    ("Checkpoint", "weights", Path("/elsewhere"), SAME),
    ("Checkpoint", "family", "internvl3", NEW),
    ("Checkpoint", "precision", "fp32", NEW),
    ("Checkpoint", "context_tokens", 8192, NEW),
    ("Checkpoint", "identity", "org/model@4567", NEW),
    ("Checkpoint", "endpoint", Endpoint(provider="them", name="model"), SAME),  # its settings are in the identity
    ("Checkpoint", "hub", "org/model@0123", SAME),  # a download and a copy of it are one model
    ("Checkpoint", "limits", ImageLimits(max_pixels=784_000), NEW),
    ("Question", "id", "q2", SAME),
    ("Question", "images", (b"the bytes count by their hash",), SAME),
    ("Question", "image_sha256", ("ba" * 32,), NEW),
    ("Question", "messages", ({"role": "user", "content": "<image>Product?"},), NEW),
    ("Question", "target", "3", SAME),
    ("Question", "answer", "4", SAME),
    ("Question", "answers", ("4", "four"), SAME),
    ("Question", "scorer", "anls", SAME),
    ("Question", "source", "yours", SAME),
    ("Question", "kind", "product", SAME),
    ("GenerationSpec", "model", "org/model@4567", NEW),
    ("GenerationSpec", "family", "internvl3", NEW),
    ("GenerationSpec", "precision", "fp32", NEW),
    ("GenerationSpec", "context_tokens", 8192, NEW),
    ("GenerationSpec", "template", "ef" * 32, NEW),
    ("GenerationSpec", "banned", (7,), NEW),
    ("GenerationSpec", "sampling", Sampling(top_k=50), NEW),
    ("GenerationSpec", "draw", 1, NEW),
    ("GenerationSpec", "limits", ImageLimits(max_tiles=6), NEW),
]
# Fields that reach the key through something else in the table, or never; a stage's own seed is among the latter.
THROUGH: dict[str, dict[str, str]] = {
    "Model": {
        "family": "Checkpoint.family",
        "precision": "Checkpoint.precision",
        "context_tokens": "Checkpoint.context_tokens",
        "verify": "never",
        "build": "Checkpoint.identity",
        "path": "Checkpoint.identity",
        "hub": "Checkpoint.identity",
        "revision": "Checkpoint.identity",
        "endpoint": "Checkpoint.identity",
        "max_pixels": "Checkpoint.limits",
        "min_pixels": "Checkpoint.limits",
        "max_tiles": "Checkpoint.limits",
        "min_tiles": "Checkpoint.limits",
    },
    "Verdict": {
        "model": "Checkpoint.identity",
        "max_tokens": "Sampling.max_tokens",
        "constrained": "Sampling.pattern",
        "form": "Question.messages",
        "max_failed_share": "never",
        "min_exam_accuracy": "never",
        "rule_first": "never",
        "exam": "never",
        "turned": "never",
    },
    "Evaluate": {
        "split": "Question.messages",
        "max_tokens": "Sampling.max_tokens",
        "shuffled_images": "Question.image_sha256",
        "benchmarks": "Question.messages",
        "folder": "Question.messages",
        "style": "Question.messages",
        "cot": "Question.messages",
        "judge": "Checkpoint.identity",
        "judge_max_tokens": "Sampling.max_tokens",
        "judge_form": "Question.messages",
        "scoring": "never",
        "profiles": "never",
        "strict_md5": "never",
        "max_reject_share": "never",
    },
    "Evaluation": {"checkpoint": "Checkpoint.identity", "title": "never"},
    "Questions": {
        "kind": "Question.messages",
        "path": "Question.messages",
        "images": "Question.image_sha256",
        "splits": "Question.messages",
        "sources": "Question.messages",
        "seed": "Question.messages",
        "near_duplicates": "Question.messages",
        "scorer": "never",
        "max_reject_share": "never",
        "max_image_pixels": "never",
        "max_characters": "never",
    },
    "Runtime": {
        "kv_cache_gib": "never",
        "engines": "never",
        "launcher": "never",
        "checkpoint_minutes": "never",
        "keep_checkpoints": "never",
        "checkpoint_share": "never",
        "grace_seconds": "never",
        "gpu_memory_utilization": "never",
        "zero_stage": "never",
        "optimizer_states": "never",
        "reference": "never",
        "deepspeed": "never",
        "processes": "never",
        "gpu_slots": "never",
        "gpus": "never",
        "rank_gpus": "never",
        "stage_engines": "never",
        "first_rank_minutes": "never",
        "stopped_seconds": "never",
        "stuck_minutes": "never",
        "gradient_checkpointing": "never",
        "group_attention": "never",
        "vision_attention": "never",
        "weight_transfer": "never",
        "prefect_probe_seconds": "never",
    },
}
BLOCKS: dict[str, Any] = {
    "Sampling": Sampling(),
    "Teacher": TEACHER,
    "Rollout": Rollout(sampling=Sampling()),
    "Checkpoint": Checkpoint(Path("m"), Path("m"), "qwen2_5_vl", "bf16", 4096, "hub/model@0123"),
    "Question": QUESTION,
    "GenerationSpec": ASKED,
}


def keys_with(blocks: Mapping[str, Any]) -> list[str]:
    """Keys of the first two answers that a stage would look up, as stages do it."""
    asker = blocks["Rollout"] if blocks["Rollout"] != BLOCKS["Rollout"] else blocks["Teacher"]
    sampling = asker.sampling if asker.sampling != Sampling() else blocks["Sampling"]
    asked = answers.make_generation_spec(blocks["Checkpoint"], sampling, asker.draw, Path("store"))
    if blocks["GenerationSpec"] != ASKED:
        assert asked == ASKED
        asked = blocks["GenerationSpec"]
    wanted = RequestedAnswers.from_prompts(asked, [blocks["Question"]], asker.responses)
    return [derive_answer_key(wanted.request_key(0), sample) for sample in range(2)]


@pytest.mark.parametrize(
    ("block", "field", "value", "new"), TABLE, ids=[f"{block}.{field}" for block, field, _, _ in TABLE]
)
def test_what_another_value_costs(
    block: str, field: str, value: Any, new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "read_template", lambda checkpoint, store: Template("cd" * 32, (7, 8)))
    before = BLOCKS[block]
    assert getattr(before, field) != value
    changed = (
        before.model_copy(update={field: value}) if hasattr(before, "model_copy") else replace(before, **{field: value})
    )
    assert (keys_with({**BLOCKS, block: changed}) != keys_with(BLOCKS)) == new


def test_every_setting_is_in_a_table() -> None:
    """A field that is added anywhere here needs a line: a person decides what it costs."""
    listed = {(block, field) for block, field, _, _ in TABLE}
    settings = {(kind.__name__, name) for kind in (Sampling, Teacher, Rollout) for name in kind.model_fields}
    content = {(kind.__name__, field.name) for kind in (Checkpoint, Question, GenerationSpec) for field in fields(kind)}
    assert listed == settings | content
    kinds = {kind.__name__: kind for kind in (Model, Verdict, Evaluate, Evaluation, Questions, Runtime)}
    assert {name: set(THROUGH[name]) for name in kinds} == {
        name: set(kind.model_fields) for name, kind in kinds.items()
    }
    reached = {f"{block}.{field}" for block, field, _, new in TABLE if new} | {"never"}
    assert {end for ends in THROUGH.values() for end in ends.values()} <= reached


def test_a_model_in_another_folder_is_the_same_model_and_another_byte_makes_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert hash_content(tmp_path / "one") == hash_content(tmp_path / "two")
    (tmp_path / "two" / "config.json").write_text("{ }")
    assert hash_content(tmp_path / "one") != hash_content(tmp_path / "two")


@pytest.mark.parametrize(
    ("messages", "images", "sample"),
    [
        ([{"role": "user", "content": "<image>What is the product?"}], IMAGES, 0),
        ([{"role": "system", "content": "<image>What is the sum?"}], IMAGES, 0),
        ([{"role": "system", "content": ""}, *MESSAGES], IMAGES, 0),
        (MESSAGES, ["ba" * 32], 0),
        (MESSAGES, [], 0),
        (MESSAGES, IMAGES * 2, 0),
        (MESSAGES, IMAGES, 1),
    ],
)
def test_content_that_changes_the_key(messages: list[dict[str, str]], images: list[str], sample: int) -> None:
    assert derive_answer_key(ASKED.request_key(messages, images), sample) != KEY


def test_what_does_not_change_the_key() -> None:
    """Ids, seeds of experiments, engines and machines are no argument. Order and number types don't count."""
    same = [{"content": "<image>What is the sum?", "role": "user", "extra": "for people"}]
    assert derive_answer_key(ASKED.request_key(same, tuple(IMAGES)), 0) == KEY
    assert replace(ASKED, sampling=Sampling(temperature=1)).request_key(MESSAGES, IMAGES) == ASKED.request_key(
        MESSAGES, IMAGES
    )


def test_the_key_is_the_same_for_ever() -> None:
    """Another value here makes every stored answer unfindable: raise VERSION on purpose, or undo the change."""
    assert KEY == "b0b88712567937e905de7f17d86c311b7e92fe72c8289892314c56b4ca14ada5"


def test_two_limits_on_images_never_share_answers() -> None:
    named = [{}, {"max_pixels": 6}, {"min_pixels": 6}, {"max_tiles": 6}, {"min_tiles": 6}, {"max_tiles": 7}]
    named += [{"min_tiles": 6, "max_tiles": 7}]
    assert len({replace(ASKED, limits=ImageLimits(**limits)).hash() for limits in named}) == len(named)
    assert replace(ASKED, limits=ImageLimits()).hash() == ASKED.hash()


@given(st.text(alphabet="0123456789abcdef", min_size=64, max_size=64))
def test_seeds_leave_room_for_samples(request_key: str) -> None:
    assert 0 <= derive_request_seed(request_key) < 2**62


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8)), max_size=3),
    st.integers(0, 9),
)
def test_two_requests_share_a_key_only_when_they_are_equal(said: list[tuple[str, str]], sample: int) -> None:
    messages = [{"role": role, "content": text} for role, text in said]
    split = [message for message in messages for message in (message, {"role": "user", "content": ""})]
    assert (
        derive_answer_key(ASKED.request_key(messages, []), sample)
        == derive_answer_key(ASKED.request_key(split, []), sample)
    ) == (messages == split)
