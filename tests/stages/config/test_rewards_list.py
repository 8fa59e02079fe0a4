"""`ril.rewards`: weights of the paper's rewards, files that DVC watches, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.config.own_rewards import FUNCTION_CODE
from stages.config.params import Params, load_params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml


def validate(root: Path, ril: dict[str, Any], **others: dict[str, Any]) -> Params:
    return validate_params(merge_params(read_yaml(root / "params.yaml"), {"ril": ril, **others}))


def test_the_default_list_is_empty_and_watches_the_ready_functions(root: Path) -> None:
    params = validate(root, {})
    assert params.objective.functions == ()
    assert params.ril.reward_code == FUNCTION_CODE
    assert (root / FUNCTION_CODE).is_file()


def test_entries_of_the_paper_are_weights(root: Path) -> None:
    listed = [
        {"use": "similarity", "weight": 0.5, "gate": "when_correct"},
        {"use": "answer", "weight": 2.0},
        {"use": "length", "weight": -0.25, "arguments": {"most": 9}},
    ]
    found = validate(root, {"rewards": listed}).objective
    assert (found.similarity_weight, found.similarity_gate, found.answer_weight) == (0.5, "when_correct", 2.0)
    assert [(one.title, one.weight, one.arguments) for one in found.functions] == [("length", -0.25, {"most": 9})]
    by_keys = validate(
        root,
        {"rewards": listed[2:], "similarity_weight": 0.5, "similarity_gate": "when_correct", "answer_weight": 2.0},
    )
    assert by_keys.objective == found


def test_an_entry_goes_before_the_value_of_the_objective(root: Path) -> None:
    found = validate(root, {"objective": "adversarial", "rewards": [{"use": "answer", "weight": 0.5}]}).objective
    assert (found.answer_weight, found.similarity_weight, found.uses_judge) == (0.5, 1.0, True)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rewards": [{"use": "similarity"}], "similarity_weight": 1.0},
     "similarity_weight is set, and rewards has an entry 'similarity' too; remove one"),
    ({"rewards": [{"use": "similarity", "gate": "none"}], "similarity_gate": "when_correct"},
     "similarity_gate is set, and rewards has an entry 'similarity' too; remove one"),
    ({"rewards": [{"use": "answer"}, {"use": "answer", "weight": 2.0}]},
     "rewards has 'answer' more than once; remove one"),
    ({"rewards": [{"use": "answer", "gate": "when_correct"}]}, "'answer' is what `when_correct` asks for; remove gate"),
    ({"rewards": [{"use": "answer", "weight": -1.0}]}, "weight of 'answer' is -1; it must be at least 0"),
    ({"rewards": [{"use": "answer", "seconds": 1.0}]}, "'answer' is a reward of the paper and has no seconds"),
    ({"rewards": [{"use": "length"}, {"use": "length", "weight": 2.0}]},
     "rewards has two entries of the name 'length', but each"),
    ({"rewards": [{"use": "rewards/unit"}]}, "use is 'rewards/unit'; take similarity, answer, choice"),
    ({"rewards": [{"use": "/proc/unit.py"}]}, "a folder of the system, not data"),
    ({"rewards": [{"use": "length", "name": "a/b"}]}, "name 'a/b' must be 1 to 64 of a-z, A-Z, 0-9 and _"),
    ({"rewards": [{"use": "rewards/unit.py:check"}]},
     "ril.rewards[0].use is 'rewards/unit.py:check', but ril.reward_code is 'stages/reward_functions/ready.py', so DVC "
     "does not watch that file; set ril.reward_code to rewards/unit.py, or to a folder with all your functions"),
    ({"rewards": [{"use": "other/unit.py"}], "reward_code": "rewards"}, "set ril.reward_code to other/unit.py"),
    ({"reward_code": "data/ril"}, "ril.reward_code is 'data/ril', which holds what stages write"),
    ({"rewards": [{"use": "length", "wieght": 1.0}]}, "ril.rewards.0.wieght = 1.0 is not a known key"),
]  # fmt: skip


@pytest.mark.parametrize(("ril", "line"), REFUSED)
def test_what_is_refused(root: Path, ril: dict[str, Any], line: str) -> None:
    with pytest.raises(ParamsError) as caught:
        validate(root, ril)
    assert line in str(caught.value)


@pytest.mark.parametrize("code", ["rewards/unit.py", "rewards"])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def check(answer): return 1", None),
        ("from math import floor as check", None),
        ("check = len", None),
        (None, "rewards/unit.py: No such file or directory; write the function there, or correct the path"),
        ("x = 1\ndef check(:\n", "rewards/unit.py, line 2: invalid syntax; correct it"),
        ("def chekc(): pass", "rewards/unit.py has no function 'check'; it has chekc: write FILE.py:FUNCTION"),
        ("import os; os.mkdir('ran')\nx = 1", "rewards/unit.py has no function 'check'; it has none"),
    ],
)
def test_the_file_is_read_and_not_run_when_parameters_are_loaded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, text: str | None, line: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    ril = {"rewards": [{"use": "rewards/unit.py"}], "reward_code": code}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merge_params(read_yaml(root / "params.yaml"), {"ril": ril})))
    (tmp_path / "rewards").mkdir()
    if text is not None:
        (tmp_path / "rewards" / "unit.py").write_text(text)
    if line is None:
        assert load_params(tmp_path / "params.yaml").objective.functions[0].title == "check"
        return
    with pytest.raises(ParamsError) as caught:
        load_params(tmp_path / "params.yaml")
    assert line in str(caught.value)
    assert not (tmp_path / "ran").exists()
