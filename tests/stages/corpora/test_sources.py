"""Kind `sources`: every form in every container, without being told which; what was guessed; splits; columns."""

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.stages.corpora.source_files import CONTAINERS, FORMS, ROWS, ask, block, draw, read


def show_image(kind: str, number: int) -> Any:
    content = draw(number)
    shown = {
        "path": f"pictures/{number}.png",
        "base64": "data:image/png;base64," + base64.b64encode(content).decode(),
        "struct": {"bytes": content, "path": None},
        "bytes": content,
    }
    return shown.get(kind)


def write(folder: Path, form: str, container: str) -> str:
    (folder / "pictures").mkdir()
    for number in range(ROWS):
        (folder / f"pictures/{number}.png").write_bytes(draw(number))
    kind, save = CONTAINERS[container]
    return save([FORMS[form](number, show_image(kind, number)) for number in range(ROWS)], folder)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_from_every_container(form: str, container: str, tmp_path: Path) -> None:
    path = write(tmp_path, form, container)
    rows, rejects = read(block(path, "pictures"), tmp_path)
    assert rejects == []
    assert len(rows) == ROWS
    shown = form != "text only" or container == "tar"
    for number, row in enumerate(rows):
        *before, asked, said = row["messages"]
        assert ask(number) in asked["content"]
        assert [turn["role"] for turn in (asked, said)] == ["user", "assistant"]
        assert said["content"] == row["answer"]
        assert [image["bytes"] for image in row["images"]] == ([draw(number)] if shown else [])
        assert sum(turn["content"].count("<image>") for turn in row["messages"]) == shown
        assert bool(before) == (form in ("sharegpt", "several pairs"))
        if form.startswith("options"):
            assert row["kind"] == "choice"
            assert f"{row['answer']}. {number}" in asked["content"] or row["answer"] == "A"
            assert row["answer"] == {"options in columns": "A", "options by text": "B"}.get(
                form, "B" if number else "A"
            )
        else:
            assert row["answer"] == str(number)
        assert row["answers"] == ([str(number), "many"] if form == "vqa of several answers" else None)
