"""Every benchmark from a file in its published schema to a score: loaded, asked in every style, scored under every
profile.

A new benchmark without rows in `fixtures`, or with other columns than these, fails here.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.benchmarks.prompts import PROMPT_STYLES, BenchmarkPrompt, Style, ask_step_by_step
from stages.benchmarks.registry import COLUMNS, load_registry
from stages.benchmarks.sample import BenchmarkError, MissingBenchmark, Sample
from stages.benchmarks.scorers import LMMS, OURS, PROFILES, VLMEVAL, Profile
from stages.benchmarks.scores import BenchmarkReply, average_columns, collect_column_scores, compute_benchmark_scores
from stages.benchmarks.sources import LoadedBenchmark, check_pictures, load_benchmark
from stages.benchmarks.spec import Hub, Spec, Tsv, make_tsv_choice_reader
from stages.benchmarks.tables import TableRow
from stages.benchmarks.verdicts import JudgeReply, make_judge_prompt
from stages.config.benchmarks import BENCHMARKS, TINY_BENCHMARKS
from stages.tiny.benchmarks.specs import SPECS as TINY
from tests.stages.benchmarks import fixtures

EVERY = {spec.id: spec for spec in (*load_registry().values(), *TINY)}
PUBLISHED = [name for name, spec in load_registry().items() if spec.column]
KINDS = ("tsv", "hub")
FORMS = [(name, kind) for name, spec in EVERY.items() for kind in KINDS if getattr(spec, kind)]


def test_parameters_know_every_name_and_no_other() -> None:
    assert sorted(EVERY) == sorted(BENCHMARKS)
    assert sorted(spec.id for spec in TINY) == sorted(TINY_BENCHMARKS)


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
    if spec.id == "tiny_choice":
        return sample.options[sample.gold]
    return "3.429" if sample.gold.startswith("[") else sample.gold


def numbers(loaded: LoadedBenchmark, replies: dict[str, str], profile: Profile, right: bool = True) -> dict[str, Any]:
    """The scores of these replies; a judge, where one is needed, finds all of them right or all of them wrong."""
    spec = loaded.spec
    given = {index: BenchmarkReply(index, text, completion_tokens=3) for index, text in replies.items()}
    words = {"grade": ("0.0", "1.0"), "verdict": ("<answer>0</answer>", "<answer>1</answer>")}
    said = {
        sample.index: JudgeReply(sample.index, make_judge_prompt(spec, sample, "x").sha256, words[spec.judge][right])
        for sample in loaded.samples
        if spec.needs_judge
    }
    return compute_benchmark_scores(spec, loaded.samples, given, profile, said=said)


def checked(spec: Spec, folder: Path) -> LoadedBenchmark:
    """The benchmark from its file in `folder`. Fails unless every row has all that asking and scoring need."""
    try:
        loaded = load_benchmark(spec, folder)
    except MissingBenchmark:
        pytest.fail(f"{spec.id} has no rows in its published schema; add some to tests/stages/benchmarks/fixtures.py")
    check_pictures(loaded.samples)
    assert all(sample.index and sample.gold and sample.pictures for sample in loaded.samples)
    assert spec.judge != "letter" or any(sample.options for sample in loaded.samples)
    replies = {sample.index: right(spec, sample) for sample in loaded.samples}
    assert numbers(loaded, replies, OURS)["score"] == 100
    assert numbers(loaded, dict.fromkeys(replies, "unheard of, Sir"), OURS, right=False)["score"] == 0
    return loaded


def test_there_are_fourteen_columns_and_41017_rows() -> None:
    assert {load_registry()[name].column for name in PUBLISHED} == set(COLUMNS)
    assert len(COLUMNS) == 14
    assert sum(load_registry()[name].expected for name in PUBLISHED) == 41_017


@pytest.mark.parametrize(("name", "kind"), FORMS)
def test_right_replies_score_100_and_wrong_ones_0(folders: dict[str, Path], name: str, kind: str) -> None:
    spec = EVERY[name]
    loaded = checked(spec, folders[kind])
    for profile in (one for one in PROFILES if spec.needs_judge or spec.scorer(one, cot=False)):
        all_right = numbers(loaded, {sample.index: right(spec, sample) for sample in loaded.samples}, profile)
        wrong = numbers(loaded, {sample.index: "unheard of, Sir" for sample in loaded.samples}, profile, right=False)
        # known departures of the harnesses: lists and rounded numbers in MathVista, lists of references in MMMU
        lost = {(one, other) for one in (VLMEVAL, LMMS) for other in ("mathvista", "mmmu")}
        lost |= {(VLMEVAL, other) for other in ("ai2d", "ai2d_no_mask", "mmbench_en", "mmbench_cn")}  # "None", "nan"
        lost |= {(LMMS, "chartqa"), (VLMEVAL, "realworldqa")}  # list references; references that are no letters
        if (profile, name) not in lost:
            assert all_right["score"] == 100, (profile, all_right)
        assert all_right["complete"]
        assert wrong["score"] == 0, (profile, wrong)


# A benchmark that is new here, as somebody would add it: its rows in VLMEvalKit's schema, and its spec.
SCIENCE_ROWS = [
    {
        "index": number,
        "question": "Which of these is a liquid?",
        "hint": "",
        **fixtures.choices("iron", "water"),
        "answer": "B",
        "category": "natural science",
        "image": fixtures.encoded(f"science {number}"),
    }
    for number in range(2)
]
SCIENCE = Spec(
    id="scienceqa",
    title="ScienceQA (test)",
    column="",
    expected=2017,
    licence="CC BY-NC-SA 4.0",
    tsv=(Tsv("ScienceQA_TEST", {}),),
    make={"tsv": make_tsv_choice_reader("category")},
    needs={"tsv": ("index", "question", "A", "B", "answer", "image")},
)


def reads_no_such_column(row: TableRow) -> Sample | None:
    return Sample(row.text("index"), row.text("no_such_column"), row.text("answer"), pictures=row.pictures["image"])


def reads_options_elsewhere(row: TableRow) -> Sample | None:
    options = {letter: row.text(f"option_{letter}", "") for letter in "AB"}
    made = make_tsv_choice_reader("category")(row)
    return made and replace(made, options={letter: text for letter, text in options.items() if text})


def reads_pictures_elsewhere(row: TableRow) -> Sample | None:
    made = make_tsv_choice_reader("category")(row)
    return made and replace(made, pictures=row.pictures.get("picture", ()))


def test_a_new_benchmark_with_the_right_columns_passes(tmp_path: Path) -> None:
    fixtures.write_tsv(tmp_path / "ScienceQA_TEST.tsv", SCIENCE_ROWS)
    assert len(checked(SCIENCE, tmp_path).samples) == 2


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"needs": {"tsv": ("indx", "question")}}, BenchmarkError, "no column 'indx' among index, question, hint"),
        ({"make": {"tsv": reads_no_such_column}}, BenchmarkError, "column 'no_such_column': is empty"),
        ({"make": {"tsv": reads_options_elsewhere}}, AssertionError, None),
        ({"make": {"tsv": reads_pictures_elsewhere}}, AssertionError, None),
        ({"tsv": (Tsv("Science", {}),)}, pytest.fail.Exception, "scienceqa has no rows in its published schema"),
        (
            {"tsv": (), "hub": (Hub(("derek-thomas/ScienceQA",), "test"),)},
            pytest.fail.Exception,
            "scienceqa has no rows in its published schema",
        ),
    ],
)
def test_a_new_benchmark_with_wrong_columns_fails(
    tmp_path: Path, wrong: dict[str, Any], error: type[BaseException], message: str | None
) -> None:
    fixtures.write_tsv(tmp_path / "ScienceQA_TEST.tsv", SCIENCE_ROWS)
    with pytest.raises(error, match=message):
        checked(replace(SCIENCE, **wrong), tmp_path)


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize(("name", "kind"), FORMS)
def test_prompts_mark_each_picture_once(folders: dict[str, Path], name: str, kind: str, style: Style) -> None:
    spec = EVERY[name]
    for sample in load_benchmark(spec, folders[kind]).samples:
        parts = spec.prompts[style](sample)
        asked = BenchmarkPrompt(sample.index, tuple(parts))
        text = asked.messages[0]["content"]
        assert text.count("<image>") == len(asked.images) >= 1
        assert len(asked.image_sha256) == len(asked.images)
        if name != "mmmu_pro_vision":
            assert sample.question.split("<")[0].split("\n")[0] in text
        if sample.options and name not in ("mmmu_pro_vision", "mathvista") and not spec.world:
            assert all(option in text for option in sample.options.values() if not option.startswith("<"))
        stepwise = BenchmarkPrompt(sample.index, tuple(ask_step_by_step(parts, sample))).messages[0]["content"]
        assert "boxed" in stepwise
        assert "directly.\n" not in stepwise


def test_pictures_stand_where_markers_name_them(folders: dict[str, Path]) -> None:
    spec = load_registry()["mmmu_pro_standard"]
    (sample,) = load_benchmark(spec, folders["hub"]).samples
    parts = spec.prompts["dataset"](sample)
    assert [part if isinstance(part, str) else sample.pictures.index(part) for part in parts[:4]] == [
        "Question: First ",
        1,
        ", then ",
        0,
    ]
    assert [sample.pictures.index(part) for part in spec.prompts["lmms"](sample)[:2]] == [0, 1]


def test_options_called_none_are_options_and_numbers_keep_their_digits(folders: dict[str, Path]) -> None:
    first, second = load_benchmark(load_registry()["ai2d"], folders["tsv"]).samples
    assert first.options["D"] == "None"
    assert dict(second.options) == {"A": "7", "B": "1.50", "C": "007"}
    assert second.question == "Which\tstage\nis next?"
    loaded = load_benchmark(load_registry()["ai2d"], folders["tsv"])
    reply = {"100": "It is None", "101": "B"}
    assert numbers(loaded, reply, OURS)["score"] == 100
    assert numbers(loaded, reply, VLMEVAL)["score"] == 50  # pandas drops that option there


def test_shared_images_and_rotations(folders: dict[str, Path]) -> None:
    loaded = load_benchmark(load_registry()["mmbench_en"], folders["tsv"])
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
    assert len(load_benchmark(load_registry()["seedbench"], folders["hub"]).samples) == 1
    assert [sample.index for sample in load_benchmark(load_registry()["mmmu"], folders["tsv"]).samples] == ["1", "2"]
    (sample,) = load_benchmark(load_registry()["mmvet_v2"], folders["hub"]).samples
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
    saved, shard = (
        load_benchmark(load_registry()["chartqa"], tmp_path),
        load_benchmark(load_registry()["chartqa"], folders["hub"]),
    )
    assert [sample.gold for sample in saved.samples] == [sample.gold for sample in shard.samples]
    check_pictures(saved.samples)


def test_average_needs_all_columns_and_settings() -> None:
    every = {name: {"score": 60.0, "complete": True} for name in PUBLISHED}
    every["mmmu_pro_vision"]["score"] = 20.0
    assert collect_column_scores(every)["MMMU-Pro"] == 40
    assert average_columns(every) == {"value": pytest.approx((13 * 60 + 40) / 14), "over": 14, "lacking": []}
    every["mmvet"]["complete"] = False
    del every["mmmu_pro_vision"]
    assert average_columns(every)["lacking"] == ["MM-Vet", "MMMU-Pro"]
    assert average_columns(every)["over"] == 12
