"""The shared look of reports: whole, self-contained, escaped, safe against what it shows."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from digpt.charts import Series, element, line_chart
from digpt.report import Column, Tile, columns, document, header, notice, section, table, tiles, write_page

EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "input"}


class Outline(HTMLParser):
    """Collects start tags and the text of cells; raises when tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def full_page(word: str = "word") -> str:
    return document(
        word,
        header(word, eyebrow=word, state="finished", lines=[word]),
        notice(word),
        tiles([Tile(word, word, word)]),
        section(word, line_chart(word, [Series(word, [1, 2], [3, 4])])),
        columns(table([Column(word), Column(word, numeric=True)], [[word, 2.5]], marked=[0], only_marked=word)),
    )


def test_whatever_it_shows_is_text() -> None:
    tags = outline(full_page(EVIL)).tags
    assert [tag for tag, _ in tags] == [tag for tag, _ in outline(full_page()).tags]  # no element more than with a word
    assert EVIL in outline(full_page(EVIL)).cells
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)


def test_the_escaping_test_would_see_an_element() -> None:
    with pytest.raises(AssertionError):  # </script> closes what is not open
        outline(full_page().replace("<main>", f"<main>{EVIL}"))
    assert ("b", {}) in outline(full_page().replace("<main>", "<main><b>x</b>")).tags


def test_the_policy_allows_this_script_and_no_network() -> None:
    page = full_page()
    (policy,) = [a["content"] for tag, a in outline(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script and policy
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.search(r"https?://|url\(|@import|<link|src=", page)


def test_a_table_carries_what_sorting_needs() -> None:
    page = table([Column("name"), Column("top-1", numeric=True, show=lambda v: f"{v:.0%}")], [["b", 0.5], ["a", None]])
    assert '<td data-v="0.5" class="num">50%</td>' in page
    assert page.count("<button>") == 2 and '<td class="num"></td>' in page
    assert table([Column("name")], []) == ""
    assert "data-v" not in table([Column("name", numeric=True)], [[float("nan")]])


def test_marked_rows_alone_can_be_shown() -> None:
    rows = [["x"], ["y"], ["z"]]
    assert table([Column("c")], rows, marked=[1]).count('class="marked"') == 1
    assert 'type="checkbox"' in table([Column("c")], rows, marked=[1], only_marked="differing")
    assert "checkbox" not in table([Column("c")], rows)


def test_an_empty_section_leaves_no_heading() -> None:
    assert section("Losses", None, line_chart("loss", [])) == ""
    assert "<h2>Losses</h2>" in section("Losses", notice("one"))


def test_attributes_and_children_are_escaped() -> None:
    made = element("a", "<b>", element("i", "&"), None, title='"', aria_label="x", hidden=True, id=None)
    assert made == '<a title="&#34;" aria-label="x" hidden>&lt;b&gt;<i>&amp;</i></a>'


def test_a_page_is_written_whole_even_with_names_that_are_no_text(tmp_path: Path) -> None:
    path = write_page(tmp_path / "new" / "page.html", document("caf\udce9"))  # as os.fsdecode gives a foreign byte
    assert path.read_text(encoding="utf-8").count("<title>caf?</title>") == 1
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
