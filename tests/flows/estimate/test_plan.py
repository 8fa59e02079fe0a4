"""`ril plan`: through the command, with the store, with what was measured, and what it refuses."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from flows.estimate.amounts import Range, format_hours, format_quantity, format_volume
from flows.estimate.cards import CARDS, name_machine, read_gpus
from flows.estimate.models import find_models
from flows.estimate.past import MACHINES, Calibration
from flows.estimate.plan import Given, PipelinePlan, plan_pipeline
from flows.estimate.process import WAITING
from flows.estimate.remedy import find_larger_card, find_remedies
from flows.estimate.shapes import read_shape
from flows.estimate.workload import MeanLengths, count_exam
from flows.profile import read_profile
from stages.config.params import validate_params
from stages.config.yaml import ParamsError, merge_params, read_yaml
from stages.corpora.kept_questions import open_kept_questions, write_kept_questions
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.engines.vllm import WAITING_SHARE
from stages.job.files import write_json, write_shards
from stages.responses.answers import make_generation_spec
from stages.responses.key import derive_answer_key
from stages.responses.requested import RequestedAnswers
from stages.responses.store import Store, StoredAnswer
from stages.vlm.checkpoint import open_checkpoint, write_card

SMALL = {"questions": {"splits": {"warm_start": 8, "imitation": 5, "validation": 2, "test": 4}}}


@pytest.fixture
def project(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny profile with few questions, as the working directory."""
    folder = make_project(SMALL)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RIL_STORE", raising=False)
    return folder


def ask(*arguments: str, code: int = 0) -> str:
    """What `ril plan` prints."""
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def ask_values(*arguments: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(*arguments, "--json", code=code))
    return found


def pick(values: Mapping[str, Any], run: str) -> dict[str, Any]:
    return next(one for one in values["stages"] if one["run"] == run)


def test_the_tiny_profile_is_planned_with_exact_counts(project: Path) -> None:
    values = ask_values()
    assert pick(values, "teacher@internvl3")["answers"] == {"wanted": 40, "stored": 0, "generate": 40}
    assert pick(values, "verdict@internvl3")["answers"]["wanted"] == 40 + count_exam()
    assert pick(values, "rollout")["answers"]["wanted"] == 40
    loop = pick(values, "ril")  # 120 steps of 16 questions, 4 answers and verdicts each; 5 validations of 2 questions
    assert loop["answers"]["wanted"] == 2 * 120 * 16 * 4 + 5 * 2
    assert loop["steps"] == 120
    assert pick(values, "evaluate@ril")["answers"]["wanted"] == 2 * 4 + 4 * 4  # shuffled once; four tiny benchmarks
    student = values["models"]["student"]["weights"]
    assert pick(values, "warm_start")["checkpoint_bytes"] == 12 * student
    assert values["faults"] == []


def test_teachers_that_score_in_the_loop_are_counted(project: Path) -> None:
    """Each answer is read once by each of them, with its prompt; on a CPU they are engines of the stage's process."""
    before = pick(ask_values(), "ril")
    overlay = {"ril": {"objective": "opd", "distillation": ["qwen2_5_vl", "internvl3"]}}
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(merge_params(read_yaml(path), overlay), sort_keys=False))
    found = pick(ask_values(), "ril")
    answers = 120 * 16 * 4
    assert found["answers"]["wanted"] == answers + 5 * 2 + 2 * answers
    assert before["answers"]["wanted"] == 2 * answers + 5 * 2
    params = validate_params(read_yaml(path))
    plan = plan_pipeline(params, Given(project, project / ".ril", find_models(project, params)))
    scored = [one for one in plan.find("ril").work.answers if one.model in ("qwen2_5_vl", "internvl3")]
    assert [(one.model, one.count, one.prompts) for one in scored] == [
        (name, answers, answers) for name in ("qwen2_5_vl", "internvl3")
    ]
    assert all(one.answer == Range.exactly(1) for one in scored)
    (row,) = plan.find("ril").rows
    assert row.parts["KV cache"] == 3 * 2**30, "student and both teachers; there is no judge"


