"""The site builds without a warning, and loads nothing from other hosts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

from docs import hooks

ROOT = Path(__file__).parent.parent
LOADING = {
    ("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"),
    ("object", "data"), ("video", "src"), ("audio", "src"), ("embed", "src"),
}  # fmt: skip


class _Loads(HTMLParser):
    """Collects the addresses that a browser fetches by itself (links are not fetched)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "prev", "next", "alternate"):
            return
        self.found += [v for k, v in attrs if (tag, k) in LOADING and v]


def loaded_from_elsewhere(text: str) -> list[str]:
    parser = _Loads()
    parser.feed(text)
    styles = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
    addresses = [*parser.found, *(a or b for a, b in styles)]
    return [a for a in addresses if urlsplit(a).netloc and urlsplit(a).scheme != "data"]


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 3
    assert {p.name: f for p in pages if (f := loaded_from_elsewhere(p.read_text()))} == {}


def test_a_foreign_script_is_noticed() -> None:
    assert loaded_from_elsewhere('<script src="https://cdn.example/x.js"></script>')
    assert loaded_from_elsewhere("@import 'https://fonts.example/a.css'")
    assert not loaded_from_elsewhere('<a href="https://redis.io/">a link</a><img src="x.svg">')


def test_each_recipe_has_its_page_notebook_and_file(site: Path) -> None:
    for name in (name for names in hooks.recipes().values() for name in names):
        assert (site / "recipes" / name / "index.html").exists()
        assert (site / "notebooks" / name / "index.html").exists()
        assert (site / "files" / f"{name}.py").read_bytes() == (
            ROOT / "recipes" / f"{name}.py"
        ).read_bytes()


def test_every_recipe_has_a_chapter() -> None:
    listed = {name for names in hooks.CHAPTERS.values() for name in names}
    assert {path.stem for path in (ROOT / "recipes").glob("[a-z]*.py")} <= listed
