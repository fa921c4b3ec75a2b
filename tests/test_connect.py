"""connect() and `python -m recipes`: what a newcomer meets first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import recipes.__main__
from recipes import (
    GuardedServer,
    ServerUnreachable,
    connect,
    free_port,
    url_of,
    without_password,
)
from tests import servers

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


@pytest.mark.real_redis
def test_a_server_that_wants_a_password_is_told_from_none(server_kind: str) -> None:
    with servers.lone(server_kind, *servers.VOLATILE) as server:
        server.client().config_set("requirepass", "a:/secret")
        with pytest.raises(ServerUnreachable, match=r"wants a password.*redis://:PASSWORD@"):
            connect(server.url)
        with pytest.raises(ServerUnreachable, match="refuses this password") as caught:
            connect(server.url.replace("//", "//:wr0ng@"))
        assert "wr0ng" not in str(caught.value)
        with pytest.raises(ServerUnreachable, match="DB index is out of range"):
            connect(f"redis://:a%3A%2Fsecret@127.0.0.1:{server.port}/99")
        r = connect(server.url.replace("//", "//:a%3A%2Fsecret@"))
        assert connect(url_of(r)).ping()


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("localhost:6379", "Write redis://localhost:6379,"),
        (":secret@localhost:6379", r"Write redis://:\*\*\*@localhost:6379,"),
        ("redis://:sec/ret@localhost", "Write redis://HOST:PORT,"),
        ("redis://localhost:secret", "Write redis://HOST:PORT,"),
        ("redis://[::1", "Write redis://HOST:PORT,"),
        ("http://localhost:6379", "Write redis://HOST:PORT,"),
    ],
)
def test_what_is_no_url_is_told_from_no_server(url: str, form: str) -> None:
    with pytest.raises(ServerUnreachable, match=f"is no URL of a Redis server. {form}") as caught:
        connect(url)
    assert "sec/ret" not in str(caught.value) and ":secret@" not in str(caught.value)


def test_a_url_is_shown_without_its_password() -> None:
    assert without_password("redis://h:1/0") == "redis://h:1/0"
    assert without_password("redis://:p@h:1/0") == "redis://:***@h:1/0"
    assert without_password("rediss://user:p@q:r/s@h:1") == "rediss://user:***@h:1"
    assert without_password("unix:///s?db=1&password=p&x=y") == "unix:///s?db=1&password=***&x=y"


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


def test_the_demos_end_in_a_summary() -> None:
    result = run("-m", "recipes", "training_data", REDIS_URL="fake://", COLUMNS="160")
    assert result.returncode == 0, result.stderr
    expected = (ROOT / "docs" / "expected" / "training_data.txt").read_text()
    assert expected in result.stdout
    assert expected.splitlines()[-1] in result.stdout.rpartition(expected)[2]
    first, *_, last = result.stdout.splitlines()
    assert first == "Server: fakeredis, in this process"
    assert last == "1 of 1 ran. Next: make lab (the notebooks), make site (the docs)."


@pytest.mark.real_redis
def test_a_server_of_the_readers_own_is_named_without_its_password(server_kind: str) -> None:
    with servers.lone(server_kind, *servers.VOLATILE) as server:
        server.client().execute_command("ACL SETUSER", "u", "on", ">secret", "~*", "&*", "+@all")
        url = server.url.replace("//", "//u:secret@")
        shown = server.url.replace("//", "//u:***@")
        result = run("-m", "recipes", "training_data", REDIS_URL=url)
        assert result.returncode == 0, result.stdout + result.stderr
        kind = {"valkey": "Valkey", "redis": "Redis"}[server_kind]
        assert re.match(rf"Server: {kind} \d[.\d]+ at {re.escape(shown)}\n", result.stdout)
        server.client().execute_command("ACL SETUSER", "u", "-info")
        result = run("-m", "recipes", "training_data", REDIS_URL=url)
        assert result.stdout.startswith(f"Server: Redis (version unknown) at {shown}\n")


@pytest.mark.real_redis
def test_every_demo_runs_on_an_embedded_server() -> None:
    result = run("-m", "recipes", COLUMNS="160")
    assert result.returncode == 0, result.stdout + result.stderr
    first, *_, last = result.stdout.splitlines()
    assert re.fullmatch(r"Server: embedded Valkey \d[.\d]+", first)
    assert re.match(r"(\d+) of \1 ran\. Next: ", last)


def test_a_demo_that_fails_is_named_in_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(r: redis.Redis) -> None:
        raise redis.ResponseError("no")

    monkeypatch.setenv("REDIS_URL", "fake://")
    monkeypatch.setattr("recipes.training_data.demo", fail)
    assert recipes.__main__.main(["training_data", "tensor_compression"]) == 1
    assert capsys.readouterr().out.endswith("\n1 of 2 ran. FAILED: training_data.\n")


# --- A server's process, and its folder -----------------------------------------------------------


@pytest.fixture
def without_ps(tmp_path: Path) -> str:
    """A PATH as in small images: it has no ps."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("sh", "rm"):
        (folder / program).symlink_to(shutil.which(program))  # type: ignore[arg-type]
    return str(folder)


