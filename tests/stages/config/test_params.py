"""Parameters: what is accepted, and what the person is told when something is not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.config.params import Params, load_params, load_runtime, validate_params
from stages.config.plain import BANNED_NAMES
from stages.config.runtime import Runtime
from stages.config.yaml import ParamsError, flatten, merge_params, parse_yaml, read_yaml

ENDPOINT = {"provider": "somebody", "name": "big-1"}
REMOTE = {"family": "remote", "build": None, "endpoint": ENDPOINT}
OPENAI = {"kind": "openai", "base_url": "https://example.org/v1"}
KEYS = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.integers() | st.text("xyz", max_size=3) | st.booleans(),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(KEYS, TREES, max_size=4)


@pytest.fixture
def values(root: Path) -> dict[str, Any]:
    return read_yaml(root / "params.yaml")


def message(values: dict[str, Any], overlay: dict[str, Any]) -> str:
    with pytest.raises(ParamsError) as caught:
        validate_params(merge_params(values, overlay))
    return str(caught.value)


def test_the_file_of_the_project_is_valid(root: Path) -> None:
    assert isinstance(load_params(root / "params.yaml"), Params)


@pytest.mark.parametrize(
    ("overlay", "parts"),
    [
        ({"ril": {"learning_rat": 1.0e-4}}, ["ril.learning_rat = 0.0001", "did you mean 'learning_rate'?"]),
        ({"models": {"judge": {"build": {"layer": 3}}}}, ["models.judge.build.layer", "did you mean 'layers'?"]),
        ({"teachers": {"internvl3": {"sampling": {"topp": 1}}}}, ["sampling.topp", "did you mean 'top_p'?"]),
        ({"rill": {}}, ["rill", "did you mean 'ril'?"]),
        (
            {"models": {"judge": {"build": {"vision_steps": 5}}}},
            ["vision_steps is 5", "reads text only", "remove it"],
        ),
        ({"ril": {"learning_rate": "1e-4"}}, ["ril.learning_rate = '1e-4'", "write it without quotes"]),
        ({"ril": {"group": "four"}}, ["ril.group = 'four'"]),
        ({"ril": {"steps": -1}}, ["ril.steps = -1", "greater than or equal to 0"]),
        ({"ril": {"clip_epsilon": 1.5}}, ["ril.clip_epsilon = 1.5", "less than 1"]),
        ({"ril": None}, ["ril is missing; add it"]),
        ({"ril": {"group": 100}}, ["ril.group is 100", "lower ril.group"]),
        ({"ril": {"warmup_steps": 1000}}, ["warmup_steps is 1000", "lower it"]),
        ({"pool": {"teachers": ["nobody"]}}, ["pool.teachers is 'nobody'", "known: qwen2_5_vl, internvl3"]),
        (
            {"ril": {"rewards": [{"use": "rubric", "rubric": "Is it short?", "images": True}]}},
            ["ril.rewards", "shows images to the judge", "remove images"],
        ),
        ({"models": {"student": {"family": "qwen2_5"}}}, ["models.student.family is 'qwen2_5'", "must see images"]),
        ({"models": {"student": {"family": "text"}}}, ["models.student.family is 'text'", "must see images"]),
        ({"verdict": {"constrained": True, "max_tokens": 31}}, ["verdict", "at least 32 tokens", "form: plain"]),
        ({"models": {"student": {"hub": "a/b"}}}, ["models.student", "build and hub", "give exactly one"]),
        ({"models": {"student": {"build": None}}}, ["models.student", "none of build, path, hub"]),
        ({"models": {"a.b": {"family": "qwen2_5", "path": "x"}}}, ["'a.b'", "letters, digits and _"]),
        ({"questions": {"splits": {"test": 0}}}, ["splits.test", "at least one question"]),
        (
            {"discriminator": {"responses_per_side": 99}},
            ["responses_per_side is 99", "rollout.responses (8)", "lower it"],
        ),
        ({"world": {"kinds": ["riddle"]}}, ["'riddle'", "known kinds are sum"]),
        ({"world": {"terse_kinds": ["riddle"]}}, ["world.terse_kinds", "'riddle'", "known kinds are sum"]),
        ({"runtime": {"engines": {"nobody": {"kind": "vllm"}}}}, ["runtime.engines is 'nobody'", "known: student"]),
        (
            {"runtime": {"engines": {"judge": {"kind": "gpt"}}}},
            ["runtime.engines.judge", "'vllm_server', 'openai', 'replay'"],
        ),
        (
            {"runtime": {"engines": {"judge": {"kind": "vllm_server", "replica": 2}}}},
            ["runtime.engines.judge.replica = 2 ", "did you mean 'replicas'?"],
        ),
        (
            {"runtime": {"engines": {"judge": OPENAI | {"base_url": None}}}},
            ["runtime.engines.judge.base_url is missing"],
        ),
        (
            {"runtime": {"engines": {"judge": OPENAI}}},
            ["judge.kind", "its own weights", "vllm_server with urls"],
        ),
        (
            {"models": {"judge": {"endpoint": ENDPOINT, "build": None}}},
            ["models.judge", "family remote and endpoint"],
        ),
        (
            {"models": {"judge": REMOTE}},
            ["models.judge.endpoint", "its engine is 'vllm'", "the kind openai"],
        ),
        (
            {"models": {"student": REMOTE}, "runtime": {"engines": {"student": OPENAI}}},
            ["models.student.family is 'remote'", "the student is trained here"],
        ),
        (
            {"world": {"code": "stages/model.py"}},
            ["world.code is 'stages/model.py'", "models.student is built from scratch", "stages/tiny/world; set it"],
        ),
        (
            {"world": {"builds": "stages/model.py"}},
            ["world.builds is 'stages/model.py'", "models.student is built", "stages/tiny/builds; set it"],
        ),
        (
            {"questions": {"path": "datasets/mine"}},
            ["questions.path is 'datasets/mine'", "questions.kind is 'world'", "stages/tiny/world_rows.py; set it"],
        ),
        (
            {"questions": {"images": "datasets/mine"}},
            ["questions.images is 'datasets/mine'", "questions.kind is 'world'", "stages/tiny/world; set it"],
        ),
        (
            {"evaluate": {"folder": "datasets/benchmarks"}},
            ["evaluate.folder is", "evaluate.benchmarks has 'tiny_choice'", "stages/tiny/benchmarks; set it"],
        ),
    ],
)
def test_a_mistake_is_named_with_key_value_and_remedy(
    values: dict[str, Any], overlay: dict[str, Any], parts: list[str]
) -> None:
    text = message(values, overlay)
    assert len(text.splitlines()) == 1
    for part in ["params.yaml: ", *parts]:
        assert part in text


def test_where_nothing_is_tiny_no_tiny_code_has_to_be_watched(values: dict[str, Any]) -> None:
    path = {"build": None, "path": "checkpoints/one"}
    mine = {
        "world": {"code": "stages/model.py", "builds": "stages/model.py"},
        "models": dict.fromkeys(values["models"], path),
        "questions": {"kind": "rows", "path": "datasets/mine", "images": "datasets/mine"},
        "evaluate": {"folder": "datasets/benchmarks", "benchmarks": ["mmvet"]},
    }
    assert validate_params(merge_params(values, mine)).world.code == "stages/model.py"


def test_every_mistake_has_its_own_line(values: dict[str, Any]) -> None:
    lines = message(values, {"seed": "x", "ril": {"steps": -1, "stepz": 1}}).splitlines()
    assert len(lines) == 3
    assert {line.split(" = ")[0].removeprefix("params.yaml: ") for line in lines} == {"seed", "ril.steps", "ril.stepz"}


@pytest.mark.parametrize("name", BANNED_NAMES)
def test_names_that_dvc_does_not_see_are_refused(values: dict[str, Any], name: str) -> None:
    assert f"world.{name}" in message(values, {"world": {name: 3}})


def test_no_field_has_a_name_that_dvc_does_not_see() -> None:
    def names(schema: Any) -> set[str]:
        if isinstance(schema, dict):
            return set(schema.get("properties", {})) | {name for part in schema.values() for name in names(part)}
        return {name for part in schema for name in names(part)} if isinstance(schema, list) else set()

    found = names(Params.model_json_schema())
    assert len(found) > 60
    assert not found & set(BANNED_NAMES)


def test_every_field_says_what_follows_from_it() -> None:
    schema = Params.model_json_schema()["$defs"]
    silent = [
        f"{block}.{name}"
        for block, definition in schema.items()
        for name, field in definition["properties"].items()
        if not field.get("description", "").endswith((".", ")."))
    ]
    assert not silent


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: [1", "not readable as YAML"),
        ("seed: 1\nseed: 2", "duplicate key"),
        ("- 1\n", "expected keys and values, found list"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_refused_by_name(tmp_path: Path, text: str | None, part: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParamsError, match=part) as caught:
        load_params(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001"])
def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path, number: str) -> None:
    (tmp_path / "params.yaml").write_text(f"rate: {number}\n")
    assert read_yaml(tmp_path / "params.yaml") == {"rate": 0.0001}


@given(MAPPINGS)
def test_laying_nothing_over_changes_nothing(tree: dict[str, Any]) -> None:
    assert merge_params(tree, {}) == tree


@given(MAPPINGS, MAPPINGS)
def test_an_overlay_laid_twice_is_as_laid_once(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    once = merge_params(base, overlay)
    assert merge_params(once, overlay) == once


@given(MAPPINGS, MAPPINGS)
def test_keys_that_an_overlay_does_not_name_stay(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    result = merge_params(base, overlay)
    assert {key: result[key] for key in base if key not in overlay} == {
        k: v for k, v in base.items() if k not in overlay
    }


@given(MAPPINGS)
def test_null_deletes_a_key(tree: dict[str, Any]) -> None:
    assert merge_params(tree, dict.fromkeys(tree)) == {}


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_bounds_hold_for_any_number(values_of: Callable[[], dict[str, Any]], number: float) -> None:
    accepted = True
    try:
        validate_params(merge_params(values_of(), {"ril": {"clip_epsilon": number}}))
    except ParamsError:
        accepted = False
    assert accepted == (math.isfinite(number) and 0 < number < 1)


@pytest.fixture(scope="session")
def values_of(root: Path) -> Callable[[], dict[str, Any]]:
    loaded = read_yaml(root / "params.yaml")
    return lambda: loaded


def test_a_judge_and_a_teacher_may_be_models_of_others(values: dict[str, Any]) -> None:
    models = {"judge": REMOTE, "qwen2_5_vl": REMOTE}
    engines = {"judge": OPENAI, "qwen2_5_vl": {"kind": "replay"}}
    params = validate_params(merge_params(values, {"models": models, "runtime": {"engines": engines}}))
    assert [params.models[name].endpoint is not None for name in models] == [True, True]


@pytest.mark.parametrize(
    ("overlay", "parts"),
    [
        ({"evaluate": {"benchmarks": ["mmstarr"]}}, ["evaluate.benchmarks.0 = 'mmstarr'", "did you mean 'mmstar'?"]),
        ({"evaluate": {"benchmarks": ["mmvet", "mmvet"]}}, ["evaluate.benchmarks has 'mmvet' twice", "remove one"]),
        (
            {"evaluations": {"ril": {"checkpoint": "/"}}},
            ["ril.checkpoint is '/'", "no stage writes", "data/warm_start"],
        ),
        ({"evaluations": {"ril": {"checkpoint": "data/ril/last"}}}, ["'data/ril/last'", "no stage writes"]),
        ({"evaluations": {"ril": {"title": "Base student"}}}, ["evaluations.ril.title", "evaluations.base too"]),
        ({"rollout": {"sampling": {"pattern": "(a"}}}, ["rollout.sampling.pattern = '(a'", "not a regular expression"]),
        ({"ril": {"kl_weight": 1e300}}, ["ril.kl_weight = 1e+300", "less than or equal to 1000"]),
        ({"ril": {"kl_weight": math.nan}}, ["ril.kl_weight = nan", "not a finite number"]),
        ({"ril": {"steps": 10**400}}, ["ril.steps = (a number of about 401 digits)", "write a smaller one"]),
        ({"runtime": {"zero_stage": True}}, ["runtime.zero_stage = True", "valid integer"]),
        ({"evaluations": {"ril": {"title": "a\0"}}}, ["evaluations.ril.title = 'a\\x00'", "U+0000", "remove it"]),
        ({"evaluations": {"ril": {"title": " "}}}, ["evaluations.ril.title = ' '", "empty text"]),
        ({"evaluations": {"ril": {"title": "\u202etluser"}}}, ["evaluations.ril.title", "U+202E", "remove it"]),
        ({"ril": {"gr\u200doup": 4}}, ["ril.'gr\\u200doup' is not a name of a key", "rename it"]),  # shown as "group"
        ({"evaluations": {"ril": {"title": "${seed}"}}}, ["evaluations.ril.title", "reference of DVC"]),
        ({"questions": {"path": "/"}}, ["questions.path = '/'", "a folder of the system"]),
        ({"questions": {"path": "/proc/self"}}, ["questions.path = '/proc/self'", "a folder of the system"]),
        ({"questions": {"path": "a/../.."}}, ["questions.path = 'a/../..'", "the folder of the project"]),
        ({"questions": {"path": ".git/x"}}, ["questions.path = '.git/x'", ".git is not data"]),
        ({"questions": {"path": "~/x"}}, ["questions.path = '~/x'", "write the whole path"]),
        ({"questions": {"kind": "llava", "path": "data/ril"}}, ["questions.path is 'data/ril'", "what stages write"]),
        ({"models": {"student": {"build": {"styles": {"steps": 1000.0}}}}}, ["styles.steps = 1000.0", "equal to 1"]),
        (
            {"models": {"student": {"build": {"styles": {"steps": 0.1}}}}},
            ["models.student.build.styles", "adds up to 0.6", "change one"],
        ),
        ({"warm_start": {"lora": {}}}, ["warm_start: lora trains the language model only", "freeze_vision is false"]),
        ({"ril": {"lora": {}, "freeze_vision": False}}, ["ril: lora trains the language model", "set it to true"]),
        ({"ril": {"lora": {}, "frozen_parts": ["head"]}}, ["frozen_parts is head; remove it", "lora.targets"]),
        ({"ril": {"lora": {"targets": []}}}, ["ril.lora: targets is empty", "name linear layers"]),
        ({"ril": {"lora": {"targets": ["q"]}}}, ["ril.lora.targets.0 = 'q'", "'q_proj', 'k_proj'"]),
        ({"models": {"student": {"max_tiles": 6}}}, ["models.student: max_tiles is 6", "set these"]),
        ({"models": {"internvl3": {"min_pixels": 784}}}, ["models.internvl3: min_pixels is 784", "set min_tiles"]),
        ({"models": {"judge": {"max_pixels": 784}}}, ["models.judge: max_pixels is 784", "text only: remove"]),
        ({"models": {"gpt": {**REMOTE, "min_pixels": 784}}}, ["models.gpt: min_pixels is 784", "max_pixels before"]),
        ({"models": {"student": {"max_pixels": 9}}}, ["models.student.max_pixels = 9", "equal to 784"]),
        (
            {"models": {"student": {"max_pixels": 784, "min_pixels": 1568}}},
            ["models.student: min_pixels is 1568, more than max_pixels (784); change one"],
        ),
        ({"models": {"internvl3": {"max_tiles": 2, "min_tiles": 3}}}, ["min_tiles is 3, more than max_tiles (2)"]),
        ({"discriminator": {"lora": {"rnk": 4}}}, ["discriminator.lora.rnk = 4", "did you mean 'rank'?"]),
    ],
)
def test_what_no_stage_can_use_is_refused(values: dict[str, Any], overlay: dict[str, Any], parts: list[str]) -> None:
    text = message(values, overlay)
    assert len(text.splitlines()) == 1
    for part in ["params.yaml: ", *parts]:
        assert part in text


def test_a_missing_package_is_named_with_what_installs_it(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.config.lora.find_spec", lambda name: None)
    text = message(values, {"ril": {"lora": {"quantization": "nf4"}}})
    assert len(text.splitlines()) == 1
    for part in ["ril.lora: quantization is nf4", "bitsandbytes is not installed", "pip install", "use none"]:
        assert part in text


def test_every_number_has_two_bounds() -> None:
    def find_open(schema: Any, place: str) -> list[str]:
        if isinstance(schema, list):
            return [name for part in schema for name in find_open(part, place)]
        if not isinstance(schema, dict):
            return []
        found = [name for key, part in schema.items() for name in find_open(part, f"{place}.{key}")]
        bounded = {"minimum", "exclusiveMinimum"} & schema.keys() and {"maximum", "exclusiveMaximum"} & schema.keys()
        return found + ([place] if schema.get("type") in ("integer", "number") and not bounded else [])

    assert find_open(Params.model_json_schema(), "") == []


def test_validation_changes_no_value(values: dict[str, Any]) -> None:
    kept = flatten(validate_params(values).model_dump(mode="json"))
    assert {key: kept[key] for key in flatten(values)} == flatten(values)


def test_an_alias_is_read_and_counted_in_full(tmp_path: Path, values: dict[str, Any]) -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "params.yaml") == {"a": {"b": 1}, "c": {"b": 1}}
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    with pytest.raises(ParamsError, match=r"params.yaml, line 5, .*: more than 5,000 values"):
        parse_yaml(bomb, "params.yaml")


def test_a_path_above_the_project_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    path = tmp_path / "project/params.yaml"
    for folder in (tmp_path, "../link"):
        mine = {"kind": "llava", "path": str(folder), "images": "images"}
        path.write_text(json.dumps(merge_params(values, {"questions": mine})))
        with pytest.raises(ParamsError, match=r"questions.path = .*: the folder of the project or one that holds it"):
            load_params(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("runtime: {grace_seconds: soon}", r"params.yaml: runtime.grace_seconds = 'soon'"),
        ("runtime: {grace: 5}", r"params.yaml: runtime.grace = 5 is not a known key"),
    ],
)
def test_the_block_that_dvc_is_run_by_is_read_alone(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("x: 1\nruntime: {grace_seconds: 7}\n")
    assert load_runtime(file).grace_seconds == 7
    file.write_text("x: 1\n")
    assert load_runtime(file) == Runtime()
    file.write_text(text)
    with pytest.raises(ParamsError, match=line):
        load_runtime(file)
