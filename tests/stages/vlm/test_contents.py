"""Checkpoint folders of others: what runs code, or runs without end, is refused in one line before it is loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from stages.vlm.chat import Chat
from stages.vlm.checkpoint import Checkpoint
from stages.vlm.contents import RefusedCheckpoint, check_loadable
from stages.vlm.reader import load_network, load_reader
from stages.vlm.trial import try_reading

EVIL = "import pathlib; pathlib.Path(__file__).with_name('PWNED').touch()\n"


class Touch:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def put(file: str, key: str, value: Any) -> Callable[[Path], None]:
    """Sets `key` (with dots) of a JSON file, which is made if it is missing."""

    def change(folder: Path) -> None:
        path = folder / file
        values = json.loads(path.read_text()) if path.is_file() else {}
        inner = values
        *above, last = key.split(".")
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value
        path.write_text(json.dumps(values))

    return change


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def pickled(file: str, whole: bool = True) -> Callable[[Path], None]:
    """Weights as a pickle that touches a file; `whole`: instead of those in safetensors."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(pickle.dumps(Touch(folder / "PWNED")))
        if whole:
            (folder / "model.safetensors").unlink()

    return change


def link(file: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).symlink_to(target)


def grow(file: str, length: int) -> Callable[[Path], None]:
    """Makes a sparse file of `length` bytes."""

    def change(folder: Path) -> None:
        (folder / file).touch()
        os.truncate(folder / file, length)

    return change


def empty(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


INDEX = "model.safetensors.index.json"
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "model class": (put("config.json", "auto_map", {"AutoModelForCausalLM": "evil.Model"}), "auto_map"),
    "config class": (put("config.json", "auto_map", {"AutoConfig": "someone/repo--evil.Config"}), "auto_map"),
    "inner config": (put("config.json", "text_config.auto_map", {"AutoModel": "evil.Model"}), r"text_config\.auto_map"),
    "list of configs": (put("config.json", "parts", [{"auto_map": {}}]), r"parts\.0\.auto_map"),
    "tokenizer": (put("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Tokenizer", None]}), "auto_map"),
    "processor": (put("processor_config.json", "auto_map", {"AutoProcessor": "evil.Processor"}), "auto_map"),
    "images": (put("preprocessor_config.json", "auto_map", {"AutoImageProcessor": "evil.Images"}), "auto_map"),
    "videos": (put("video_preprocessor_config.json", "auto_map", {"AutoVideoProcessor": "evil.V"}), "auto_map"),
    "generation": (put("generation_config.json", "auto_map", {"x": "evil.X"}), "auto_map"),
    "pipeline": (put("config.json", "custom_pipelines", {"x": {"impl": "evil.X"}}), "custom_pipelines"),
    "code": (write("modeling_evil.py", EVIL), "is code"),
    "code in a folder": (write("custom_generate/generate.py", EVIL), "is code"),
    "code in capitals": (write("EVIL.PY", EVIL), "is code"),
    "compiled": (write("evil.cpython-311-x86_64-linux-gnu.so", b"\x7fELF"), "is code"),
    "bytecode": (write("__pycache__/evil.cpython-311.pyc", b""), "is code"),
    "linked code": (link("evil.py", "/nowhere/evil.py"), "is code"),
    "pickle": (pickled("pytorch_model.bin"), "a pickle"),
    "torch": (pickled("consolidated.00.pth"), "a pickle"),
    "checkpoint": (pickled("model.ckpt"), "a pickle"),
    "nothing": (empty, "no weights"),
    "adapter": (put("adapter_config.json", "base_model_name_or_path", "/elsewhere"), "an adapter"),
    "index of pickles": (put(INDEX, "weight_map", {"x": "pytorch_model.bin"}), "only safetensors files of this folder"),
    "index above": (put(INDEX, "weight_map", {"x": "../model.safetensors"}), "only safetensors files of this folder"),
    "index elsewhere": (put(INDEX, "weight_map", {"x": "/x.safetensors"}), "only safetensors files of this folder"),
    "index of a gap": (put(INDEX, "weight_map", {"x": "a.safetensors"}), "which is missing"),
    "index of numbers": (put(INDEX, "weight_map", {"x": 1}), "no weight_map"),
    "index of a list": (write(INDEX, "[]"), "no weight_map"),
    "no JSON": (write("config.json", "{"), "not readable as JSON"),
    "other bytes": (write("config.json", b"\xff\xfe{\x00}\x00"), "not readable as JSON"),
    "deep": (write("config.json", "[" * 100_000), "not readable as JSON"),
    "long": (grow("vocab.json", 1 << 40), "no file of at most"),
    "lost": (link("added_tokens.json", "/nowhere"), "no file of at most"),
    "device": (link("added_tokens.json", "/dev/zero"), "no file of at most"),
}


