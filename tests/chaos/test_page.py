"""The page about rounds on record."""

from pathlib import Path

from tests.chaos import page
from tests.chaos.rounds import Hit, Round

ROUNDS = [
    Round(3, "ranks", ["ril"], [Hit(7.0, "SIGKILL", "ril rank", "step 2 of 3")], 2, 0, 61.0, []),
    Round(
        4, "single", ["pool", "rollout"], [Hit(1.0, "disk full for 2.0 s, 3 calls failed", "dvc", "x")], 1, 1, 59.0, []
    ),
    Round(5, "single", ["report"], [], 1, 0, 20.0, ["dvc's lock is held: {}"]),
]


def test_each_hit_is_counted_once_by_stage_and_by_process() -> None:
    text = page.describe_rounds(ROUNDS)
    assert "3 rounds, 2 hits, 4 attempts, 2 minutes; 1 rounds failed, 1 tracebacks." in text
    assert "| ril | 1 |  |  |  |  |  | 1 |" in text
    assert "| between stages |  |  |  | 1 |  |  | 1 |" in text
    assert "| rank | 1 |  |  |  |  |  | 1 |" in text
    assert "| dvc |  |  |  | 1 |  |  | 1 |" in text
    assert "- 5, single, report: 1 attempts, 20 s, dvc's lock is held: {}" in text


def test_the_page_on_record_is_that_of_its_log() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert (docs / "chaos.md").read_text() == page.describe_rounds(page.read_rounds(docs / "chaos.jsonl"))
