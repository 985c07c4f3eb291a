"""Take the picture of a report for the documentation: what a browser shows of the file, at a given width.

    python scripts/screenshots.py runs/drift/drift.html docs/images/drift.png
    python scripts/screenshots.py runs/onnx/passport.html phone.png --width 390 --height 800 --dark

It takes playwright (pip install playwright) and a chromium of the system's, and never downloads a browser.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def screenshot(page: Path, output: Path, *, width: int, height: int, dark: bool, whole: bool, at: str = "") -> None:
    """Write ``output``, a PNG; ``at`` is the heading that is scrolled to the top."""
    from playwright.sync_api import sync_playwright

    browser_path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser_path is None:
        raise SystemExit(f"There is no {' or '.join(BROWSERS)} here; install it with the system's package manager.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        tab = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True
        )
        tab.goto(page.resolve().as_uri())
        if at:
            tab.get_by_role("heading", name=at, exact=True).evaluate("heading => heading.scrollIntoView()")
        tab.screenshot(path=output, full_page=whole)
        browser.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Take the picture; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=1120)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="the whole page, however long")
    parser.add_argument("--at", default="", help="the heading to begin at")
    options = parser.parse_args(argv)
    if not options.page.is_file():
        parser.error(f"there is no {options.page}")
    screenshot(
        options.page,
        options.output,
        width=options.width,
        height=options.height,
        dark=options.dark,
        whole=options.whole,
        at=options.at,
    )
    print(f"{options.output}: {options.output.stat().st_size:,} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