@pytest.fixture
def folder(tiny: Callable[[str], Checkpoint], tmp_path: Path) -> Path:
    """A copy of a whole checkpoint."""
    return Path(shutil.copytree(tiny("qwen2_5").weights, tmp_path / "model"))


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_could_run_code_is_refused(
    tiny: Callable[[str], Checkpoint], folder: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on stdin"))
    change, reason = FOLDERS[case]
    check_loadable(folder)
    change(folder)
    with pytest.raises(RefusedCheckpoint, match=reason) as caught:
        load_reader(replace(tiny("qwen2_5"), weights=folder))
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)
    assert not list(folder.rglob("PWNED"))


def test_a_class_that_transformers_does_not_have_is_not_looked_for(
    tiny: Callable[[str], Checkpoint], folder: Path
) -> None:
    for name in ("os.system", "builtins.eval", "../evil.Tokenizer", "Qwen2Model"):
        put("tokenizer_config.json", "tokenizer_class", name)(folder)
        chat = load_reader(replace(tiny("qwen2_5"), weights=folder)).chat
        assert type(chat.tokenizer).__module__.startswith("transformers.")


def test_a_pickle_beside_the_weights_is_not_read(tiny: Callable[[str], Checkpoint], folder: Path) -> None:
    pickled("pytorch_model.bin", whole=False)(folder)
    pickled("training_args.bin", whole=False)(folder)
    checkpoint = replace(tiny("qwen2_5"), weights=folder)
    load_network(checkpoint, load_reader(checkpoint))
    assert not (folder / "PWNED").exists()


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch PWNED').read() }}",
    "{{ lipsum.__globals__['os'].popen('touch PWNED').read() }}",
    "{{ raise_exception.__globals__.os.x }}",
    "{{ strftime_now.__globals__.os.x }}",
    "{{ (messages|attr('__class__')).x }}",
    "{{ '{0.__class__}'.format(messages) }}{{ ''['__class__'].x }}",
    "{{ messages.append(messages) }}",
    "{% set x = messages[0].update({'role': 'evil'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% for x in range(10**9) %}{% endfor %}",
    "{{ raise_exception('no') }}",
    "{{ undefined.thing }}",
    "{{ '",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_reaches_nothing_outside_its_sandbox(
    tiny: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = load_reader(tiny("qwen2_5")).chat.tokenizer
    tokenizer.chat_template = template
    with pytest.raises((TemplateError, OverflowError, TypeError)):
        Chat(tokenizer, ()).encode_prompt([{"role": "user", "content": "1 + 1?"}], 0)
    assert not list(tmp_path.rglob("PWNED"))


LOOP = "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (write("chat_template.jinja", LOOP), "CPU time"),
        (write("chat_template.jinja", "{{ ('x' * 10**10)|length }}"), "fails with MemoryError|CPU time, or crashes"),
        (write("chat_template.jinja", "{{ ''.__class__.__mro__ }}"), "fails with .*Error"),
        (write("tokenizer.json", "{}"), "fails with"),
    ],
    ids=["loop", "memory", "escape", "tokenizer"],
)
def test_a_processor_is_tried_within_limits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], reason: str
) -> None:
    monkeypatch.setattr("stages.vlm.trial.CPU_SECONDS", 5)
    change(folder)
    with pytest.raises(RefusedCheckpoint, match=reason) as caught:
        try_reading(folder, "qwen2_5", 2048)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_whole_checkpoint_is_read_within_the_limits(tiny: Callable[[str], Checkpoint], family: str) -> None:
    for name in (family, "qwen2_5"):
        try_reading(tiny(name).weights, name, 2048)
