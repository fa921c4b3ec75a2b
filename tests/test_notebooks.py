"""Every notebook runs again on every server, and prints what is stored in it (strict nbval)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import redis
from nbformat import v4

from recipes import url_of

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(notebook: Path, url: str) -> subprocess.CompletedProcess[str]:
    result = run_once(notebook, url)
    # jupyter_client looks for free ports, and the kernel takes them later: another process may
    # have been faster (github.com/jupyter/jupyter_client/issues/487). No cell has run then.
    if "Kernel died before replying to kernel_info" in result.stdout:
        result = run_once(notebook, url)
    return result


def run_once(notebook: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p",
         "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-o", "timeout=60", str(notebook)],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": url, "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        capture_output=True,
        text=True,
    )  # fmt: skip


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_stored(notebook: Path, r: redis.Redis, server_kind: str) -> None:
    result = run(notebook, "fake://" if server_kind == "fake" else url_of(r))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert server_kind == "fake" or r.dbsize() == 0, "the notebook leaves keys behind"


@pytest.mark.parametrize("stored", ["42", "41"])
def test_a_wrong_stored_output_is_noticed_and_a_right_one_passes(
    stored: str, tmp_path: Path
) -> None:
    cell = v4.new_code_cell("6 * 7", execution_count=1)
    cell.outputs = [v4.new_output("execute_result", {"text/plain": stored}, execution_count=1)]
    nbformat.write(v4.new_notebook(cells=[cell]), tmp_path / "stored.ipynb")
    result = run(tmp_path / "stored.ipynb", "fake://")
    assert (result.returncode, "outputs differ" in result.stdout) == (
        (0, False) if stored == "42" else (1, True)
    )
