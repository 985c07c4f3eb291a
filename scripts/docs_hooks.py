"""What mkdocs does beyond its own for this repository (`make docs`; see mkdocs.yml).

- Pages that lie outside docs/, such as CONTRIBUTING.md, become pages of the site.
- Pages are written as code hosts read Markdown (scripts/docs_markdown.py).
- Links between pages are written as they work in the repository. Those that leave docs/ are led to the page made of
  their target, or to a copy of it; of a link to a folder its text stays.
- ``<!-- generated: NAME -->`` gives way to what is generated at every build.
- A path with a star in the navigation stands for the pages that it matches.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scripts.docs_http import http_reference
from scripts.docs_markdown import portable

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # files of the repository that are pages of the site
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "digpt/bundled/emoji-tiny/README.md": "project/model-card.md",
    "data/emoji/README.md": "project/data-card.md",
}
COPIES = "source"  # where the site keeps copies of other files that pages link to
SHOWN = (".png", ".jpg", ".webp", ".svg", ".txt")  # by every browser
LINK = re.compile(r"(?P<open>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)|(?P<src>src=\")(?P<path>[^\"]+)\"")
TEXT_OF_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)[^)]*\)")
FENCED = re.compile(r"(^[ \t]*(?:```|~~~).*?^[ \t]*(?:```|~~~)[ \t]*$)", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


@cache
def commands_reference() -> str:
    """Every command's help; in a process of its own, for that imports torch."""
    done = subprocess.run(
        [sys.executable, "scripts/docs_commands.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PluginError(f"scripts/docs_commands.py: {done.stderr}")
    return done.stdout


GENERATORS: dict[str, Callable[[], str]] = {"commands": commands_reference, "http": cache(http_reference)}


def on_config(config: MkDocsConfig) -> None:
    """Write out the stars of the navigation."""
    config.nav = _expanded(config.nav, Path(config.docs_dir))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and the other files that pages link to."""
    for source, on_site in OUTSIDE.items():
        files.append(File.generated(config, on_site, abs_src_path=str(ROOT / source)))
    for page in files.documentation_pages():
        for target in _targets(Path(page.abs_src_path or "").read_text(encoding="utf-8")):
            path = _in_repository(_source(page), target)
            if path is None or path.startswith("docs/") or path in OUTSIDE or not (ROOT / path).is_file():
                continue
            if path.endswith(".md"):
                raise PluginError(f"{_source(page)} links to {path}: name its page in OUTSIDE of {__file__}.")
            if files.get_file_from_path(_copy(path)) is None:
                files.append(File.generated(config, _copy(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links that leave docs/ to their counterparts on the site, and fill in what is generated."""
    parts = FENCED.split(markdown)  # every second one is fenced code
    parts[::2] = [_led(part, page.file) for part in parts[::2]]
    return GENERATED.sub(lambda found: GENERATORS[found[1]](), portable("".join(parts)))


def _expanded(nav: Any, docs: Path) -> Any:
    if isinstance(nav, list):
        return [_expanded(item, docs) for item in nav]
    if isinstance(nav, dict):
        return {title: _expanded(item, docs) for title, item in nav.items()}
    if "*" not in nav:
        return nav
    found = sorted(docs.glob(nav), key=lambda path: (path.name != "README.md", path.name))
    return [path.relative_to(docs).as_posix() for path in found]


def _copy(path: str) -> str:
    """Where the site has a file of the repository; sources under a name that browsers show as text."""
    return f"{COPIES}/{path}" if path.endswith(SHOWN) else f"{COPIES}/{path}.txt"


def _source(file: File) -> str:
    """A page's path in the repository."""
    return Path(file.abs_src_path or "").relative_to(ROOT).as_posix()


def _targets(markdown: str) -> list[str]:
    prose = "".join(FENCED.split(markdown)[::2])
    return [found["target"] or found["path"] for found in LINK.finditer(prose)]


def _in_repository(source: str, target: str) -> str | None:
    """The path that a link in the file ``source`` means; None for an address."""
    if re.match(r"[a-z][a-z+.-]*:", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _led(prose: str, page: File) -> str:
    source = _source(page)

    def unlinked(found: re.Match[str]) -> str:
        path = _in_repository(source, found[2])
        return found[1] if path and (ROOT / path).is_dir() else found[0]

    def led(found: re.Match[str]) -> str:
        target = found["target"] or found["path"]
        path = _in_repository(source, target)
        if path is None:
            return found[0]
        if path.startswith("docs/"):
            on_site = path.removeprefix("docs/")
        else:
            on_site = OUTSIDE.get(path, _copy(path))
        address = os.path.relpath(on_site, posixpath.dirname(page.src_uri) or ".")
        return f'src="{address}"' if found["src"] else f"]({address}{found['anchor'] or ''})"

    return LINK.sub(led, TEXT_OF_LINK.sub(unlinked, prose))
