"""Rules for a recipe's name, files, header and sections."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Iterable

from tests.contract.anatomy import (
    FILES,
    HOUSE_FOLDERS,
    STDLIB,
    Recipe,
    chapters,
    installed_modules,
    sections,
    stems,
)
from tests.contract.rules import rule

LABELS = ("Use when", "Not when", "Keys", "Guarantees", "Cost", "Needs", "Run")
PROMISE = 79  # characters
SECTIONS = (3, 6)
HOW_TO_WRITE = {
    "figures": ": run .venv/bin/python -m benchmarks.bench_{}",
    "expected": ": run .venv/bin/python -m tests.contract --write-expected {}",
}
EXCEPTIONS = {
    k for k, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)
}

# --- Names and files ------------------------------------------------------------------------------


def name_problems(stem: str) -> list[str]:
    """Say what is wrong with the name of a recipe."""
    if not re.fullmatch(r"[a-z]+(_[a-z]+)*", stem) or keyword.iskeyword(stem):
        return [f"{stem!r} is no snake_case noun phrase (small letters and _, no numbers)"]
    if stem in STDLIB:
        return [f"{stem!r} is a module of the standard library, which the recipe would hide"]
    if stem in {*installed_modules(), *HOUSE_FOLDERS}:
        return [f"{stem!r} is an installed package or a folder, which the recipe would hide"]
    return []


@rule()
def name(recipe: Recipe) -> Iterable[str]:
    return name_problems(recipe.stem)


@rule()
def chapter(recipe: Recipe) -> Iterable[str]:
    if not any(recipe.stem in names for names in chapters(recipe.root).values()):
        yield f"name {recipe.stem} in a chapter of CHAPTERS in docs/hooks.py; else no index has it"


@rule()
def files(recipe: Recipe) -> Iterable[str]:
    for part in FILES:
        if not recipe.path(part).exists():
            how = HOW_TO_WRITE.get(part, "").format(recipe.stem)
            yield f"{recipe.name(part)} is missing{how}"


@rule()
def readable(recipe: Recipe) -> Iterable[str]:
    return filter(None, (recipe.unreadable(p) for p in FILES if recipe.path(p).exists()))


# --- The header -----------------------------------------------------------------------------------


@rule("recipe")
def promise(recipe: Recipe) -> Iterable[str]:
    text = recipe.promise
    if not text.endswith(".") or not 1 < len(text) <= PROMISE:
        yield f"line 1 of the docstring is a sentence of at most {PROMISE} characters: {text!r}"
    if recipe.docstring[1:2] != [""]:
        yield "a blank line follows the promise"


@rule("recipe")
def labels(recipe: Recipe) -> Iterable[str]:
    if tuple(recipe.labels) != LABELS:
        found = ", ".join(key or "(a line that is not indented)" for key in recipe.labels)
        yield f"the header's labels are, in this order, {', '.join(LABELS)}; found: {found}"
    yield from (f"{label}: is empty" for label, text in recipe.labels.items() if not text)


@rule("recipe")
def needs(recipe: Recipe) -> Iterable[str]:
    if recipe.packages is None:
        yield "Needs: ends in `...; pip install redis numpy` or in that and `; optional: torch`"
        return
    (required, optional), (eager, lazy) = recipe.packages, recipe.imported
    for package in sorted(eager - required):
        yield f"{package} is imported: name it behind `pip install` in Needs:"
    for package in sorted(lazy - required - optional):
        yield f"{package} is imported in a function: name it in Needs:, as required or optional"
    for package in sorted((required | optional) - eager - lazy):
        yield f"Needs: names {package}, which is not imported"
    for package in sorted(optional & eager):
        yield f"{package} is optional: import it inside the function that uses it"


@rule("recipe")
def few_packages(recipe: Recipe) -> Iterable[str]:
    others = (recipe.packages or (set(), set()))[0] - {"redis", "numpy"}
    if len(others) > 2:
        yield f"at most two packages beside redis and numpy; found {', '.join(sorted(others))}"


# --- Sections -------------------------------------------------------------------------------------


@rule("recipe")
def section_markers(recipe: Recipe) -> Iterable[str]:
    yield from sections(recipe.source.text)[1]
    for section in recipe.sections:
        if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", section):
            yield f"section {section!r}: its name is kebab-case"


@rule("recipe")
def section_count(recipe: Recipe) -> Iterable[str]:
    own = [section for section in recipe.sections if not section.startswith("shared-")]
    if not SECTIONS[0] <= len(own) <= SECTIONS[1]:
        yield f"{len(own)} sections beside shared-*; have {SECTIONS[0]} to {SECTIONS[1]}"


@rule("recipe")
def section_comments(recipe: Recipe) -> Iterable[str]:
    for section in recipe.sections:
        opening = "".join(recipe.section_lines(section)[:1]).strip()
        if not opening.startswith("# ") or "--8<--" in opening:
            yield f"section {section!r} opens with a comment: what goes wrong without it?"


@rule("recipe")
def section_usage(recipe: Recipe) -> Iterable[str]:
    node = recipe.top_level.get("demo")
    if node is not None and not recipe.is_inside(node, ["usage"]):
        yield "a section 'usage' wraps demo"


@rule("recipe")
def loose_code(recipe: Recipe) -> Iterable[str]:
    exceptions = set(EXCEPTIONS)
    for node in recipe.top_level.values():
        bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
        if any(base in exceptions or base.endswith(("Error", "Exception")) for base in bases):
            exceptions.add(node.name)
        elif node.name != "demo":
            yield from (
                f"{recipe.source.at(loose)}: {loose.name} is in no section, so no page shows it"
                for loose in recipe.outside_sections(node)
            )


@rule("recipe")
def shared_sections(recipe: Recipe) -> Iterable[str]:
    others = [Recipe(recipe.root, stem) for stem in stems(recipe.root)]
    for section in recipe.sections:
        if not section.startswith("shared-"):
            continue
        homes = [o for o in others if not o.unreadable("recipe") and section in o.sections]
        if homes[0].section_lines(section) != recipe.section_lines(section):
            yield f"section {section!r} is not, word for word, that of {homes[0].name('recipe')}"
