"""connect() and `python -m recipes`: what a newcomer meets first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import recipes
from recipes import ServerUnreachable, connect, free_port, url_of

ROOT = Path(__file__).parent.parent


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "REDIS_URL"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def test_fake_clients_of_one_process_share_their_data() -> None:
    connect("fake://shared").set("k", "v")
    assert connect("fake://shared").get("k") == b"v"
    assert connect("fake://other").get("k") is None


@pytest.mark.real_redis
def test_a_named_server_is_used_and_its_url_leads_back(r: redis.Redis) -> None:
    connect(url_of(r)).set("k", "v")
    assert redis.Redis.from_url(url_of(connect(url_of(r)))).get("k") == b"v"
    assert r.get("k") == b"v"


@pytest.mark.real_redis
def test_without_a_url_an_embedded_server_starts_and_ends_with_the_process() -> None:
    program = (
        "from recipes import connect, url_of; r = connect(); r.set('k', 'v');"
        "assert url_of(connect()) == url_of(r); print(url_of(r), r.get('k').decode())"
    )
    result = run("-c", program)
    assert result.returncode == 0, result.stderr
    url, value = result.stdout.split()
    assert value == "v"
    with pytest.raises(ServerUnreachable):
        connect(url)


def test_without_the_wheel_fakeredis_is_used_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(recipes, "embedded_binary", lambda: None)
    assert connect().ping()
    assert "using fakeredis" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:{port}/0", "nonsense://x"])
def test_an_unreachable_server_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ServerUnreachable, match="REDIS_URL") as caught:
        connect(url.format(port=free_port()))
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_gets_one_line_and_no_traceback() -> None:
    result = run("-m", "recipes", REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "REDIS_URL" in result.stderr


def test_an_unknown_recipe_gets_one_line_that_names_those_there_are() -> None:
    result = run("-m", "recipes", "no_such_recipe")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "training_data" in result.stderr


def test_the_demos_end_in_a_summary(tmp_path: Path) -> None:
    result = run("-m", "recipes", "training_data", REDIS_URL="fake://", COLUMNS="160")
    assert result.returncode == 0, result.stderr
    expected = (ROOT / "docs" / "expected" / "training_data.txt").read_text()
    assert expected in result.stdout
    assert expected.splitlines()[-1] in result.stdout.rpartition(expected)[2]


@pytest.mark.real_redis
def test_every_demo_runs_on_an_embedded_server() -> None:
    result = run("-m", "recipes", COLUMNS="160")
    assert result.returncode == 0, result.stdout + result.stderr
