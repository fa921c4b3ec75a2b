"""Rules for a recipe's notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable

import nbformat

from tests.contract.anatomy import Recipe, notebook
from tests.contract.rules import rule

OPENING = """\
import sys

sys.path.insert(0, "..")  # the recipes are one folder up
from recipes import connect

r = connect()"""
CELL_LINES = 8
ASSERTING_CELLS = 5


@rule("notebook")
def notebook_valid(recipe: Recipe) -> Iterable[str]:
    if any("id" not in cell for cell in recipe.cells):
        yield "a cell has no id: store the notebook in format 4.5"
        return
    try:
        nbformat.validate(notebook(recipe.text("notebook")))
    except nbformat.ValidationError as error:
        yield f"the notebook is not valid: {error.args[0]}"


@rule("notebook", "recipe")
def notebook_opening(recipe: Recipe) -> Iterable[str]:
    first = recipe.cells[0].source if recipe.cells else ""
    if not first.startswith("# ") or recipe.promise not in first:
        yield "the first cell is markdown: `# Title` and the promise"
    code = [cell.source.strip() for cell in recipe.code_cells]
    if code[:1] != [OPENING]:
        yield f"code cell 1 is, word for word:\n{OPENING}"
    subject = rf"recipes\.{recipe.stem}\b|recipes import .*\b{recipe.stem}\b"
    if not re.search(subject, "".join(code[1:2])):
        yield f"code cell 2 has the subject: from recipes import {recipe.stem}"


@rule("notebook")
def notebook_cells(recipe: Recipe) -> Iterable[str]:
    for number, cell in enumerate(recipe.code_cells, 1):
        text = [line for line in cell.source.splitlines() if line.strip() and "# NBVAL" not in line]
        if len(text) > CELL_LINES:
            yield f"code cell {number}: {len(text)} lines that are not blank; at most {CELL_LINES}"


@rule("notebook")
def notebook_asserts(recipe: Recipe) -> Iterable[str]:
    count = sum(bool(re.search(r"(?m)^\s*assert\b", cell.source)) for cell in recipe.code_cells)
    if count < ASSERTING_CELLS:
        yield f"{count} code cells assert what was expected; at least {ASSERTING_CELLS} should"


@rule("notebook")
def notebook_markers(recipe: Recipe) -> Iterable[str]:
    varies = r"perf_counter|monotonic|timeit|\bimport time\b|\btime\.|\bplt\b|matplotlib|plot"
    marker = "# NBVAL_IGNORE_OUTPUT"
    for number, cell in enumerate(recipe.code_cells, 1):
        marked = [line for line in cell.source.splitlines() if "nbval" in line.lower()]
        tags = {tag.lower() for tag in cell.metadata.get("tags", ())}
        if set(marked) - {marker} or tags & {"nbval-skip", "skip-execution", "nbval-ignore-output"}:
            yield f"code cell {number}: the only marker is `{marker}`, on a line of its own"
        elif marked and not re.search(varies, cell.source):
            yield f"code cell {number} ignores its output, but neither measures nor plots"


@rule("notebook")
def notebook_magics(recipe: Recipe) -> Iterable[str]:
    for number, cell in enumerate(recipe.code_cells, 1):
        if re.search(r"(?m)^\s*[%!]|\bpip install\b|get_ipython", cell.source):
            yield f"code cell {number}: plain Python only; no magics, no shell, no installing"


@rule("notebook")
def notebook_prose(recipe: Recipe) -> Iterable[str]:
    kinds = [cell.cell_type for cell in recipe.cells]
    for number, i in enumerate((i for i, kind in enumerate(kinds) if kind == "code"), 1):
        if number > 1 and kinds[i - 1] != "markdown":
            yield f"code cell {number}: a markdown cell before it says what to expect"
    if kinds[-1:] != ["markdown"] or "Exercises" not in recipe.cells[-1].source:
        yield "the last cell is markdown: Exercises"


@rule("notebook")
def notebook_outputs(recipe: Recipe) -> Iterable[str]:
    code = recipe.code_cells
    if [cell.execution_count for cell in code] != [*range(1, len(code) + 1)]:
        yield (
            "its outputs are not those of one run from the top: "
            ".venv/bin/jupyter nbconvert --to notebook --execute --inplace "
            f"{recipe.name('notebook')}"
        )
        return
    outputs = [output for cell in code for output in cell.outputs]
    if any(output.output_type == "error" for output in outputs):
        yield "a cell ends in an error: catch the expected error, and assert it"
    if any(output.get("name") == "stderr" for output in outputs):
        yield "a cell writes to stderr, perhaps a warning: mend it"
    if not any(kind.startswith("image/") for o in outputs for kind in o.get("data", ())):
        yield "no output is a picture: plot what says more than a table"


@rule("notebook")
def notebook_cleans_up(recipe: Recipe) -> Iterable[str]:
    last = "".join(cell.source for cell in recipe.code_cells[-1:])
    if not re.search(r"(?m)^\s*assert\b.*(scan|dbsize|exists)", last):
        yield "the last code cell deletes its own keys, and asserts by scan_iter that none is left"


@rule("notebook", "recipe")
def notebook_pastes_nothing(recipe: Recipe) -> Iterable[str]:
    for node in recipe.code("notebook").definitions:
        if node.name in recipe.top_level:
            yield f"{node.name} is the recipe's: import it, do not paste it"
