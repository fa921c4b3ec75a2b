"""The index of recipes is that of the recipes' first lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import index
from tests.contract import ROOT

MARKERS = "<!-- recipes:start -->\n<!-- recipes:end -->\n"


@pytest.mark.parametrize("page", index.PAGES)
def test_the_index_has_not_drifted(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == index.with_index(ROOT, page), f"it has drifted: {index.COMMAND}"


def test_write_puts_it_between_the_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("recipes", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "recipes/b.py").write_text('"""Do a | b."""\n')
    (tmp_path / "recipes/a.py").write_text('"""Do a."""\n')
    (tmp_path / "docs/hooks.py").write_text("CHAPTERS = {'One': ('b', 'a', 'c'), 'Two': ('d',)}\n")
    (tmp_path / "README.md").write_text(f"# Hello\n{MARKERS}Bye\n")
    (tmp_path / "docs/index.md").write_text(MARKERS)

    assert index.main([], tmp_path) == 1
    assert "README.md: has drifted" in capsys.readouterr().out
    assert index.main(["--write"], tmp_path) == 0
    assert index.main([], tmp_path) == 0
    with pytest.raises(SystemExit):
        index.main(["--wirte"], tmp_path)

    readme, site = ((tmp_path / page).read_text() for page in ("README.md", "docs/index.md"))
    assert readme.startswith("# Hello\n<!-- recipes:start -->\n\n| |")
    assert readme.endswith("<!-- recipes:end -->\nBye\n")
    assert r"| **One** | [b](docs/recipes/b.md) | Do a \| b. | [file](recipes/b.py)" in readme
    assert "|  | [a](docs/recipes/a.md) | Do a. |" in readme
    assert "Two" not in readme
    assert "[b](recipes/b.md)" in site
    assert "[file](files/b.py) · [notebook](notebooks/b.ipynb)" in site
