"""The list of mutants fits the recipes and their tests. (`python -m tests.mutants` runs it.)"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import mutants
from tests.contract import ROOT, stems
from tests.mutants import MUTANTS, Mutant

AT_LEAST = 4  # mutants of a recipe
LISTED = [(stem, mutant) for stem, listed in MUTANTS.items() for mutant in listed]


@pytest.mark.parametrize("stem", stems(ROOT))
def test_each_recipe_has_mutants(stem: str) -> None:
    listed = MUTANTS.get(stem, [])
    assert len(listed) >= AT_LEAST, (
        f"{stem} has {len(listed)} mutants, and wants {AT_LEAST}: in MUTANTS of tests/mutants.py "
        "name texts of the recipe that its guarantees hang on, and the tests that fail without "
        f"them; then: .venv/bin/python -m tests.mutants {stem}"
    )
    assert len({(mutant.old, mutant.new) for mutant in listed}) == len(listed), "one stands twice"


@pytest.mark.parametrize(("stem", "mutant"), LISTED, ids=lambda x: getattr(x, "guarantee", x))
def test_a_mutant_stands_once_and_its_tests_are_there(stem: str, mutant: Mutant) -> None:
    recipe = mutants.recipe(ROOT, stem).read_text(encoding="utf-8")
    ast.parse(mutants.mutated(recipe, mutant))
    tests = ast.parse((ROOT / f"tests/recipes/test_{stem}.py").read_text(encoding="utf-8"))
    there = {node.name for node in tests.body if isinstance(node, ast.FunctionDef)}
    assert set(mutant.tests.split()) <= there and mutant.tests


ADD = "def add(a, b):\n    return a + b\n"
TESTS = """
import pytest
from recipes.add import add

def test_good(): assert add(2, 3) == 5
def test_bad(): assert add(2, 2) == 4
def test_broken(): assert False
def test_skipped(): pytest.skip()
def test_alarm(): assert add(2, 3) == 5
def test_alarm_always(): assert add(2, 3) == 5
"""
CONFTEST = """
from pathlib import Path

def pytest_addoption(parser):
    parser.addoption("--servers")

def pytest_runtest_makereport(item):
    if "alarm" in item.name and "a * b" in Path("recipes/add.py").read_text():
        if "always" in item.name or not Path("broke").exists():
            Path("broke").touch()
            raise TypeError("pytest breaks")
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house with one recipe, `add`, and tests of all kinds."""
    for name, text in {
        "conftest.py": CONFTEST, "recipes/add.py": ADD, "tests/recipes/test_add.py": TESTS,
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    return tmp_path


def test_only_a_test_that_fails_by_the_mutant_is_a_catch(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Mutant("caught", "a + b", "a * b", "test_good")
    listed = [
        good,
        Mutant("survives", "a + b", "a * b", "test_bad"),
        Mutant("gone", "a - b", "a * b", "test_good"),
        Mutant("often", "a", "b", "test_good"),
        Mutant("no program", "a + b", "a +", "test_good"),
        Mutant("pytest breaks", "a + b", "a * b", "test_alarm_always"),
    ]
    monkeypatch.setattr(mutants, "MUTANTS", {"add": [good]})
    assert mutants.main(["add"]) == 0
    assert "| add | caught | `test_good` |" in capsys.readouterr().out
    monkeypatch.setattr(mutants, "MUTANTS", {"add": listed})
    assert mutants.main([]) == 1
    _, problems = capsys.readouterr().out.split("Problems:")
    for problem in (
        "survives: passed", "gone: stands", "often: stands", "no program: pytest ended with",
        "pytest breaks: pytest ended with 3",
    ):  # fmt: skip
        assert problem in problems
    assert "caught" not in problems
    assert (house / "recipes/add.py").read_text() == ADD


@pytest.mark.parametrize(
    ("tests", "problem"),
    [("test_none", "pytest ended"), ("test_broken", "failed"), ("test_skipped", "skipped")],
)
def test_a_test_that_does_not_pass_without_a_mutant_tells_nothing(
    house: Path, tests: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "MUTANTS", {"add": [Mutant("it adds", "a + b", "a * b", tests)]})
    rows, problems = mutants.attack(house, "add")
    assert rows == [] and problems[0].startswith(f"add as it is, on fake: {problem}")


def test_if_pytest_itself_breaks_it_runs_once_more(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = Mutant("it adds", "a + b", "a * b", "test_alarm")
    monkeypatch.setattr(mutants, "MUTANTS", {"add": [mutant]})
    assert mutants.attack(house, "add") == (["| add | it adds | `test_alarm` |"], [])
    assert (house / "broke").exists()
