"""Data formats: one entry makes a format; validation, forms and errors come from the entries."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.jobs import open_job
from stages import questions
from stages.config.formats import FORMATS, Format
from stages.config.params import Params, validate_params
from stages.config.questions import Questions
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.corpora import formats
from stages.corpora.rows import make_canonical_row, read_questions
from stages.corpora.source import SourceRow


def test_every_entry_has_its_reader_and_every_reader_its_entry() -> None:
    readers = [one.reader for one in FORMATS.values() if one.reader is not None]
    assert sorted(readers) == sorted(module.name for module in pkgutil.iter_modules(formats.__path__))
    assert all(callable(importlib.import_module(f"{formats.__name__}.{reader}").read) for reader in readers)
    assert [name for name, one in FORMATS.items() if one.reader is None] == ["world"]


def test_the_forms_offer_every_format_with_its_title() -> None:
    field = Params.model_json_schema()["$defs"]["Questions"]["properties"]["kind"]
    assert field["enum"] == list(FORMATS)
    assert all(f"`{name}` {one.title}" in field["description"] for name, one in FORMATS.items())


def test_an_unknown_format_is_named_with_those_that_are_known(root: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        validate_params(merge_params(read_yaml(root / "params.yaml"), {"questions": {"kind": "csv"}}))
    assert str(caught.value).splitlines() == [
        "params.yaml: questions.kind = 'csv': no format has this name; known: world, llava, rows, sources"
    ]


def test_one_entry_adds_a_format(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(number: int, line: str) -> dict[str, Any]:
        question, _, answer = line.partition("\t")
        return make_canonical_row(f"{number}", [], [{"role": "user", "content": question}], answer, "lines", "open")

    def lines(block: Questions, folder: Path) -> Iterator[SourceRow]:
        for number, line in enumerate((folder / block.path).read_text().splitlines()):
            yield SourceRow(f"line {number}", partial(row, number, line))

    module: Any = SimpleNamespace(read=lines)
    monkeypatch.setitem(sys.modules, f"{formats.__name__}.lines", module)
    monkeypatch.setitem(FORMATS, "lines", Format("reads questions and answers from lines", reader="lines"))  # type: ignore[arg-type]
    (tmp_path / "mine.txt").write_text("no answer\n" + "".join(f"What is {n}?\t{n}\n" for n in range(8)))
    splits = {"warm_start": 2, "imitation": 2, "validation": 2, "test": 2}
    block = {"kind": "lines", "path": "mine.txt", "images": "mine.txt", "splits": splits, "max_reject_share": 0.2}
    params = validate_params(merge_params(read_yaml(root / "params.yaml"), {"questions": block}))
    job = open_job("questions", None, tmp_path, params)
    questions.run(job)
    assert {one.answer for split in splits for one in read_questions(job.out, split)} == {str(n) for n in range(8)}
    assert "no reference answer" in (job.reports / "rejects.jsonl").read_text()
