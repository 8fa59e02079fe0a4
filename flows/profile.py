"""Profiles: small YAML files of differences, laid over `params.yaml`; `null` deletes a key (as in RFC 7386).

They are profiles/NAME.yaml and the parameters of the examples, examples/NAME/params.yaml.
"""

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

from stages.config.params import validate_params
from stages.config.yaml import ParamsError, compare_values, merge_params, parse_yaml, read_text, read_yaml
from stages.job.files import write_text

# What a profile with a published student must set, by block: the values of params.yaml are for tiny models.
_SCHEDULE = ("steps", "learning_rate", "lr_scheduler_type", "final_learning_rate", "warmup_steps", "tokens_per_pack")
_ANSWERS = ("responses", "sampling.max_tokens", "sampling.repetition_penalty")
_SIZED: dict[str, tuple[str, ...]] = {
    "questions": tuple(f"splits.{split}" for split in ("warm_start", "imitation", "validation", "test")),
    "warm_start": (*_SCHEDULE, "rows_per_step"),
    "verdict": ("max_tokens",),
    "rollout": _ANSWERS,
    "discriminator": (*_SCHEDULE, "questions_per_step", "responses_per_side"),
    "ril": (
        *(key for key in _SCHEDULE if key != "final_learning_rate"),
        *("questions_per_step", "group", "discriminator_learning_rate", "kl_weight", "validation_every"),
        *("sampling.max_tokens", "sampling.repetition_penalty"),
    ),
    "evaluate": ("max_tokens",),
}
_ADAPTER = ("rank", "alpha")  # of each block `lora` that is given
_SOURCES = {"hub", "path", "endpoint"}


@dataclass(frozen=True)
class Change:
    """One key that differs; `None` stands for "not there"."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.key} = {_format_inline(self.after)}"
        if self.after is None:
            return f"- {self.key} (was {_format_inline(self.before)})"
        return f"  {self.key} = {_format_inline(self.after)} (was {_format_inline(self.before)})"


def find_profiles(root: Path) -> dict[str, Path]:
    """The files of all profiles in `root` by name."""
    examples = {path.parent.name: path for path in sorted((root / "examples").glob("*/params.yaml"))}
    return examples | {path.stem: path for path in sorted((root / "profiles").glob("*.yaml"))}


def list_profiles(root: Path) -> dict[str, str]:
    """Names of the profiles in `root` with their first sentence."""
    return {name: _read_first_sentence(path) for name, path in find_profiles(root).items()}


def find_profile(root: Path, name: str) -> Path:
    """The file of profile `name`. Raises ParamsError when there is none of that name."""
    found = find_profiles(root)
    if name not in found:
        raise ParamsError(f"no profile {name!r}; there are: {', '.join(found) or 'none'}")
    return found[name]


def read_profile(root: Path, name: str) -> dict[str, Any]:
    """The differences that profile `name` holds.

    Raises ParamsError when there is none of that name, and when its student is a published model and sizes, numbers or
    rates would stay those of params.yaml.
    """
    path = find_profile(root, name)
    values = read_yaml(path)
    if left := list_unset_sizes(values, read_yaml(root / "params.yaml")):
        raise ParamsError(
            f"{path.relative_to(root)}: models.student is a published model, but {', '.join(left)} would keep the "
            "values of params.yaml, which are for tiny models; set them"
        )
    return values


def list_unset_sizes(profile: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """The keys that a profile with a published student leaves as they are in `params`: sizes, numbers, rates.

    Of models and teachers only those count whose model the profile replaces.
    """
    models = {name: _get_map(_get_map(profile, "models"), name) for name in _get_map(profile, "models")}
    if not {"hub", "path"} & models.get("student", {}).keys():
        return []
    replaced = {name: _SOURCES & model.keys() for name, model in models.items()}
    wanted = [f"{block}.{key}" for block, keys in _SIZED.items() for key in keys]
    for name, sources in replaced.items():
        if sources:
            keys = ("context_tokens",) if "endpoint" in sources else ("precision", "context_tokens")
            wanted += [f"models.{name}.{key}" for key in keys]
    teachers = _get_map(merge_params(params, profile), "teachers")
    for name in teachers:
        if replaced.get(str(_get_map(teachers, name).get("model"))):
            wanted += [f"teachers.{name}.{key}" for key in _ANSWERS]
    for block in ("warm_start", "discriminator", "ril"):
        if _get_map(profile, block).get("lora") is not None:
            wanted += [f"{block}.lora.{key}" for key in _ADAPTER]
    if _get_map(profile, "ril").get("lr_scheduler_type") == "linear":
        wanted.append("ril.final_learning_rate")
    return [key for key in wanted if not _is_set(profile, key)]


def _get_map(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The map at `key`, an empty one where there is none: the result is validated later, with a line for each fault."""
    inner = values.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _is_set(values: Mapping[str, Any], key: str) -> bool:
    """Whether a tree has a key with dots; a parent that is deleted or is no map has all keys below it."""
    first, _, rest = key.partition(".")
    if first not in values:
        return False
    inner = values[first]
    return not rest or not isinstance(inner, Mapping) or _is_set(inner, rest)


