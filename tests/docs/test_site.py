"""The site that `make docs` builds: without warnings, whole, and without a word from another host."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import create_app

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself: everything but the links that a reader follows.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|link)\b[^>]*?\s(?:src|href|srcset)=[\"']?([^\"'\s>]+)"
)
FETCHED_BY_STYLES = re.compile(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)")
ELSEWHERE = re.compile(r"(?:[a-z]+:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(?:WARNING|ERROR).*", done.stderr, re.MULTILINE) == []
    return folder


def text_of(site: Path, page: str) -> str:
    """A page's text without its tags, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8"))).split())


def elsewhere(fetched: re.Pattern[str], text: str) -> list[str]:
    return [address for address in fetched.findall(text) if ELSEWHERE.match(address)]


def test_every_page_can_be_reached(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'href="([^"#]+\.html)', start))
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert {page.replace("README.html", "index.html") for page in pages} - linked == set()
    assert {"project/contributing.html", "project/changelog.html", "project/data-card.html"} <= linked


def test_nothing_comes_from_another_host(site: Path) -> None:
    pages, styles = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    assert len(pages) > 40 and styles
    found = {page.name: elsewhere(FETCHED, page.read_text(encoding="utf-8")) for page in pages}
    found |= {style.name: elsewhere(FETCHED_BY_STYLES, style.read_text(encoding="utf-8")) for style in styles}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}


@pytest.mark.parametrize(
    ("fetched", "text"),
    [
        (FETCHED, '<script async src="https://cdn.example/x.js">'),
        (FETCHED, '<link rel="stylesheet" href="//cdn.example/x.css">'),
        (FETCHED, "<img alt='' src=http://cdn.example/x.png>"),
        (FETCHED_BY_STYLES, "@import 'https://cdn.example/x.css';"),
        (FETCHED_BY_STYLES, "src: url(https://cdn.example/x.woff2)"),
    ],
)
def test_what_would_come_from_another_host_is_found(fetched: re.Pattern[str], text: str) -> None:
    assert len(elsewhere(fetched, text)) == 1


def test_links_for_readers_are_no_fetches() -> None:
    assert elsewhere(FETCHED, '<a href="https://arxiv.org/abs/2312.02147">the paper</a><link href="site.css">') == []


def test_every_operation_is_in_the_reference(site: Path) -> None:
    document = create_app({"fake": Engine(FakeRuntime())}).openapi()
    page = (site / "reference/http.html").read_text(encoding="utf-8")
    shown = [unescape(re.sub(r"<[^>]+>", "", title)) for title in re.findall(r"<h3[^>]*>(.*?)<a class", page)]
    known = {f"{method.upper()} {path}" for path, found in document["paths"].items() for method in found}
    assert known <= set(shown) and set(document["components"]["schemas"]) <= set(shown)
    text = text_of(site, "reference/http.html")
    assert "top_k integer, at least 1, 5 unless given How many labels per image, best first." in text
    assert "401 The server has keys, and the request shows none that it knows. invalid_api_key" in text
    assert "image_too_large The image has 50,000 x 50,000 pixels" in text


def test_every_command_is_in_the_reference(site: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `python -m ([a-z_.]+)", readme, re.MULTILINE))
    page = (site / "reference/commands.html").read_text(encoding="utf-8")
    shown = set(re.findall(r"<h3[^>]*>python -m ([a-z_.]+)", page))
    assert len(known) > 25 and known <= shown
    assert "--fail-if-worse" in page and "--max-pending-bytes" in page
    assert str(ROOT) not in page


def test_docstrings_are_rendered(site: Path) -> None:
    text = text_of(site, "reference/python/engine.html")
    assert "The lock is taken per batch, so that a long list does not hold up images." in text
    assert "limits (DecodeLimits | None, default: None ) – what decode accepts." in text
    for page in sorted(site.glob("reference/python/*.html")):
        assert ">:::" not in page.read_text(encoding="utf-8")


def test_the_markdown_reads_as_on_a_code_host(site: Path) -> None:
    """Python-Markdown wants an empty line before a list or a table where others do not."""
    wrong = []
    for page in sorted(site.rglob("*.html")):
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL):
            wrong += [f"{page.name}: {line}" for line in re.findall(r"^(?:[-*] |\d+\. |\|).*", paragraph, re.MULTILINE)]
        assert "<!-- generated" not in page.read_text(encoding="utf-8")
    assert wrong == []


def test_files_that_pages_link_to_are_there(site: Path) -> None:
    copied, own = site / "source/deploy/kubernetes.yaml.txt", ROOT / "deploy/kubernetes.yaml"
    assert copied.read_bytes() == own.read_bytes()
    assert 'href="source/deploy/kubernetes.yaml.txt"' in (site / "bulk.html").read_text(encoding="utf-8")
