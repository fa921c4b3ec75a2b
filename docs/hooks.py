"""Build hooks: the navigation, and the files outside of docs/ that are part of the site."""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

# The chapters of the site, in reading order. A recipe appears as soon as its page is there.
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


def recipes() -> dict[str, list[str]]:
    """Return the names of the recipes that there are, by chapter."""
    return {
        chapter: [name for name in names if (ROOT / "recipes" / f"{name}.py").exists()]
        for chapter, names in CHAPTERS.items()
    }


def promise(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    module = ast.parse((ROOT / "recipes" / f"{name}.py").read_text())
    return (ast.get_docstring(module) or "").partition("\n")[0]


def title(name: str) -> str:
    return name.replace("_", " ").capitalize().replace("Realtime", "Real-time")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    chapters = {chapter: names for chapter, names in recipes().items() if names}
    every = [name for names in chapters.values() for name in names]
    config.nav = [
        {"Home": "index.md"},
        {"Which recipe?": "choosing.md"},
        {"Glossary": "glossary.md"},
        *(
            {chapter: [{title(name): f"recipes/{name}.md"} for name in names]}
            for chapter, names in chapters.items()
        ),
        {"Notebooks": [{title(name): f"notebooks/{name}.ipynb"} for name in every]},
        {"What was tested": "guarantees.md"},
        {
            "Benchmarks": [
                {"All recipes": "benchmarks/index.md"},
                *({title(name): f"benchmarks/{name}.md"} for name in every),
            ]
        },
    ]
    return config


@event_priority(100)  # before mkdocs-jupyter, which renders the notebooks among the files
def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in (name for names in recipes().values() for name in names):
        notebook = f"notebooks/{name}.ipynb"
        files.append(File(notebook, str(ROOT), config.site_dir, config.use_directory_urls))
        recipe = str(ROOT / "recipes" / f"{name}.py")
        files.append(File.generated(config, f"files/{name}.py", abs_src_path=recipe))
    return files
