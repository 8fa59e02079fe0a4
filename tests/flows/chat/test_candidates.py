"""Which models can be asked, and what is said of those that cannot; how replies stand on a screen."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.chat.candidates import ChatError, LeftOut, find_candidates, require_candidate
from flows.chat.panel import GIB, Panel, PanelReply, fits_together
from flows.chat.question import choose_sampling, make_question_of
from flows.chat.show import describe_reply, escape_lines, format_replies
from flows.environment import store_folder
from stages.config.params import Params, load_params, validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.job.files import read_json, write_json
from tests.flows.tiny_run import copy_run


def change(project: Path, overlay: dict[str, Any]) -> Params:
    return validate_params(merge_params(read_yaml(project / "params.yaml"), overlay))


def find(project: Path, *asked: str) -> tuple[list[str], list[LeftOut]]:
    found, missing = find_candidates(project, store_folder(project), load_params(project / "params.yaml"), asked)
    return [one.name for one in found], missing


def test_all_evaluated_models_are_asked_in_the_order_of_the_parameters(tiny_run: Path) -> None:
    assert find(tiny_run) == (["base", "warm_start", "ril", "qwen2_5_vl", "internvl3"], [])
    assert find(tiny_run, "ril", "base")[0] == ["ril", "base"]
    with pytest.raises(ChatError, match=r"no model 'nothing'; entries of `evaluations`.*: base, warm_start, ril"):
        find(tiny_run, "ril", "nothing")


def test_a_model_that_is_not_made_is_left_out_with_the_command_that_makes_it(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    for place in ("data/ril", "data/model/internvl3"):
        shutil.rmtree(project / place)
    names, missing = find(project)
    assert names == ["base", "warm_start", "qwen2_5_vl"]
    assert missing == [
        LeftOut("ril", "data/ril/model is missing; make it with: dvc repro ril"),
        LeftOut("internvl3", "data/model/internvl3 is missing; make it with: dvc repro model@internvl3"),
    ]
    with pytest.raises(ChatError, match="ril: data/ril/model is missing; make it with: dvc repro ril"):
        require_candidate(project, store_folder(project), load_params(project / "params.yaml"), "ril")


def test_a_model_with_other_files_than_its_card_is_not_asked(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    write_json(project / "data" / "ril" / "model" / "generation_config.json", {})
    names, missing = find(project, "ril")
    assert not names
    assert "generation_config.json" in missing[0].reason


def test_an_endpoint_is_asked_by_name_only(tiny_run: Path, tmp_path: Path) -> None:
    project = copy_run(tiny_run, tmp_path / "project")
    card = project / "data" / "model" / "internvl3" / "ril.json"
    endpoint = {"provider": "rented", "name": "a model"}
    write_json(card, {**read_json(card), "family": "remote", "endpoint": endpoint})
    names, missing = find(project)
    assert "internvl3" not in names
    assert missing == [LeftOut("internvl3", "an endpoint, which may cost money; --models internvl3 asks it")]
    assert find(project, "internvl3") == (["internvl3"], [])


def test_engines_stay_open_if_memory_has_room_for_all(tiny_run: Path) -> None:
    params = load_params(tiny_run / "params.yaml")
    found, _ = find_candidates(tiny_run, store_folder(tiny_run), params)
    checkpoints = [one.checkpoint for one in found]
    assert fits_together(checkpoints, 1, 20 * GIB)
    assert not fits_together(checkpoints, 1, 14 * GIB)  # five of 2 GiB and weights in 0.7 of it
    assert not fits_together(checkpoints, 4, 20 * GIB)


def test_a_model_without_an_answer_does_not_hide_the_others(tiny_run: Path) -> None:
    """`replay` has no answers and starts no engine: every reply is a fault, and judge and discriminator are asked."""
    params = change(tiny_run, {"runtime": {"engines": {"student": {"kind": "replay"}}}})
    found, _ = find_candidates(tiny_run, store_folder(tiny_run), params, ["base", "ril"])
    question = make_question_of("What is the sum?", [], "", "{}")
    said: list[str] = []
    with Panel(tiny_run, store_folder(tiny_run), params, keep=False, say=said.append) as panel:
        replies, silent = panel.ask(found, question, choose_sampling(params, 0.0, None))
    assert [one.name for one in replies] == ["base", "ril"]
    assert all("replay" in one.fault and one.text == "" for one in replies)
    assert not silent
    assert said == ["starting Base student", "starting RIL student", "loading the discriminator"]


REPLIES = [
    PanelReply("base", "Base student", "The sum\nis 7.", "stop", 6, 0.25, 1),
    PanelReply("ril", "RIL student", "8 [bold]x[/bold] \x1b[31m\u202e", "length", 12, None, None),
    PanelReply("far", "Teacher", "", "failed", 0, fault="HTTP 500"),
]


def test_replies_stand_side_by_side_where_there_is_room() -> None:
    shown = format_replies(REPLIES, True, 90)
    lines = shown.splitlines()
    assert all(len(line) <= 90 for line in lines)
    head = next(line for line in lines if "Base student" in line)
    assert "RIL student" in head
    assert "Teacher" in head
    assert "[bold]x[/bold]" in shown
    assert "\\x1b[31m\\u202e" in shown
    assert "D: 25% a teacher's" in shown
    assert "judge: right" in shown
    assert "judge: no verdict" in shown
    assert "failed: HTTP 500" in shown


def test_replies_stand_below_each_other_on_a_narrow_screen() -> None:
    lines = format_replies(REPLIES, True, 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    (base,), (ril,) = (
        [number for number, line in enumerate(lines) if title in line] for title in ("Base student", "RIL student")
    )
    assert base < ril


def test_what_is_said_of_a_reply_is_what_is_known() -> None:
    assert describe_reply(REPLIES[0], False) == ["6 tokens", "D: 25% a teacher's"]
    assert describe_reply(REPLIES[1], True) == ["12 tokens, cut off", "judge: no verdict"]
    assert describe_reply(REPLIES[2], True) == ["failed: HTTP 500"]
    assert escape_lines("a\tb\nc") == "a\\tb\nc"
    assert format_replies([], False, 80) == "no model was asked"
