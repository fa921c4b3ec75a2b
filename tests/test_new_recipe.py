"""A new recipe works at once, and the contract says what is left to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import new_recipe
from tests.contract import HOUSE_RULES, ROOT, RULES

STEM = "running_mean"
HOUSE = ("pyproject.toml", "recipes/__init__.py", "benchmarks/__init__.py", "benchmarks/harness.py",
         "benchmarks/overview.py", "tests/__init__.py", "tests/conftest.py", "tests/guarantees.py",
         "tests/servers.py", "tests/recipes/__init__.py", "docs/hooks.py")  # fmt: skip
# What a scaffold cannot do: be long enough, and choose the chapter.
LEFT_TO_PEOPLE = {"chapter", "lines", "page_words"}
LEFT_TO_RUN = {"files", "notebook_outputs", "page_includes", "page_pictures"}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the house without recipes."""
    for path in HOUSE:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def broken_rules(root: Path) -> set[str]:
    broken = {name for name, rule in RULES.items() if rule(root, STEM)}
    return broken | {name for name, rule in HOUSE_RULES.items() if rule(root)}


def run(root: Path, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_names_the_files_and_the_next_steps(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new_recipe.main([STEM, "--title", "A mean that runs"], house) == 0
    printed = capsys.readouterr().out
    paths = [line for line in printed.splitlines() if (house / line).is_file()]
    assert len(paths) == 6
    for what in ("pytest", "tests.contract --write-expected", "tests.contract"):
        assert f"    .venv/bin/python -m {what} " in printed
    page = (house / f"docs/recipes/{STEM}.md").read_text(encoding="utf-8")
    assert page.startswith("# A mean that runs\n")


def test_the_contract_says_what_is_missing(house: Path) -> None:
    new_recipe.write(house, STEM, "Running mean")
    assert broken_rules(house) == LEFT_TO_PEOPLE | LEFT_TO_RUN


def test_what_it_writes_is_clean_and_passes(house: Path) -> None:
    new_recipe.write(house, STEM, "Running mean")
    for path in new_recipe.files(STEM, "Running mean"):
        if path.endswith((".py", ".ipynb")):
            run(house, "ruff", "check", path)
            run(house, "ruff", "format", "--check", path)
    run(house, "mypy", "--strict", f"recipes/{STEM}.py")
    run(house, "pytest", "-q", "--servers=fake", "-p", "no:cacheprovider", "tests/recipes")


@pytest.mark.real_redis
def test_once_it_has_run_only_writing_is_left(
    house: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    new_recipe.write(house, STEM, "Running mean")
    book = f"notebooks/{STEM}.ipynb"
    run(house, "nbconvert", "--to=notebook", "--execute", "--inplace", book)
    run(house, f"benchmarks.bench_{STEM}")
    assert broken_rules(house) == LEFT_TO_PEOPLE


@pytest.mark.parametrize(
    "name", ["compression", "queue", "redis", "Params", "step_1", "a-b", "x/y"]
)
def test_a_bad_name_is_refused(name: str, house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(house.rglob("*"))
    assert new_recipe.main([name], house) == 2
    assert repr(name) in capsys.readouterr().err
    assert sorted(house.rglob("*")) == before


@pytest.mark.parametrize("there", [f"recipes/{STEM}.py", f"docs/recipes/{STEM}.md"])
def test_an_existing_file_is_never_overwritten(
    there: str, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (house / there).parent.mkdir(parents=True, exist_ok=True)
    (house / there).write_text("mine")
    before = sorted(house.rglob("*"))
    assert new_recipe.main([STEM], house) == 2
    assert f"{there} is there already" in capsys.readouterr().err
    assert (house / there).read_text() == "mine"
    assert sorted(house.rglob("*")) == before
