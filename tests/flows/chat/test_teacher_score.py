"""The discriminator as a scorer: the probability of the teachers' side, from the weights of stage `discriminator`."""

import math
import shutil
from pathlib import Path

import pytest

from flows.chat.question import make_question_of
from flows.chat.teacher_score import load_text_scorer
from flows.environment import store_folder
from stages.adversary.discriminator_model import DiscriminatorCollator, DiscriminatorModel, Text, score_texts
from stages.config.params import load_params
from stages.vlm.checkpoint import open_checkpoint
from stages.vlm.reader import load_network, load_reader
from tests.flows.tiny_run import copy_run

TEXTS = ["3:3, 8:11, so the sum is 11.", "11", "It is a long answer without any number in it."]


def test_the_probability_is_that_of_the_teachers_side(tiny_run: Path) -> None:
    """z > 0 is the student's side, so that the probability is sigmoid(-z)."""
    params = load_params(tiny_run / "params.yaml")
    checkpoint = open_checkpoint(tiny_run / "data" / "warm_start")
    reader = load_reader(checkpoint)
    model = DiscriminatorModel(load_network(checkpoint, reader), 0)
    model.load(tiny_run / "data" / "discriminator")
    logits = score_texts(model, DiscriminatorCollator(reader, 2048), [Text(text) for text in TEXTS])
    scorer = load_text_scorer(tiny_run, store_folder(tiny_run), params)
    found = scorer(make_question_of("What?", [], "", "{}"), TEXTS)
    assert found == pytest.approx([1 / (1 + math.exp(logit)) for logit in logits], rel=1e-5)
    assert len(set(found)) == 3


def test_an_objective_without_discriminator_has_none(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    shutil.rmtree(project / "data" / "discriminator")
    (project / "data" / "discriminator").mkdir()
    with pytest.raises(FileNotFoundError, match="its stage ran without one"):
        load_text_scorer(project, store_folder(project), load_params(project / "params.yaml"))
