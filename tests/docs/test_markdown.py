"""Lists and tables mean on the site what they mean on a code host."""

from __future__ import annotations

import re

import markdown
import pytest

from scripts.docs_markdown import portable


def html(text: str) -> str:
    return re.sub(r"\s*\n\s*", "", markdown.markdown(text, extensions=["tables", "pymdownx.superfences"]))


FENCED = '<div class="highlight"><pre><span></span><code>x</code></pre></div>'
CASES = {
    "a table below a fence": ("```\nx\n```\n| a |\n|---|\n| b |", f"{FENCED}<table>"),
    "a list below a paragraph": ("Text:\n- a\n- b", "<p>Text:</p><ul><li>a</li><li>b</li></ul>"),
    "a table below a paragraph": ("Text:\n| a |\n|---|\n| b |", "<p>Text:</p><table><thead><tr><th>a</th>"),
    "a list below a fence": ("```\nx\n```\n- a", f"{FENCED}<ul><li>a</li></ul>"),
    "a list in a list": ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
    "a paragraph in a numbered item": ("1. a\n\n   b\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
    "a table in an item": ("- a:\n\n  | b |\n  |---|\n  | c |", "<ul><li><p>a:</p><table><thead><tr><th>b</th>"),
}


@pytest.mark.parametrize(("text", "wanted"), CASES.values(), ids=CASES)
def test_it_reads_as_on_a_code_host(text: str, wanted: str) -> None:
    assert html(portable(text)).startswith(wanted)
    assert not html(text).startswith(wanted)  # without it, it does not


def test_a_fence_in_an_item_and_what_follows_it() -> None:
    text = "1. a:\n\n   ```sh\n   - b\n   ```\n   c\n2. d"
    assert portable(text) == "1. a:\n\n    ```sh\n    - b\n    ```\n    c\n\n2. d"


@pytest.mark.parametrize(
    "text",
    [
        "A paragraph\nthat goes on.\n\n    code\n\n- a\n- b\n\nEnd.",
        "- an item\ngoing on lazily\n- another",
        "```text\nx\n- y\n| z |\n```\n",
        "# Title\n- a",
        "| a |\n|---|\n| b |\n\n1. c\n2. d",
        "A sum: a\n-b, or 3.5\n",
    ],
)
def test_what_reads_alike_is_left_alone(text: str) -> None:
    assert portable(text) == text