def test_an_engine_on_cpus_has_a_buffer_for_all_prompts_and_a_first_pass(project: Path) -> None:
    """fp32 states of `sequences` contexts; the first pass reads five prompts of ten tokens, all that there are."""

    def measure(**runtime: Any) -> float:
        params = validate_params(merge_params(read_yaml(project / "params.yaml"), {"runtime": runtime}))
        models = find_models(project, params)
        given = Given(project, project / ".ril", models, lengths=MeanLengths(prompt=10))
        return plan_pipeline(params, given).find("rollout").rows[0].parts["engine work"]

    assert 1 + WAITING_SHARE == WAITING
    params = validate_params(read_yaml(project / "params.yaml"))
    text = find_models(project, params)["student"].shape.text
    passed = 5 * 10 * (4 * text.hidden + 3 * text.feed_forward)
    for sequences, runtime in ((256, {}), (8, {"engines": {"student": {"kind": "vllm", "sequences": 8}}})):
        first = passed if sequences == 256 else passed / 4  # eight answers to a prompt, and a quarter more is waiting
        buffer = sequences * params.models["student"].context_tokens * text.hidden
        assert measure(**runtime) == pytest.approx(4 * (buffer + first))


@pytest.mark.parametrize("objective", ["sft", "imitation"])
def test_an_objective_that_samples_nothing_asks_for_validation_only(project: Path, objective: str) -> None:
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(merge_params(read_yaml(path), {"ril": {"objective": objective}}), sort_keys=False))
    assert pick(ask_values(), "ril")["answers"]["wanted"] == 5 * 2


def test_the_table_is_readable_at_a_hundred_columns(project: Path) -> None:
    lines = ask("--details").splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[0] == "stage"
    assert any(line.startswith("teacher@internvl3") for line in lines)


def test_states_are_those_of_dvc(project: Path) -> None:
    from dvc.repo import Repo

    with Repo.init(str(project), no_scm=True):
        pass
    assert pick(ask_values(), "questions")["state"] == "never run"
    assert pick(ask_values("--profile", "smoke"), "questions")["state"] == "runs"


def test_what_is_stored_is_not_generated_again(project: Path) -> None:
    """Ten of forty answers of one teacher are in the store; a question that occurs twice is asked once."""
    asking = [[{"role": "user", "content": f"What is {number // 2}?"}] for number in range(5)]
    rows = [make_canonical_row(f"q{number}", [], asking[number], "1", "w", "sum") for number in range(5)]
    write_shards(project / "data" / "questions" / "imitation", rows, QUESTION_SCHEMA)
    write_kept_questions(project / "data" / "selection" / "kept", "imitation", [f"q{number}" for number in range(5)])
    card = project / "data" / "model" / "internvl3"
    card.mkdir(parents=True)
    write_card(card, "internvl3", "fp32", 256, {"path": str(card), "identity": "a" * 64})
    params = validate_params(read_yaml(project / "params.yaml"))
    teacher = params.teachers["internvl3"]
    keep_template(project, card)
    asked = make_generation_spec(open_checkpoint(card), teacher.sampling, 0, project / ".ril")
    questions = open_kept_questions(project / "data/questions", project / "data/selection/kept")
    wanted = RequestedAnswers.from_prompts(asked, questions.iter_key_parts(), 8)
    store = Store(project / ".ril" / "responses" / asked.slug, pytest.fail)
    key = wanted.request_key(4)
    store.append(
        [
            StoredAnswer(derive_answer_key(key, n), key, n, "q4", "x", (1,), "stop", 5, 1, "vllm", "1", request=REQUEST)
            for n in range(6)
        ]
    )
    found = pick(ask_values(), "teacher@internvl3")["answers"]
    # q0 and q1 are equal, so are q2 and q3: 3 requests of 8 answers, less 6.
    assert found["generate"] == 3 * 8 - 6
    assert pick(ask_values(), "teacher@qwen2_5_vl")["answers"]["generate"] == 40


REQUEST = json.dumps({"messages": [["user", "What is 2?"]], "images": []})


