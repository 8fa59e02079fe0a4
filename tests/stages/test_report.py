"""The report: all that was measured is there, what models wrote stays text, equal inputs give equal bytes."""

import base64
import csv
import io
import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.code_record import Accepted, add_accepted
from flows.jobs import open_job
from stages import evaluate, report
from stages.config.params import Params, load_params, validate_params
from stages.config.yaml import merge_params
from stages.corpora.rows import QUESTION_SCHEMA, make_canonical_row
from stages.corpora.scoring import is_correct
from stages.job.files import read_json, read_shards, write_json, write_shards
from stages.job.job import Job, MissingInput
from stages.loop.outputs import SAMPLE_SCHEMA
from stages.page.evaluated_models import EvaluatedModel, compare_models, format_points, summarise
from stages.page.gallery import list_answers, make_data_uri, pick_evenly
from stages.page.plots import running_mean
from stages.responses.schemas import ANSWERS
from stages.tiny.world.exercises import draw_example
from stages.vlm.checkpoint import Checkpoint
from tests.stages.page.elements import Elements

ATTACK = '</p><script>document.title = "taken"</script><img src="https://example.org/x.png" onerror="alert(1)">'
SKILL = {"base": 0.3, "warm_start": 0.45, "ril": 0.75, "qwen2_5_vl": 0.95, "internvl3": 0.9}
FIGURES = {
    *("Accuracy", "Gain over the base student", "The paper's gains (quoted)"),
    *("Similarity reward", "Answer reward", "Validation"),  # the paper's Figure 3
    *("Discriminator accuracy", "Mean logit", "Discriminator loss and entropy", "Pre-training"),
    *("Mean advantage", "Lost signal", "Failed verdicts"),
    *("Length", "Entropy", "KL to the warm start", "Truncated answers", "Gradient norms", "Learning rate"),
}
SIDES = ("student", "qwen2_5_vl", "internvl3")
SELECTION = {
    "split": "imitation",
    "candidates": 400,
    "kept": 200,
    "dropped": {"prompt too long": 17, "low score": 183},
    "kinds": {
        "sum": {"candidates": 300, "kept": 123, "mean_score": -1.25, "mean_score_kept": 2.5},
        "odd<i>": {"candidates": 100, "kept": 77, "mean_score": None, "mean_score_kept": None},
    },
    "scores": {
        "scored": 383,
        "mean": -1.25,
        "positive_share": 0.3125,
        "lowest_kept": 0.75,
        "quantiles": {"0.00": -9.0, "0.25": -3.0, "0.50": -0.625, "0.75": 1.0, "1.00": 6.0},
    },
}


# --- inputs as the stages write them --------------------------------------------------------------------------------


def write_questions(folder: Path, split: str, count: int) -> list[dict[str, Any]]:
    """Questions of the tiny world; returns their rows."""
    rows = []
    for index in range(count):
        kinds, styles = ("sum", "largest", "total"), {"steps": 1.0}
        drawn = draw_example(0, split, index, kinds, styles)
        messages = [{"role": "user", "content": f"<image>{drawn.exercise.question}"}]
        name, source = f"{split}-{index:06d}", "digits"
        rows.append(
            make_canonical_row(name, [drawn.picture.png], messages, drawn.exercise.answer, source, drawn.exercise.kind)
        )
    write_shards(folder / "data/questions" / split, rows, QUESTION_SCHEMA)
    return rows


def write_evaluation(folder: Path, name: str, questions: Sequence[Mapping[str, Any]], skill: float) -> None:
    """Predictions and scores of one model, by the code of stage `evaluate`."""
    rows = []
    for question in questions:
        choose = random.Random(f"{name} {question['id']}")
        text = f"3:3,8:11. Answer: {question['answer'] if choose.random() < skill else '77'}"
        if question["id"] == "test-000001":
            text = f"{ATTACK} {text}"
        right, blind = is_correct(text, question["answer"]), choose.random() < 0.15
        rows.append(
            {
                "question_id": question["id"],
                "kind": question["kind"],
                "response": text if question["id"] != "test-000002" else text * 40,
                "reference": question["answer"],
                "correct": right,
                "score": float(right),
                "state": "ok",
                "decided_by": "rule: number",
                "judge_key": "",
                "correct_shuffled": blind,
                "score_shuffled": float(blind),
                "finish_reason": "length" if question["id"] == "test-000002" else "stop",
                "completion_tokens": len(text),
                "response_key": "",
            }
        )
    write_shards(folder / "data/evaluate" / name, rows, evaluate.PREDICTION_SCHEMA)
    write_json(folder / "reports/evaluate" / name / "metrics.json", evaluate.compute_scores(rows))


