"""Photographs a study's report: the top of the page, which shows the first machine type.

Opens `report.html` of `python -m search.report` in headless Chromium, without a network, and writes
`report.png`. Needs Chromium and the Python package playwright, which is no dependency of this
project (`pip install playwright`; the browsers it would download are not needed):

    python docs/screenshot_report.py runs/STUDY/report docs
"""

import argparse
import shutil
import sys
from pathlib import Path

_WIDTH = 1280


def main() -> int:
    """Take the picture."""
    parser = argparse.ArgumentParser(description="screenshot of a study's report")
    parser.add_argument("report", type=Path, help="its folder")
    parser.add_argument("out", type=Path, help="folder for the picture")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="its executable")
    parser.add_argument("--height", type=int, default=1500, help="pixels")
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is missing: pip install playwright", file=sys.stderr)
        return 2
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(
            viewport={"width": _WIDTH, "height": args.height}, offline=True
        )
        page = context.new_page()
        page.goto((args.report / "report.html").absolute().as_uri())
        page.wait_for_selector(".js-plotly-plot .main-svg")
        page.wait_for_timeout(1000)  # the last figures are drawn
        page.screenshot(path=args.out / "report.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