def keep_template(project: Path, card: Path) -> None:
    """Keeps a template as if the tokenizer had been read: the card points to no tokenizer."""
    from stages.responses import template

    known = template.Template("b" * 64, (3,))
    model = open_checkpoint(card)
    source = [[file.name, template.hash_file(file)] for file in sorted(template._SOURCE.glob("*.py"))]
    parts = [model.identity, model.family, template.version("transformers"), template.version("tokenizers"), source]
    write_json(
        project / ".ril" / "templates" / f"{template.hash_json(parts)}.json",
        {"hash": known.hash, "banned": list(known.banned)},
    )


def test_a_machine_without_enough_memory_refuses(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 2 << 30})())
    said = ask(code=1)
    assert re.search(r"does not fit: ril, passes: 3\.\d GB are needed and this machine has 2\.1", said)


def test_a_profile_is_planned_without_being_applied(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    values = ask_values("--profile", "lora_1x80", "--gpu-hour", "2.5")
    assert (project / "params.yaml").read_bytes() == before
    assert values["card"] == {"name": "80 GB", "bytes": CARDS["80"].memory, "gpu": True}
    teacher = pick(values, "teacher@internvl3")
    assert teacher["money"] == [pytest.approx(2.5 * hours) for hours in teacher["gpu_hours"]]
    assert teacher["gpus"] == 1
    (row,) = teacher["memory"]
    assert row["engines"]["internvl3"]["answers"] == 26


def test_prices_of_endpoints_are_per_million_tokens(project: Path) -> None:
    options = ["--profile", "lora_1x24", "--prompt-tokens", "1000", "--answer-tokens", "200", "--gpu-hour", "1"]
    values = ask_values(*options, "--input-price", "2", "--output-price", "8", "--output-price", "judge=4")
    teacher, hours = pick(values, "teacher@internvl3"), pick(values, "teacher@internvl3")["gpu_hours"]
    assert hours == [0.0, 0.0]  # no GPU works for an endpoint
    assert teacher["money"] == [pytest.approx(2000 * 1000 * 2 / 1e6 + 8000 * 200 * 8 / 1e6)] * 2
    verdict = pick(values, "verdict@internvl3")
    tokens = [verdict["tokens_in"][1] * 2 / 1e6, verdict["tokens_out"][1] * 4 / 1e6]
    assert verdict["money"][1] == pytest.approx(sum(tokens))
    assert pick(ask_values(*options), "teacher@internvl3")["money"] is None
    assert "give --input-price and --output-price of internvl3, judge, qwen2_5_vl." in ask(*options)


def test_prices_of_engines_count_where_no_others_are_given(project: Path) -> None:
    values = merge_params(read_yaml(project / "params.yaml"), read_profile(project, "lora_1x24"))
    prices = {"prompt_price": 2, "completion_price": 8}
    engines = {name: {**values["runtime"]["engines"][name], **prices} for name in ("internvl3", "judge")}
    write_params(project, merge_params(values, {"runtime": {"engines": engines}}))
    options = ["--card", "24", "--prompt-tokens", "1000", "--answer-tokens", "200"]
    plan = ask_values(*options)
    at_these = 2000 * 1000 * 2 / 1e6 + 8000 * 200 * 8 / 1e6
    assert pick(plan, "teacher@internvl3")["money"] == [pytest.approx(at_these)] * 2
    assert pick(plan, "teacher@qwen2_5_vl")["money"] is None
    other = ask_values(*options, "--input-price", "internvl3=4")
    assert pick(other, "teacher@internvl3")["money"][1] == pytest.approx(at_these + 2000 * 1000 * 2 / 1e6)
    of_all = ask_values(*options, "--input-price", "1", "--output-price", "1")
    assert pick(of_all, "teacher@internvl3")["money"][1] == pytest.approx((2000 * 1000 + 8000 * 200) / 1e6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--card", "b9000"], "--card is 'b9000', which is not known here; known: 24, 48"),
        (["--input-price", "judge=x"], "price 'judge=x': write a number, or MODEL=NUMBER"),
        (["--input-price", "nobody=1"], "no model 'nobody'; models: student"),
        (["--input-price", "nan"], "price 'nan' is below 0"),
    ],
)
def test_wrong_options_are_lines(project: Path, options: list[str], words: str) -> None:
    with pytest.raises(ParamsError, match=words.replace("?", r"\?")):
        ask(*options)