def find_changes(root: Path, name: str) -> list[Change]:
    """What profile `name` would change; ParamsError when the result would not be valid."""
    before, overlay = read_yaml(root / "params.yaml"), read_profile(root, name)
    after = merge_params(before, overlay)
    validate_params(after, f"params.yaml with profile {name}")
    return find_differences(before, after)


def list_applied_profiles(root: Path) -> list[str]:
    """Names of the profiles that would change nothing: params.yaml is as they say.

    A profile that can't be read is none of them: `ril profile` names its fault. Raises ParamsError for params.yaml.
    """
    params = read_yaml(root / "params.yaml")
    found = []
    for name, path in find_profiles(root).items():
        with suppress(ParamsError):
            if merge_params(params, read_yaml(path)) == params:
                found.append(name)
    return found


def apply_profile(root: Path, name: str) -> list[Change]:
    """Lays profile `name` over `root`/params.yaml in place, keeping its comments, and returns what changed.

    Raises ParamsError, and leaves the file as it is, when the result would not be valid.
    """
    found = find_changes(root, name)
    path = root / "params.yaml"
    text = overlay_text(read_text(path), read_text(find_profile(root, name)))
    after = parse_yaml(text, "params.yaml")
    validate_params(after, f"params.yaml with profile {name}")
    if after != merge_params(read_yaml(path), read_profile(root, name)):
        raise ParamsError(
            f"params.yaml: profile {name} would change a value that an alias (*) repeats elsewhere; write the value "
            "out in both places"
        )
    if found:
        write_text(path, text)
    return found


def format_overrides(found: list[Change]) -> list[str]:
    """The same changes as arguments of `dvc exp run -S`."""
    return [_format_override(change) for change in found]


def overlay_text(base: str, overlay: str) -> str:
    """The YAML text `base` with `overlay` laid over it; comments and blank lines of `base` stay."""
    editor = YAML()
    editor.width = 4096
    editor.preserve_quotes = True
    tree, patch = editor.load(base), editor.load(overlay)
    for key, value in (patch or {}).items():
        if not isinstance(value, Mapping) or not isinstance(tree.get(key), CommentedMap):
            _set(tree, key, value)
            continue
        tail = _take_tail(tree[key])
        _lay(tree[key], value)
        _put_tail(tree[key], tail)
    stream = io.StringIO()
    editor.dump(tree, stream)
    return stream.getvalue()


def _lay(tree: CommentedMap, patch: Mapping[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), CommentedMap):
            _lay(tree[key], value)
        else:
            _set(tree, key, value)


def _set(tree: CommentedMap, key: str, value: Any) -> None:
    if value is None:
        tree.pop(key, None)
        return
    if isinstance(value, CommentedMap):  # a block of its own: only its values come along, the profile's comments do not
        value = _to_commented(value)
    tree[key] = value


def _to_commented(value: CommentedMap) -> CommentedMap:
    copy = CommentedMap(
        (key, _to_commented(inner) if isinstance(inner, CommentedMap) else inner) for key, inner in value.items()
    )
    copy.fa.set_flow_style() if value.fa.flow_style() else copy.fa.set_block_style()
    return copy


def _find_deepest(tree: CommentedMap) -> tuple[CommentedMap, str]:
    """The map and the key of the last line of a block; ruamel keeps there what stands between it and the next block."""
    key = next(reversed(tree))
    inner = tree[key]
    return (
        _find_deepest(inner) if isinstance(inner, CommentedMap) and inner and not inner.fa.flow_style() else (tree, key)
    )


def _take_tail(tree: CommentedMap) -> str:
    holder, key = _find_deepest(tree)
    tokens = holder.ca.items.get(key)
    if not tokens or tokens[2] is None:
        return ""
    own, newline, tail = tokens[2].value.partition("\n")
    tokens[2].value = own + newline
    if not own:
        del holder.ca.items[key]
    return str(tail)


def _put_tail(tree: CommentedMap, tail: str) -> None:
    if not tail:
        return
    holder, key = _find_deepest(tree)
    tokens = holder.ca.items.setdefault(key, [None, None, None, None])
    if tokens[2] is None:
        tokens[2] = CommentToken("\n" + tail, CommentMark(0))
    else:
        tokens[2].value = tokens[2].value.rstrip("\n") + "\n" + tail


def find_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The keys, with dots, in which two parameter trees differ."""
    return [Change(*one) for one in compare_values(before, after)]


def _format_override(change: Change) -> str:
    if change.after is None:
        return f"~{change.key}"
    sign = "+" if change.before is None else ""
    return f"{sign}{change.key}={_format_hydra(change.after)}"


def _format_hydra(value: Any) -> str:
    """A value in the grammar of `-S`: quoted text, lists in brackets, maps in braces with bare keys."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_format_hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_format_hydra, value)) + "]"
    if isinstance(value, str) and not value.isidentifier():
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def _format_inline(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=4096, sort_keys=False)
        .removesuffix("\n")
        .removesuffix("\n...")
    )


def _read_first_sentence(path: Path) -> str:
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment).split(". ")[0].removesuffix(".") + "."
