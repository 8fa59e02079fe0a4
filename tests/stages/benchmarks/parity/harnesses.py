"""Runs the rules of one harness on the cases; started by `make_golden.py` in that harness's own environment.

python harnesses.py vlmeval|lmms OUT: one JSON line a rule, with the harness's answer to every case. Nothing of this
package is imported but the grammar. The packages' own `__init__` files import torch and more; they are passed over.
"""

import ast
import contextlib
import io
import json
import math
import os
import re
import string
import sys
import textwrap
import types
from collections import defaultdict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import cases as grammar


def location(package: str) -> Path:
    """The folder of an installed package, which is not imported."""
    return Path(find_spec(package).submodule_search_locations[0])  # type: ignore[union-attr,index]


def bare_package(name: str, root: Path) -> None:
    """Registers a package whose `__init__` is not run."""
    module = types.ModuleType(name)
    module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = module


def function(file: Path, name: str, scope: dict[str, Any]) -> Any:
    """One function of a file whose imports need more than the function does."""
    tree = ast.parse(file.read_text())
    node = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    node.decorator_list = []
    exec(textwrap.dedent(ast.unparse(node)), scope)
    return scope[name]


def vlmeval() -> dict[str, Any]:
    """The rules of ms-vlmeval by name."""
    os.environ.pop("VERBOSE", None)
    root = location("vlmeval")
    for name in ("vlmeval", "vlmeval.dataset", "vlmeval.dataset.utils"):
        bare_package(name, root)
    import pandas as pd
    from vlmeval.dataset.utils import mathvista, mmvet, multiple_choice, vqa_eval
    from vlmeval.utils import matching_util

    scope: dict[str, Any] = {"string": string, "defaultdict": defaultdict}
    answer_line = function(root / "dataset" / "image_mcq.py", "cot_postproc", scope)

    def found(value: Any) -> str | None:
        return value or None

    @lru_cache
    def read_by_pandas(text: str) -> str | float:
        """An option as it comes out of a TSV file there: "None" and the like are missing."""
        table = io.StringIO(f'A\tB\nx\t"{text}"\n')
        return pd.read_csv(table, sep="\t", dtype=str).iloc[0]["B"]

    def seen(options: dict[str, str]) -> dict[str, str | float]:
        return {one: read_by_pandas(text) for one, text in options.items()}

    def mathvista_line(case: dict[str, Any]) -> dict[str, Any]:
        return {
            "question_type": case["question_type"],
            "answer_type": case["answer_type"],
            "choices": str(case["choices"]),
            "answer": case["gold"],
            "answer_option": case["gold_letter"],
        }

    def prefetch(case: dict[str, Any]) -> str | None:
        line = {**mathvista_line(case), "prediction": case["reply"]}
        try:
            value = mathvista.post_check(line, prefetch=True)
        except (UnboundLocalError, OverflowError):
            return "crash"
        return str(value) if value else None

    def extracted(case: dict[str, Any]) -> bool | str:
        try:
            return bool(
                mathvista.post_check({**mathvista_line(case), "prediction": "", "res": case["reply"]}, prefetch=False)
            )
        except (UnboundLocalError, OverflowError):
            return "crash"

    def mmmu(case: dict[str, Any]) -> list[Any]:
        row = {
            **{one: float("nan") for one in "ABCDEFGHI"},
            **seen(case["options"]),
            "answer": case["gold"],
            "index": 1,
            "question": "q",
        }
        data = multiple_choice.MMMU_preproc(pd.DataFrame([{**row, "prediction": case["reply"]}], dtype=object))
        gold = case["gold"] if case["gold"] in list(string.ascii_uppercase) else "A"
        item = data.iloc[0].copy()
        item["GT"] = gold
        return [found(multiple_choice.prefetch_answer(item)), multiple_choice.eval_vanilla(None, item)["hit"]]

    def circular(case: dict[str, Any]) -> int | None:
        rows = [{**seen(row["options"]), "GT": row["gold"], "prediction": row["reply"]} for row in case["rows"]]
        verdict = multiple_choice.prefetch_circular_group(pd.DataFrame(rows, dtype=object))
        return None if verdict is None else int(verdict["hit"])

    class Judge:
        def __init__(self, reply: str) -> None:
            self.reply = reply

        def generate(self, prompt: str, temperature: float) -> str:
            return self.reply

    def grade(case: dict[str, Any]) -> float | str | None:
        line = {"question": "q", "answer": "a<AND>b", "prediction": "p"}
        told = mmvet.MMVet_auxeval(Judge(case["reply"]), line)
        return None if "All 5 retries failed" in told["log"] else _number(told["score"])

    def relaxed(case: dict[str, Any]) -> int:
        line = vqa_eval.process_line({"answer": case["gold"], "prediction": case["reply"]}, method="relaxed_accuracy")
        return int(vqa_eval.hit_calculate([line], "ChartQA_TEST")[0]) if line["match"] else 0

    def report(case: dict[str, Any]) -> list[Any]:
        frame = pd.DataFrame([{"hit": row["score"], "category": row["category"]} for row in case["rows"]])
        row = multiple_choice.report_acc(frame).iloc[0]
        names = sorted({row["category"] for row in case["rows"]})
        return [_rounded(row["Overall"]), [_rounded(row[name]) for name in names]]

    return {
        "vlmeval_letter": lambda case: found(matching_util.can_infer_option(case["reply"], dict(case["options"]))),
        "vlmeval_text": lambda case: found(matching_util.can_infer_text(case["reply"], dict(case["options"]))),
        "vlmeval_choice": lambda case: found(matching_util.can_infer(case["reply"], dict(case["options"]))),
        "vlmeval_relaxed": relaxed,
        "vlmeval_mathvista": prefetch,
        "vlmeval_mathvista_extracted": extracted,
        "vlmeval_cot": lambda case: found(
            matching_util.can_infer(answer_line(None, case["reply"]), dict(case["options"]))
        ),
        "vlmeval_mmmu": mmmu,
        "vlmeval_circular": circular,
        "vlmeval_grade": grade,
        "vlmeval_report": report,
    }


