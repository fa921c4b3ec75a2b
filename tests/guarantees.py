"""What each guarantee was tested with: recorded by a run of the tests, shown on docs/guarantees.md.

    python -m pytest -n 2 --guarantees=tests/guarantees.json    record, then write the page
    python -m tests.guarantees --write                          write it from the last record

A recipe's page names a test beside each guarantee. The record, tests/guarantees.json, says for
each of these tests on which servers it ran, and whether it killed or froze a process there. What
a test does to clean up (in a `finally`) does not count. A test that fails is struck off.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import linecache
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests import servers
from tests.contract import ROOT, Recipe, chapters, stems
from tests.contract.anatomy import blank_fences
from tests.contract.page import TEST_NAME

RECORD = "tests/guarantees.json"
PAGE = "docs/guarantees.md"
MARKS = {
    "fake": "fakeredis", "valkey": "Valkey", "redis": "Redis", "cluster": "Cluster",
    "sentinel": "Sentinel", "kill -9": "kill -9", "frozen": "frozen",
}  # fmt: skip
SIGNALS = {signal.SIGKILL: "kill -9", signal.SIGSTOP: "frozen"}
INTRODUCTION = """\
---
hide: [toc]
---

# What each guarantee was tested with

Each guarantee on a recipe's page names the tests that prove it. This is what those tests ran on
when they last passed. A run of the tests wrote it:
`python -m pytest -n 2 --guarantees=tests/guarantees.json`.

{versions}

- **fakeredis**, **Valkey**, **Redis**: the test passed there, on a lone server if no other column
  says more. Every server is a real process on loopback, but for fakeredis, which is in-process.
- **Cluster**, **Sentinel**: Redis Cluster of three primaries or more; a primary and its replicas,
  watched by Sentinels.
- **kill -9**: the test killed a server, a worker or a writer at work. **frozen**: it stopped one
  (SIGSTOP), as a long pause or a network cut does.
- A row without any mark needs no server: the test is about bytes, numbers or files. A child that
  kills itself is not seen, so no mark does not mean that nothing was killed.

Other versions that a recipe names under `Needs:` follow from the documentation of the commands
it uses; they were not tested.

A power cut, a disk that lies about fsync and a network between machines are not in this table.
"""

Record = dict[str, Any]


# --- Recording ------------------------------------------------------------------------------------


class Recorder:
    """A plugin that notes what each test uses; under xdist the workers note, the main one writes.

    Into tests/guarantees.json go the tests that a page names; into any other file, all.
    """

    def __init__(self, config: pytest.Config, file: str) -> None:
        self.file = ROOT / file
        self.is_worker = hasattr(config, "workerinput")
        self.by_fixture: dict[str, set[str]] = {}
        self.passed: dict[str, set[str]] = {}
        self.failed: set[str] = set()
        self._kill = os.kill

    def pytest_sessionstart(self) -> None:
        os.kill = self._noted_kill  # also that of subprocess, which calls it

    def pytest_unconfigure(self) -> None:
        os.kill = self._kill

    def _noted_kill(self, pid: int, number: int) -> None:
        if number in SIGNALS and not is_cleanup(sys._getframe(1)):
            servers.used.add(SIGNALS[signal.Signals(number)])
        self._kill(pid, number)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """A fixture that several tests share counts for each of them."""
        with noted() as used:
            result = yield
        self.by_fixture[fixturedef.argname] = used
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Iterator[None]:
        with noted() as used:
            result = yield
        for name in item.fixturenames:
            used |= self.by_fixture.get(name, set())
        kind = item.callspec.params.get("server_kind") if hasattr(item, "callspec") else None
        item.user_properties.append(("used", sorted(used | {kind} if kind else used)))
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if report.failed:
            self.failed.add(name)
        elif report.passed and report.when == "call":
            self.passed.setdefault(name, set()).update(dict(report.user_properties).get("used", ()))

    def pytest_sessionfinish(self) -> None:
        if self.is_worker:
            return
        record = load(self.file)
        ours = self.file == ROOT / RECORD
        wanted = {test for _, rows in proofs(ROOT) for _, test in rows} if ours else {*self.passed}
        tests = {name: marks for name, marks in record["tests"].items() if name in wanted}
        tests |= {n: [m for m in MARKS if m in u] for n, u in self.passed.items() if n in wanted}
        record = {
            "versions": versions(),
            "tests": {name: tests[name] for name in sorted({*tests} - self.failed)},
        }
        self.file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if ours:
            (ROOT / PAGE).write_text(page(ROOT), encoding="utf-8")


@contextlib.contextmanager
def noted() -> Iterator[set[str]]:
    """Collects what is used inside; what is around it does not see it."""
    outside, servers.used = servers.used, set()
    try:
        yield servers.used
    finally:
        servers.used = outside


def is_cleanup(frame: FrameType | None) -> bool:
    """Does this call come from a `finally` of a test or of a recipe?"""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if (file.name.startswith("test_") or file.parent == ROOT / "recipes") and any(
            frame.f_lineno in lines for lines in finally_lines(str(file))
        ):
            return True
        frame = frame.f_back
    return False


@functools.cache
def finally_lines(file: str) -> list[range]:
    nodes = ast.walk(ast.parse("".join(linecache.getlines(file))))
    bodies = [n.finalbody for n in nodes if isinstance(n, ast.Try) and n.finalbody]
    return [range(body[0].lineno, (body[-1].end_lineno or 0) + 1) for body in bodies]


def versions() -> dict[str, str]:
    """What the servers call themselves."""
    found = {"fake": metadata.version("fakeredis")}
    for kind in ("valkey", "redis"):
        said = subprocess.run([servers.binary(kind), "--version"], capture_output=True, text=True)
        found[kind] = said.stdout.partition("v=")[2].split()[0]
    return found


def load(file: Path) -> Record:
    empty: Record = {"versions": {}, "tests": {}}
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else empty


# --- The page -------------------------------------------------------------------------------------


def proofs(root: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each recipe with a page, in the site's order, and its guarantees, each with a test's id."""
    there = stems(root)
    for stem in (name for names in chapters(root).values() for name in names if name in there):
        recipe = Recipe(root, stem)
        if recipe.path("page").exists():
            yield stem, [*proofs_of(recipe)]


