"""The site builds without a warning, and loads nothing from other hosts."""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

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
    styles = re.findall(r"\burl\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
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
    for name in hooks.RECIPES:
        assert (site / "recipes" / name / "index.html").exists()
        assert (site / "notebooks" / name / "index.html").exists()
        assert (site / "files" / f"{name}.py").read_bytes() == (
            ROOT / "recipes" / f"{name}.py"
        ).read_bytes()


@pytest.mark.parametrize("name", hooks.RECIPES)
def test_navigation_page_and_notebook_have_one_title(name: str) -> None:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    heading = "".join(notebook["cells"][0]["source"]).partition("\n")[0]
    assert heading == f"# {hooks.title(name)}", f"notebooks/{name}.ipynb: mend the first heading"


def api(site: Path, name: str) -> str:
    """The part of a recipe's page that mkdocstrings makes, as HTML."""
    page = (site / "recipes" / name / "index.html").read_text(encoding="utf-8")
    return page[page.index('<h2 id="api"') : page.index("</article>")]


def parameters(page: str, path: str) -> list[str]:
    """What the signature below a heading names; without self."""
    found = re.search(rf'<h\d id="{re.escape(path)}".*?(?=<h\d id=|\Z)', page, re.DOTALL)
    signature = re.search(r"<pre>.*?</pre>", found[0] if found else "", re.DOTALL)
    text = html.unescape(re.sub("<[^>]+>", "", signature[0])) if signature else "lacks()"
    made = ast.parse(f"def {text.strip()}: ...").body[0]
    assert isinstance(made, ast.FunctionDef)
    a = made.args
    every = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs]
    return [one.arg for one in (*every, *filter(None, [a.kwarg]))]


@pytest.mark.parametrize("name", hooks.RECIPES)
def test_every_class_says_how_one_is_made(name: str, site: Path) -> None:
    module, page = importlib.import_module(f"recipes.{name}"), api(site, name)
    classes = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and cls.__module__ == module.__name__
        if not cls.__name__.startswith("_") and ("__init__" in vars(cls) or hasattr(cls, "_fields"))
        if not getattr(cls, "_is_protocol", False)
    ]
    wanted = {cls.__name__: [*inspect.signature(cls).parameters] for cls in classes}
    found = {each: parameters(page, f"recipes.{name}.{each}") for each in wanted}
    assert found == wanted, "mkdocs.yml: merge_init_into_class, filters, docs/signatures.py"


@pytest.mark.parametrize("name", hooks.RECIPES)
def test_the_header_of_the_file_is_not_repeated_mangled(name: str, site: Path) -> None:
    page = api(site, name)
    inside = page[page.index('<div class="doc doc-contents first">') :]
    first = re.search(r"<(h\d|p|details)\b", inside)
    assert first and first[1] == "h3", "the API part begins with a class or a function"
    assert "use-when" not in page and "Use when" not in page


@pytest.mark.parametrize("name", hooks.RECIPES)
def test_the_first_lines_of_a_program_run(name: str, site: Path) -> None:
    """Those of the box, beside the file, as in a project."""
    page = (site / "recipes" / name / "index.html").read_text(encoding="utf-8")
    box = page[page.index('<div class="recipe">') :]
    _, use = re.findall("<pre><code>(.*?)</code></pre>", box, re.DOTALL)[:2]
    program = html.unescape(use) + f"\nprint(callable({name}.demo), r)"
    command = [sys.executable, "-B", "-c", program]
    ran = subprocess.run(command, cwd=site / "files", capture_output=True, text=True)
    assert ran.stdout.startswith("True <redis.client.Redis("), ran.stderr
    assert "port=6379" in ran.stdout


def test_serving_the_site_watches_what_its_pages_include() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/*.md")]
    named = {n for page in pages for n in re.findall('--8<-- "([^":]+)', page.read_text("utf-8"))}
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    watched = re.search(r"(?m)^watch: \[(.+?)\]", config)
    folders = ("docs", *(watched[1].split(", ") if watched else ()))
    assert "notebooks" in folders
    missed = sorted(n for n in named if not n.startswith(tuple(f"{f}/" for f in folders)))
    assert len(named) > 40 and not missed, f"mkdocs.yml, watch: add the folders of {missed}"
