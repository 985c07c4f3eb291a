"""What a visitor does: open tabs, give pictures, read lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

DESKTOP, PHONE = (1280, 900), (390, 844)
LOADED = "[...document.images].every(image => image.complete || !image.checkVisibility())"


@dataclass(frozen=True)
class Visit:
    """An open page of the demo."""

    page: Page
    name: str
    folder: Path

    def tab(self, name: str) -> None:
        """Open a tab."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.page.locator(f"#tab-{name.lower().replace(' ', '-')}").wait_for()  # another panel is visible until then

    @property
    def panel(self) -> Locator:
        """What the open tab shows."""
        return self.page.get_by_role("tabpanel").locator("visible=true").first

    def give(self, path: Path, number: int = 0) -> None:
        """Upload a file into a picture input of the open tab."""
        shown = self.panel.locator(f"img[src$='/{path.name}']")
        before = shown.count()
        self.panel.locator("input[type=file]").nth(number).set_input_files(path)
        shown.nth(before).wait_for(state="attached")

    def code(self, number: int, having: str) -> str:
        """The text of the open tab's shell line (0) or Python lines (the last), once ``having`` is in it."""
        editor = self.panel.locator(".cm-content").nth(number)
        expect(editor).to_contain_text(having)  # an editor shows its lines a moment after the answer
        return "\n".join(editor.locator(".cm-line").all_inner_texts())

    def keep(self, what: str) -> None:
        """Keep a picture of the whole page, and hold that nothing sticks out of it sideways."""
        path = self.folder / f"{what}-{self.name}.png"
        self.page.wait_for_function(LOADED)
        self.page.screenshot(path=path, full_page=True, animations="disabled")  # those that end are at their end
        assert self.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def probabilities(label: Locator) -> dict[str, int]:
    """What a label component shows: ``{label: per cent}``."""
    text = label.inner_text()
    return {name: int(share) for name, share in re.findall(r"^(.+)\n+(\d+)%$", text, re.MULTILINE)}
