"""Takes the pictures of the Prefect UI that docs/ui.md shows, from a `ril serve` whose forms have been used.

    python docs/screenshots_ui.py [--url http://127.0.0.1:4200] [--stage ril] [--run NAME] [--out FOLDER]

Without --run the newest run of the stage's form is taken. Needs what docs/screenshots.py needs.
"""

import argparse
import io
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from screenshots import FLAGS
from selenium import webdriver

LIMIT = 120.0  # seconds until a page shows what it is to show
WIDTH = 1180
WORDS = "return document.body.innerText"


def ask(url: str, path: str, body: Any = None) -> Any:
    """The server's answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/api{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


class Camera:
    """A browser that photographs pages of the UI."""

    def __init__(self, url: str, profile: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        self.url, self.browser = url, webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        scheme = {"name": "prefers-color-scheme", "value": "light"}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def take(self, path: str, words: str, height: int, click: str | None = None) -> Image.Image:
        """The upper `height` pixels of a page once it shows `words`, after a click on the tab called `click`."""
        self.browser.set_window_size(WIDTH, height)
        self.browser.get(self.url + path)
        if click:
            self._until(lambda: self.browser.find_elements("xpath", f"//*[normalize-space(text())='{click}']"), click)[0].click()
        self._until(lambda: words.lower() in self.browser.execute_script(WORDS).lower(), words)
        time.sleep(1)  # what moves comes to rest
        return Image.open(io.BytesIO(self.browser.get_screenshot_as_png()))

    def _until(self, condition: Any, what: str) -> Any:
        end = time.monotonic() + LIMIT
        while not (answer := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"{self.browser.current_url} shows no {what!r}")
            time.sleep(0.2)
        return answer


def main() -> int:
    """Writes the pictures and returns the exit code."""
    parser = argparse.ArgumentParser(description="Takes the pictures of the Prefect UI.")
    parser.add_argument("--url", default="http://127.0.0.1:4200", help="of `ril serve`")
    parser.add_argument("--stage", default="ril", help="whose form is shown")
    parser.add_argument("--run", help="name of the run that is shown")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder of the pictures")
    arguments = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("error: no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver", file=sys.stderr)
        return 2
    form = ask(arguments.url, f"/deployments/name/run-{arguments.stage.split('@')[0]}/{arguments.stage}")["id"]
    asked: dict[str, Any] = {"flow_runs": {"deployment_id": {"any_": [form]}}, "sort": "START_TIME_DESC", "limit": 50}
    if arguments.run:
        asked["flow_runs"]["name"] = {"any_": [arguments.run]}
    runs = ask(arguments.url, "/flow_runs/filter", asked)
    if not runs:
        print(f"error: the form of {arguments.stage} has no such run; press Run there first", file=sys.stderr)
        return 2
    run = runs[0]["id"]
    with tempfile.TemporaryDirectory() as profile:
        camera = Camera(arguments.url, profile)
        try:
            pictures = {
                "ui-form.png": camera.take(f"/deployments/deployment/{form}/run", "Learning Rate", 1000),
                "ui-run.png": camera.take(f"/runs/flow-run/{run}", "Running stage", 800),
                "ui-artifacts.png": camera.take(f"/runs/flow-run/{run}", "stages", 700, click="Artifacts"),
            }
        finally:
            camera.browser.quit()
    for name, picture in pictures.items():
        target = arguments.out / name
        temporary = target.with_name(f".{name}.partial")
        picture.convert("RGB").quantize(64).save(temporary, "PNG", optimize=True)
        temporary.replace(target)
        print(f"{target}: {target.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