def proofs_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The table on the recipe's page, then what it says about tests in files of the house."""
    text = recipe.under("Guarantees and costs")
    house = tests_of_the_house(recipe.root)
    own = recipe.text("tests")
    for row in re.findall(r"(?m)^\|.*\|[ \t]*$", text)[2:]:
        for test in TEST_NAME.findall(row):
            file = recipe.name("tests") if f"def {test}(" in own else house.get(test, "")
            yield row.strip("| ").partition(" | ")[0], f"{file}::{test}"
    for paragraph in blank_fences(text).split("\n\n"):
        for file in re.findall(r"`(tests/test_\w+\.py)`", paragraph):
            guarantee = paragraph.strip().partition(". ")[0]
            names = (n for n, f in house.items() if f == file and n not in text)
            yield from (
                (guarantee, f"{file}::{name}")
                for name in names
                if name.startswith(f"test_{recipe.stem}_")
            )


def tests_of_the_house(root: Path) -> dict[str, str]:
    """Name of a test that is no recipe's own -> its file."""
    files = sorted((root / "tests").glob("test_*.py"))
    return {
        name: f"tests/{file.name}"
        for file in files
        for name in re.findall(r"(?m)^def (test_\w+)", file.read_text(encoding="utf-8"))
    }


def page(root: Path) -> str:
    record = load(root / RECORD)
    said = "; ".join(f"{MARKS[kind]} {number}" for kind, number in record["versions"].items())
    parts = [INTRODUCTION.format(versions=f"Servers: {said}."), summary(root, record["tests"])]
    parts += [
        f"## {stem}\n\n[The recipe](recipes/{stem}.md).\n\n{table(rows, record['tests'])}"
        for stem, rows in proofs(root)
    ]
    return "\n".join(parts)


def summary(root: Path, tests: dict[str, list[str]]) -> str:
    """How many of each recipe's proving tests ran on what."""
    lines = [("recipe", "tests", *MARKS.values()), ("---", ":-:", *[":-:"] * len(MARKS))]
    for stem, rows in proofs(root):
        used = [tests.get(test, []) for test in {test for _, test in rows}]
        counts = (sum(mark in marks for marks in used) for mark in MARKS)
        cells = (str(count or "") for count in (len(used), *counts))
        lines.append((f"[{stem}](#{stem})", *cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(rows: Iterable[tuple[str, str]], tests: dict[str, list[str]]) -> str:
    lines = [("guarantee", "test", *MARKS.values()), ("---", "---", *[":-:"] * len(MARKS))]
    last = ""
    for guarantee, test in rows:
        marks = ("✓" if mark in tests.get(test, ()) else "" for mark in MARKS)
        words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", guarantee)  # links lead from another folder
        lines.append((words if guarantee != last else "", f"`{test.split('::')[1]}`", *marks))
        last = guarantee
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    (ROOT / PAGE).write_text(page(ROOT), encoding="utf-8")
    print(f"wrote {PAGE}")
