"""Rules for the whole repository."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.contract.anatomy import FILES, stems
from tests.contract.rules import house_rule

CAPSTONE = "end_to_end"  # the notebook of all recipes; it has no recipe, and a page of its own


@house_rule
def no_orphans(root: Path) -> Iterable[str]:
    """Files of a recipe that is not there. (A benchmark's plots begin with its recipe's name.)"""
    known = {*stems(root), "index"}
    capstone = root / FILES["notebook"].format(CAPSTONE)
    for pattern in (*FILES.values(), "docs/benchmarks/{}-*.svg"):
        folder, file = (root / pattern).parent, Path(pattern).name
        for path in sorted(folder.glob(file.format("[!_]*"))):
            stem = re.fullmatch(file.replace("*", ".*").format("([a-z_]*)"), path.name)
            if path != capstone and (stem is None or stem[1] not in known):
                yield f"{path.relative_to(root)} belongs to no recipe"


@house_rule
def clean_text(root: Path) -> Iterable[str]:
    anywhere = r"\bTO[D]O\b|\bFIX[M]E\b|(?<![\w.:/])/(?:work|root|home/\w+|Users/\w+)/"
    in_prose = rf"{anywhere}|(?i:\bpypi\.org|pythonhosted\.org|registry\.npmjs\.org)"
    for path in _texts(root):
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".ipynb":  # a picture's letters mean nothing
            text = re.sub(r'"image/\w+": "[^"]*"', "", text)
        for match in re.finditer(in_prose if path.suffix == ".md" else anywhere, text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(root)}:{line}: {match[0]!r} has no place in the cookbook"


def _texts(root: Path) -> Iterator[Path]:
    suffixes = {".py", ".md", ".ipynb", ".txt", ".toml", ".yml", ".yaml", ".css", ""}
    skipped = {"site", "build", "node_modules", "__pycache__"}
    for path in sorted(root.iterdir()):
        if path.is_file() and path.suffix in suffixes and not path.name.startswith(".coverage"):
            yield path
        elif path.name == ".ci" or (path.name[0] != "." and path.name not in skipped):
            inside = (p for p in sorted(path.rglob("*")) if p.suffix in suffixes and p.is_file())
            yield from (
                p for p in inside if not any(x[0] == "." for x in p.parts[len(path.parts) :])
            )
