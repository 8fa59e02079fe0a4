"""Takes the pictures of the report that README.md and docs/architecture.md show.

    python docs/screenshots.py [--page FILE] [--folder FOLDER]
    python docs/screenshots.py --out FILE [--page FILE] [--width 1280] [--height 1000] [--section answers] [--dark]

Without --out it takes all of them. Needs Chromium with its driver (Debian: apt-get install chromium chromium-driver)
and selenium (group `dev`).
"""

import argparse
import base64
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from selenium import webdriver

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)


@dataclass(frozen=True)
class View:
    """The part of the page in a picture, in CSS pixels."""

    width: int
    height: int  # 0: to the end of the page
    section: str = ""  # id of the section at the top
    dark: bool = False


VIEWS = {
    "report.png": View(1280, 1000),
    "report-dark.png": View(1280, 1000, dark=True),
    "report-curves.png": View(1280, 1180, "curves"),
    "report-phone.png": View(390, 844),
    "report-phone-answers.png": View(390, 844, "rewarded", dark=True),
}


def take_picture(page: Path, view: View) -> bytes:
    """PNG of the part `view` of `page`, at two image pixels per CSS pixel."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.set_page_load_timeout(60)
            metrics = {"width": view.width, "height": 900, "deviceScaleFactor": 2, "mobile": view.width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if view.dark else "light"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            browser.get(page.resolve().as_uri())
            whole = browser.execute_script("return Math.ceil(document.body.getBoundingClientRect().bottom + scrollY)")
            top = browser.execute_script(TOP, view.section)
            rest = whole - top
            clip = {"x": 0, "y": top, "width": view.width, "height": min(view.height or rest, rest), "scale": 1}
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        finally:
            browser.quit()
    return base64.b64decode(taken["data"])


# Where a section begins on the page.
TOP = """
const part = document.getElementById(arguments[0]);
return part ? Math.round(part.getBoundingClientRect().top + scrollY) : 0;
"""


def main() -> int:
    """Writes the pictures. Returns the exit code."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Takes the pictures of the report for the documentation.")
    parser.add_argument("--page", type=Path, default=root / "reports/report/index.html", help="the report")
    parser.add_argument("--folder", type=Path, default=root / "docs", help="folder of the pictures")
    parser.add_argument("--out", type=Path, help="file of a single picture")
    parser.add_argument("--width", type=int, default=1280, help="width of the window, in CSS pixels")
    parser.add_argument("--height", type=int, default=1000, help="height of the picture, in CSS pixels; 0: to the end")
    parser.add_argument("--section", default="", help="id of the section at the top, such as curves")
    parser.add_argument("--dark", action="store_true", help="dark theme")
    arguments = parser.parse_args()
    if not arguments.page.is_file():
        print(f"error: {arguments.page} is missing; make it with: dvc repro report", file=sys.stderr)
        return 2
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print(
            "error: no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver", file=sys.stderr
        )
        return 2
    views = {arguments.folder / name: view for name, view in VIEWS.items()}
    if arguments.out:
        views = {arguments.out: View(arguments.width, arguments.height, arguments.section, arguments.dark)}
    for out, view in views.items():
        picture = take_picture(arguments.page, view)
        temporary = out.with_name(f".{out.name}.partial")
        temporary.write_bytes(picture)
        temporary.replace(out)
        print(f"{out}: {len(picture) // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
