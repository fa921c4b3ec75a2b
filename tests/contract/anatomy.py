"""A recipe's files and their parts, as the rules look at them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path

import nbformat
from nbformat import v4
from packaging.utils import canonicalize_name

FILES = {
    "recipe": "recipes/{}.py",
    "notebook": "notebooks/{}.ipynb",
    "page": "docs/recipes/{}.md",
    "expected": "docs/expected/{}.txt",
    "tests": "tests/recipes/test_{}.py",
    "benchmark": "benchmarks/bench_{}.py",
    "figures": "docs/benchmarks/{}.md",
}
STDLIB = frozenset(sys.stdlib_module_names) | {"compression"}  # a stdlib package since 3.14
HOUSE_FOLDERS = {"recipes", "tests", "benchmarks", "docs", "notebooks"}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where a package is not named as it is imported
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

FENCE = re.compile(r"(?ms)^ *(`{3,}|~{3,})[ {.]*([\w+-]*)[^\n]*\n(.*?)^ *\1 *$")
INCLUDE = re.compile(r'--8<-- "([^":]+)(?::([^"]*))?"')
MARKER = re.compile(r"--8<-- \[(start|end):([^\]]*)\]")
NOT_PROSE = re.compile(r"(?m)<!--[\s\S]*?-->|^ *(?:--8<--|:::).*$|\]\([^)]*\)|\{[^}]*\}")


def stems(root: Path) -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in (root / "recipes").glob("[!_]*.py"))


def chapters(root: Path) -> dict[str, tuple[str, ...]]:
    """The chapters of the site and their recipes, from docs/hooks.py, in reading order."""
    for node in ast.parse((root / "docs" / "hooks.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHAPTERS":
            return dict(ast.literal_eval(node.value))
    raise LookupError("docs/hooks.py has no CHAPTERS")


@lru_cache(maxsize=1)
def installed_modules() -> dict[str, list[str]]:
    """Top-level modules of installed packages -> the packages that they come from."""
    return {k: [*map(canonicalize_name, v)] for k, v in metadata.packages_distributions().items()}


@dataclass(frozen=True)
class Code:
    """Python text and its syntax tree."""

    file: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def code_lines(self) -> list[str]:
        """The lines that are neither blank, a comment, part of a docstring, nor of a table."""
        owners = (n for n in ast.walk(self.tree) if isinstance(n, (ast.Module, *DEFINITIONS)))
        texts = [n.body[0] for n in owners if ast.get_docstring(n) is not None]
        tables = [n for n in self.tree.body if isinstance(getattr(n, "value", None), ast.Dict)]
        documented = {
            i for n in texts + tables for i in range(n.lineno, (n.end_lineno or n.lineno) + 1)
        }
        numbered = enumerate(self.lines, 1)
        code = [line.strip() for i, line in numbered if i not in documented]
        return [line for line in code if line and not line.startswith("#")]

    @cached_property
    def strings(self) -> list[ast.Constant]:
        nodes = (n for n in ast.walk(self.tree) if isinstance(n, ast.Constant))
        return [n for n in nodes if isinstance(n.value, str)]

    @cached_property
    def calls(self) -> list[tuple[ast.Call, str]]:
        """Each call, and the dotted name of what it calls."""
        nodes = (n for n in ast.walk(self.tree) if isinstance(n, ast.Call))
        return [(n, ast.unparse(n.func)) for n in nodes]

    @cached_property
    def definitions(self) -> list[Definition]:
        return [n for n in ast.walk(self.tree) if isinstance(n, DEFINITIONS)]

    def imports(self) -> Iterator[tuple[str, ast.stmt | ast.expr, bool]]:
        """Each imported module, its node, and whether importing this file imports it at once."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node, node in self.tree.body) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield "." * node.level + (node.module or ""), node, node in self.tree.body
        for call, name in self.calls:
            if name.endswith("import_module") and isinstance(call.args[0], ast.Constant):
                yield str(call.args[0].value), call, False

    def at(self, node: ast.AST) -> str:
        return f"{self.file}:{_lines_of(node)[0]}"

    def excused(self, node: ast.AST, word: str) -> bool:
        """Is there a comment `word: reason` at the node, or on the line above it?"""
        first, last = _lines_of(node)
        near = "\n".join(self.lines[max(first - 2, 0) : last])
        return re.search(rf"(#|--) {word}: \S", near) is not None


