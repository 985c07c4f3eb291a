"""The page in examples/javascript: it asks a server of another origin, which answers only pages that it was told of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from digpt.engine import Engine

ROCKET = Path(__file__).resolve().parents[2] / "examples" / "images" / "rocket.png"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


def classify(page: Page, address: str, path: Path) -> None:
    page.get_by_label("Server").fill(address)
    page.get_by_label("Picture").set_input_files(path)
    page.get_by_role("button", name="Classify").click()


def test_the_page_lists_what_the_server_answers(page: Page, site: str, address: str, engine: Engine) -> None:
    page.goto(f"{site}/classify.html")
    page.get_by_label("Labels").fill("pizza\n\n rocket \nred apple")
    classify(page, address, ROCKET)
    best = engine.classify([engine.decode(ROCKET.read_bytes())], ["pizza", "rocket", "red apple"])[0]
    assert best[0].label == "rocket"
    expect(page.get_by_role("listitem")).to_have_text([f"{each.label}: {100 * each.score:.1f} %" for each in best])
    expect(page.get_by_role("status")).to_have_text("By emoji-tiny:")


def test_the_page_shows_refusals(page: Page, site: str, address: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    page.goto(f"{site}/classify.html")
    classify(page, address, tmp_path / "x.png")
    expect(page.get_by_role("status")).to_contain_text("Not an image of a supported format")
    page.goto(f"{site.replace('127.0.0.1', 'localhost')}/classify.html")  # an origin that the server was not told of
    classify(page, address, ROCKET)
    expect(page.get_by_role("status")).to_have_text("Failed to fetch")
    expect(page.get_by_role("listitem")).to_have_count(0)
