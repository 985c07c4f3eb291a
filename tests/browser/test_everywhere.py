"""The demo on a phone, in the dark, and without a mouse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.visiting import DESKTOP, PHONE, Visit

Open = Callable[..., Visit]
ROCKET = Path(__file__).resolve().parents[2] / "examples" / "images" / "rocket.png"


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (PHONE, "dark"), (DESKTOP, "dark")])
def test_every_tab_fits(visit: Open, size: tuple[int, int], scheme: str) -> None:
    """`Visit.keep` holds that nothing sticks out."""
    visitor = visit(size, scheme)
    dark = visitor.page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    visitor.give(ROCKET)
    expect(visitor.page.get_by_test_id("label-output-value")).to_have_text("rocket")
    visitor.keep("classify")
    visitor.tab("Compare")
    visitor.give(ROCKET)
    visitor.panel.get_by_label("Text").fill("rocket")
    visitor.panel.get_by_role("button", name="Compare").click()
    expect(visitor.panel.get_by_role("gridcell").first).to_have_text("first picture and “rocket”")
    visitor.keep("compare")
    visitor.tab("Search")
    visitor.panel.get_by_label("Words").fill("rocket")
    visitor.panel.get_by_role("button", name="Search").click()
    expect(visitor.panel.get_by_text("The nearest of")).to_be_visible()
    last = visitor.panel.get_by_role("button", name="Thumbnail 12 of 12").bounding_box()
    assert last is not None and last["x"] + last["width"] <= size[0]
    visitor.keep("search")
    visitor.tab("Patches")
    visitor.give(ROCKET)
    expect(visitor.panel.get_by_text("4 x 4 patches")).to_be_visible()
    visitor.keep("patches")
    visitor.panel.get_by_label("Where it looks").check()
    expect(visitor.panel.get_by_text("of the attention, the darkest")).to_be_visible()
    visitor.keep("attention")
    visitor.tab("Corrupt")
    visitor.give(ROCKET)
    expect(visitor.panel.get_by_text("untouched it was")).to_be_visible()
    visitor.keep("corrupt")
    visitor.tab("Styles never seen")
    visitor.panel.get_by_role("button", name="Thumbnail 3 of 25").click()
    expect(visitor.panel.get_by_label("It is")).to_have_value("rocket")
    visitor.keep("styles")
    other = visit(size, scheme, "/shades")
    other.give(ROCKET)
    expect(other.panel.locator("li").first).to_contain_text("light")
    other.keep("segment")


def test_without_a_mouse(visit: Open) -> None:
    """Tab and Shift+Tab reach everything in order, and what has the focus shows it."""
    visitor = visit()
    keyboard, focused = visitor.page.keyboard, "document.activeElement"
    seen = []
    while len(seen) < 40:
        keyboard.press("Tab")
        name = visitor.page.evaluate(f"({focused}.innerText || {focused}.ariaLabel || {focused}.tagName).trim()")
        seen.append(name)
        if name == "Search":
            break
    assert seen[:2] == ["emoji-tiny (torch fp32)", "shades (fake fp32)"]
    assert seen[-3:] == ["Classify", "Compare", "Search"]
    outline = visitor.page.evaluate(
        f"[getComputedStyle({focused}).outlineStyle, getComputedStyle({focused}).boxShadow].join()"
    )
    assert outline != "none,none"
    keyboard.press("Enter")
    words = visitor.panel.get_by_label("Words")
    expect(words).to_be_visible()
    for _ in range(20):
        keyboard.press("Tab")
        if words.evaluate("element => element === document.activeElement"):
            break
    keyboard.type("rocket")
    keyboard.press("Enter")
    expect(visitor.panel.locator(".caption-label").first).to_contain_text("rocket (flat)")