@dataclass(frozen=True)
class Recipe:
    """A recipe's files, and their parts."""

    root: Path
    stem: str

    # Files

    def name(self, part: str) -> str:
        return FILES[part].format(self.stem)

    def path(self, part: str) -> Path:
        return self.root / self.name(part)

    def text(self, part: str) -> str:
        return self.path(part).read_text(encoding="utf-8")

    def unreadable(self, part: str) -> str | None:
        """Say why the rules for this file cannot be tried, if so."""
        try:
            is_text = self.path(part).suffix in (".md", ".txt")
            _ = self.text(part) if is_text else self.code(part).tree
        except (SyntaxError, ValueError, KeyError, AttributeError, OSError) as error:
            return f"{self.name(part)} cannot be read: {error}"
        return None

    def code(self, part: str) -> Code:
        """The file's Python; of a notebook all code cells, without magics."""
        if part == "notebook":
            source = "\n".join(cell.source for cell in self.code_cells)
            return _code(self.name(part), re.sub(r"(?m)^\s*[%!].*", "", source))
        return _code(self.name(part), self.text(part))

    def codes(self, *parts: str) -> list[Code]:
        return [self.code(part) for part in parts if not self.unreadable(part)]

    # The recipe itself

    @cached_property
    def source(self) -> Code:
        return self.code("recipe")

    @cached_property
    def docstring(self) -> list[str]:
        return (ast.get_docstring(self.source.tree, clean=False) or "").splitlines() or [""]

    @property
    def promise(self) -> str:
        return self.docstring[0]

    @cached_property
    def labels(self) -> dict[str, str]:
        """The header's labels in their order; text that stands under none has the label ""."""
        found: dict[str, str] = {}
        label = ""
        for line in self.docstring[1:]:
            start = re.match(r"([A-Z][a-z ]+):(?: |$)", line)
            if start:
                label = start[1]
                found.setdefault(label, "")
            elif line and not line[0].isspace():
                label = ""
            text = (line[start.end() :] if start else line).strip()
            if text:
                found[label] = f"{found.get(label, '')} {text}".strip()
        return found

    @cached_property
    def packages(self) -> tuple[set[str], set[str]] | None:
        """The packages that `Needs:` calls required, and optional; None if it has another form."""
        names = r"[\w.\[\]-]+(?:,? [\w.\[\]-]+)*"
        needs = self.labels.get("Needs", "")
        match = re.search(rf"; pip install ({names})(?:; optional: ({names}))?$", needs)
        if match is None:
            return None
        required, optional = (
            {canonicalize_name(name.split("[")[0]) for name in re.findall(r"[^ ,]+", group or "")}
            for group in match.groups()
        )
        return required, optional

    @cached_property
    def imported(self) -> tuple[set[str], set[str]]:
        """The third-party packages that the file imports at once, and those inside functions.

        If modules are imported by a computed name, the packages that `Needs:` names and that
        also stand in the file as a string count as imported in a function.
        """
        eager, lazy = set(), set()
        for module, _, at_once in self.source.imports():
            name = module.split(".")[0]
            if name and name not in STDLIB and name not in self.siblings:
                (eager if at_once else lazy).add(_package(name))
        if any(name.endswith("import_module") for _, name in self.source.calls):
            required, optional = self.packages or (set(), set())
            words = {node.value for node in self.source.strings if node.value.isidentifier()}
            lazy |= {_package(word) for word in words} & (required | optional)
        return eager, lazy - eager

    @cached_property
    def siblings(self) -> set[str]:
        return {*stems(self.root), *HOUSE_FOLDERS}

    @cached_property
    def top_level(self) -> dict[str, Definition]:
        body = self.source.tree.body
        return {node.name: node for node in body if isinstance(node, DEFINITIONS)}

    def public(self, *also: str) -> Iterator[tuple[Definition, bool]]:
        """Public functions and classes, and (True) the public methods and `also` of the latter."""
        for node in self.top_level.values():
            if node.name.startswith("_"):
                continue
            yield node, False
            for child in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(child, DEFINITIONS) and (child.name[0] != "_" or child.name in also):
                    yield child, True

    @cached_property
    def sections(self) -> dict[str, tuple[int, int]]:
        """Name -> the lines of the start and end markers, counted from 1."""
        return sections(self.source.text)[0]

    def section_lines(self, name: str) -> list[str]:
        start, end = self.sections[name]
        return self.source.lines[start : end - 1]

    def is_inside(self, node: ast.AST, names: Iterable[str]) -> bool:
        first, last = _lines_of(node)
        spans = [self.sections[name] for name in names if name in self.sections]
        return any(start < first and last < end for start, end in spans)

    def outside_sections(self, node: Definition) -> list[Definition]:
        """The definition, if it is in no section; of a class with sections inside, the methods."""
        first, last = _lines_of(node)
        if self.is_inside(node, self.sections):
            return []
        if not any(first < start <= last for start, _ in self.sections.values()):
            return [node]
        methods = [child for child in ast.iter_child_nodes(node) if isinstance(child, FUNCTIONS)]
        return [m for m in methods if m.name[:2] != "__" and not self.is_inside(m, self.sections)]

    # Page and notebook

    @cached_property
    def page(self) -> str:
        return self.text("page")

    def under(self, heading: str) -> str:
        """The page's text under a heading of the second level."""
        headings = [*re.finditer(r"(?m)^## +(.+?) *$", blank_fences(self.page))]
        ends = [*(match.start() for match in headings[1:]), len(self.page)]
        parts = {m[1]: self.page[m.end() : end] for m, end in zip(headings, ends, strict=True)}
        return parts.get(heading, "")

    @cached_property
    def cells(self) -> list[nbformat.NotebookNode]:
        return list(notebook(self.text("notebook")).cells)

    @cached_property
    def code_cells(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "code"]


