"""Hostile params.yaml: accepted only if a stage can use every value, else lines that name key and remedy."""

import math
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.config.params import Params, load_params
from stages.config.yaml import ParamsError, merge_params, read_yaml
from tests.fuzz.mutations import (
    draw_hostile,
    draw_inputs,
    dump_json,
    limit_time,
    list_places,
    mutate_bytes,
    mutate_json,
)

SECONDS = 2.0  # of the processor; a busy machine takes longer
FORMS = (
    "foo: &f {bar: *f}",
    "seed: &s [*s]",
    "a0: &a0 [lol]\na1: &a1 [*a0, *a0, *a0, *a0]\na2: &a2 [*a1, *a1]",
    "<<: {seed: 5}",
    "<<: *nowhere",
    "seed: *nowhere",
    "seed: 6_0",
    "seed: 0x_1",
    "seed: 1_0.5",
    "seed: !!int '5'",
    "seed: !!python/object/apply:os.system [touch fuzz_was_here]",
    "seed: !!binary aGk=",
    "seed: !!timestamp x",
    "seed: 2001-99-99",
    "seed: 2001-01-01",
    "seed: .nan",
    "seed: .inf",
    "seed: 1:30",
    "seed: " + "9" * 5000,
    "seed: 1e999",
    "seed: 0b1",
    "seed: =",
    "? [a, b]\n: 1",
    "? {a: b}\n: 1",
    "1: 2",
    "null: 2",
    "~: 2",
    "true: 2",
    "'': 2",
    '"\\0": 2',
    "seed: |\n  5",
    "seed: >-\n  5",
    "%YAML 1.1\n---\nseed: yes",
    "---\nseed: 1\n---\nseed: 2",
    "...\nseed: 1",
    "seed: 1\nseed: 2",
    "foo: " + "[" * 3000,
    "foo: " + "{a: " * 3000,
    "foo: " + "- " * 3000,
    "foo:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 200)),
    "foo: " + "[1, " * 15 + "]" * 15,
    "\tseed: 1",
    "seed: '${world.seed}'",
    "seed: @",
    "seed: `ls`",
    "seed: 'a\nb",
    "foo: [" + "1, " * 6000 + "]",
    "&a &b seed: 1",
    "!a seed: 1",
    "seed: !<tag:yaml.org,2002:int> 5",
    "seed: *",
    "seed: &",
    "seed: \u202eevil",
    "seed: \ufeff5",
    "#" * 50_000,
)


@pytest.fixture(scope="module")
def original(root: Path) -> dict[str, Any]:
    """The parameters of the project; three models are given, not built, so that reading takes half the time."""
    given = {"build": None, "path": "checkpoints/one"}
    models = dict.fromkeys(("qwen2_5_vl", "internvl3", "judge"), given)
    return merge_params(read_yaml(root / "params.yaml"), {"models": models})


@pytest.fixture(scope="module")
def text(original: dict[str, Any]) -> str:
    return yaml.safe_dump(original, sort_keys=False)


def draw_file(original: dict[str, Any], text: str, rng: random.Random) -> bytes:
    """The bytes of a params.yaml: mutated values as JSON or YAML, mutated bytes, or a form of YAML put in somewhere."""
    kind = rng.randrange(8)
    if kind <= 2:
        return dump_json(mutate_json(original, rng), rng)
    if kind <= 4:
        changed = mutate_json(original, rng) if rng.random() < 0.5 else replace_leaf(original, rng)
        content = yaml.dump(changed, allow_unicode=rng.random() < 0.5, Dumper=yaml.Dumper, sort_keys=False)
        return content.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32")), "surrogatepass")
    if kind == 5:
        return mutate_bytes(text.encode(), rng)
    form = rng.choice(FORMS)
    lines = text.splitlines()
    if rng.random() < 0.5:
        return (text + "\n" + form + "\n").encode()
    at = rng.randrange(len(lines))
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    return "\n".join([*lines[:at], *(indent + line for line in form.splitlines()), *lines[at:]]).encode()


def replace_leaf(original: dict[str, Any], rng: random.Random) -> Any:
    """The values with one leaf replaced: a well-formed file with one wrong value, nothing else."""
    import copy

    changed = copy.deepcopy(original)
    *above, key = rng.choice(list(list_places(changed)))
    holder: Any = changed
    for step in above:
        holder = holder[step]
    holder[key] = draw_hostile(rng)
    return changed


def iter_leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{key}.{name} (its name)", name
            yield from iter_leaves(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from iter_leaves(inner, f"{key}.{number}")
    else:
        yield key, value


def find_wrong(params: Params, given: dict[str, Any]) -> list[str]:
    """Values that no stage can use, and values that validation has changed."""
    wrong = []
    for key, value in iter_leaves(given):
        if isinstance(value, float) and not math.isfinite(value):
            wrong.append(f"{key}: {value}")
        if isinstance(value, int) and abs(value) > 2**53:
            wrong.append(f"{key}: too large")
        if isinstance(value, str) and (not value.strip() or not value.isprintable() or "${" in value):
            wrong.append(f"{key}: {value!r}")
    kept = dict(iter_leaves(params.model_dump()))
    for key, value in iter_leaves(given):
        if key in kept and (kept[key] != value or isinstance(kept[key], bool) != isinstance(value, bool)):
            wrong.append(f"{key}: {value!r} became {kept[key]!r}")
    return wrong


def check_file(path: Path) -> str:
    """`accepted` or `refused`; fails if neither holds, if it takes long, or if a wrong value is accepted."""
    try:
        with limit_time(SECONDS):
            params = load_params(path)
    except ParamsError as error:
        lines = str(error).split("\n")
        assert 1 <= len(lines) <= 20
        for line in lines:
            assert line.startswith(str(path)), line
            assert len(line) < 1000 + len(str(path)), line
            assert line.isprintable(), ascii(line)
        return "refused"
    assert find_wrong(params, read_yaml(path)) == []
    return "accepted"


def test_hostile_files_are_refused_in_lines(tmp_path: Path, original: dict[str, Any], text: str) -> None:
    path = tmp_path / "params.yaml"
    outcomes = {"accepted": 0, "refused": 0}
    slowest = 0.0
    for rng in draw_inputs():
        path.write_bytes(draw_file(original, text, rng))
        start = time.perf_counter()
        outcomes[check_file(path)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    print(f"params.yaml: {outcomes}, slowest {slowest:.2f} s")
    assert outcomes["refused"] > outcomes["accepted"] > 0


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_every_form_ends_in_lines_or_in_valid_values(tmp_path: Path, text: str, form: str) -> None:
    (tmp_path / "params.yaml").write_text(f"{text}\n{form}\n")
    check_file(tmp_path / "params.yaml")


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "loop", "dangling", "sparse", "zero", "proc"])
def test_what_is_no_text_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "params.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(tmp_path)
            server.bind("params.yaml")
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    else:
        targets = {"loop": path, "dangling": tmp_path / "nowhere", "zero": "/dev/zero", "proc": "/proc/self/mem"}
        path.symlink_to(targets[kind])
    assert check_file(path) == "refused"
