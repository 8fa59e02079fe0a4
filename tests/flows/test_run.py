"""`python -m flows.run`: one stage, once; what it refuses, what it notices, and which exit code it ends with."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml

from flows.environment import has_gpu
from flows.estimate.cards import name_machine
from stages.config.table import STAGES
from stages.config.yaml import read_yaml
from tests.conftest import ROOT, TINY_QUESTIONS
from tests.living import is_alive

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., "subprocess.Popen[str]"]
MANY_QUESTIONS = {"questions": {"splits": {"warm_start": 3000, "imitation": 4, "validation": 2, "test": 4}}}


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until `condition` holds while `process` runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "condition did not come true in time"
        time.sleep(0.05)


def drawing(project: Path) -> Callable[[], bool]:
    """Whether `questions` is at work: its rows are being drawn once the code of the world has been compiled."""
    folder = project / "stages" / "tiny" / "world" / "__pycache__"
    return lambda: bool(list(folder.glob("pictures.*.pyc")))


def test_a_stage_runs_and_says_where_its_results_are(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project()
    killed = project / "data" / ".questions.4242.partial"  # of a run that was killed while it wrote
    killed.mkdir(parents=True)
    code, out, err = call(project, "flows.run", "questions")
    assert (code, out) == (0, ""), err
    assert not killed.exists()
    assert "warning: not recorded by DVC; to record it run: dvc repro questions" in err
    assert "results in data/questions and reports/questions" in err
    assert (project / "data" / "questions" / "test" / "part-00000.parquet").is_file()
    timing = json.loads((project / "reports" / "questions" / "timing.json").read_text())
    assert timing["seconds"] > 0
    # What `ril plan` had said, and what it took: the next plan and the report read them.
    planned, took = timing["planned"], timing["took"]
    assert timing["machine"] == name_machine()
    assert planned["seconds"][0] < planned["seconds"][1]
    assert 50e6 < took["peak_host_bytes"] < 2e9
    written = [file.stat().st_size for file in (project / "data" / "questions").rglob("*.parquet")]
    assert took["out_bytes"] == sum(written)


def test_a_stage_without_a_plan_runs_and_says_why(make_project: Callable[..., Path], call: Call) -> None:
    judge = {"models": {"judge": {"build": None, "hub": "nobody/knows", "revision": "main"}}}
    project = make_project({**TINY_QUESTIONS, **judge})
    code, _, err = call(project, "flows.run", "questions")
    assert code == 0, err
    timing = json.loads((project / "reports" / "questions" / "timing.json").read_text())
    assert "models.judge.hub is 'nobody/knows', whose shape is not known" in timing["planned"]["unknown"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pool"], "error: data/teacher is missing; make it with: dvc repro teacher"),
        (["teacher", "internvl3"], "error: data/model/internvl3 is missing; make it with: dvc repro model@internvl3"),
        (["evaluate", "ril"], "error: data/ril/model is missing; make it with: dvc repro ril"),
        (["teacher", "nobody"], "error: no 'nobody' in `teachers` of params.yaml; entries: qwen2_5_vl, internvl3"),
        (["teacher"], "error: stage teacher has one run an entry of `teachers`; say which: qwen2_5_vl, internvl3"),
        (["questions", "x"], "error: stage questions has no items; leave out 'x'"),
        (["nothing"], "error: no stage 'nothing'; stages: model, questions"),
        ([], "error: expected a stage and at most one item"),
    ],
)
def test_what_can_not_start_is_a_line_and_exit_code_2(
    make_project: Callable[..., Path], call: Call, arguments: list[str], message: str
) -> None:
    code, out, err = call(make_project(), "flows.run", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert "Traceback" not in err


def test_wrong_parameters_stop_everything_before_it_starts(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project({"ril": {"learning_rat": 1.0, "steps": "many"}})
    code, _, err = call(project, "flows.run", "questions")
    assert code == 2
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 2
    assert "ril.learning_rat = 1.0 is not a known key; did you mean 'learning_rate'?" in err
    assert not (project / "data").exists()


def test_data_that_can_not_be_used_is_a_line_that_names_the_place(
    make_project: Callable[..., Path], call: Call
) -> None:
    project = make_project({"questions": {"kind": "llava", "path": "mine.json"}})
    code, _, err = call(project, "flows.run", "questions")
    assert code == 2
    assert "error: mine.json is missing; no stage makes it" in err
    (project / "mine.json").write_text("[]")
    code, _, err = call(project, "flows.run", "questions")
    assert code == 2
    assert [line for line in err.splitlines() if line.startswith("error: ") and "mine.json" in line], err
    assert "Traceback" not in err
    (project / "mine.json").unlink()
    os.mkfifo(project / "mine.json")
    code, _, err = call(project, "flows.run", "questions")
    assert code == 2
    assert "mine.json: a named pipe, not a file; DVC cannot watch it" in err


def test_help_lists_stages_and_explains_each(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project()
    code, out, _ = call(project, "flows.run", "--help")
    assert code == 0
    for name, stage in STAGES.items():
        assert f"  {name} " in out
        assert stage.title in out


@pytest.mark.parametrize("name", list(STAGES))
def test_help_of_a_stage_says_what_it_reads_writes_and_is_told(root: Path, name: str) -> None:
    from flows.describe import describe_stage

    text = describe_stage(name, root)
    assert STAGES[name].title in text
    assert "reads  " in text
    assert f"reports/{name}" in text
    for key in STAGES[name].params:
        assert key.replace("{item}", "<id>") in text
    assert "{" not in text.split("parameters")[0]


def test_help_shows_descriptions_and_current_values(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project({"teachers": {"internvl3": {"responses": 5}}})
    code, out, _ = call(project, "flows.run", "teacher", "--help")
    assert code == 0
    assert "teachers.<id>.responses = qwen2_5_vl: 8, internvl3: 5\n      N answers per question" in out


def test_params_edited_while_a_stage_runs_end_it_with_an_error(make_project: Callable[..., Path], start: Start) -> None:
    project = make_project(MANY_QUESTIONS)
    process = start(project, "flows.run", "questions")
    wait_for(process, drawing(project))
    values = read_yaml(project / "params.yaml")
    values["world"]["seed"] = 7
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    _out, err = process.communicate(timeout=180)
    assert process.returncode == 1, err
    assert "error: params.yaml changed while questions ran" in err
    assert "run it again: dvc repro questions" in err
    assert not (project / "reports" / "questions" / "timing.json").exists()


def test_parameters_of_other_stages_may_be_edited_meanwhile(make_project: Callable[..., Path], start: Start) -> None:
    project = make_project(MANY_QUESTIONS)
    process = start(project, "flows.run", "questions")
    wait_for(process, drawing(project))
    values = read_yaml(project / "params.yaml")
    values["ril"]["learning_rate"] = 1.0e-5
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    _out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err


EDITS = {  # what is put into stages/questions.py while it runs, what it ends with, what it says
    "code": ("\n_ANOTHER = 1\n", 1, "error: stages/questions.py::_ANOTHER changed while questions ran"),
    "words": ("\n# another comment\n", 0, "questions: done in"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_of_code_ends_a_running_stage_with_an_error_and_one_of_words_does_not(
    make_project: Callable[..., Path], start: Start, kind: str
) -> None:
    text, code, said = EDITS[kind]
    project = make_project(MANY_QUESTIONS)
    process = start(project, "flows.run", "questions")
    wait_for(process, drawing(project))
    with (project / "stages" / "questions.py").open("a") as file:
        file.write(text)
    _out, err = process.communicate(timeout=180)
    assert process.returncode == code, err
    assert said in err
    assert (project / "reports" / "questions" / "code.json").exists() == (code == 0)


def test_code_that_dvc_does_not_watch_is_refused_under_dvc(make_project: Callable[..., Path], call: Call) -> None:
    project = make_project()
    (project / "stages" / "corpora" / "new.py").write_text("LIMIT = 1\n")
    with (project / "stages" / "questions.py").open("a") as file:
        file.write("\nfrom stages.corpora.new import LIMIT\n")
    code, _, err = call(project, "flows.run", "questions", DVC_STAGE="questions")
    assert code == 2
    assert "error: stage questions reaches stages/corpora/new.py, which dvc.yaml does not list" in err
    assert call(project, "flows.closure")[0] == 0
    assert "- stages/corpora/new.py" in (project / "dvc.yaml").read_text()
    assert call(project, "flows.run", "questions", DVC_STAGE="questions")[0] == 0


def test_sigterm_ends_a_stage_with_143_and_leaves_no_half_result(
    make_project: Callable[..., Path], start: Start
) -> None:
    project = make_project(MANY_QUESTIONS)
    process = start(project, "flows.run", "questions")
    wait_for(process, drawing(project))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert not (project / "data" / "questions").exists()
    assert not list((project / "data").glob(".*")) if (project / "data").exists() else True


def test_ctrl_c_is_a_line_and_130(make_project: Callable[..., Path], start: Start) -> None:
    project = make_project(MANY_QUESTIONS)
    process = start(project, "flows.run", "questions")
    wait_for(process, drawing(project))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "questions: stopped; run it again with: dvc repro questions" in err
    assert "Traceback" not in err


def test_a_stage_ends_when_the_dvc_that_started_it_is_killed(make_project: Callable[..., Path], start: Start) -> None:
    """The parent is a shell in place of dvc; what matters is that it dies without a word."""
    project = make_project(MANY_QUESTIONS)
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'flows.run', 'questions'])\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    (project / "parent.py").write_text(script)
    parent = start(project, "parent", DVC_STAGE="questions")
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(parent, drawing(project))
    parent.kill()
    parent.wait(timeout=30)
    end = time.monotonic() + 30
    while is_alive(child):
        assert time.monotonic() < end, "the stage outlived its parent"
        time.sleep(0.05)
    assert not (project / "data" / "questions").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/api", "http://no-such-host.invalid/api", "nonsense"])
def test_a_server_that_does_not_answer_costs_a_warning(
    make_project: Callable[..., Path], call: Call, address: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = address.format(port=closed.getsockname()[1])
    start = time.monotonic()
    code, _, err = call(make_project(), "flows.run", "questions", PREFECT_API_URL=url)
    assert code == 0, err
    assert f"warning: no Prefect server answers at {url}; running without it" in err
    assert time.monotonic() - start < 30


def test_a_server_that_accepts_and_says_nothing_is_given_up(make_project: Callable[..., Path], call: Call) -> None:
    from flows.flow_run import server_answers

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        assert not server_answers(f"http://127.0.0.1:{silent.getsockname()[1]}/api", 0.5)
        assert time.monotonic() - begin < 2


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.environment import list_missing_variables

    wanted = list_missing_variables({})
    assert wanted["HF_HUB_OFFLINE"] == "1"
    assert wanted["DO_NOT_TRACK"] == "1"
    assert has_gpu() or wanted["OMP_NUM_THREADS"] == "1"
    assert "HF_HUB_OFFLINE" not in list_missing_variables({"RIL_ALLOW_DOWNLOADS": "1"})
    assert not set(list_missing_variables({"OMP_NUM_THREADS": "8", "VLLM_LOGGING_LEVEL": "INFO"})) & {
        "OMP_NUM_THREADS",
        "VLLM_LOGGING_LEVEL",
    }


@pytest.mark.parametrize(("given", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_a_preloaded_openmp_computes_with_the_threads_of_others(given: Mapping[str, str], threads: int) -> None:
    """vLLM for CPUs asks for LD_PRELOAD, and sets it for all children of a process that it has run in."""
    if has_gpu():
        pytest.skip("with a GPU the number of threads is left alone")
    (library,) = (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")
    code = "import sys; from flows.environment import prepare; prepare(); import torch\n"
    code += "print(sys.argv[1:], torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"LD_PRELOAD": str(library), **given}
    words = [sys.executable, "-X", "utf8", "-c", code, "a b", "*"]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"['a b', '*'] {threads}\n", done.stderr


def test_one_process_does_the_work_once(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.work import Work
    from stages.job.progress import Progress

    project = make_project()
    monkeypatch.chdir(project)
    work = Work("questions", None, project)
    work.run(Progress())
    with pytest.raises(RuntimeError, match="started twice"):
        work.run(Progress())
    assert work.error is None
    assert os.environ.get("DVC_STAGE") is None
