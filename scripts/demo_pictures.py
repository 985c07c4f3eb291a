"""Renew the README's pictures of the demo: start it, use it in Chromium, keep what it shows.

    python scripts/demo_pictures.py

Needs Chromium (scripts/system-packages.sh) and the bundled model; writes docs/images/demo*.png.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES, EXAMPLES = ROOT / "docs" / "images", ROOT / "examples" / "images"
START_S = 120


def main() -> int:
    """Write the pictures; 2 and a sentence where there is no browser or the demo does not start."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("error: There is no Chromium here; scripts/system-packages.sh installs it.", file=sys.stderr)
        return 2
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "app", "--port", str(port)], cwd=ROOT)
    try:
        address = f"http://127.0.0.1:{port}"
        if not answers(address):
            print(f"error: The demo does not answer at {address}.", file=sys.stderr)
            return 2
        with sync_playwright() as playwright:
            sandbox = [] if os.getuid() else ["--no-sandbox"]  # which root cannot have
            take(playwright.chromium.launch(executable_path=chromium, args=sandbox), address)
    finally:
        server.terminate()
        server.wait()
    return 0


def answers(address: str) -> bool:
    """Wait until somebody answers there; false if nobody does in ``START_S``."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except urllib.error.URLError:
            time.sleep(0.2)
    return False


def take(browser: Browser, address: str) -> None:
    """Classify and search at a desk, corrupt on a phone in the dark."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page.goto(address)
    page.locator(".digpt-examples button").nth(1).click()
    expect(page.get_by_test_id("label-output-value")).to_have_text("dog face", timeout=30_000)
    keep(page, "demo")
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Words").fill("dog face")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The nearest of")).to_be_visible(timeout=60_000)
    page.get_by_text("The nearest of").click()  # takes the focus from the field
    keep(page, "demo-search")

    phone = browser.new_page(viewport={"width": 390, "height": 1600}, color_scheme="dark", reduced_motion="reduce")
    phone.goto(address)
    phone.get_by_role("tab", name="Corrupt").click()
    phone.locator("input[type=file]:visible, [role=tabpanel] input[type=file]").last.set_input_files(
        EXAMPLES / "dog-face.png"
    )
    expect(phone.get_by_text("untouched it was")).to_be_visible(timeout=30_000)
    keep(phone, "demo-phone")


def keep(page: Page, name: str) -> None:
    """Write docs/images/NAME.png of what is visible, once everything has come to rest."""
    page.wait_for_timeout(500)
    path = IMAGES / f"{name}.png"
    shown = Image.open(io.BytesIO(page.screenshot()))
    shown.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)  # half the bytes
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    raise SystemExit(main())