@pytest.mark.real_redis
def test_without_ps_the_demos_run_and_leave_nothing(without_ps: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    result = run("-m", "recipes", "training_data", PATH=without_ps, TMPDIR=str(tmp_path / "tmp"))
    assert result.returncode == 0, result.stderr
    assert [*(tmp_path / "tmp").glob("cookbook-*")] == []


HAS_PS = ["ps"] * bool(shutil.which("ps"))


@pytest.mark.parametrize("by", ["/proc", *HAS_PS, "kill"])
def test_a_process_that_has_ended_is_told_from_one_that_runs(
    by: str, without_ps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = subprocess.Popen(["sleep", "60"])
    ended = subprocess.Popen(["sleep", "0"])
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # and stays a zombie
        if by != "/proc":
            monkeypatch.setattr(recipes, "PROC", tmp_path)
        if by == "kill":
            monkeypatch.setenv("PATH", without_ps)
        assert recipes._state_of(running.pid) in ("S", "R", "D")
        assert recipes._state_of(ended.pid) == ("S" if by == "kill" else "Z")
    finally:
        running.kill()
        running.wait()
        ended.wait()
    assert recipes._state_of(ended.pid) == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks Linux's own calls")
@pytest.mark.parametrize("by", ["/proc", *HAS_PS])
def test_a_process_whose_threads_still_run_has_not_ended(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import ctypes, threading, time; print(flush=True);"
        "threading.Thread(target=time.sleep, args=(600,)).start();"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        stat = Path(f"/proc/{running.pid}/stat")
        servers.wait_until(lambda: ") Z " in stat.read_text(), what="its first thread is gone")
        if by == "ps":
            monkeypatch.setattr(recipes, "PROC", tmp_path)
        assert recipes._state_of(running.pid) == "R"
    finally:
        running.kill()
        running.communicate()
    assert recipes._state_of(running.pid) == ""


@pytest.mark.real_redis
def test_no_folder_is_left_of_a_server_that_is_stopped(
    server_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()  # the file of its lock is not in the folder of this test
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = servers.Server(servers.binary(server_kind), *servers.VOLATILE, port=port)
    server.stop(keep_folder=True)
    assert [*tmp_path.iterdir()] == [server.folder]
    server.stop()
    assert [*tmp_path.iterdir()] == []

    def interrupt(server: GuardedServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GuardedServer, "_wait_until_it_listens", interrupt)
    with pytest.raises(KeyboardInterrupt):
        servers.Server(servers.binary(server_kind), *servers.VOLATILE)
    assert [*tmp_path.iterdir()] == []


def test_a_port_is_given_to_one_process_only_and_once(tmp_path: Path) -> None:
    """Of 30 ports, two processes take 10 each. A folder of its own keeps the run's locks out."""
    program = (
        "import recipes, sys; recipes.PORTS = range(19_000, 19_030);"
        "print(*(recipes.free_port() for _ in range(10)), flush=True); sys.stdin.read()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    taken = [port for process in processes for port in process.stdout.readline().split()]  # type: ignore[union-attr]
    for process in processes:
        process.communicate()
    assert len(set(taken)) == len(taken) == 20


@pytest.mark.real_redis
def test_a_server_that_has_the_port_does_not_pass_for_the_one_that_is_started(
    r: redis.Redis, server_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    port = r.connection_pool.connection_kwargs["port"]
    with pytest.raises(ServerUnreachable, match=f"Port {port} is taken"):
        GuardedServer(servers.binary(server_kind), *servers.VOLATILE, port=port)
    assert [*tmp_path.iterdir()] == []
