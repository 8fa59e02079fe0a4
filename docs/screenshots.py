"""Takes the picture of the report that the README shows.

    python docs/screenshots.py [--page FILE] [--out FILE] [--width 1280] [--height 1000] [--dark]

Needs Chromium with its driver (Debian: apt-get install chromium chromium-driver) and selenium (group `dev`).
"""

import argparse
import base64
import shutil
import sys
import tempfile
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


def photographed(page: Path, width: int, height: int | None, dark: bool) -> bytes:
    """PNG of the upper `height` pixels of `page` (all of it for None), two image pixels to one of the page."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.set_page_load_timeout(60)
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 2, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            browser.get(page.resolve().as_uri())
            whole = browser.execute_script("return document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": width, "height": min(height or whole, whole), "scale": 1}
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        finally:
            browser.quit()
    return base64.b64decode(taken["data"])


def main() -> int:
    """Writes the picture and returns the exit code."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Takes the picture of the report that the README shows.")
    parser.add_argument("--page", type=Path, default=root / "reports/report/index.html", help="the report")
    parser.add_argument("--out", type=Path, default=root / "docs/report.png", help="the picture")
    parser.add_argument("--width", type=int, default=1280, help="of the window, in CSS pixels")
    parser.add_argument("--height", type=int, default=1000, help="of the part that is shown; 0 takes the whole page")
    parser.add_argument("--dark", action="store_true", help="the page's dark form")
    arguments = parser.parse_args()
    if not arguments.page.is_file():
        print(f"error: {arguments.page} is missing; make it with: dvc repro report", file=sys.stderr)
        return 2
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("error: no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver", file=sys.stderr)
        return 2
    picture = photographed(arguments.page, arguments.width, arguments.height or None, arguments.dark)
    temporary = arguments.out.with_name(f".{arguments.out.name}.partial")
    temporary.write_bytes(picture)
    temporary.replace(arguments.out)
    print(f"{arguments.out}: {len(picture) // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
