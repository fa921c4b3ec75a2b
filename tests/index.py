"""The index of recipes, by chapter: `python -m tests.index --write` puts it where it belongs.

It stands between the markers <!-- recipes:start --> and <!-- recipes:end -->, and comes from the
recipes' own first lines. tests/test_index.py catches drift.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tests.contract import ROOT, Recipe, chapters, stems

COMMAND = ".venv/bin/python -m tests.index --write"
PAGES = ("README.md", "docs/index.md")
MARKED = re.compile(r"(<!-- recipes:start -->\n).*?(<!-- recipes:end -->)", re.DOTALL)


def table(root: Path, *, on_site: bool) -> str:
    """The table as Markdown; on the site links are relative to docs/, else to the root."""
    rows = ["| | recipe | what it gives you | |", "|---|---|---|---|"]
    there = stems(root)
    for chapter, names in chapters(root).items():
        found = [name for name in names if name in there]
        for name in found:
            first = f"**{chapter}**" if name == found[0] else ""
            page = f"{'' if on_site else 'docs/'}recipes/{name}.md"
            file = f"{'files' if on_site else 'recipes'}/{name}.py"
            promise = Recipe(root, name).promise.replace("|", r"\|")
            links = f"[file]({file}) · [notebook](notebooks/{name}.ipynb)"
            rows.append(f"| {first} | [{name}]({page}) | {promise} | {links} |")
    return "\n".join(rows) + "\n"


def with_index(root: Path, page: str) -> str:
    """The text of a page as it should be; LookupError if it has no markers."""
    text = (root / page).read_text(encoding="utf-8")
    rows = table(root, on_site=page.startswith("docs/"))
    text, count = MARKED.subn(lambda match: f"{match[1]}\n{rows}\n{match[2]}", text)
    if count != 1:
        raise LookupError(f"{page}: put the markers of the index back, once")
    return text


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write the index, or say where it has drifted."""
    parser = argparse.ArgumentParser(prog="python -m tests.index", description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args(arguments).write
    drifted = [p for p in PAGES if (root / p).read_text(encoding="utf-8") != with_index(root, p)]
    for page in drifted:
        if write:
            (root / page).write_text(with_index(root, page), encoding="utf-8")
        print(f"{page}: {'written' if write else f'has drifted: {COMMAND}'}")
    return int(bool(drifted) and not write)


if __name__ == "__main__":
    sys.exit(main())