def _rounded(value: float) -> float:
    return round(float(value), 9)  # sums of floats in another order differ in the last digits


def _number(value: float) -> float | str:
    return "nan" if math.isnan(value) else value


def lmms() -> dict[str, Any]:
    """The rules of lmms-eval by name."""
    os.environ["OPENAI_API_KEY"] = "none"  # its modules make a client when they are imported; nothing is sent
    root = location("lmms_eval")
    bare_package("lmms_eval.tasks", root)
    filters = types.ModuleType("lmms_eval.filters")
    for name, classes in (("extraction", ("ExtendedRegexFilter",)), ("transformation", ("MapFilter",))):
        module = types.ModuleType(f"lmms_eval.filters.{name}")
        for one in classes:
            setattr(module, one, type(one, (), {"__init__": lambda self, *a, **k: None}))
        sys.modules[module.__name__] = module
    sys.modules["lmms_eval.filters"] = filters
    import numpy as np
    import pandas as pd
    from loguru import logger

    logger.remove()
    from lmms_eval.tasks._task_utils import mcq_extract, mmmu_mcq_utils
    from lmms_eval.tasks.ai2d import utils as ai2d
    from lmms_eval.tasks.blink import utils as blink
    from lmms_eval.tasks.chartqa import utils as chartqa
    from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
    from lmms_eval.tasks.mmmu import utils as mmmu
    from lmms_eval.tasks.mmmu_pro import utils as mmmu_pro
    from lmms_eval.tasks.mmstar import utils as mmstar
    from lmms_eval.tasks.mmvet import utils as mmvet
    from lmms_eval.tasks.realworldqa import utils as realworldqa
    from lmms_eval.tasks.seedbench import utils as seed

    scope: dict[str, Any] = {"np": np, "re": re, "string": string}
    exact_match = function(root / "api" / "metrics.py", "exact_match_hf_evaluate", scope)
    mmmu_mcq_utils.random = types.SimpleNamespace(choice=lambda letters: None)  # a random letter is no answer
    evaluator, bench = MathVistaEvaluator(), MMBench_Evaluator()
    evaluator.get_chat_response = lambda *a, **k: None

    def letter(case: dict[str, Any]) -> str | None:
        return mmmu_mcq_utils.parse_mmmu_multi_choice_response(case["reply"], list(case["options"]), case["options"])

    def ai2d_hit(case: dict[str, Any]) -> int:
        kept = ai2d.MultiChoiceRegexFilter().apply([[case["reply"]]], [{}])
        return int(exact_match(kept, [case["gold"]], None, ignore_case=True, ignore_punctuation=True)["exact_match"])

    def first(case: dict[str, Any]) -> int:
        doc = {"answer": case["gold"], "data_type": "image", "question_id": 1}
        return int(seed.seed_aggregation_result([seed.seed_process_result(doc, [case["reply"]])["seed_all"]]))

    def open_hit(case: dict[str, Any]) -> int:
        return int(mmmu.eval_open(case["gold"], mmmu.parse_open_response(case["reply"])))

    def normal(case: dict[str, Any]) -> list[Any]:
        choices, kinds = case["choices"], (case["question_type"], case["answer_type"])
        form = evaluator.normalize_extracted_answer(case["reply"], choices, *kinds, case["precision"])
        return [form, int(evaluator.safe_equal(form, case["gold"]))]

    def quick(case: dict[str, Any]) -> str | None:
        problem = {key: case[key] for key in ("question_type", "answer_type", "choices")}
        return evaluator.extract_answer(case["reply"], {**problem, "query": "q"}) or None

    def group(case: dict[str, Any]) -> int:
        rows = [
            {"index": turn, "prediction": row["reply"], **{one: row["options"].get(one, "nan") for one in "ABCD"}}
            for turn, row in enumerate(case["rows"])
        ]
        golds = {turn: row["gold"] for turn, row in enumerate(case["rows"])}
        return int(bench.eval_sub_data(pd.DataFrame(rows, dtype=object), golds, static_only=True))

    def vision(case: dict[str, Any]) -> int:
        told = mmmu_pro.mmmu_pro_process_results(
            {"id": "1", "subject": "Art", "answer": case["gold"], "options": "[]"}, [case["reply"]]
        )
        return int(mmmu_pro.evaluate_mmmu([told["mmmu_acc"]])[1]["acc"])

    class Endless(Exception):
        pass

    def grade(case: dict[str, Any]) -> float | str | None:
        calls = []

        def reply(*args: Any, **kwargs: Any) -> tuple[str, str]:
            calls.append(1)
            if len(calls) > 20:
                raise Endless
            return case["reply"].strip(), "judge"

        mmvet.get_chat_response = reply
        mmvet.time = types.SimpleNamespace(sleep=lambda seconds: None)
        doc = {"question": "q", "answer": "a", "question_id": "1", "capability": "ocr"}
        try:
            told = mmvet.mmvet_process_results(doc, ["p"])["gpt_eval_score"]
        except Endless:
            return None  # it asks for ever; no score
        return _number(told["score"]) if len(calls) == 1 and case["reply"].strip() else None

    def mmstar_average(case: dict[str, Any]) -> float:
        return _rounded(mmstar.mmstar_aggregate_results(case["rows"]))

    def mmmu_average(case: dict[str, Any]) -> float:
        told = [
            {
                "id": str(place),
                "subdomain": row["category"],
                "question_type": "multiple-choice",
                "answer": "A",
                "parsed_pred": ["A" if row["score"] else "B"],
            }
            for place, row in enumerate(case["rows"])
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            return mmmu.mmmu_aggregate_results(told)

    return {
        "lmms_any_letter": lambda case: mcq_extract.extract_mcq_answer(case["reply"], list("ABCD")) or None,
        "lmms_mmmu": letter,
        "lmms_blink": lambda case: blink._extract_answer_letter(case["reply"], case["letters"]) or None,
        "lmms_ai2d": ai2d_hit,
        "lmms_first_character": first,
        "lmms_relaxed": lambda case: int(chartqa.relaxed_correctness(case["reply"], case["gold"])),
        "lmms_open": open_hit,
        "lmms_mathvista": normal,
        "lmms_mathvista_quick": quick,
        "lmms_mmbench": group,
        "lmms_realworldqa": lambda case: int(
            realworldqa.realworldqa_process_results({"answer": case["gold"]}, [case["reply"]])["exact_match"]
        ),
        "lmms_vision": vision,
        "lmms_grade": grade,
        "lmms_mmstar_average": mmstar_average,
        "lmms_mmmu_average": mmmu_average,
    }


def main(harness: str, out: Path, names: list[str]) -> None:
    """Writes the harness's answers."""
    rules = {"vlmeval": vlmeval, "lmms": lmms}[harness]()
    with out.open("w", encoding="utf-8") as handle:
        for rule, answer in rules.items():
            if not names or rule in names:
                answers = [answer(case) for case in grammar.cases(rule)]
                handle.write(
                    json.dumps({"rule": rule, "digest": grammar.digest(grammar.cases(rule)), "answers": answers}) + "\n"
                )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
