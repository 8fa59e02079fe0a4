"""Takes the pictures of the Prefect UI that docs/ui.md shows, from a `ril serve` whose forms have been used.

    python docs/screenshots_ui.py [--url http://127.0.0.1:4200] [--run NAME] [--out FOLDER]

Without --run the newest run of a form that completed is taken. Needs what docs/screenshots.py needs.
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

    def take(self, path: str, words: str, height: int) -> Image.Image:
        """The upper `height` pixels of a page once it shows `words`."""
        self.browser.set_window_size(WIDTH, height)
        self.browser.get(self.url + path)
        end = time.monotonic() + LIMIT
        while words.lower() not in self.browser.execute_script(WORDS).lower():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.browser.current_url} shows no {words!r}")
            time.sleep(0.2)
        time.sleep(1)  # what moves comes to rest
        return Image.open(io.BytesIO(self.browser.get_screenshot_as_png()))


def main() -> int:
    """Writes the pictures and returns the exit code."""
    parser = argparse.ArgumentParser(description="Takes the pictures of the Prefect UI.")
    parser.add_argument("--url", default="http://127.0.0.1:4200", help="of `ril serve`")
    parser.add_argument("--run", help="name of the run that is shown")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder of the pictures")
    arguments = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print(
            "error: no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver", file=sys.stderr
        )
        return 2
    form = ask(arguments.url, "/deployments/name/run-ril/ril")["id"]
    wanted = {"tags": {"all_": ["form"]}, "state": {"type": {"any_": ["COMPLETED"]}}}
    wanted |= {"name": {"any_": [arguments.run]}} if arguments.run else {}
    runs = ask(arguments.url, "/flow_runs/filter", {"flow_runs": wanted, "sort": "START_TIME_DESC", "limit": 50})
    runs = [run for run in runs if "target" in run["parameters"]]  # not of `compare`
    if not runs:
        print("error: no such run of a form has completed; press Run in one first", file=sys.stderr)
        return 2
    run = runs[0]["id"]
    mine = {"flow_run_id": {"any_": [run]}}
    artifacts = ask(arguments.url, "/artifacts/filter", {"artifacts": mine, "limit": 10})
    told = next(each["id"] for key in ("experiment", "stages") for each in artifacts if each["key"] == key)
    with tempfile.TemporaryDirectory() as profile:
        camera = Camera(arguments.url, profile)
        try:
            pictures = {
                "ui-form.png": camera.take(f"/deployments/deployment/{form}/run", "Learning Rate", 1000),
                "ui-run.png": camera.take(f"/runs/flow-run/{run}", "Running stage", 800),
                "ui-artifacts.png": camera.take(f"/artifacts/artifact/{told}", "Details", 900),
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
