"""What docs/data.md says to do with an archive of images: shards from a tar file, and questions from the shards."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from flows.jobs import open_job
from stages import questions
from stages.config.params import validate_params
from stages.config.yaml import merge_params, read_yaml
from stages.corpora.rows import read_questions

SPLITS = {"warm_start": 20, "imitation": 5, "validation": 3, "test": 2}


def test_an_archive_of_images_becomes_shards_and_these_become_questions(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (root / "docs" / "data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    *_, block = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    pictures: dict[str, bytes] = {}
    with tarfile.open("images.tar", "w") as archive, Path("questions.jsonl").open("w") as lines:
        for number in range(31):
            buffer = io.BytesIO()
            Image.new("RGB", (20, 30), (number, 7, 7)).save(buffer, "PNG")
            pictures[f"q{number}"] = buffer.getvalue()
            about = tarfile.TarInfo(f"part/{number}.png")
            about.size = len(buffer.getvalue())
            archive.addfile(about, io.BytesIO(buffer.getvalue()))
            row = {"id": f"q{number}", "image": about.name, "question": "Which?", "answer": f"{number}"}
            lines.write(json.dumps(row) + "\n" if number < 30 else "")
    exec(compile(code, "docs/data.md", "exec"), {})
    assert [file.name for file in Path("datasets/shards").iterdir()] == ["part-00000.parquet"]

    values = merge_params(yaml.safe_load(block), {"questions": {"splits": SPLITS}})
    params = validate_params(merge_params(read_yaml(root / "params.yaml"), values))
    questions.run(open_job("questions", None, tmp_path, params))
    kept = [one for split in SPLITS for one in read_questions(tmp_path / "data/questions", split)]
    assert len(kept) == 30
    assert all(one.images[0] == pictures[one.id] and one.text == "Which?" for one in kept)
