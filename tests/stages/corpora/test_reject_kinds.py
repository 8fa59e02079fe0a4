"""Rejects by kind: grouped by what is wrong, and what is held does not grow with the rows."""

from pathlib import Path

from stages.corpora.adapters import UnusableRow
from stages.corpora.reject_kinds import MOST_KINDS, OTHERS, RejectKinds
from stages.corpora.reject_log import writing_rejects


def name_reason(number: int) -> str:
    return "no " + "".join(chr(97 + int(digit)) for digit in str(number))  # letters: numbers are values


def test_kinds_without_end_are_counted_and_not_held() -> None:
    kinds = RejectKinds()
    for number in range(3 * MOST_KINDS):
        kinds.add(UnusableRow(number, f"q{number}", name_reason(number), "a.json"))
    kinds.add(UnusableRow(0, "q0", name_reason(7)))
    found = kinds.tabulate()
    assert len(kinds) == sum(one["rows"] for one in found) == 3 * MOST_KINDS + 1
    assert len(found) == MOST_KINDS + 1
    assert (found[0]["reason"], found[0]["rows"], found[0]["row"]) == (OTHERS, 2 * MOST_KINDS, MOST_KINDS)
    assert (found[1]["reason"], found[1]["rows"]) == (name_reason(7), 2)


def test_the_log_describes_the_kinds_that_the_statistics_tabulate(tmp_path: Path) -> None:
    reasons = ["image 'a': no such file", 'image "b 1": no such file', "12 characters", "3,400 characters", "no answer"]
    kinds = RejectKinds()
    with writing_rejects(tmp_path / "rejects.jsonl") as log:
        for row, reason in enumerate([*reasons, reasons[0]]):
            reject = UnusableRow(row, "q", reason)
            log.add(reject, 0)
            kinds.add(reject)
    assert log.count_reasons() == kinds.describe(3)
    assert log.count_reasons() == "3 rows: image 'a': no such file; 2 rows: 12 characters; 1 row: no answer"
    assert [one["rows"] for one in kinds.tabulate()] == [3, 2, 1]
