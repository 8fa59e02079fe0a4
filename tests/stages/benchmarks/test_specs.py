"""Every benchmark from a file in its published schema to a score: loaded, asked in every style, scored under every
profile.
"""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.benchmarks.prompts import STYLES, Asked, step_by_step
from stages.benchmarks.registry import COLUMNS, registry
from stages.benchmarks.sample import Sample
from stages.benchmarks.scorers import LMMS, OURS, PROFILES, VLMEVAL, Profile
from stages.benchmarks.scores import Reply, average_of_columns, column_scores, measured
from stages.benchmarks.sources import Loaded, check_pictures, load
from stages.benchmarks.spec import Spec
from stages.benchmarks.verdicts import JudgeReply, prompt_for
from tests.stages.benchmarks import fixtures

PUBLISHED = [name for name, spec in registry().items() if spec.column]
KINDS = ("tsv", "hub")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All fixtures, in both forms."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in found.items():
        fixtures.write_all(folder, kind)
    return found


def right(spec: Spec, sample: Sample) -> str:
    """A reply that is right under every profile."""
    if "answer_type" in sample.extra:
        return str(sample.extra["answer_option"]) or sample.gold
    if spec.id == "chartqa":
        return sample.gold.strip("[]").split(",")[0].strip("'")
    return "3.429" if sample.gold.startswith("[") else sample.gold


def said_by_judge(spec: Spec, sample: Sample, score: str) -> JudgeReply:
    return JudgeReply(sample.index, prompt_for(spec, sample, "x").sha256, score)


def numbers(loaded: Loaded, replies: dict[str, str], profile: Profile, grade: str = "1.0") -> dict[str, Any]:
    spec = loaded.spec
    given = {index: Reply(index, text, completion_tokens=3) for index, text in replies.items()}
    said = (
        {sample.index: said_by_judge(spec, sample, grade) for sample in loaded.samples} if spec.judge == "grade" else {}
    )
    return measured(spec, loaded.samples, given, profile, said=said)


def test_there_are_fourteen_columns_and_41017_rows() -> None:
    assert {registry()[name].column for name in PUBLISHED} == set(COLUMNS)
    assert len(COLUMNS) == 14
    assert sum(registry()[name].expected for name in PUBLISHED) == 41_017


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_right_replies_score_100_and_wrong_ones_0(folders: dict[str, Path], name: str, kind: str) -> None:
    spec = registry()[name]
    loaded = load(spec, folders[kind])
    check_pictures(loaded.samples)
    assert all(sample.pictures for sample in loaded.samples)
    for profile in PROFILES:
        all_right = numbers(loaded, {sample.index: right(spec, sample) for sample in loaded.samples}, profile)
        wrong = numbers(loaded, {sample.index: "unheard of, Sir" for sample in loaded.samples}, profile, "0.0")
        # known departures of the harnesses: lists and rounded numbers in MathVista, lists of references in MMMU
        lost = {(one, other) for one in (VLMEVAL, LMMS) for other in ("mathvista", "mmmu")}
        lost |= {(VLMEVAL, "ai2d"), (VLMEVAL, "mmbench_en"), (VLMEVAL, "mmbench_cn")}  # options "None" and "nan"
        lost |= {(LMMS, "chartqa"), (VLMEVAL, "realworldqa")}  # list references; references that are no letters
        if (profile, name) not in lost:
            assert all_right["score"] == 100, (profile, all_right)
        assert all_right["complete"]
        assert wrong["score"] == 0, (profile, wrong)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_mark_each_picture_once(folders: dict[str, Path], kind: str, style: str) -> None:
    for name in PUBLISHED:
        spec = registry()[name]
        for sample in load(spec, folders[kind]).samples:
            parts = spec.prompts[style](sample)  # type: ignore[index]
            asked = Asked(sample.index, tuple(parts))
            text = asked.messages[0]["content"]
            assert text.count("<image>") == len(asked.images) >= 1
            assert len(asked.image_sha256) == len(asked.images)
            if name != "mmmu_pro_vision":
                assert sample.question.split("<")[0].split("\n")[0] in text
            if sample.options and name not in ("mmmu_pro_vision", "mathvista"):
                assert all(option in text for option in sample.options.values() if not option.startswith("<"))
            stepwise = Asked(sample.index, tuple(step_by_step(parts, sample))).messages[0]["content"]
            assert "boxed" in stepwise
            assert "directly.\n" not in stepwise


