"""The test servers themselves: they start, serve, fail on demand, and are gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests import servers

pytestmark = pytest.mark.real_redis
ROOT = Path(__file__).parent.parent


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_r_is_empty_and_answers(r: redis.Redis) -> None:
    assert r.dbsize() == 0
    r.set("k", b"\x00\xff")
    assert r.get("k") == b"\x00\xff"


def test_a_lone_server_survives_kill_with_its_append_only_file(server_kind: str) -> None:
    with servers.lone(server_kind, "--appendonly", "yes", "--appendfsync", "always") as server:
        server.client().set("k", "v")
        server.kill()
        with pytest.raises(redis.ConnectionError):
            server.client(retry=None).ping()
        server.start_again()
        assert server.client().get("k") == b"v"
    assert not is_alive(server.pid)
    assert not server.folder.exists()


def test_a_replica_follows(server_kind: str) -> None:
    with servers.replicated(server_kind, replicas=1) as (primary, (replica,)):
        primary.client().set("k", "v")
        assert primary.client().wait(1, 5000) == 1
        assert replica.client().get("k") == b"v"


def test_a_frozen_server_does_not_answer_until_woken(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            server.client(socket_timeout=0.2, retry=None).ping()
        server.wake()
        assert server.client(retry=None).ping()


def test_a_cluster_has_three_primaries(cluster: redis.RedisCluster) -> None:
    for i in range(100):
        cluster.set(f"k{i}", i)
    counts = [cluster.dbsize(target_nodes=node) for node in cluster.get_primaries()]
    assert len(counts) == 3 and sum(counts) == 100 and min(counts) > 0


def test_a_cluster_with_replicas_fails_over(server_kind: str) -> None:
    with servers.cluster(server_kind, replicas=3) as nodes:
        nodes.primaries[0].kill()
        servers.wait_until(
            lambda: nodes.replicas[0].client().info("replication")["role"] == "master",
            what="the replica takes over",
        )


def test_sentinels_fail_over(server_kind: str) -> None:
    with servers.sentinel(server_kind) as (primary, _, watchers):
        primary.kill()
        servers.wait_until(
            lambda: watchers[0].client().sentinel_master("main")["port"] != primary.port,
            what="another primary is named",
        )


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_no_server_and_no_folder(server_kind: str, ending: int) -> None:
    program = (  # a run in the background of a shell inherits that SIGINT is ignored
        "import signal, time; from tests import servers\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"s = servers.Server(servers.binary({server_kind!r}), *servers.VOLATILE)\n"
        "print(s.pid, s.folder, flush=True); time.sleep(600)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    assert run.stdout is not None
    pid, folder = run.stdout.readline().split()
    run.send_signal(ending)
    run.wait()
    run.stdout.close()
    servers.wait_until(lambda: not is_alive(int(pid)), what="the server is gone")
    servers.wait_until(lambda: not Path(folder.decode()).exists(), what="its folder is gone")
