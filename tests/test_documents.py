"""README.md, CONTRIBUTING.md and docs/ match the project: stages, files, parameters, commands, results."""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML

from flows.cli.main import app
from flows.jobs import open_job
from flows.profile import list_profiles, read_profile
from stages.config.params import load_params, validate_params
from stages.config.table import STAGES
from stages.config.yaml import merge_params, read_yaml
from studies.commands import make_study_page, read_study_records
from studies.document import render_html, render_markdown
from studies.study import list_studies, read_study

PATH = re.compile(r"`((?:flows|stages|tests|docs|profiles|requirements|data|reports|\.ci)/[\w./*-]*)(?:::(\w+))?`")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def pages(root: Path) -> list[Path]:
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def marked(text: str, name: str) -> str:
    """What stands between the comments <!-- name --> and <!-- /name -->."""
    (found,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    return found


# --- form -----------------------------------------------------------------------------------------------------------


def test_lines_fit_the_screen_and_the_readme_is_short(root: Path) -> None:
    files = [*pages(root), root / "CHANGELOG.md"]
    wide = [
        f"{file.name}:{number}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if len(line) > 120
    ]
    assert not wide
    assert len((root / "README.md").read_text().splitlines()) <= 160


# --- the graph ------------------------------------------------------------------------------------------------------


def drawn_edges(mermaid: str) -> set[tuple[str, str]]:
    """Pairs of stages; `a & b --> c & d` are four."""
    sides = [line.split("-->") for line in mermaid.splitlines() if "-->" in line]
    return {(one.strip(), two.strip()) for left, right in sides for one in left.split("&") for two in right.split("&")}


def declared_edges(root: Path) -> set[tuple[str, str]]:
    params = load_params(root / "params.yaml")
    edges = set()
    for name, stage in STAGES.items():
        for item in list(getattr(params, stage.items)) if stage.items else [None]:
            job = open_job(name, item, root, params)
            made = [path for path in job.paths if path.startswith(("data/", "reports/"))]
            edges |= {(job.find_maker(path).split("@")[0], name) for path in made}
    return edges


def test_the_readme_draws_every_stage_and_every_dependency(root: Path) -> None:
    (graph,) = blocks((root / "README.md").read_text(), "mermaid")
    drawn = drawn_edges(graph)
    assert {name for edge in drawn for name in edge} == set(STAGES)
    assert drawn == declared_edges(root)


# --- files ----------------------------------------------------------------------------------------------------------


def tree(text: str) -> Iterator[tuple[str, str]]:
    """(path, what is said about it) of every line of an indented tree."""
    folders: list[str] = []
    for line in text.splitlines():
        name, _, said = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        yield "".join(folders), said.strip()


def test_the_file_tree_is_the_one_that_is_there(root: Path) -> None:
    (text,) = blocks((root / "docs" / "architecture.md").read_text(), "text")
    named = dict(tree(text))
    made = [
        line.removeprefix("/") for line in (root / ".gitignore").read_text().splitlines()
    ]  # a new clone has none of it
    absent = [path for path in named if not (root / path).exists() and not any(line.startswith(path) for line in made)]
    assert not absent
    assert not [path for path, said in named.items() if not said]
    wanted = tree_files(root)
    assert len(wanted) > 50
    assert not wanted - set(named)


def tree_files(root: Path) -> set[str]:
    """What the tree has to name: folders at the top, stage files, parts, files of flows, studies and profiles."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    tops = {line.partition("/")[0] for line in listed.stdout.splitlines() if "/" in line} - {".dvc"}
    parts = [file.parent for kind in ("flows/*", "stages/*", "stages/tiny/*") for file in root.glob(f"{kind}/*.py")]
    kinds = ("flows/*.py", "flows/*/*.py", "stages/*.py", "studies/*.yaml", "profiles/*.yaml", "docs/*.md")
    files = [file for kind in kinds for file in root.glob(kind) if not file.name.startswith("__")]
    return (
        {f"{top}/" for top in tops}
        | {f"{part.relative_to(root)}/" for part in parts}
        | {str(file.relative_to(root)) for file in files}
    )


def test_links_lead_somewhere(root: Path) -> None:
    broken = []
    for page in pages(root):
        for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
            path = target.split("#")[0]
            if not target.startswith(("http://", "https://", "#")) and not (page.parent / path).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def defined_names(file: Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def is_there(root: Path, path: str, name: str | None) -> bool:
    """Whether a path of the pages exists, and defines `name`; what a run makes has to be a stage's."""
    if path.startswith(("data/", "reports/")):
        parts = Path(path).parts
        return len(parts) == 1 or parts[1] in STAGES
    if "*" in path:
        return any(root.glob(path.rstrip("/")))
    return (root / path).exists() and (name is None or name in defined_names(root / path))


def test_paths_and_names_in_the_text_exist(root: Path) -> None:
    found = [(page.name, *match) for page in pages(root) for match in PATH.findall(without_blocks(page.read_text()))]
    assert len(found) > 40
    assert not [(page, path, name) for page, path, name in found if not is_there(root, path, name or None)]


@pytest.mark.parametrize(
    ("path", "name"),
    [("stages/nothing.py", None), ("stages/ril.py", "nothing"), ("data/nothing/x", None), ("stages/no*/", None)],
)
def test_the_check_for_paths_can_fail(root: Path, path: str, name: str | None) -> None:
    assert not is_there(root, path, name)


# --- parameters -----------------------------------------------------------------------------------------------------


def value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def same(cell: str, value: Any) -> bool:
    return float(cell.replace(",", "")) == value if isinstance(value, int | float) else cell == value


def test_the_worked_example_of_the_readme_is_valid(root: Path) -> None:
    (example,) = blocks((root / "README.md").read_text(), "yaml")
    profile = merge_params(read_yaml(root / "params.yaml"), read_profile(root, "lora_1x80"))
    keys = YAML(typ="safe").load(example)
    params = validate_params(merge_params(profile, keys))
    assert not params.evaluate.benchmarks
    rows = params.warm_start.steps * params.warm_start.rows_per_step
    assert 0 <= params.questions.splits["warm_start"] - rows < params.warm_start.rows_per_step


def test_the_two_scales_are_those_of_the_parameters(root: Path) -> None:
    tiny = read_yaml(root / "params.yaml")
    scales = [
        validate_params(values).model_dump(mode="json")
        for values in (tiny, merge_params(tiny, read_profile(root, "paper")))
    ]
    text = (root / "docs" / "profiles.md").read_text()
    rows = re.findall(r"^\|[^|]*\| `([\w.]+)` \|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    assert len(rows) > 10
    for key, *cells in rows:
        for cell, scale in zip(cells, scales, strict=True):
            value = value_at(scale, key)
            assert cell.strip(), key
            assert value is None or same(cell.strip(), value), (
                f"{key}: {cell.strip()} in docs/profiles.md, {value} in the parameters"
            )


# --- commands -------------------------------------------------------------------------------------------------------


def commands(root: Path) -> list[list[str]]:
    """Every line of the bash blocks as words, without variables in front and comments behind."""
    found = []
    for page in pages(root):
        for line in "".join(blocks(page.read_text(), "bash")).splitlines():
            words = shlex.split(line, comments=True)
            while words and ASSIGNMENT.match(words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def complaint(root: Path, words: list[str]) -> str | None:
    """What is wrong with a command, None when it could be typed as it stands."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {word}" for word in words[1:] if "=" not in word and word not in targets), None)
    if words[0] == "ril":
        return ril_complaint(root, words[1:])
    if words[0] == "dvc":
        return dvc_complaint(root, words[1:])
    if words[:3] == ["python", "-m", "flows.run"]:
        return stage_complaint(root, [word for word in words[3:] if word != "--help"])
    return None


def ril_complaint(root: Path, words: list[str]) -> str | None:
    command: Any = typer.main.get_command(app)
    if words and words == [option for one in command.params for option in one.opts if option == words[0]]:
        return None  # `ril --version`
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return f"no sub-command {words[:1]}"
        command, words = command.commands[words[0]], words[1:]
    try:
        values = command.make_context("ril", list(words)).params
    except Exception as error:  # the parser's own, vendored by typer
        return str(error)
    if (study := values.get("study")) is not None and study not in list_studies(root):
        return f"no study {study}"
    name = values.get("name")
    return f"no profile {name}" if name is not None and name not in list_profiles(root) else None


def dvc_complaint(root: Path, words: list[str]) -> str | None:
    try:
        parsed = get_main_parser().parse_args(words)
    except (SystemExit, Exception) as error:
        return f"dvc does not take {words}: {error}"
    overrides = [override.partition("=")[::2] for override in getattr(parsed, "set_param", None) or []]
    values = load_params(root / "params.yaml").model_dump(mode="json")
    for key, value in overrides:
        try:
            old = value_at(values, key)
        except KeyError:
            return f"no parameter {key}"
        if isinstance(old, int | float) and not re.fullmatch(r"[\d.e-]+", value):
            return f"{key}={value} is no number"
    if words[0] not in ("repro", "exp"):  # targets of others are files
        return None
    return stage_complaint(root, (getattr(parsed, "targets", None) or [""])[0].split("@"))


def stage_complaint(root: Path, words: list[str]) -> str | None:
    if not words or not words[0]:
        return None
    stage, item = words[0], words[1] if len(words) > 1 else None
    if stage not in STAGES:
        return f"no stage {stage}"
    block = STAGES[stage].items
    known = getattr(load_params(root / "params.yaml"), block) if block else {}
    return f"no item {item} of {stage}" if item is not None and item not in known else None


def test_commands_can_be_typed_as_they_stand(root: Path) -> None:
    found = commands(root)
    assert {"make", "ril", "dvc", "python"} <= {words[0] for words in found}
    assert not [(shlex.join(words), wrong) for words in found if (wrong := complaint(root, words))]


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "ril nothing",
        "ril profile nothing",
        "ril profile paper --nothing",
        "ril experiments run nothing",
        "dvc nothing",
        "dvc repro nothing",
        "dvc repro teacher@nothing",
        "dvc exp run -S ril.nothing=1",
        "dvc exp run -S ril.steps=many",
        "python -m flows.run nothing",
        "python -m flows.run teacher nothing",
    ],
)
def test_the_check_for_commands_can_fail(root: Path, line: str) -> None:
    assert complaint(root, shlex.split(line))


# --- results --------------------------------------------------------------------------------------------------------


def test_pages_of_studies_are_those_of_the_records_beside_them(root: Path) -> None:
    pages_of = [path for path in (root / "studies" / "results").glob("*.md") if path.with_suffix("").is_dir()]
    assert pages_of
    for path in pages_of:
        folder = path.with_suffix("")
        records = read_study_records(path.stem, read_study(root, path.stem), folder)
        if not records:  # a page of an earlier design, which stays until the present one has run
            continue
        shown = make_study_page(root, path.stem, records, folder)
        assert path.read_text() == render_markdown(shown), f"update it with: ril experiments report {path.stem}"
        assert without_strokes(path.with_suffix(".html").read_text()) == without_strokes(render_html(shown))


def without_strokes(html: str) -> str:
    """The page with each plot replaced by its label: where its strokes are depends on the fonts of the machine."""
    return re.sub(r'<svg\b[^>]*aria-label="([^"]*)".*?</svg>', r"[\1]", html, flags=re.DOTALL)


def test_the_results_of_the_readme_are_those_of_the_pages(root: Path) -> None:
    readme = (root / "README.md").read_text()
    rows = [re.split(r" *\| *", line)[1:-1] for line in marked(readme, "results").splitlines()[2:]]
    assert len(rows) >= 5
    for study, first, second, gain, interval, verdict in rows:
        page = " ".join((root / "studies" / "results" / f"{study}.md").read_text().split())
        assert f"- {first} vs. {second}: {gain} points (95 % interval {interval}, n = 5): {verdict} (" in page
    figure1 = " ".join((root / "studies" / "results" / "figure1.md").read_text().split())
    assert "does not reproduce the paper's ranking" in readme
    said = "of six pairwise steps none holds, one is reversed, five are not significant"
    assert said in " ".join(readme.split())
    assert "not reproduced; pairwise steps that hold: 0 of 6, reversed: 1, not significant: 5 (without" in figure1


def test_algorithm_2_stands_beside_the_code(root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text()
    table = text.split("<!-- algorithm 2 -->")[1].split("<!-- /algorithm 2 -->")[0]
    quoted = [row.rsplit("`", 2)[1] for row in table.splitlines() if row.count("`") >= 2][1:]
    assert len(quoted) == 9
    code, places = (root / "stages" / "ril.py").read_text(), []
    for line in quoted:
        assert line in code, line
        places.append(code.rindex(line))
    assert places == sorted(places)