@pytest.mark.parametrize("config", [{}, {"text_config": None}, {"model_type": "qwen2", "hidden_size": "x"}])
def test_a_config_that_says_no_shape_is_a_line(project: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    write_json(folder / "config.json", config)
    student = {"family": "qwen2_5_vl", "path": str(folder), "context_tokens": 256}
    values = read_yaml(project / "params.yaml")
    values["models"]["student"] = student
    write_params(project, values)
    with pytest.raises(ParamsError, match=r"models\.student: .*config\.json has no usable"):
        ask()


def test_gpus_that_are_not_here_must_be_said(project: Path) -> None:
    changes = {"runtime": {"gpus": 2}, "models": {"student": {"precision": "bf16"}}}
    write_params(project, merge_params(read_yaml(project / "params.yaml"), changes))
    with pytest.raises(ParamsError, match=r"runtime\.gpus is 2, but this machine shows no GPU"):
        ask()


def show_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, *rows: str) -> None:
    """Lets nvidia-smi show GPUs."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_of_this_machine_are_those_that_nvidia_smi_shows(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_gpus(tmp_path, monkeypatch, "NVIDIA A100-SXM4-80GB, 81920", "NVIDIA H200, 143771", "Mystery 9, 24000")
    assert [gpu.flops.high for gpu in read_gpus()] == [312e12, 989e12, CARDS["24"].flops.high]
    assert read_gpus()[0].memory == 81920 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [gpu.name for gpu in read_gpus()] == ["Mystery 9", "NVIDIA A100-SXM4-80GB"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert len(read_gpus()) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    values = ask_values("--profile", "lora_1x24")
    assert values["card"]["name"] == "Mystery 9"  # the smallest that is here
    assert ask_values()["card"]["gpu"] is False  # the tiny student is fp32


def write_params(project: Path, values: Mapping[str, Any]) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(dict(values), sort_keys=False))


# --- past runs and calibration ----------------------------------------------------------------------------------------


def test_a_plan_learns_from_the_last_run_on_this_machine(project: Path) -> None:
    """60 steps took 30 s and the stage 40: twice the steps take 10 + 60 s, with the range of a known run."""
    file = project / "reports" / "warm_start" / "timing.json"
    flops = sum(pick(ask_values(), "warm_start")["flops"]) / 2 / 60
    timing = {"seconds": 40.0, "steps": {"done": 60, "seconds": 30.0}, "planned": {"step_flops": flops}}
    write_json(file, {**timing, "machine": name_machine()})
    write_params(project, merge_params(read_yaml(project / "params.yaml"), {"warm_start": {"steps": 120}}))
    found = pick(ask_values(), "warm_start")
    assert found["hours_from"] == "last run"
    assert found["hours"] == [pytest.approx(70 * 0.85 / 3600), pytest.approx(70 * 1.2 / 3600)]
    write_json(file, {**timing, "machine": "another"})
    assert pick(ask_values(), "warm_start")["hours_from"] == "data sheet"
    file.write_text("{broken")
    assert pick(ask_values(), "warm_start")["hours_from"] == "data sheet"


def test_answers_take_as_long_as_those_of_the_last_run(project: Path) -> None:
    paid = {"a": {"generated": 20, "seconds": 10.0, "prompt_tokens": 100, "completion_tokens": 200}}
    timing = {"seconds": 25.0, "paid": paid, "machine": name_machine()}
    write_json(project / "reports" / "teacher" / "internvl3" / "timing.json", timing)
    found = pick(ask_values(), "teacher@internvl3")  # 40 answers: 15 s beside them, 20 s for them
    assert found["hours"] == [pytest.approx(35 * 0.85 / 3600), pytest.approx(35 * 1.2 / 3600)]


def test_a_calibration_takes_the_place_of_the_data_sheet(project: Path) -> None:
    known = Calibration(1e10, 0.1, 20.0, 0.001, 2e10, 30.0)
    write_json(project / ".ril" / MACHINES / f"{name_machine()}.json", known.to_json())
    values = ask_values()
    assert values["machine"] == name_machine()
    found = pick(values, "warm_start")
    assert found["hours_from"] == "measured here"
    seconds = [20 + 60 * 0.1 + flops / 1e10 for flops in found["flops"]]
    assert found["hours"] == [pytest.approx(0.75 * seconds[0] / 3600), pytest.approx(1.3 * seconds[1] / 3600)]
    assert "Measured on this machine" in ask()


# --- what would fit ---------------------------------------------------------------------------------------------------


def fit(
    root: Path, name: str, card: str, changes: Mapping[str, Any]
) -> tuple[list[str], PipelinePlan, Given, dict[str, Any]]:
    values = merge_params(merge_params(read_yaml(root / "params.yaml"), read_profile(root, name)), dict(changes))
    params = validate_params(values)
    given = Given(root, root / "no store", find_models(root, params), CARDS[card])
    made = plan_pipeline(params, given)
    return list(map(str, find_remedies(values, given, made.memory.list_shortfalls()))), made, given, values


REMEDIES: list[tuple[str, str, dict[str, Any], str]] = [
    ("lora_1x24", "24", {"runtime": {"gradient_checkpointing": False}}, "runtime.gradient_checkpointing: true"),
    ("lora_1x24", "24", {"warm_start": {"lora": None, "freeze_vision": False}}, "warm_start.lora: {rank: 64"),
    ("lora_1x80", "80", {"ril": {"lora": None}}, "ril.lora: {rank: 64"),
    ("node_8x80", "80", {"runtime": {"rank_gpus": {"ril": [2, 3]}}}, "runtime.optimizer_states: offloaded"),
    ("paper", "80", {"runtime": {"engines": {"qwen2_5_vl": {"tensor_parallel": 1}}}}, "tensor_parallel: 4"),
    ("node_8x80", "80", {"ril": {"tokens_per_pack": 65_536}}, "ril.tokens_per_pack: "),
]


@pytest.mark.parametrize(("name", "card", "changes", "words"), REMEDIES)
def test_the_smallest_change_that_fits_is_found(
    root: Path, name: str, card: str, changes: dict[str, Any], words: str
) -> None:
    said, made, *_ = fit(root, name, card, changes)
    assert made.memory.list_shortfalls()
    assert any(words in one for one in said), said


@pytest.mark.parametrize(("name", "card", "changes", "words"), REMEDIES)
def test_what_is_proposed_does_fit(root: Path, name: str, card: str, changes: dict[str, Any], words: str) -> None:
    _, made, given, values = fit(root, name, card, changes)
    for remedy in find_remedies(values, given, made.memory.list_shortfalls()):
        params = validate_params(merge_params(values, dict(remedy.changes)))
        assert plan_pipeline(params, given).memory.list_shortfalls() == [], remedy


def test_larger_cards_are_tried(root: Path) -> None:
    said, made, given, values = fit(
        root, "lora_1x80", "80", {"models": {"internvl3": {"hub": "OpenGVLab/InternVL3-38B-hf"}}}
    )
    assert made.memory.list_shortfalls()
    assert said == []
    assert find_larger_card(validate_params(values), given) == "141"


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_the_shape_of_a_folder_is_read_from_its_config(root: Path, tmp_path: Path) -> None:
    from tests.checkpoints.make import PUBLISHED

    for name, one in PUBLISHED.items():
        if one.kind:
            shape = read_shape(one.cut_config())
            assert shape.text.hidden == 128, name
            assert (shape.tower is None) == ("vision_config" not in one.cut_config())


def test_ranges_and_numbers_are_short() -> None:
    assert format_hours(Range(0.5, 0.5)) == "30 min"
    assert format_hours(Range(0.001, 2.0)) == "3.6 s-2.0 h"
    assert format_hours(Range(30, 60)) == "1.2-2.5 d"
    assert [format_quantity(value) for value in (0, 9999, 12_345, 1e6, 2.5e9)] == ["0", "9999", "12.3k", "1M", "2.5B"]
    assert [format_volume(value) for value in (1.5e6, 2.5e9, 1.2e11)] == ["1.5 MB", "2.5 GB", "120 GB"]


def test_a_plan_loads_no_torch(project: Path) -> None:
    code = "import sys, flows.cli.plan; print('torch' in sys.modules, 'vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
