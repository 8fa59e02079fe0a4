"""`ril rewards`: a function on stored answers, from the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.rewards import RewardError, format_histogram
from stages.config.own_rewards import READY
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.job.files import write_shards
from stages.responses.schemas import ANSWERS

UNIT = """
def check(answer, reference):
    print("looking")
    if answer == "none":
        raise ValueError("no number")
    return len(answer) / 10

def same(answer, low=0):
    return low
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with questions, answers of the student and of a teacher, and a function; the working directory."""
    for split, names in (("imitation", ("q1", "q2")), ("warm_start", ("q3",))):
        rows = [
            make_canonical_row(name, [], [{"role": "user", "content": "How long?"}], "7 cm", "mine", "sum")
            for name in names
        ]
        write_shards(tmp_path / "data" / "questions" / split, rows, QUESTION_SCHEMA)
    answers = {"rollout": ("7 cm", "none", "seven"), "teacher/big": ("7 cm", "7", "It is 7 cm")}
    for folder, texts in answers.items():
        rows = [
            {
                **dict.fromkeys(ANSWERS.names),
                "question_id": f"q{n + 1}",
                "sample": 0,
                "response": text,
                "finish_reason": "stop",
            }
            for n, text in enumerate(texts)
        ]
        write_shards(tmp_path / "data" / folder, rows, ANSWERS)
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "unit.py").write_text(UNIT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ril(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["rewards", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def test_a_function_is_shown_on_stored_answers(project: Path) -> None:
    said = ril("try", "rewards/unit.py:check")
    first, *rest = said.splitlines()
    assert first.startswith("rewards/unit.py:check: 6 of 6 stored answers in ")
    assert first.endswith("(data/rollout, data/teacher/big)")
    assert rest == [
        "values 5, failed 1 (16.7%), printed 6",
        "  failed: 1 raised ValueError: no number, such as on question q2",
        "  printed, such as: looking",
        "mean 0.48, standard deviation 0.2926",
        "",
        "  0.1  #################### 1",
        "  0.4  ######################################## 2",
        "  0.5  #################### 1",
        "    1  #################### 1",
        "",
        "answers of  n  mean  failed",
        "rollout     3  0.45  1",
        "big         3  0.5   0",
        "",
        "value   question  reference  answer",
        "0.1     q2        7 cm       7",
        "0.4     q1        7 cm       7 cm",
        "0.5     q3        7 cm       seven",
        "1       q3        7 cm       It is 7 cm",
        "failed  q2        7 cm       none",
    ]


def test_arguments_folders_and_a_sample_can_be_chosen(project: Path) -> None:
    said = ril("try", "rewards/unit.py:same", "--set", "low=0.25", "--answers", "data/teacher/big", "--sample", "2")
    assert "rewards/unit.py:same: 2 of 3 stored answers" in said
    assert "mean 0.25, standard deviation 0\n  warning: all values are equal, so it would train nobody" in said


def test_more_failures_than_a_run_allows_are_an_exit_code(project: Path) -> None:
    said = ril("try", "rewards/unit.py", "--answers", "data/rollout", code=1)
    assert "failed 1 (33.3%)" in said


def test_ready_functions_are_listed_and_tried(project: Path) -> None:
    listed = ril("list").splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(READY)
    said = ril("try", "numeric")
    assert "mean 0.6667" in said
    assert "  0  #################### 2\n  1  ######################################## 4" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["rewards/unit.py:chek"],
            "rewards/unit.py has no function 'chek'; it has check, same: write FILE.py:FUNCTION",
        ),
        (["rewards/units.py"], "rewards/units.py: No such file or directory; write the function there, or correct"),
        (["unit"], "use is 'unit'; take similarity, answer, choice, numeric"),
        (["/etc/../proc/x.py"], "a folder of the system, not data"),
        (["similarity"], "'similarity' is no function; curves of it are in reports/ril/history.csv"),
        (["rewards/unit.py", "--set", "low"], "--set low: write NAME=VALUE"),
        (
            ["rewards/unit.py:same", "--set", "lwo=1"],
            "ril.rewards: rewards/unit.py:same was not loaded: `arguments` has",
        ),
        (["rewards/unit.py", "--answers", "data/pool"], "data/pool: no stored answers here; run: dvc repro rollout"),
    ],
)
def test_mistakes_are_explained(project: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(RewardError) as caught:
        CliRunner().invoke(app, ["rewards", "try", *arguments], catch_exceptions=False)
    assert message in str(caught.value)


def test_many_values_are_shown_in_ten_intervals() -> None:
    lines = format_histogram([number / 10 for number in range(100)] + [9.9])
    assert len(lines) == 10
    assert lines[0] == "     0 to 0.99  #################################### 10"
    assert lines[-1] == "   8.91 to 9.9  ######################################## 11"