def write_training(job: Job, questions: Sequence[Mapping[str, Any]], steps: int) -> None:
    """Curves and samples of a run of the loop; one teacher is missing in one step, one number is not one."""
    choose = random.Random(0)
    history = []
    for step in range(1, steps + 1):
        grown = step / steps
        row: dict[str, Any] = {"step": step, "rewards/similarity": grown, "rewards/answer": 0.4 + 0.3 * grown}
        for source in SIDES:
            gone = source == "internvl3" and step == 1
            level = 0.2 + 0.5 * grown if source == "student" else 0.9 - 0.3 * grown
            for key, value in {"similarity": level, "answer": level, "advantage": level - 0.6}.items():
                row[f"rewards/{source}/{key}"] = None if gone else value + choose.gauss(0, 0.05)
            row[f"disc/{source}/logit"] = level
            row[f"disc/acc_{source}"] = 0.95 - 0.3 * grown if source == "student" else 0.8
            row[f"completions/{source}/clipped_ratio"], row[f"judge/{source}/failed"] = 0.02, 0.0
            row[f"completions/{source}/mean_length"] = 8 + 20 * grown if source == "student" else 28.0
        row |= {
            "disc/acc": 0.8,
            "disc/passed": 0.2 + 0.4 * grown,
            "disc/entropy": 0.5,
            "disc/acc_teacher": math.nan if step == 2 else 0.8,
        }
        row |= {"disc/logit_gap": 3 - 2 * grown, "disc/loss": 0.4, "kl/student": 0.3 * grown, "kl/teacher": 0.2 * grown}
        row |= {
            "entropy/student": 2 - grown,
            "entropy/teacher": 1.0,
            "learning_rate": 4e-4 * (1 - grown),
            "clip_ratio": 0.0,
        }
        row |= {"grad_norm": 1.5, "completions/clipped_ratio": 0.02, "frac_reward_zero_std": 0.1, "judge/failed": 0.0}
        history.append(row | {"frac_correct_negative_advantage": 0.12})
    job.write_history(history)
    marks = range(0, steps + 1, max(steps // 3, 1))
    job.write_history([{"step": step, "validation": 0.4 + 0.3 * step / steps} for step in marks], "validation.csv")
    samples = [
        {
            "step": step,
            "question_id": question["id"],
            "source": source,
            "response": f"{ATTACK if source == 'student' else ''} {source} says {question['answer']}",
            "similarity": int(source != "student"),
            "answer": 1,
            "advantage": 0.5 if source != "student" else -0.5,
            "logit": 800.0 if source == "student" else -1.5,
        }
        for step in range(1, steps + 1)
        for question in questions[:2]
        for source in ("student", *SIDES)
    ]
    write_shards(job.out / "samples", samples, SAMPLE_SCHEMA)


def write_rollouts(folder: Path) -> None:
    """Two answers of the warm-started student to each question of the loop."""
    rows = [
        {
            "question_id": f"imitation-{index:06d}",
            "sample": sample,
            "response": f"{ATTACK} before {sample}",
            "finish_reason": "stop",
        }
        | {"prompt_tokens": 9, "completion_tokens": 4, "response_key": "", "token_ids": [1, 2]}
        for index in range(3)
        for sample in range(2)
    ]
    write_shards(folder / "data/rollout", rows, ANSWERS)


def write_all(folder: Path, params: Params, questions: int = 24, steps: int = 30) -> None:
    """Every input of the stage."""
    asked = write_questions(folder, "test", questions)
    for name, skill in SKILL.items():
        write_evaluation(folder, name, asked, skill)
    write_training(open_job("ril", None, folder, params), write_questions(folder, "imitation", 3), steps)
    write_rollouts(folder)
    for place in ("data/model/student", "data/model/internvl3", "data/warm_start", "data/ril/model"):
        write_json(folder / place / "ril.json", {"identity": f"{len(place):02d}ab" + "0" * 60, "family": "x"})
    write_json(folder / "data/model/judge/ril.json", {"hub": "someone/judge", "revision": "1234567890abcdef"})
    write_json(folder / "data/model/student/ril.json", {"hub": "someone/student", "revision": "1234567890abcdef"})
    pool = {
        "answers": 3200,
        "accuracy": 0.91,
        "mean_tokens": 28.4,
        "truncated_share": 0.01,
        "failed_verdicts": 3,
        "kept": 3168,
    }
    write_json(folder / "reports/pool/metrics.json", dict.fromkeys(SIDES[1:], pool) | {"questions": 400})
    write_json(folder / "reports/selection/metrics.json", SELECTION)
    for name in SIDES[1:]:
        exam = {
            "balanced_accuracy": 0.968,
            "right_found_right": 0.98,
            "wrong_found_wrong": 0.956,
            "cases": 500,
            "failed": 2,
        }
        exam |= {
            "by_kind": {"near_miss": 0.97, "word": 0.91},
            "attacks": 72,
            "attacks_held": 71,
            "attacks_lost": ["attack-003"],
        }
        verdict = {"verdicts": 3200, "correct_share": 0.91, "failed": 3, "by_rule": 7, "exam": exam}
        write_json(folder / "reports/verdict" / name / "metrics.json", verdict)
    discriminator = {
        "acc": 0.93,
        "acc_student": 0.9,
        "acc_teacher": 0.96,
        "acc_internvl3": 0.97,
        "acc_qwen2_5_vl": 0.95,
    }
    discriminator |= {"logit_gap": 4.2, "acc_length_only": 0.71}
    write_json(folder / "reports/discriminator/metrics.json", discriminator)
    write_json(folder / "reports/ril/timing.json", {"seconds": 200.2, "parts": {"sample": 120.0, "update": 42.0}})
    paid = {
        "wanted": 3200,
        "stored": 1200,
        "generated": 2000,
        "prompt_tokens": 51_000,
        "completion_tokens": 61_000,
        "seconds": 40.0,
    }
    timing = {"seconds": 42.0, "parts": {"generate": 41.5}, "paid": {"teacher@internvl3": paid, "another model": paid}}
    write_json(folder / "reports/teacher/internvl3/timing.json", timing)
    curve = [
        {"step": step, "loss": 0.6, "accuracy": 0.5 + 0.4 * step / steps, "grad_norm": 1.0}
        for step in range(1, steps + 1)
    ]
    open_job("discriminator", None, folder, params).write_history(curve)
    open_job("warm_start", None, folder, params).write_history([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])


@pytest.fixture(scope="session")
def params(root: Path) -> Params:
    return load_params(root / "params.yaml")


@pytest.fixture(scope="session")
def inputs(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with every input of the stage; tests take copies."""
    folder = tmp_path_factory.mktemp("report")
    write_all(folder, params)
    return folder


@pytest.fixture
def project(inputs: Path, tmp_path: Path) -> Path:
    """A project with every input, to be changed by the test."""
    return shutil.copytree(inputs, tmp_path / "project")


@pytest.fixture
def page(params: Params, project: Path) -> Callable[..., str]:
    """`page()` runs the stage over the inputs in `project` and returns what it wrote."""

    def make(given: Params = params, folder: Path = project) -> str:
        job = open_job("report", None, folder, given)
        report.run(job)
        return (folder / "reports/report/index.html").read_text(encoding="utf-8")

    return make


# --- what the page says ---------------------------------------------------------------------------------------------


def test_the_page_shows_every_score_curve_and_answer(page: Callable[..., str], params: Params, project: Path) -> None:
    found = Elements(page())
    for name, evaluation in params.evaluations.items():
        scores = read_json(project / "reports/evaluate" / name / "metrics.json")
        assert evaluation.title in found.words
        for share in (scores["accuracy"], scores["accuracy_shuffled"], *scores["by_kind"].values()):
            assert f"{100 * share:.1f}\N{NO-BREAK SPACE}%" in found.words, name
    figures = {
        (attributes["aria-label"] or "").partition(".")[0]: attributes for tag, attributes in found.tags if tag == "svg"
    }
    assert set(figures) == FIGURES
    told = figures["Validation"]["aria-label"]
    assert told == "Validation. validation: from 40 % to 70 % in 4 steps"  # who can't see the curve is told its ends
    shown = [attributes for tag, attributes in found.tags if tag == "article"]
    assert len([one for one in shown if "earned" not in (one["data-outcome"] or "")]) == params.report.samples
    rewarded = [one for one in shown if "earned" in (one["data-outcome"] or "")]
    assert len(rewarded) == params.report.samples // 2  # whole steps, two groups each, from both ends of the run
    images = [attributes["src"] or "" for tag, attributes in found.tags if tag == "img"]
    assert len(images) == len(shown)
    assert all(image.startswith("data:image/png;base64,") for image in images)
    for words in (
        "someone/judge 1234567890ab",
        "sha256 14ab00000000",
        f"learning_rate: {params.ril.learning_rate:g}",
        "3,168",
        "42.0 s",
        "3 min 20 s",
        "Balanced accuracy 96.8\N{NO-BREAK SPACE}% on 500 labelled answers",
        "Of 72 attacks, 71 left the verdict unchanged.",
        "near miss",
        "teacher@internvl33,2001,2002,00051,00061,00040.0 s1,525",
        "student1,92035,200",
        "internvl396026,880",  # 30 steps of 16 questions and 4 answers; the mean of all teachers is no further writer
        "total6,4002,4004,000102,000122,000",
    ):
        assert words in found.words


def test_the_page_shows_questions_as_the_student_sees_them(
    page: Callable[..., str], project: Path, tiny: Callable[[str], Checkpoint]
) -> None:
    said = "Not shown: model 'someone/student' at '1234567890abcdef' is not on this machine"
    assert said in Elements(page()).words
    shutil.rmtree(project / "data/model/student")
    shutil.copytree(tiny("qwen2_5_vl").folder, project / "data/model/student")
    write_questions(project, "validation", 4)
    (project / "data/questions/validation").rename(project / "data/questions/warm_start")
    found = Elements(page())
    assert "4 of 4 questions of the split warm_start" in found.words
    shown = [attributes for tag, attributes in found.tags if tag == "img" and "model sees" in (attributes["alt"] or "")]
    assert [one["alt"] for one in shown if "validation-000001" in (one["alt"] or "")]
    assert len(shown) == 4
    assert "<|vision_start|>" in found.words


def test_what_a_model_wrote_stays_text(page: Callable[..., str]) -> None:
    text = page()
    found = Elements(text)
    assert ATTACK in found.words
    assert ATTACK not in text
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


PAYLOADS = (
    *(ATTACK, "<script>document.title='taken'</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>"),
    *("</script><script>alert(1)</script>", "</style><script>alert(1)</script>", "]]><script>alert(1)</script>"),
    *("javascript:alert(1)", "<a href=javascript:alert(1)>x</a>", "<iframe srcdoc='<script>alert(1)</script>'>"),
    *('" onmouseover="alert(1)', "' onfocus='alert(1)' autofocus='", "`-alert(1)-`", "<base href=//evil.example>"),
    *("<meta http-equiv=refresh content='0;url=//evil.example'>", "<!--", "-->", "<![CDATA[", "<plaintext>"),
    *("{{ 7 * 7 }}", "{% include 'page.css' %}", "${7*7}", "%s%n", "&lt;script&gt;", "&#60;script&#62;", "&"),
    *("\u202eevil\u202c", "\u2066\u2067x", "\u200f\u200e", "\u061cA", "a\u2028b", "\ufeffx", "\U000e0041"),
    *("\x00\x07\x1b[31m", "👩‍👩‍👧‍👦" * 50, "e" + "\u0301" * 200, "W" * 5000, "\n" * 3000, "</main>"),
    *("$\\frac{", "$x^{", "\\input{/etc/passwd}", "=1+1", "x" * 400_000),
)
HIDDEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0041]")


def spoil_texts(folder: Path) -> None:
    """Payloads in place of all texts that a model, a teacher or a user's file gives to the report."""
    for file in sorted(folder.glob("data/**/*.parquet")):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for number, row in enumerate(rows):
            place = number + sum(file.parent.name.encode())
            if "question_id" not in row:
                row["kind"] = PAYLOADS[number % 5]
            elif "kind" in row:
                row["kind"] = PAYLOADS[int(row["question_id"][-6:]) % 5]
            for key in {"response", "reference", "answer"}.intersection(row):
                row[key] = PAYLOADS[place % len(PAYLOADS)] if isinstance(row[key], str) else row[key]
            for message in row.get("messages", ()):
                message["content"] = f"<image>{PAYLOADS[place % len(PAYLOADS)]}"
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
        if file.parent.parent.name == "evaluate":
            scores = evaluate.compute_scores(rows)
            write_json(folder / "reports/evaluate" / file.parent.name / "metrics.json", scores)
    write_json(folder / "data/model/judge/ril.json", {"hub": ATTACK, "revision": PAYLOADS[27]})


def test_hostile_texts_stay_visible_texts(page: Callable[..., str], project: Path) -> None:
    spoil_texts(project)
    text = page()
    found = Elements(text)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not {"iframe", "base", "plaintext", "object"}.intersection(tag for tag, _ in found.tags)
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert HIDDEN.search(text) is None
    assert "[U+202E]evil[U+202C]" in found.words
    assert "[... 400,000 characters]" in found.words
    assert len(text) < 4_000_000


@pytest.mark.browser
def test_hostile_texts_do_nothing_in_a_browser(
    page: Callable[..., str], browser: Callable[..., Any], project: Path
) -> None:
    spoil_texts(project)
    page()
    shown = browser((project / "reports/report/index.html").as_uri(), 390, False)
    assert [entry for entry in shown.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert shown.title == "RIL: report of a run"
    assert shown.execute_script("return document.scripts.length") == 1
    assert shown.execute_script("return document.documentElement.scrollWidth") <= 390
    assert "[U+202E]evil" in shown.execute_script("return document.body.textContent")
    isolated = "[...document.querySelectorAll('span, b')].every(e => getComputedStyle(e).unicodeBidi == 'isolate')"
    assert shown.execute_script(f"return {isolated}")


def test_the_page_loads_nothing(page: Callable[..., str]) -> None:
    found = Elements(page())
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    policy = next(a["content"] or "" for tag, a in found.tags if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_equal_inputs_give_equal_bytes(page: Callable[..., str], params: Params, inputs: Path, tmp_path: Path) -> None:
    first = page()
    assert first == page() == page(params, shutil.copytree(inputs, tmp_path / "another"))
    changed = validate_params(merge_params(params.model_dump(mode="json"), {"report": {"samples": 3}}))
    assert page(changed) != first


def test_the_key_of_an_endpoint_is_not_on_the_page(
    page: Callable[..., str], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page shows settings and versions; of a key there is its variable's name at most."""
    monkeypatch.setenv("SOMEBODYS_API_KEY", "sk-planted-0123456789abcdef")
    values = params.model_dump(mode="json")
    engine = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": "SOMEBODYS_API_KEY"}
    values["runtime"]["engines"] = {"internvl3": engine}
    values["models"]["internvl3"] = {"family": "remote", "endpoint": {"provider": "somebody", "name": "big-1"}}
    text = page(validate_params(values))
    assert "big-1" in text
    assert "sk-planted" not in text


def test_a_run_without_discriminator_has_a_page(page: Callable[..., str], params: Params, project: Path) -> None:
    history = list(csv.DictReader((project / "reports/ril/history.csv").open()))
    kept = [
        {key: value for key, value in row.items() if "disc/" not in key and "similarity" not in key} for row in history
    ]
    with (project / "reports/ril/history.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    rows = [row | {"logit": None, "similarity": 0.0} for row in read_shards(project / "data/ril/samples").to_pylist()]
    write_shards(project / "data/ril/samples", rows, SAMPLE_SCHEMA)
    write_json(project / "reports/discriminator/metrics.json", {"trained": False})
    open_job("discriminator", None, project, params).write_history([{"step": 0}])
    found = Elements(page())
    figures = {(attributes["aria-label"] or "").partition(".")[0] for tag, attributes in found.tags if tag == "svg"}
    gone = {
        "Similarity reward",
        "Discriminator accuracy",
        "Mean logit",
        "Discriminator loss and entropy",
        "Pre-training",
    }
    assert figures == FIGURES - gone
    assert "The discriminator is in balance" not in found.words
    assert "student–0" in found.words  # D has no opinion of a row


def test_a_selection_of_questions_is_described(page: Callable[..., str], project: Path) -> None:
    text = " ".join(page().split())
    assert "200 of 400 questions of the split imitation were selected" in text
    assert "183 (low score), 17 (prompt too long)." in text
    assert "Median −0.62, lowest kept +0.75; 31.2 % are above 0." in text
    assert "<td>300</td><td>123</td><td>−1.25</td><td>+2.50</td>" in text
    assert "odd&lt;i&gt;" in text
    unselected = {**SELECTION, "kept": 400, "dropped": {}, "scores": None}
    write_json(project / "reports/selection/metrics.json", unselected)
    assert "were selected" not in page()


def test_wall_times_may_be_absent(page: Callable[..., str], project: Path) -> None:
    assert "Wall time of the last run of each stage" in page()
    for file in (project / "reports").rglob("timing.json"):
        file.unlink()
    assert "No wall times on this machine" in page()


def test_what_was_planned_stands_beside_what_was_measured(page: Callable[..., str], project: Path) -> None:
    assert "No stage with a plan has run on this machine." in page()
    planned = {"seconds": [60.0, 150.0], "seconds_from": "last run", "host_bytes": 2.2e9, "device_bytes": 0.0}
    planned |= {"out_bytes": [1e6, 2e6], "answers": 3200}
    took = {"peak_host_bytes": 2_310_000_000, "out_bytes": 1_400_000, "peak_child_bytes": 1}
    paid = {"wanted": 3200, "stored": 7, "generated": 3193, "prompt_tokens": 1, "completion_tokens": 2, "seconds": 3.0}
    timing = {"seconds": 99.0, "parts": {}, "planned": planned, "took": took, "paid": {"teacher@internvl3": paid}}
    write_json(project / "reports/teacher/internvl3/timing.json", timing)
    write_json(project / "reports/rollout/timing.json", {**timing, "planned": {"unknown": "why"}})
    row = "<td>2,200 MB</td><td>2,310 MB</td><td>1.0 to 2.0 MB</td><td>1.4 MB</td><td>3,200</td><td>3,193</td>"
    assert f"<td>1 min 00 s to 2 min 30 s</td><td>1 min 39 s</td>{row}" in page()
    took["peak_device_bytes"] = [5_000_000, 7_000_000]
    planned["device_bytes"] = 8e6
    write_json(project / "reports/teacher/internvl3/timing.json", timing)
    assert "<td>8 MB</td><td>7 MB</td>" in page()


def test_accepted_changes_of_code_are_shown_with_their_reason(page: Callable[..., str], project: Path) -> None:
    before = page()
    assert "Accepted changes" not in before
    change = Accepted(ATTACK, ["stages/corpora/scoring.py::is_correct changed"], "0" * 64)
    add_accepted(project / "reports" / "verdict" / "internvl3", change)
    found = Elements(page())
    assert "verdict@internvl3stages/corpora/scoring.py::is_correct changed" in re.sub(r"\s*\n\s*", "", found.words)
    assert ATTACK in found.words
    (project / "reports" / "verdict" / "internvl3" / "accepted.json").unlink()
    assert page() == before


@pytest.mark.parametrize(
    ("path", "maker"),
    [
        ("data/ril/samples", "ril"),
        ("reports/ril/validation.csv", "ril"),
        ("data/evaluate/base", "evaluate@base"),
        ("reports/evaluate/ril/metrics.json", "evaluate@ril"),
        ("reports/verdict/internvl3/metrics.json", "verdict@internvl3"),
        ("reports/pool", "pool"),
        ("reports/selection/metrics.json", "selection"),
    ],
)
def test_a_missing_input_names_its_maker(page: Callable[..., str], project: Path, path: str, maker: str) -> None:
    gone = project / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(MissingInput, match=rf"^{re.escape(path)} is missing; make it with: dvc repro {maker}$"):
        page()


def test_other_questions_than_were_answered_are_an_error(page: Callable[..., str], project: Path) -> None:
    write_questions(project, "test", 5)
    with pytest.raises(
        ValueError, match=r"no question 'test-0000\d\d' in data/questions/test; run: dvc repro evaluate@ril"
    ):
        page()


# --- what the summary claims ----------------------------------------------------------------------------------------


def scored(role: str, marks: Sequence[bool]) -> EvaluatedModel:
    rows = {str(place): {"correct": mark, "score": float(mark)} for place, mark in enumerate(marks)}
    share = sum(marks) / len(marks)
    return EvaluatedModel(role, role, role, {"questions": len(marks), "accuracy": share, "standard_error": 0.01}, rows)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            [False] * 50 + [True] * 50,
            [True] * 100,
            "This is 50.0 points above the warm-started student (50.0\N{NO-BREAK SPACE}%;",
        ),
        (
            [True] * 100,
            [False] * 50 + [True] * 50,
            "This is 50.0 points below the warm-started student (100.0\N{NO-BREAK SPACE}%;",
        ),
        (
            [True] * 50 + [False] * 50,
            [True] * 51 + [False] * 49,
            "is not significant (+1.0 points;",
        ),
        ([True, False] * 50, [False, True] * 50, "is not significant (0.0 points;"),
        ([True] * 9, [True] * 9, "is not significant (0.0 points;"),
        ([False], [True], "is not significant (+100.0 points;"),  # one question says nothing
    ],
)
def test_the_summary_says_what_was_measured(before: list[bool], after: list[bool], words: str) -> None:
    assert words in " ".join(summarise([scored("warm_start", before), scored("ril", after)]))


def test_the_difference_is_paired() -> None:
    found = compare_models(scored("ril", [True] * 10 + [False] * 90), scored("base", [False] * 100))
    assert found.mean == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(math.sqrt(0.1 * 0.9 / 99))
    assert found.clear
    same_accuracy = compare_models(scored("ril", [True, False] * 50), scored("base", [False, True] * 50))
    assert same_accuracy.mean == 0
    assert same_accuracy.standard_error > 0.1  # unpaired it would be 0.07


@pytest.mark.parametrize(
    ("reason", "cut", "refused"), [("stop", False, False), ("length", True, False), (evaluate.REFUSED, False, True)]
)
def test_an_answer_says_how_it_ended(reason: str, cut: bool, refused: bool) -> None:
    row = {"response": "", "correct": False, "finish_reason": reason, "completion_tokens": 0}
    (told,) = list_answers([EvaluatedModel("ril", "RIL", "ril", {}, {"q": row})], "q")
    assert (told["cut"], told["refused"]) == (cut, refused)


def test_small_numbers() -> None:
    assert (format_points(-0.0004, True), format_points(-0.01, True), format_points(0.123)) == ("0.0", "−1.0", "12.3")
    assert running_mean([1.0, math.nan, 3.0, 5.0], 2) == [1.0, 1.0, 3.0, 4.0]
    assert math.isnan(running_mean([math.nan], 3)[0])


def test_the_gallery_takes_evenly_and_fills_up() -> None:
    stacks = {"gained": ["a", "b", "c"], "lost": [], "right": ["d", "e", "f"], "wrong": ["g"]}
    assert pick_evenly(stacks, 5) == ["a", "b", "d", "e", "g"]
    assert pick_evenly(stacks, 2) == ["a", "d"]
    assert pick_evenly(stacks, 100) == ["a", "b", "c", "d", "e", "f", "g"]


@pytest.mark.parametrize(("kind", "shown"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("TIFF", "png")])
def test_images_keep_their_bytes_where_browsers_know_them(kind: str, shown: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 30, 40)).save(buffer, kind)
    head, _, body = make_data_uri(buffer.getvalue()).partition(",")
    assert head == f"data:image/{shown};base64"
    assert (base64.b64decode(body) == buffer.getvalue()) == (kind != "TIFF")
    with Image.open(io.BytesIO(base64.b64decode(body))) as picture:
        assert picture.size == (4, 3)


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`browser(url, width, dark)` is headless Chromium on that page; all are closed at the end."""
    pytest.importorskip("selenium")
    from selenium import webdriver
    from selenium.webdriver.support.wait import WebDriverWait

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    started: list[Any] = []

    def start(url: str, width: int, dark: bool) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        flags = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
        for (
            flag
        ) in f"{flags} --disable-sync --no-first-run --user-data-dir={tmp_path / f'profile{len(started)}'}".split():
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        page = webdriver.Chrome(options, webdriver.ChromeService(driver))
        started.append(page)
        page.set_page_load_timeout(60)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        page.get(url)
        # `get` has come back on a loaded machine while the window still held the empty page it starts with
        loaded = "return document.readyState === 'complete' && document.URL"
        WebDriverWait(page, 60).until(lambda one: one.execute_script(loaded) == url, f"{url} was not loaded")
        return page

    yield start
    for one in started:
        one.quit()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_works_from_disk(
    page: Callable[..., str], browser: Callable[..., Any], project: Path, width: int, dark: bool
) -> None:
    text = page()
    shown = browser((project / "reports/report/index.html").as_uri(), width, dark)
    assert [entry for entry in shown.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    sent = [json.loads(entry["message"])["message"] for entry in shown.get_log("performance")]
    asked = [event["params"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    own = {
        one["request"]["url"] for one in asked if one["documentURL"].startswith("file:")
    }  # not the empty first tab's
    assert [url for url in own if not url.startswith("data:")] == [shown.current_url]
    assert shown.title == "RIL: report of a run"  # the attack would have changed it
    assert shown.execute_script("return document.documentElement.scrollWidth") <= width
    images = shown.execute_script(
        "return [...document.images].map((image) => image.complete && image.naturalWidth > 0)"
    )
    assert images
    assert all(images)
    ground = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 22, 29)") == dark
    unreadable = shown.execute_script(CONTRAST)
    assert unreadable == []
    assert text.count("data-outcome=") > 0


# Texts of plots and tables whose colour differs too little from what is behind them (WCAG AA: 4.5).
CONTRAST = """
const light = (text) => {
  const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
  const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const card = light(getComputedStyle(document.querySelector(".card")).backgroundColor);
const colour = (node) => node.closest("svg") ? getComputedStyle(node).fill : getComputedStyle(node).color;
return [...document.querySelectorAll("svg text, .card td, .card th, .card .muted, .card .mark")].filter((node) => {
  const own = light(colour(node));
  return (Math.max(own, card) + 0.05) / (Math.min(own, card) + 0.05) < 4.5;
}).map((node) => node.textContent.slice(0, 40));
"""


@pytest.mark.browser
def test_the_gallery_is_filtered_with_the_keyboard(
    page: Callable[..., str], browser: Callable[..., Any], project: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    page()
    shown = browser((project / "reports/report/index.html").as_uri(), 1280, False)
    buttons = shown.find_elements("css selector", "[data-filters=gallery] button")
    assert [button.text for button in buttons] == ["All", "Gained", "Lost", "Correct both times", "Wrong both times"]
    cards = shown.find_elements("css selector", "#gallery > [data-outcome]")
    outcomes = [card.get_attribute("data-outcome") for card in cards]
    assert 0 < outcomes.count("gained") < len(cards)
    for _ in range(40):  # from the top of the page with the Tab key alone
        shown.switch_to.active_element.send_keys(Keys.TAB)
        if shown.switch_to.active_element == buttons[1]:
            break
    assert shown.switch_to.active_element == buttons[1]
    buttons[1].send_keys(Keys.ENTER)
    assert [card.is_displayed() for card in cards] == [outcome == "gained" for outcome in outcomes]
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "true", "false", "false", "false"]
    status = shown.find_element("css selector", "[data-filters=gallery] [role=status]")
    assert status.text == f"{outcomes.count('gained')} of {len(cards)} shown"
    buttons[0].send_keys(Keys.SPACE)
    assert all(card.is_displayed() for card in cards)

    # what earned what: the student's texts in these inputs are right and do not pass for a teacher's
    groups = shown.find_elements("css selector", "#groups > [data-outcome]")
    choices = shown.find_elements("css selector", "[data-filters=groups] button")
    usable = {choice.text: choice.is_enabled() for choice in choices}
    assert usable == {
        "All": True,
        "Correct, classified as a teacher's": False,
        "Correct only": True,
        "Classified as a teacher's only": False,
        "Neither": False,
    }
    choices[2].send_keys(Keys.ENTER)
    assert groups
    assert all(group.is_displayed() for group in groups)


@pytest.mark.browser
def test_everything_is_reached_and_seen_with_the_keyboard(
    page: Callable[..., str], browser: Callable[..., Any], project: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    page()
    shown = browser((project / "reports/report/index.html").as_uri(), 390, True)
    wanted = shown.execute_script(REACHABLE)
    assert wanted > 40
    hidden = []
    for _ in range(wanted):
        shown.switch_to.active_element.send_keys(Keys.TAB)
        if trouble := shown.execute_script(UNSEEN):
            hidden.append(trouble)
    assert hidden == []
    assert shown.execute_script("return window.seen.size") == wanted  # each once: no trap, nothing left out
    shown.find_element("tag name", "body").send_keys(Keys.HOME)
    first = shown.find_element("css selector", ".checks summary")
    before = first.find_element("xpath", "..").get_attribute("open")
    first.send_keys(Keys.ENTER)
    assert first.find_element("xpath", "..").get_attribute("open") != before


# How many elements the Tab key should stop at.
REACHABLE = """
document.documentElement.style.scrollBehavior = "auto";
window.seen = new Set();
return [...document.querySelectorAll("a[href], button:not(:disabled), summary, [tabindex='0']")]
  .filter((node) => node.checkVisibility()).length;
"""
# What is wrong with the element that has the focus: it shows no outline, or it is not in sight.
UNSEEN = """
const node = document.activeElement;
window.seen.add(node);
const box = node.getBoundingClientRect(), name = node.textContent.trim().slice(0, 40);
const bar = document.querySelector("nav"), top = bar.getBoundingClientRect();
const covered = !bar.contains(node) && box.top >= top.top && box.bottom <= top.bottom && !node.matches(".skip");
if (getComputedStyle(node).outlineStyle === "none") return `no outline: ${name}`;
const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
if (covered || !inside) return `out of sight: ${name}`;
return "";
"""


@pytest.mark.browser
def test_the_script_photographs_the_page(page: Callable[..., str], project: Path, root: Path) -> None:
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    page()
    out, report_file = project / "report.png", project / "reports/report/index.html"
    command = [sys.executable, root / "docs/screenshots.py", "--page", report_file, "--out", out, "--height", "700"]
    subprocess.run(command, check=True, timeout=120)
    with Image.open(out) as picture:
        assert picture.size == (2560, 1400)
        assert len(picture.getcolors(1 << 24)) > 100  # not an empty page
    gone = subprocess.run([*command, "--page", project / "none.html"], capture_output=True, text=True, timeout=60)
    assert gone.returncode == 2
    assert gone.stderr.endswith("none.html is missing; make it with: dvc repro report\n")
