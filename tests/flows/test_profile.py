"""Profiles: each loads, merges and validates; applying one keeps the comments of params.yaml and says what changed."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from flows import profile
from stages.config.params import Params, load_params, validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml

NAMES = sorted(profile.find_profiles(Path(__file__).parents[2]))


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    shutil.copy(root / "params.yaml", tmp_path)
    shutil.copytree(root / "profiles", tmp_path / "profiles")
    shutil.copytree(root / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("data"))
    return tmp_path


def comments(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("#")]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_profiles_are_those_that_are_documented() -> None:
    assert NAMES == ["easy_vqa", "lora_1x24", "lora_1x80", "node_8x80", "paper", "recommended", "smoke"]


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_valid_and_says_first_what_it_needs(root: Path, name: str) -> None:
    validate_params(merge_params(read_yaml(root / "params.yaml"), profile.read_profile(root, name)))
    assert profile.list_profiles(root)[name].startswith("Needs ")


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_holds_only_differences_of_known_keys(root: Path, name: str) -> None:
    base = read_yaml(root / "params.yaml")
    known = dict(leaves(Params.model_validate(base).model_dump(mode="json")))
    for key, value in leaves(profile.read_profile(root, name)):
        block = key.rsplit(".", 1)[0]
        is_known = any(other in (key, block) or other.startswith((f"{key}.", f"{block}.")) for other in known)
        assert is_known or key.startswith("runtime."), key
        if value is None or dict(leaves(base)).get(key) != value or key in REPEATED.get(name, ()):
            continue
        assert list_unset_without(root, name, key), f"{key} is no difference"


# The paper's hyper-parameters are written out even where the tiny profile has the same value.
REPEATED = {"paper": {"models.student.family", "ril.clip_epsilon"}}


def list_unset_without(root: Path, name: str, key: str) -> list[str]:
    """What a profile would leave to params.yaml if it did not have `key`."""
    values = read_yaml(root / "profiles" / f"{name}.yaml")
    *parents, last = key.split(".")
    block = values
    for parent in parents:
        block = block[parent]
    del block[last]
    return profile.list_unset_sizes(values, read_yaml(root / "params.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_applying_a_profile_equals_merging_it(project: Path, name: str) -> None:
    base, before = read_yaml(project / "params.yaml"), comments(project / "params.yaml")
    found = profile.apply_profile(project, name)
    assert read_yaml(project / "params.yaml") == merge_params(base, profile.read_profile(project, name))
    assert comments(project / "params.yaml") == before
    assert len(before) > 5
    assert found
    assert profile.apply_profile(project, name) == []


def test_applying_nothing_leaves_every_byte(root: Path) -> None:
    text = (root / "params.yaml").read_text()
    assert profile.overlay_text(text, "{}") == text


def test_a_deleted_block_leaves_the_comment_after_it() -> None:
    base = "a:\n  b: 1\n  c:\n    d: 2   # two\n\n# About e.\ne: 3\n"
    assert profile.overlay_text(base, "a: {c: null}") == "a:\n  b: 1\n\n# About e.\ne: 3\n"
    assert profile.overlay_text(base, "a: {f: 4}") == "a:\n  b: 1\n  c:\n    d: 2   # two\n  f: 4\n\n# About e.\ne: 3\n"
    assert profile.overlay_text(base, "a: {c: {d: 9}}") == base.replace("d: 2 ", "d: 9 ")


def test_a_profile_that_would_not_be_valid_changes_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    (project / "profiles" / "bad.yaml").write_text("# Needs nothing.\nril: {group: 1000}\n")
    with pytest.raises(ParamsError, match=r"params.yaml with profile bad.*ril.group is 1000"):
        profile.apply_profile(project, "bad")
    assert (project / "params.yaml").read_bytes() == before


def test_a_value_that_an_alias_repeats_is_not_changed_in_both_places(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("    sampling: "))
    shared = line.replace("sampling: ", "sampling: &shared ")
    first, second = text.split(line, 1)
    (project / "params.yaml").write_text(first + shared + second.replace(line, "    sampling: *shared", 1))
    (project / "profiles/long.yaml").write_text("# Longer.\nteachers: {internvl3: {sampling: {max_tokens: 99}}}\n")
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=r"profile long would change a value that an alias"):
        profile.apply_profile(project, "long")
    assert (project / "params.yaml").read_bytes() == before


def test_a_profile_of_a_published_student_sets_every_size_number_and_rate(project: Path) -> None:
    """Each is dropped from a profile with adapters; what params.yaml has in its place is for tiny models."""
    schedule = ["steps", "learning_rate", "lr_scheduler_type", "final_learning_rate", "warmup_steps", "tokens_per_pack"]
    answers = ["responses", "sampling.max_tokens", "sampling.repetition_penalty"]
    wanted = {f"questions.splits.{split}" for split in ("warm_start", "imitation", "validation", "test")}
    wanted |= {f"models.{name}.precision" for name in ("student", "qwen2_5_vl", "internvl3", "judge")}
    wanted |= {key.replace("precision", "context_tokens") for key in wanted if key.endswith("precision")}
    wanted |= {f"warm_start.{key}" for key in [*schedule, "rows_per_step", "lora.rank", "lora.alpha"]}
    wanted |= {
        f"{block}.{key}" for block in ("teachers.qwen2_5_vl", "teachers.internvl3", "rollout") for key in answers
    }
    wanted |= {"verdict.max_tokens", "evaluate.max_tokens"}
    wanted |= {f"discriminator.{key}" for key in [*schedule, "questions_per_step", "responses_per_side"]}
    wanted |= {f"ril.{key}" for key in schedule if key != "final_learning_rate"}  # its rate is constant
    wanted |= {f"ril.{key}" for key in ("questions_per_step", "group", "discriminator_learning_rate", "kl_weight")}
    wanted |= {f"ril.{key}" for key in ("validation_every", "sampling.max_tokens", "sampling.repetition_penalty")}
    wanted |= {f"{block}.lora.{key}" for block in ("discriminator", "ril") for key in ("rank", "alpha")}
    keys = {key for key, _ in leaves(read_yaml(project / "profiles" / "lora_1x80.yaml"))}
    found = {key for key in keys if list_unset_without(project, "lora_1x80", key) == [key]}
    assert found == wanted


def test_a_block_that_a_profile_leaves_out_is_named_with_all_its_keys(project: Path) -> None:
    path = project / "profiles" / "lora_1x80.yaml"
    values = read_yaml(path)
    values["ril"] |= {"lr_scheduler_type": "linear"}
    del values["discriminator"], values["teachers"]["internvl3"]
    path.write_text(yaml.safe_dump(values))
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=r"profiles/lora_1x80\.yaml: models\.student is a published") as raised:
        profile.apply_profile(project, "lora_1x80")
    for key in ("discriminator.steps", "teachers.internvl3.sampling.max_tokens", "ril.final_learning_rate"):
        assert key in str(raised.value)
    assert "for tiny models; set them" in str(raised.value)
    assert (project / "params.yaml").read_bytes() == before
    values["teachers"]["internvl3"] = None  # a deleted teacher needs nothing
    unset = profile.list_unset_sizes(values, read_yaml(project / "params.yaml"))
    assert not [key for key in unset if "internvl3.responses" in key]
    del values["models"]["student"]["hub"]
    assert profile.list_unset_sizes(values, read_yaml(project / "params.yaml")) == []


@pytest.mark.parametrize("text", ["models: [1]", "models: {student: {hub: a/b}}\nril: 3\nteachers: [x]"])
def test_a_profile_of_the_wrong_form_is_one_line_a_fault(project: Path, text: str) -> None:
    (project / "profiles" / "odd.yaml").write_text(f"# Odd.\n{text}\n")
    with pytest.raises(ParamsError):
        profile.find_changes(project, "odd")


def test_an_unknown_profile_is_answered_with_the_list(project: Path) -> None:
    with pytest.raises(ParamsError, match=f"no profile 'papr'; there are: {', '.join(NAMES)}"):
        profile.find_changes(project, "papr")


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_for_an_experiment_give_the_same_params(project: Path, name: str) -> None:
    overrides = profile.format_overrides(profile.find_changes(project, name))
    wanted = merge_params(read_yaml(project / "params.yaml"), profile.read_profile(project, name))
    apply_overrides(str(project / "params.yaml"), overrides)
    assert load_params(project / "params.yaml") == validate_params(wanted)


def test_the_smoke_student_is_an_internvl(root: Path) -> None:
    values = merge_params(read_yaml(root / "params.yaml"), profile.read_profile(root, "smoke"))
    assert values["models"]["student"]["family"] == "internvl3"
    assert values["models"]["student"]["build"]


def test_the_command_prints_what_changed(project: Path, root: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    before = (project / "params.yaml").read_text()
    code, out, _ = call(project, "flows.cli", "profile", "smoke", "--print", PYTHONPATH=str(root))
    assert code == 0
    assert "models.student.family = internvl3 (was qwen2_5_vl)" in out
    assert (project / "params.yaml").read_text() == before
    code, out, _ = call(project, "flows.cli", "profile", PYTHONPATH=str(root))
    assert [line.split()[0] for line in out.splitlines()] == NAMES
    code, out, err = call(project, "flows.cli", "profile", "papr", PYTHONPATH=str(root))
    assert (code, out) == (2, "")
    assert err.startswith("error: no profile 'papr'")
    assert "Traceback" not in err
    (project / "params.yaml").write_text(yaml.safe_dump({"seed": "x"}))
    code, _, err = call(project, "flows.cli", "params", "check", PYTHONPATH=str(root))
    assert code == 2
    assert "params.yaml: seed = 'x'" in err
