"""Build hooks: the navigation, the files from outside of docs/, what each recipe's page has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parent.parent

# The chapters of the site, in reading order.
CHAPTERS = {
    "Data": ("training_data", "tensor_compression"),
    "Models": ("model_params", "training_checkpoints"),
    "Distributed": ("distributed_training", "parameter_server", "distributed_prediction"),
    "Real time": (
        "realtime_training",
        "realtime_prediction",
        "realtime_recommendation",
        "realtime_language_model",
    ),
    "Operations": ("persistence", "high_availability", "security"),
}
RECIPES = [name for names in CHAPTERS.values() for name in names]

# What somebody types who has the problem and does not know our name for it. The search finds it,
# and the page shows it.
SEARCH_WORDS = {
    name: tuple(words.split(", "))
    for name, words in {
        "training_data": "data loader, shuffle, epoch, batches, read only once, streaming dataset",
        "tensor_compression": "too much memory, out of memory, OOM, slow network, bandwidth, "
        "quantize, int8, float16",
        "model_params": "deploy a model, rollback, roll back, undo, model registry, hot reload, "
        "versions",
        "training_checkpoints": "resume, crash, preemption, spot instance, split brain, "
        "save progress, optimizer state",
        "distributed_training": "data parallel, DDP, all-reduce, several machines, multi-node, "
        "worker dies",
        "parameter_server": "slow worker, straggler, asynchronous SGD, stale gradients",
        "distributed_prediction": "batch inference, job queue, task queue, lost jobs, "
        "answered twice, dead letter, poison message",
        "realtime_training": "online learning, incremental learning, event stream, exactly once, "
        "duplicate events, concept drift",
        "realtime_prediction": "feature store, online features, latency, serving, timeout, "
        "fallback, real-time inference",
        "realtime_recommendation": "recommender, similar items, bought together, trending, "
        "cold start, personalization, collaborative filtering",
        "realtime_language_model": "autocomplete, typeahead, n-gram, next word, complete text, "
        "token streaming",
        "persistence": "lost data, data loss, restart, backup, restore, power cut, durability, "
        "fsync, AOF, RDB",
        "high_availability": "failover, server down, outage, reconnect, retry, replica, Sentinel, "
        "lost writes",
        "security": "password, TLS, certificate, encryption, authentication, access control, ACL, "
        "least privilege, untrusted data",
    }.items()
}


def header(name: str) -> str:
    module = ast.parse((ROOT / "recipes" / f"{name}.py").read_text())
    return ast.get_docstring(module) or ""


def promise(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    return header(name).partition("\n")[0]


def packages(name: str) -> str:
    """Return what pip installs for a recipe, as its header says; what is optional is a comment."""
    needs = re.search(r"pip install ([^;\n]+)(?:; optional: ((?:.+|\n +)+))?", header(name))
    required, optional = needs.groups() if needs else ("redis", None)
    return required.strip() + (f"  # optional: {' '.join(optional.split())}" if optional else "")


def title(name: str) -> str:
    """Return what a recipe is called everywhere: its page's heading."""
    page = ROOT / "docs" / "recipes" / f"{name}.md"
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = [
        {"Home": "index.md"},
        {"Which recipe?": "choosing.md"},
        {"End to end": "end_to_end.md"},
        {"Glossary": "glossary.md"},
        *(
            {chapter: [{title(name): f"recipes/{name}.md"} for name in names]}
            for chapter, names in CHAPTERS.items()
        ),
        {
            "Notebooks": [
                *({title(name): f"notebooks/{name}.ipynb"} for name in RECIPES),
                {"End to end": "notebooks/end_to_end.ipynb"},
            ]
        },
        {"What was tested": "guarantees.md"},
        {
            "Benchmarks": [
                {"All recipes": "benchmarks/index.md"},
                *({title(name): f"benchmarks/{name}.md"} for name in RECIPES),
            ]
        },
    ]
    return config