def sections(text: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """The named sections of a text, and what is wrong with its markers."""
    found: dict[str, tuple[int, int]] = {}
    unclosed: list[tuple[str, int]] = []
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        marker = MARKER.search(line)
        if marker is None:
            continue
        if marker[1] == "start":
            if marker[2] in {*found, *dict(unclosed)}:
                problems.append(f"line {number}: section {marker[2]!r} exists twice")
            unclosed.append((marker[2], number))
        elif unclosed and unclosed[-1][0] == marker[2]:
            found[marker[2]] = (unclosed.pop()[1], number)
        else:
            problems.append(f"line {number}: [end:{marker[2]}] closes no open section")
    problems += [f"line {number}: section {name!r} is never closed" for name, number in unclosed]
    return found, problems


def blank_fences(text: str) -> str:
    """The text with spaces in place of its fenced blocks; every other character stays in place."""
    return FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def words(page: str) -> int:
    """Count words as a reader does: prose, headings, tables; no code, include or link target."""
    return len(re.findall(r"\w[\w'.,-]*", NOT_PROSE.sub(" ", blank_fences(page))))


@lru_cache(maxsize=256)
def _code(file: str, text: str) -> Code:
    return Code(file, text)


@lru_cache(maxsize=64)
def notebook(text: str) -> nbformat.NotebookNode:
    return v4.reads(text)


def _lines_of(node: ast.AST) -> tuple[int, int]:
    """The first line (that of a decorator, if there is one) and the last, counted from 1."""
    assert isinstance(node, (ast.stmt, ast.expr))
    decorators = getattr(node, "decorator_list", [])
    return min(n.lineno for n in (node, *decorators)), node.end_lineno or node.lineno


def _package(module: str) -> str:
    return canonicalize_name(DISTRIBUTIONS.get(module, module))
