"""Kind `sources` on what was reported, and as many inputs again: read, or rejected with file, row and reason."""

from pathlib import Path

import pytest

from stages.corpora.formats.sources import list_guesses
from stages.corpora.source import UnusableData
from tests.stages.corpora.source_cases import MORE, REPORTED, Case
from tests.stages.corpora.source_files import read


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in {**REPORTED, **MORE}.items()])
def test_a_row_is_read_or_rejected_with_file_row_and_reason(case: Case, tmp_path: Path) -> None:
    questions = case.make(tmp_path)
    if case.refused:
        with pytest.raises(UnusableData) as caught:
            read(questions, tmp_path)
        assert case.refused in str(caught.value)
        assert str(caught.value).isprintable()
        return
    rows, rejects = read(questions, tmp_path)
    found = {reject.row: reject for reject in rejects}
    assert found.keys() == case.rejects.keys(), rejects
    for number, (field, reason) in case.rejects.items():
        assert reason in found[number].reason
        assert found[number].field == field
        assert found[number].file.startswith(str(questions.sources[0].path))
        assert found[number].reason.isprintable()
    assert len(rows) == case.read
    assert tuple(row["answer"] for row in rows)[: len(case.answers)] == case.answers
    assert list_guesses(questions, tmp_path)


def test_there_are_as_many_cases_again() -> None:
    assert len(MORE) >= len(REPORTED) >= 43