@event_priority(100)  # before mkdocs-jupyter, which renders the notebooks among the files
def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in RECIPES:
        notebook = f"notebooks/{name}.ipynb"
        files.append(File(notebook, str(ROOT), config.site_dir, config.use_directory_urls))
        recipe = str(ROOT / "recipes" / f"{name}.py")
        files.append(File.generated(config, f"files/{name}.py", abs_src_path=recipe))
    capstone = "notebooks/end_to_end.ipynb"  # the notebook of all recipes
    files.append(File(capstone, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


ABOUT = {"recipes": "", "notebooks": "Notebook: ", "benchmarks": "Measured: "}  # by folder


def split(page: Page) -> tuple[str, str]:
    """Return folder and name of a page that belongs to a recipe, otherwise two empty strings."""
    folder, _, file = page.file.src_uri.rpartition("/")
    name = file.partition(".")[0]
    return (folder, name) if folder in ABOUT and name in RECIPES else ("", "")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Say what search engines, previews of links and our own search read."""
    folder, name = split(page)
    about = (name and ABOUT[folder] + promise(name)) or first(markdown)
    page.meta.setdefault("description", about or config.site_description)
    page.meta.setdefault("search", {"boost": 2 if folder == "recipes" else 0.5})
    if folder == "recipes":
        page.meta["tags"] = list(SEARCH_WORDS.get(name, ()))


def first(markdown: str) -> str:
    """Return the first paragraph of a page."""
    paragraphs = (text for text in markdown.split("\n\n") if re.match(r"[A-Z]", text))
    return " ".join(next(paragraphs, "").split())


@event_priority(100)  # before the search plugin, which indexes the page
def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give each recipe's page its buttons and links, and those of its notebook and figures one."""
    folder, name = split(page)
    if folder == "notebooks":  # to another notebook
        html = re.sub(rf'href="(?!{name}\b)(\w+)\.ipynb"', r'href="../\1/"', html)
    if folder != "recipes":
        back = get_relative_url(f"recipes/{name}/", page.url)
        return f'<p>The recipe: <a href="{back}">{title(name)}</a></p>\n{html}' if name else html
    file = get_relative_url(f"files/{name}.py", page.url)
    copy = f'<button class="take" type="button" data-copy-file="{file}">Copy the file</button>'
    promised, end, rest = html.partition("</p>")
    rest = rest.replace("<p><a download", f"<p>{copy} <a download", 1)
    rest = re.sub(EXAMPLE, whole_file(name).replace("\\", r"\\"), rest, count=1, flags=re.S)
    # Words find words: code would fill the results (names of functions are found under API).
    rest = rest.replace(
        '<div class="highlight">', '<div class="highlight" data-search-exclude="true">'
    )
    at = RECIPES.index(name)
    before, after = RECIPES[:at][-1:], RECIPES[at + 1 :][:1]
    take = config.theme.get_env().get_template("recipe.html")
    box = take.render(
        config=config,
        name=name,
        file=file,
        copy=copy,
        packages=packages(name),
        notebook=get_relative_url(f"notebooks/{name}/", page.url),
        beside=[
            (word, get_relative_url(f"recipes/{other}/", page.url), title(other))
            for word, others in (("Previous", before), ("Next", after))
            for other in others
        ],
        words=SEARCH_WORDS.get(name, ()),
    )
    return f"{promised}{end}\n{box}\n{rest}"


EXAMPLE = r"""<details class="example">\s*<summary>recipes/\w+\.py</summary>.*?</details>"""


def whole_file(name: str) -> str:
    """Return the folded file as it is: an include would leave out the markers of its sections."""
    source = (ROOT / "recipes" / f"{name}.py").read_text()
    code = highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    return (
        f'<details class="example" data-search-exclude="true"><summary>recipes/{name}.py</summary>'
        f'<div class="highlight no-copy"><pre><code>{code}</code></pre></div></details>'
    )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Mend what the theme and the notebooks' plugin leave wrong; tests/test_browser.py finds it."""
    output = labelled(output)
    for elsewhere in ELSEWHERE:
        output = re.sub(elsewhere, "", output, flags=re.S)
    return output


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    return labelled(output_content) if template_name.endswith(".html") else output_content


def labelled(output: str) -> str:
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


# What a notebook would load from other hosts, for formulas and diagrams: ours have none.
ELSEWHERE = (
    r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->",
    r'<script type="module">(?:(?!</script>).)*?//cdnjs.*?</script>',
)
