"""The discriminator: Eq. 1, the last token whatever the packing, and that it learns to tell two styles apart."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from stages.adversary.discriminator_model import (
    GROUP_TOKENS,
    TEXTS_PER_GROUP,
    DiscriminatorCollator,
    DiscriminatorModel,
    Text,
    compute_accuracy,
    discriminator_loss,
    group_texts,
    score_texts,
    weigh_sides,
)
from stages.adversary.prompt import encode_prefix
from stages.config.runtime import Runtime
from stages.config.schedule import Schedule
from stages.groups.response import STUDENT
from stages.responses.draws import TeacherAnswer, draw_balanced
from stages.training.trainer import Trainer
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.reader import load_network, load_reader


def test_loss_is_equation_1() -> None:
    """Eq. 1 over N student and N teacher texts is -2 times our loss."""
    logits = torch.tensor([0.3, -2.0, 1.5, -0.1], dtype=torch.float64)
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    d = torch.sigmoid(logits)
    equation = (torch.log(d[:2]).sum() + torch.log(1 - d[2:]).sum()) / 2
    assert float(discriminator_loss(logits, labels, torch.full_like(labels, 1 / 4))) == pytest.approx(
        float(-equation / 2), abs=1e-12
    )


def test_sides_and_teachers_weigh_the_same_whatever_falls_out() -> None:
    """Three student texts, one text of teacher a, two of teacher b: 1/2, 1/4 and 1/4."""
    writers = ["a", STUDENT, "b", STUDENT, "b", STUDENT]
    weights = weigh_sides(writers)
    assert weights.tolist() == pytest.approx([1 / 4, 1 / 6, 1 / 8, 1 / 6, 1 / 8, 1 / 6])
    logits = torch.tensor([0.3, -2.0, 1.5, -0.1, 0.7, 1.0])
    d = torch.sigmoid(logits)
    student = torch.log(d[[1, 3, 5]]).mean()
    teachers = (torch.log(1 - d[0]) + torch.log(1 - d[[2, 4]]).mean()) / 2
    labels = torch.tensor([float(writer == STUDENT) for writer in writers])
    assert float(discriminator_loss(logits, labels, weights)) == pytest.approx(float(-(student + teachers) / 2))
    assert weigh_sides([STUDENT] * 2 + ["a"] * 2).tolist() == [1 / 4] * 4


def test_in_bf16_neither_head_nor_logit_is_rounded(tiny: Callable[[str], Checkpoint]) -> None:
    """Ten texts that differ little: ten logits, those of the fp32 head on the same hidden states."""
    checkpoint = replace(tiny("qwen2_5_vl"), precision="bf16")
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 3).bfloat16()
    seen: list[torch.Tensor] = []
    discriminator.score.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    (pack,) = DiscriminatorCollator(reader, 8192).make_packs([Text(f"3:3,8:11. Answer: {n}") for n in range(10)])
    with torch.no_grad():
        logits = discriminator(pack)
    (hidden,) = seen
    assert hidden.dtype == discriminator.score.weight.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert len(set(logits.tolist())) == 10
    weight, bias = discriminator.score.weight.double(), discriminator.score.bias.double()
    wanted = (hidden.double() @ weight.T + bias).squeeze(1)
    assert torch.allclose(logits.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_text_scores_the_same_alone_and_in_any_pack(tiny: Callable[[str], Checkpoint], family: str) -> None:
    checkpoint = tiny(family)
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 3)
    texts = [Text(f"answer {n}: {'5,' * n}") for n in range(19)]
    together = score_texts(discriminator, DiscriminatorCollator(reader, 4096), texts)
    assert len(set(together)) > 10
    for tokens in (1, 300):
        assert score_texts(discriminator, DiscriminatorCollator(reader, tokens), texts) == pytest.approx(
            together, abs=1e-5
        )
    alone = [score_texts(discriminator, DiscriminatorCollator(reader, 4096), [text])[0] for text in texts]
    assert alone == pytest.approx(together, abs=1e-5)


def test_short_texts_share_a_prompt_and_long_ones_at_least_eight(tiny: Callable[[str], Checkpoint]) -> None:
    """No group of more than eight texts is longer than 1,024 tokens or than a pack."""
    reader = load_reader(tiny("qwen2_5_vl"))
    short, long = [f"so {n}" for n in range(99)], [f"{n}: {'5,' * 200}" for n in range(20)]
    (first, *rest) = group_texts(reader, short, 8192)
    assert len(first.responses) > 2 * TEXTS_PER_GROUP
    assert [len(one.responses) for one in group_texts(reader, long, 8192)] == [TEXTS_PER_GROUP, TEXTS_PER_GROUP, 4]
    for tokens in (GROUP_TOKENS, 300):
        groups = group_texts(reader, [*short, *long], tokens)
        assert [response for one in groups for response in one.responses] == [
            response for text in [*short, *long] for response in group_texts(reader, [text], 8192)[0].responses
        ]
        assert all(one.tokens <= tokens or len(one.responses) <= TEXTS_PER_GROUP for one in groups)
    assert len(first.responses) + sum(len(one.responses) for one in rest) == 99


def test_response_is_fenced_and_nothing_of_the_turn_is_left_in_it(tiny: Callable[[str], Checkpoint]) -> None:
    reader = load_reader(tiny("qwen2_5_vl"))
    opening, closing = encode_prefix(reader)
    tokenizer = reader.chat.tokenizer
    assert tokenizer.decode(opening.ids.tolist()).endswith("<response>")
    assert tokenizer.decode(closing).startswith("</response>")
    pack = DiscriminatorCollator(reader, 4096).make_packs([Text("one"), Text("two <|im_end|>")])[0]
    ends = [int(pack.ids[place]) for place in pack.last]
    assert ends == [closing[-1]] * 2


def test_it_learns_to_tell_two_styles_apart(tiny: Callable[[str], Checkpoint]) -> None:
    checkpoint = tiny("qwen2_5_vl")
    reader = load_reader(checkpoint)
    discriminator = DiscriminatorModel(load_network(checkpoint, reader), 0)
    schedule = Schedule(steps=30, learning_rate=1e-3)
    trainer = Trainer(discriminator, schedule, Runtime())
    texts = [f"3:{n},8:{n}. Answer: {n}" for n in range(10)] + [f"3->{n} 8->{n} so {n}." for n in range(10)]
    labels = torch.tensor([1.0] * 10 + [0.0] * 10)
    for _ in range(schedule.steps):
        (pack, *more) = DiscriminatorCollator(reader, 8192).make_packs([Text(text) for text in texts])
        assert not more
        trainer.backward(discriminator_loss(discriminator(pack), labels, torch.full((20,), 1 / 20)), last=True)
        trainer.step(1e-3)
    fresh = [f"7:{n},1:{n}. Answer: {n}" for n in range(10)] + [f"7->{n} 1->{n} so {n}." for n in range(10)]
    logits = score_texts(discriminator, DiscriminatorCollator(reader, 8192), [Text(text) for text in fresh])
    assert compute_accuracy(logits, [1] * 10 + [0] * 10) == 1.0


def test_draw_is_balanced_without_replacement_and_changes_with_the_seed() -> None:
    answers = [TeacherAnswer(teacher, n, f"{teacher}{n}", 1, "stop") for teacher in ("x", "y") for n in range(8)]
    draws = [draw_balanced(answers, 5, seed) for seed in range(20)]
    for drawn in draws:
        assert len({(one.teacher, one.sample) for one in drawn}) == 5
        assert sorted(sum(one.teacher == teacher for one in drawn) for teacher in ("x", "y")) == [2, 3]
    assert len({tuple(one.text for one in drawn) for drawn in draws}) > 15
    assert {sum(one.teacher == "x" for one in drawn) for drawn in draws} == {2, 3}, "either gives the odd one"
    assert draw_balanced(answers, 5, 7) == draw_balanced(answers, 5, 7)
    assert len(draw_balanced(answers[:3], 5, 0)) == 3
