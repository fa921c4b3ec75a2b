"""Rules that are seen only when the recipe runs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import ModuleType

import redis
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contract.anatomy import Recipe, installed_modules

DEMO_SECONDS = 5.0  # of processor time, so that a busy machine does not matter

# The packages are imported first: what they do at import is not the recipe's doing.
_WATCHED_IMPORT = """
import importlib, sys, threading
for name in sys.argv[2:]:
    importlib.import_module(name)
seen = []
def watch(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event.startswith(("socket.", "subprocess.", "os.system")):
        seen.append(event)
start = threading.Thread.start
threading.Thread.start = lambda thread: (seen.append("a thread"), start(thread))
sys.addaudithook(watch)
importlib.import_module(sys.argv[1])
print(*seen)
"""

_ONLY_NAMED_PACKAGES = """
import os, sys
from importlib.machinery import PathFinder
class OnlyNamed:
    allowed = {*sys.stdlib_module_names, "usercustomize", *os.environ["ALLOWED_MODULES"].split()}
    def find_spec(self, name, path=None, target=None):
        is_stdlib = name.startswith("_sysconfigdata")  # made when Python is built: not listed
        if path or name in self.allowed or is_stdlib:
            return PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyNamed()
"""


def quiet_import(root: Path, stem: str) -> list[str]:
    """Importing the recipe opens no socket, writes no file, starts nothing, prints nothing."""
    modules = {name for name, _, at_once in Recipe(root, stem).source.imports() if at_once}
    command = [sys.executable, "-B", "-c", _WATCHED_IMPORT, stem, *sorted(modules)]
    run = _run(command, root, PYTHONPATH=str(root / "recipes"))
    if run.returncode:
        return [f"it cannot be imported: {run.stderr[-1000:]}"]
    return [f"importing it does or prints: {run.stdout.strip()}"] if run.stdout.strip() else []


def standalone(root: Path, stem: str, url: str, folder: Path) -> list[str]:
    """Alone in an empty folder, with only the packages that it requires, it prints the same."""
    recipe = Recipe(root, stem)
    if recipe.packages is None:
        return ["its Needs: line cannot be read"]
    project, prelude = folder / "project", folder / "prelude"
    project.mkdir(parents=True)
    prelude.mkdir()
    shutil.copy(recipe.path("recipe"), project)
    (prelude / "sitecustomize.py").write_text(_ONLY_NAMED_PACKAGES)
    allowed = " ".join(sorted(modules_of(recipe.packages[0])))
    command = [sys.executable, "-B", f"{stem}.py"]
    run = _run(command, project, REDIS_URL=url, PYTHONPATH=str(prelude), ALLOWED_MODULES=allowed)
    if run.returncode or "Warning" in run.stderr:
        return [f"copied alone, `python {stem}.py` fails or warns: {run.stderr[-2000:]}"]
    left = [f"it left a file: {path.name}" for path in project.iterdir() if path.stem != stem]
    return [*_difference(recipe, run.stdout), *left]


def demo_run(root: Path, stem: str, r: redis.Redis) -> list[str]:
    """The demo prints what the page shows, in time, and leaves no key and no thread."""
    recipe = Recipe(root, stem)
    module = _load(recipe.path("recipe"))
    keys, threads = r.dbsize(), set(threading.enumerate())
    begin = time.process_time()
    printed = _printed(module, r)
    seconds = time.process_time() - begin
    problems = _difference(recipe, printed)
    if r.dbsize() != keys:
        left = [key for key, _ in zip(r.scan_iter(), range(5), strict=False)]
        problems.append(f"demo left {r.dbsize() - keys} keys, such as {left}")
    started = [thread for thread in threading.enumerate() if thread not in threads]
    if left_over := [t.name for t in started if type(t).__name__ != "TMonitor"]:  # tqdm's own
        problems.append(f"demo left threads: {', '.join(left_over)}")
    if seconds > DEMO_SECONDS and sys.gettrace() is None:  # coverage doubles the time
        problems.append(f"demo took {seconds:.1f} s of processor time; at most {DEMO_SECONDS}")
    return problems


def write_expected(root: Path, stem: str, r: redis.Redis) -> Path:
    """Write what the demo prints to docs/expected; returns the file's path."""
    recipe = Recipe(root, stem)
    path = recipe.path("expected")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_printed(_load(recipe.path("recipe")), r), encoding="utf-8")
    return path


def decoded_run(root: Path, stem: str, r: redis.Redis) -> list[str]:
    """With a client that decodes, the demo prints the same, or refuses it and has written nothing.

    What fails late, in the middle of a reply, has often written before.
    """
    try:
        return demo_run(root, stem, r)
    except Exception as error:
        is_refused = isinstance(error, TypeError) and "decode_responses" in str(error)
        problems = [] if is_refused else [f"a client that decodes is not refused: {error!r}"]
    if keys := r.dbsize():
        problems.append(f"with a client that decodes, demo left {keys} keys")
    return problems


def modules_of(packages: set[str]) -> set[str]:
    """The modules that `pip install` of these packages brings, without extras."""
    brought, waiting = set(), set(packages)
    while waiting:
        package = waiting.pop()
        brought.add(package)
        for text in metadata.requires(package) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting |= {canonicalize_name(wanted.name)} - brought
    return {module for module, owners in installed_modules().items() if brought & set(owners)}


def _load(path: Path) -> ModuleType:
    name = f"contract_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def _printed(module: ModuleType, r: redis.Redis) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        module.demo(r)
    return printed.getvalue()


def _run(command: list[str], folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def _difference(recipe: Recipe, printed: str) -> list[str]:
    path = recipe.path("expected")
    if path.exists() and path.read_text(encoding="utf-8") == printed:
        return []
    write = f".venv/bin/python -m tests.contract --write-expected {recipe.stem}"
    return [f"{recipe.name('expected')} is not what demo prints ({write}):\n{printed}"]
