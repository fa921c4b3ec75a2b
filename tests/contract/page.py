"""Rules for a recipe's page of the site."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.contract.anatomy import FENCE, INCLUDE, Recipe, blank_fences, sections, words
from tests.contract.rules import rule

HEADINGS = (
    "Use when / not when",
    "The naive way",
    "Keys",
    "Usage",
    "How it works",
    "Guarantees and costs",
    "Measured",
    "Pitfalls",
    "The whole file",
    "API",
)
WORDS = (600, 1200)
TEST_NAME = re.compile(r"(?<![/\w])test_\w+(?!\w|\.py)")


@rule("page")
def page_headings(recipe: Recipe) -> Iterable[str]:
    if not re.match(r"# \S", recipe.page):
        yield "the page begins with `# Title`"
    found = tuple(re.findall(r"(?m)^## +(.+?) *$", blank_fences(recipe.page)))
    if found != HEADINGS:
        yield f"the page's ## headings are {', '.join(HEADINGS)}; found: {', '.join(found)}"


@rule("page", "recipe")
def page_promise(recipe: Recipe) -> Iterable[str]:
    if recipe.page.split("\n\n")[1:2] != [recipe.promise]:
        yield f"below the title stands the promise, word for word: {recipe.promise}"


@rule("page", "recipe")
def page_sections(recipe: Recipe) -> Iterable[str]:
    included = {section for path, section in INCLUDE.findall(recipe.page) if path.endswith(".py")}
    shown = [recipe.sections[name] for name in included if name in recipe.sections]
    for section, (start, end) in recipe.sections.items():
        if not any(first <= start and end <= last for first, last in shown):
            yield f'the page lacks --8<-- "{recipe.name("recipe")}:{section}"'
    for block in re.split(r"(?m)^### ", recipe.under("How it works"))[1:]:
        heading, _, body = block.partition("\n")
        if not INCLUDE.search(body) or words(body) < 5:
            yield f"How it works, {heading!r}: one to three sentences, then a named section"


@rule("page")
def page_includes(recipe: Recipe) -> Iterable[str]:
    for path, section in INCLUDE.findall(recipe.page):
        file = recipe.root / path
        if not file.is_file():
            yield f"the page includes {path}, which does not exist"
        elif section and section not in sections(file.read_text(encoding="utf-8"))[0]:
            yield f"the page includes {path}:{section}, but there is no such named section"


@rule("page")
def page_code(recipe: Recipe) -> Iterable[str]:
    python = ("python", "python3", "py", "pycon", "ipython")
    hidden = re.compile(r"\s*(>>> |import \w|from \w+ import |python3? -c)")
    for _, language, body in FENCE.findall(recipe.page):
        for line in body.splitlines():
            is_typed = line.strip() and not INCLUDE.search(line)
            if is_typed and (language.lower() in python or hidden.match(line)):
                yield f"Python is typed into the page; include a tested file: {line.strip()}"
                break


@rule("page", "tests")
def page_proofs(recipe: Recipe) -> Iterable[str]:
    tests = {node.name for node in recipe.code("tests").definitions}
    for shared in (recipe.root / "tests").glob("test_*.py"):  # tests of several recipes at once
        tests |= set(re.findall(r"(?m)^def (test_\w+)", shared.read_text(encoding="utf-8")))
    for named in sorted({*TEST_NAME.findall(recipe.page)} - tests):
        yield f"the page names {named}, which is not in {recipe.name('tests')} or tests/test_*.py"
    table = re.findall(r"(?m)^\|.*\|[ \t]*$", recipe.under("Guarantees and costs"))
    if len(table) < 3:
        yield "Guarantees and costs is a table: guarantee, holds because, the test that proves it"
    for row in table[2:]:
        if not TEST_NAME.search(row):
            yield f"which test proves this? {row}"


@rule("page")
def page_diagram(recipe: Recipe) -> Iterable[str]:
    if "mermaid" not in {language for _, language, _ in FENCE.findall(recipe.under("Keys"))}:
        yield "Keys shows the keys and their types in a ```mermaid diagram"


@rule("page")
def page_usage(recipe: Recipe) -> Iterable[str]:
    for path in (f"{recipe.name('recipe')}:usage", recipe.name("expected")):
        if f'--8<-- "{path}"' not in recipe.under("Usage"):
            yield f'Usage includes --8<-- "{path}"'


@rule("page")
def page_whole_file(recipe: Recipe) -> Iterable[str]:
    stem = recipe.stem
    for heading, text in (
        ("The whole file", f'--8<-- "recipes/{stem}.py"'),
        ("The whole file", f"(../files/{stem}.py){{ download }}"),
        ("The whole file", f"(../notebooks/{stem}.ipynb)"),
        ("API", f"::: recipes.{stem}"),
    ):
        if text not in recipe.under(heading):
            yield f"{heading} lacks {text}"


@rule("page")
def page_measured(recipe: Recipe) -> Iterable[str]:
    for heading in ("The naive way", "Measured"):
        if f'--8<-- "{recipe.name("figures")}:' not in recipe.under(heading):
            yield f'{heading} includes a table: --8<-- "{recipe.name("figures")}:SECTION"'
    by_hand = r"\d\s*(?:x|times|%) (?:faster|slower|smaller|larger|quicker)"
    for text in re.findall(by_hand, blank_fences(recipe.page)):
        yield f"{text!r} is typed by hand; include the benchmark's table instead"


@rule("page")
def page_pictures(recipe: Recipe) -> Iterable[str]:
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]*)", recipe.page):
        if not alt.strip():
            yield f"the picture {target} has no alt text"
        if "//" not in target and not (recipe.path("page").parent / target).is_file():
            yield f"the picture {target} does not exist"


@rule("page")
def page_is_local(recipe: Recipe) -> Iterable[str]:
    remote = r"<(?:script|link|img|iframe)\b[^>]*[\"'](?:https?:)?//|!\[[^\]]*\]\((?:https?:)?//"
    for text in re.findall(remote, blank_fences(recipe.page)):
        yield f"{text}... comes from another host; keep it in docs/assets"


@rule("page")
def page_words(recipe: Recipe) -> Iterable[str]:
    count = words(recipe.page)
    if not WORDS[0] <= count <= WORDS[1]:
        yield f"{count} words in prose and tables; a page has {WORDS[0]} to {WORDS[1]}"
