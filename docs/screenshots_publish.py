"""Takes the pictures that docs/publish.md shows, from a project in which a run has ended.

    python docs/screenshots_publish.py [--project FOLDER] [--row ID] [--models base,ril] [--out FOLDER]

Without --row it is the first row of the split `test`. Starts `ril chat` and `ril demo` in the project. Needs what
docs/screenshots.py needs.
"""

import argparse
import html
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from screenshots import FLAGS, View, take_picture
from selenium import webdriver

from stages.corpora.rows import Question, read_questions

LIMIT = 400.0  # seconds until all engines have answered
COLUMNS, WIDTH = 112, 1180  # of the terminal, in characters; of the page, in pixels
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ background: #1e1e1e; color: #ddd; margin: 0; padding: 18px 22px; width: max-content; }}
pre {{ font: 15px/1.3 "DejaVu Sans Mono", monospace; margin: 0; }}
</style><pre>$ {command}
{output}</pre>"""


def photograph_chat(project: Path, row: str, models: str, out: Path) -> None:
    """A terminal in which `ril chat` has answered."""
    words = ["chat", "--row", row, "--models", models]
    environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": str(COLUMNS)}
    command = [sys.executable, "-m", "flows.cli", *words]
    done = subprocess.run(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True
    )
    shown = TERMINAL.format(command=f"ril {' '.join(words)}", output=html.escape(done.stdout))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.html"
        page.write_text(shown, encoding="utf-8")
        (out / "publish-chat.png").write_bytes(take_picture(page, View(WIDTH, 0)))


def photograph_demo(project: Path, question: Question, models: str, out: Path) -> None:
    """The page of `ril demo` after one question."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "demo", "--models", models],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        picture.write_bytes(question.images[0])
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            scheme = {"name": "prefers-color-scheme", "value": "light"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            browser.set_window_size(WIDTH, 700)
            assert process.stdout is not None
            browser.get(process.stdout.readline().removeprefix("page: ").strip())
            browser.find_element("id", "picture").send_keys(str(picture))
            browser.find_element("id", "question").send_keys(question.text)
            browser.find_element("id", "reference").send_keys(question.answer)
            browser.find_element("id", "ask").click()
            end = time.monotonic() + LIMIT
            while len(browser.find_elements("tag name", "article")) < len(models.split(",")):
                if time.monotonic() > end:
                    raise TimeoutError(browser.find_element("id", "state").text)
                time.sleep(0.5)
            height = browser.execute_script("return document.documentElement.scrollHeight")
            browser.set_window_size(WIDTH, height + 40)
            (out / "publish-demo.png").write_bytes(browser.get_screenshot_as_png())
        finally:
            browser.quit()
            process.send_signal(signal.SIGINT)
            process.wait(60)


def main() -> int:
    """Writes the pictures and returns the exit code."""
    parser = argparse.ArgumentParser(description="Takes the pictures of `ril chat` and `ril demo`.")
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="folder of a project in which a run has ended")
    parser.add_argument("--row", help="id of a row of the split test")
    parser.add_argument("--models", default="base,warm_start,ril,qwen2_5_vl", help="entries of `evaluations`")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder of the pictures")
    given = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print(
            "error: no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver", file=sys.stderr
        )
        return 2
    rows = read_questions(given.project / "data" / "questions", "test")
    question = next(one for one in rows if given.row in (None, one.id))
    photograph_chat(given.project, question.id, given.models, given.out)
    photograph_demo(given.project, question, given.models, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