def test_pictures_stand_where_markers_name_them(folders: dict[str, Path]) -> None:
    spec = registry()["mmmu_pro_standard"]
    (sample,) = load(spec, folders["hub"]).samples
    parts = spec.prompts["dataset"](sample)
    assert [part if isinstance(part, str) else sample.pictures.index(part) for part in parts[:4]] == [
        "Question: First ",
        1,
        ", then ",
        0,
    ]
    assert [sample.pictures.index(part) for part in spec.prompts["lmms"](sample)[:2]] == [0, 1]


def test_options_called_none_are_options_and_numbers_keep_their_digits(folders: dict[str, Path]) -> None:
    first, second = load(registry()["ai2d"], folders["tsv"]).samples
    assert first.options["D"] == "None"
    assert dict(second.options) == {"A": "7", "B": "1.50", "C": "007"}
    assert second.question == "Which\tstage\nis next?"
    loaded = load(registry()["ai2d"], folders["tsv"])
    reply = {"100": "It is None", "101": "B"}
    assert numbers(loaded, reply, OURS)["score"] == 100
    assert numbers(loaded, reply, VLMEVAL)["score"] == 50  # pandas drops that option there


def test_shared_images_and_rotations(folders: dict[str, Path]) -> None:
    loaded = load(registry()["mmbench_en"], folders["tsv"])
    by_index = {sample.index: sample for sample in loaded.samples}
    assert by_index["2000005"].pictures[0].data == by_index["5"].pictures[0].data
    assert by_index["5"].hint == 'A hint with a\ttab and\na "new" line'
    replies = {sample.index: sample.gold for sample in loaded.samples}
    replies["3000005"] = "Z"
    found = numbers(loaded, replies, VLMEVAL)
    assert found["units"] == 2
    assert found["score"] == 50  # one of four rotations was wrong
    assert found["beside"]["first rotation alone"] == 100
    assert found["by"]["category"] == {"counting": {"n": 1, "score": 0.0}, "scene": {"n": 1, "score": 100.0}}


def test_videos_other_splits_and_rows_of_v2(folders: dict[str, Path]) -> None:
    assert len(load(registry()["seedbench"], folders["hub"]).samples) == 1
    assert [sample.index for sample in load(registry()["mmmu"], folders["tsv"]).samples] == ["1", "2"]
    (sample,) = load(registry()["mmvet_v2"], folders["hub"]).samples
    assert sample.groups["capability"] == ("rec", "seq")
    assert len(sample.pictures) == 2


def test_a_saved_data_set_is_read_like_its_parquet(tmp_path: Path, folders: dict[str, Path]) -> None:
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature

    rows = [{**row, "image": row["image"]["bytes"]} for row in fixtures.hub()["chartqa"][1]]
    features = Features(
        {"type": Value("string"), "question": Value("string"), "answer": Value("string"), "image": ImageFeature()}
    )
    data = [{**row, "image": Image.open(io.BytesIO(row["image"]))} for row in rows]
    table = Dataset.from_list(data, features=features)
    DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(tmp_path / "chartqa")
    saved, shard = load(registry()["chartqa"], tmp_path), load(registry()["chartqa"], folders["hub"])
    assert [sample.gold for sample in saved.samples] == [sample.gold for sample in shard.samples]
    check_pictures(saved.samples)


def test_average_needs_all_columns_and_settings() -> None:
    every = {name: {"score": 60.0, "complete": True} for name in PUBLISHED}
    every["mmmu_pro_vision"]["score"] = 20.0
    assert column_scores(every)["MMMU-Pro"] == 40
    assert average_of_columns(every) == {"value": pytest.approx((13 * 60 + 40) / 14), "over": 14, "lacking": []}
    every["mmvet"]["complete"] = False
    del every["mmmu_pro_vision"]
    assert average_of_columns(every)["lacking"] == ["MM-Vet", "MMMU-Pro"]
    assert average_of_columns(every)["over"] == 12
