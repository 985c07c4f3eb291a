"""Who does not see the page or has no mouse: names of controls, a visible focus, text that can be told from its ground.

The names are those of playwright's snapshot of the accessibility tree, which is Chromium's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.visiting import Visit

Open = Callable[..., Visit]
ROCKET = Path(__file__).resolve().parents[2] / "examples" / "images" / "rocket.png"
CONTROLS = "button|checkbox|combobox|grid|link|listbox|radio|slider|spinbutton|tab|textbox"
# What every tab must let the keyboard reach, besides the buttons of its pictures.
REACHED = {
    "Classify": ["Labels", "Add a concept that the model knows", 'Allow the answer "none of these"', "Classify"],
    "Compare": ["Text (optional)", "Compare", "Similarity"],
    "Search": ["Words", "Search"],
    "Patches": ["What is alike", "range slider for Opacity of the colours", "Show patches"],
    "Corrupt": ["Corruption", "range slider for Severity", "Labels"],
    "Styles never seen": ["Flat", "Thumbnail 1 of 25", "Thumbnail 25 of 25"],
}
STILL = "* { transition: none !important; animation: none !important }"
# The focused element's name, and how its outline looks.
FOCUSED = """() => {
  const element = document.activeElement, style = getComputedStyle(element);
  const name = element.ariaLabel || element.labels?.[0]?.innerText || element.innerText
    || element.querySelector("img")?.alt || "";
  return {page: element === document.body, name: name.trim().split("\\n")[0],
          outline: `${style.outlineStyle} ${style.outlineWidth}`};
}"""
# Texts (not those of the editors, whose colours are Gradio's) with less contrast than WCAG 2.2, 1.4.3 asks for.
FAINT = """() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const linear = level => level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(color).map(level => linear(level / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if ((numbers(color)[3] ?? 1) > 0.5) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest(".cm-editor, script, style")) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const [a, b] = [light(style.color), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def stops(page: Page, most: int = 60) -> list[dict[str, str]]:
    """Where the Tab key stops from here to the end of the page."""
    found: list[dict[str, str]] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop["page"]:  # after the last; nothing on the way may lose the focus
            return found
        found.append(stop)
    raise AssertionError(f"the focus does not leave the page after {most} stops: {found[-3:]}")


@pytest.mark.parametrize("name", REACHED)
def test_the_keyboard_reaches_everything_and_shows_where_it_is(visit: Open, name: str) -> None:
    visitor = visit()
    page = visitor.page
    page.add_style_tag(content=STILL)
    tab = page.get_by_role("tab", name=name, exact=True)
    tab.focus()
    page.keyboard.press("Enter")
    expect(tab).to_have_attribute("aria-selected", "true")
    expect(visitor.panel).to_have_id(str(tab.get_attribute("aria-controls")))
    expect(visitor.panel.get_by_role("button").nth(1)).to_be_visible()  # what is in a panel comes when it opens
    found = stops(page)
    names = [stop["name"] for stop in found]
    expect(page.get_by_role("listbox")).to_have_count(0)
    assert [wanted for wanted in REACHED[name] if wanted not in names] == []
    assert [stop["name"] for stop in found if stop["outline"] != "solid 2px"] == []


@pytest.mark.parametrize("name", REACHED)
def test_every_control_has_a_name(visit: Open, name: str) -> None:
    visitor = visit()
    visitor.tab(name)
    if name != "Styles never seen":  # a drawing is named once it is loaded
        for drawing in ("red apple", "cat face"):
            expect(visitor.panel.get_by_role("button", name=drawing).last).to_be_visible()
    snapshot = visitor.page.locator("body").aria_snapshot()
    assert re.search(rf'- tab "{name}" \[selected\]', snapshot)
    controls = re.findall(rf"^ *- (?:{CONTROLS})\b.*$", snapshot, re.MULTILINE)
    assert len(controls) > 10
    assert [line.strip() for line in controls if not re.match(r' *- \w+ (?:"|/)', line)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit: Open, scheme: str) -> None:
    visitor = visit(scheme=scheme)
    page = visitor.page
    page.add_style_tag(content=STILL)
    for name in REACHED:
        visitor.tab(name)
        assert page.evaluate(FAINT) == [], name
    page.add_style_tag(content="p { color: #808080 !important; background: #888888 !important }")
    assert page.evaluate(FAINT) != []  # which it would say
