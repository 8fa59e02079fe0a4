"""The commands of docs/publish.md run as they stand."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.corpora.rows import read_questions

UNTIL_CTRL_C = ("demo", "serve-model")  # tests of their own run these


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_page_run(root: Path, tiny_run: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```$", (root / "docs" / "publish.md").read_text(), re.M | re.S)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert {words[1] for words in commands} == {"chat", "card", "push", *UNTIL_CTRL_C}
    (tiny_run / "picture.png").write_bytes(read_questions(tiny_run / "data" / "questions", "test")[0].images[0])
    for words in commands:
        if words[1] not in UNTIL_CTRL_C:
            code, _, err = call(tiny_run, "flows.cli", *words[1:])
            assert code == 0, (words, err[-2000:])
    assert not (tiny_run / ".." / "ril-model").exists()  # a dry run
