"""Takes the pictures that docs/publish.md shows, from a project in which a run has ended.

    python docs/screenshots_publish.py IMAGE QUESTION ANSWER [--project FOLDER] [--models base,ril] [--out FOLDER]

Starts `ril chat` and `ril demo` in the project. Needs what docs/screenshots.py needs.
"""

import argparse
import base64
import html
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from screenshots import FLAGS, View, take_picture
from selenium import webdriver

LIMIT = 900.0  # seconds until all engines have answered
COLUMNS, WIDTH = 112, 1180  # of the terminal, in characters; of the page, in pixels
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ background: #1e1e1e; color: #ddd; margin: 0; padding: 18px 22px; width: max-content; }}
pre {{ font: 15px/1.3 "DejaVu Sans Mono", monospace; margin: 0; }}
</style><pre>$ {command}
{output}</pre>"""


@dataclass(frozen=True)
class Shown:
    """What is asked."""

    image: Path
    question: str
    answer: str
    models: str


def photograph_chat(project: Path, asked: Shown, out: Path) -> None:
    """A terminal in which `ril chat` has answered."""
    words = ["chat", "--image", asked.image.name, "--question", asked.question, "--reference", asked.answer]
    environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": str(COLUMNS)}
    given = [*words, "--models", asked.models]
    given[2] = str(asked.image)
    command = [sys.executable, "-m", "flows.cli", *given]
    done = subprocess.run(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True
    )
    shown = TERMINAL.format(command=html.escape(f"ril {shlex.join(words)}"), output=html.escape(done.stdout))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.html"
        page.write_text(shown, encoding="utf-8")
        (out / "publish-chat.png").write_bytes(take_picture(page, View(WIDTH, 0)))


def photograph_demo(project: Path, asked: Shown, out: Path) -> None:
    """The page of `ril demo` after one question."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "demo", "--models", asked.models],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with tempfile.TemporaryDirectory() as folder:
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
            browser.find_element("id", "picture").send_keys(str(asked.image))
            browser.find_element("id", "question").send_keys(asked.question)
            browser.find_element("id", "reference").send_keys(asked.answer)
            browser.find_element("id", "ask").click()
            end = time.monotonic() + LIMIT
            while len(browser.find_elements("tag name", "article")) < len(asked.models.split(",")):
                if time.monotonic() > end:
                    raise TimeoutError(browser.find_element("id", "state").text)
                time.sleep(0.5)
            whole = browser.execute_script("return Math.ceil(document.body.getBoundingClientRect().bottom + scrollY)")
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": whole, "scale": 2}
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
            (out / "publish-demo.png").write_bytes(base64.b64decode(taken["data"]))
        finally:
            browser.quit()
            process.send_signal(signal.SIGINT)
            process.wait(60)


def main() -> int:
    """Writes the pictures and returns the exit code."""
    parser = argparse.ArgumentParser(description="Takes the pictures of `ril chat` and `ril demo`.")
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="folder of a project in which a run has ended")
    parser.add_argument("image", type=Path, help="the picture that is asked about")
    parser.add_argument("question")
    parser.add_argument("answer", help="the right one, for the judge")
    parser.add_argument("--models", default="base,warm_start,ril,qwen2_5_vl", help="entries of `evaluations`")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder of the pictures")
    given = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print(
            "error: no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver", file=sys.stderr
        )
        return 2
    asked = Shown(given.image.resolve(), given.question, given.answer, given.models)
    photograph_chat(given.project, asked, given.out)
    photograph_demo(given.project, asked, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
