"""The shared look of reports: whole, self-contained, escaped, safe against what it shows."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from digpt.charts import Series, element, line_chart
from digpt.report import (
    Column,
    Shown,
    Tile,
    columns,
    document,
    header,
    notice,
    policy,
    section,
    table,
    tiles,
    unbroken,
    verdict,
    write_page,
)

EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "input", "img"}


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
        verdict(word, word, good=None),
        unbroken(word),
        tiles([Tile(word, word, word)]),
        section(word, line_chart(word, [Series(word, [1, 2], [3, 4])])),
        columns(table([Column(word), Column(word, numeric=True)], [[word, 2.5]], marked=[0], only_marked=word)),
        table([Column(word)], [[Shown(1.0, word, 0.5)]]),
        meta={"about": word},
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


def test_a_number_in_other_words_is_sorted_by_its_value() -> None:
    page = table([Column("top-1", True)], [[Shown(0.5, "50 % [40, 60]")], [Shown(1.0, "all", heat=1.0)]])
    assert '<td data-v="0.5" class="num">50 % [40, 60]</td>' in page
    assert 'style="background:color-mix(in srgb,var(--bad) 60%,transparent)"' in page and page.count("style=") == 1
    assert "data-v" not in table([Column("x")], [[Shown(float("nan"), "none")]])


def test_a_verdict_is_good_bad_or_neither() -> None:
    shown = [verdict("It holds.", "why", good=good) for good in (True, False, None)]
    assert [page.partition(">")[0] for page in shown] == [
        '<div class="notice verdict good"',
        '<div class="notice verdict bad"',
        '<div class="notice verdict"',
    ]
    assert "<b>It holds.</b><div>why</div>" in shown[0]


def test_on_paper_a_page_is_light_and_whole() -> None:
    page = full_page()
    dark = [line for line in page.splitlines() if "prefers-color-scheme:dark" in line]
    assert dark and all("@media screen and (prefers-color-scheme:dark)" in line for line in dark)
    paper = page.partition("@media print{")[2].partition("</style>")[0]
    assert ".scroll{overflow:visible" in paper and "print-color-adjust:exact" in paper


def test_what_programs_want_to_know_stands_in_the_head() -> None:
    page = document("x", meta={"model-fingerprint": 'sha256:"1"'})
    assert '<meta name="model-fingerprint" content="sha256:&#34;1&#34;">' in page.partition("</head>")[0]
    assert policy() in page.replace("&#39;", "'")


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
