"""high_availability: primaries are killed and frozen, replies lost; nothing counts twice."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from recipes import free_port
from recipes import high_availability as ha
from recipes.high_availability import (
    NotReplicated,
    OutcomeUnknown,
    Unavailable,
    confirmed,
    connect,
    drill,
    is_idempotent,
    lossy,
)
from tests import servers

ONCE = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
MIN_REPLICAS = (*servers.VOLATILE, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")


def of(*nodes: servers.Server) -> str:
    return ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def later(seconds: float, act: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


@contextlib.contextmanager
def losing(is_lost: Callable[[Any], bool], error: Exception | None = None) -> Iterator[list[Any]]:
    """Lose the first reply of which is_lost() is true, below the recipe, on every connection.

    With `error` the connection stays, and that is raised in place of the reply.
    """
    read = redis.connection.AbstractConnection.read_response
    seen: list[Any] = []

    def read_response(self: Any, *args: Any, **options: Any) -> Any:
        reply = read(self, *args, **options)
        if not seen and is_lost(reply):
            seen.append(reply)
            if error:
                raise error
            self.disconnect()
            raise redis.ConnectionError("the reply was lost")
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.connection.AbstractConnection, "read_response", read_response)
        yield seen


# --- URLs and the table --------------------------------------------------------------------------


def test_urls_of_each_form() -> None:
    lone: Any = connect("rediss://me:p%40ss@host:7000/3?ssl_cert_reqs=none", timeout_s=0.7)
    options = lone.connection_pool.connection_kwargs
    wanted = {"host": "host", "port": 7000, "db": 3, "username": "me", "password": "p@ss"}
    assert wanted.items() <= options.items()
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.7
    assert issubclass(lone.connection_pool.connection_class, redis.SSLConnection)
    watched: Any = connect(
        "redis+sentinel://me:pw@h1,h2:5000,[::1]:5001/main/2?sentinel_password=other",
        read_replicas=True,
    )
    pool = watched.connection_pool
    assert (pool.service_name, pool.is_master) == ("main", True)
    assert {"db": 2, "username": "me", "password": "pw"}.items() <= pool.connection_kwargs.items()
    sentinels = [s.connection_pool.connection_kwargs for s in pool.sentinel_manager.sentinels]
    assert [(s["host"], s["port"]) for s in sentinels] == [
        *(("h1", 26379), ("h2", 5000), ("::1", 5001)),
    ]
    assert {s["password"] for s in sentinels} == {"other"}
    assert not watched.replica.connection_pool.is_master
    by_query: Any = connect("redis+sentinel://h1/main?db=5")
    assert by_query.connection_pool.connection_kwargs["db"] == 5
    assert connect("unix:///tmp/socket?db=1").connection_pool.connection_kwargs["path"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis+sentinel://h1,h2",
        "redis+sentinel:///main",
        "redis+cluster://",
        "redis+x://h",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="redis"):
        connect(url)


@pytest.mark.parametrize(
    ("command", "is_repeated"),
    [
        ("GET k", True), ("SET k v", True), ("SET k NX", True), ("SET k v NX", False),
        ("SET k v EX 5 GET", False), ("set k v ex 5", True), ("HSET k f v", True),
        ("ZADD k 1 m", True), ("ZADD k INCR 1 m", False), ("XADD s * f v", False),
        ("LPUSH k v", False), ("INCR k", False), ("INCRBY k 1", False), ("EVAL s 0", False),
        ("EVALSHA s 0", False), ("HINCRBY k f 1", False), ("GETDEL k", False),
        ("RENAME a b", False), ("SETNX k v", False), ("BLPOP k 1", False), ("PUBLISH c m", False),
        ("APPEND k v", False), ("XREADGROUP GROUP g c STREAMS s >", True), ("LTRIM k 1 -1", False),
        ("XACK s g 1-1", True), ("XREADGROUP GROUP g c NOACK STREAMS s >", False),
        ("JSON.NUMINCRBY k . 1", False),
        ("SPOP k", False), ("MULTI", False), ("FLUSHALL", False), ("SCRIPT FLUSH", False),
    ],
)  # fmt: skip
def test_what_is_repeated(command: str, is_repeated: bool) -> None:
    words = command.split()
    assert is_idempotent(*words) is is_repeated
    assert is_idempotent(*(word.encode() for word in words)) is is_repeated


# --- Lost replies --------------------------------------------------------------------------------


def test_a_lost_reply_does_not_count_twice(r: redis.Redis) -> None:
    assert lossy(r, "INCRBY", careful=False).incr("naive") == 2  # what redis-py's Retry does
    careful = lossy(r, "INCRBY", "LPUSH", "XADD", "EVAL", "SET", "HSET")
    with pytest.raises(OutcomeUnknown, match="INCRBY"):
        careful.incr("counter")
    with pytest.raises(OutcomeUnknown):
        careful.lpush("list", "x")
    with pytest.raises(OutcomeUnknown):
        careful.xadd("stream", {"f": "v"})
    with pytest.raises(OutcomeUnknown):
        careful.eval("return redis.call('INCR', KEYS[1])", 1, "scripted")
    assert (r.get("counter"), r.llen("list"), r.xlen("stream"), r.get("scripted")) == (
        *(b"1", 1, 1, b"1"),
    )
    assert careful.set("k", 5) is True
    assert careful.hset("h", "f", 5) == 0  # the reply of the second time
    assert (r.get("k"), r.hget("h", "f")) == (b"5", b"5")
    assert careful.incr("counter") == 2  # the client goes on


@pytest.mark.real_redis
def test_wait_alone_is_not_repeated(r: redis.Redis) -> None:
    careful = lossy(r, "WAIT")  # a new connection has written nothing, and would be told so
    with pytest.raises(Unavailable):
        careful.wait(0, 100)
    assert careful.wait(0, 100) == 0
    assert careful.pipeline(transaction=False).set("k", 1).wait(0, 100).execute() == [True, 0]


def test_not_a_connection_error_that_loops_catch() -> None:
    assert not issubclass(OutcomeUnknown, redis.ConnectionError | redis.TimeoutError)
    assert issubclass(Unavailable, redis.ConnectionError)


@pytest.mark.real_redis
def test_lost_replies_in_pipelines_and_transactions(url: str) -> None:
    r: Any = connect(url)
    for transaction in (True, False):
        is_lost = (lambda x: isinstance(x, list)) if transaction else (lambda x: x == 1)
        with losing(is_lost) as lost, pytest.raises(OutcomeUnknown):
            r.pipeline(transaction=transaction).incr(f"n{transaction}").set("k", 1).execute()
        assert lost
        assert r.get(f"n{transaction}") == b"1"
    with losing(lambda x: x in (b"OK", "OK", [b"OK", b"OK"])) as lost:
        assert r.pipeline().set("a", 1).set("b", 1).execute() == [True, True]
    assert lost
    with losing(lambda x: isinstance(x, list)) as lost, pytest.raises(OutcomeUnknown):
        r.transaction(lambda p: (p.multi(), p.incr("watched")), "watched")  # redis-py: WatchError
    assert lost
    assert r.get("watched") == b"1"


@pytest.mark.real_redis
def test_a_connection_that_breaks_while_sending_is_an_unknown_outcome(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes when the last byte has gone: the server may have executed it."""
    plain = redis.connection.AbstractConnection.send_packed_command

    def breaks(self: Any, command: Any, check_health: bool = True) -> None:
        plain(self, command, check_health=check_health)
        if any(b"INCR" in part for part in command):
            self.read_response()
            self.disconnect()
            raise redis.ConnectionError("broken pipe")

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", breaks)
    r = connect(url)
    with pytest.raises(OutcomeUnknown, match="INCR"):
        r.incr("n")
    assert r.get("n") == b"1"


@pytest.mark.real_redis
def test_a_pipeline_that_is_refused_half_way_is_not_repeated(url: str) -> None:
    r: Any = connect(url)
    refusal = redis.ReadOnlyError("READONLY You can't write against a read only replica.")
    with losing(lambda reply: reply == 2, refusal) as lost, pytest.raises(OutcomeUnknown):
        r.pipeline(transaction=False).incr("n").incr("n").execute()
    assert lost
    assert r.get("n") == b"2"
    with losing(lambda reply: reply in (b"OK", "OK"), refusal) as lost:
        assert r.pipeline(transaction=False).set("a", 1).set("b", 1).execute() == [True, True]
    assert lost


@pytest.mark.real_redis
def test_a_command_that_is_named_is_repeated(url: str) -> None:
    r: Any = connect(url, retry_also=["incrby"])
    with losing(lambda reply: reply == 1):
        assert r.incr("n") == 2


@pytest.mark.real_redis
def test_on_a_cluster_a_lost_reply_counts_once(cluster: redis.RedisCluster) -> None:
    node = cluster.get_default_node()
    r: Any = connect(f"redis+cluster://{node.host}:{node.port}")
    keys = [f"k{i}" for i in range(30)]
    with losing(lambda reply: reply == 1) as lost, pytest.raises(OutcomeUnknown):
        r.incr("n")
    assert lost
    assert r.get("n") == b"1"
    pipe = r.pipeline()
    for key in keys:
        pipe.incr(key)
    with losing(lambda reply: reply == 1) as lost, pytest.raises(OutcomeUnknown):
        pipe.execute()
    assert lost
    assert {r.get(key) for key in keys} <= {b"1", None}
    with losing(lambda reply: reply in (b"OK", "OK")) as lost:
        for key in keys:
            pipe.set(key, 7)
        assert pipe.execute() == [True] * 30
    assert lost
    pipe = r.pipeline(transaction=True)
    with losing(lambda reply: isinstance(reply, list)) as lost, pytest.raises(OutcomeUnknown):
        pipe.incr("{t}a").incr("{t}b").execute()
    assert lost
    assert (r.get("{t}a"), r.get("{t}b")) == (b"1", b"1")
    r.close()


# --- Servers that are away, slow, loading, read-only ---------------------------------------------


def test_long_values_are_not_looked_at() -> None:
    value = b"x" * 10_000_000
    begin = time.process_time()
    for _ in range(1000):
        assert is_idempotent("SET", "k", value)
        assert is_idempotent("HSET", "k", "f", value)
    assert time.process_time() - begin < 1


def test_nobody_there_is_unavailable_after_retry_s() -> None:
    begin = time.monotonic()
    with pytest.raises(Unavailable):
        connect(f"redis://127.0.0.1:{free_port()}", retry_s=0.3).incr("n")
    with pytest.raises(Unavailable):
        connect(f"redis+cluster://127.0.0.1:{free_port()}", retry_s=0.3)
    assert 0.2 < time.monotonic() - begin < 10


@pytest.mark.real_redis
def test_a_unix_socket(server_kind: str, tmp_path: Path) -> None:
    with servers.lone(server_kind, *servers.VOLATILE, "--unixsocket", "socket") as server:
        short = tmp_path / "s"  # the path of a socket is at most 107 bytes long
        short.symlink_to(server.folder)
        assert connect(f"unix://{short}/socket?db=1").set("k", 1)
        assert server.client(db=1).get("k") == b"1"


@pytest.mark.real_redis
def test_a_wrong_password_is_an_error_at_once(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        server.client().config_set("requirepass", "secret")
        begin = time.monotonic()
        with pytest.raises(redis.AuthenticationError):
            connect(f"redis://:wrong@127.0.0.1:{server.port}").set("k", 1)
        assert time.monotonic() - begin < 5
        assert connect(f"redis://:secret@127.0.0.1:{server.port}").set("k", 1)


@pytest.mark.real_redis
def test_a_network_cut_a_slow_server_and_a_restart(server_kind: str) -> None:
    with servers.lone(server_kind, "--save", "", "--appendonly", "yes") as server:
        r: Any = connect(server.url, timeout_s=0.3)
        assert r.set("k", 1)
        server.freeze()
        with pytest.raises(OutcomeUnknown):
            r.incr("n")
        timer = later(0.7, server.wake)
        assert r.set("k", 2)  # repeated until the server is back
        assert r.incr("m") == 1  # a connection that cannot be made sends nothing: it is safe
        timer.join()
        assert r.get("n") in (None, b"1")
        server.client().execute_command("CLIENT", "PAUSE", 600, "ALL")
        assert r.get("k") == b"2"
        server.client().execute_command("CLIENT", "PAUSE", 600, "ALL")
        with pytest.raises(OutcomeUnknown):
            r.incr("m")
        begin = time.monotonic()
        assert r.blpop(["nothing"], 0.8) is None  # longer than timeout_s, and that is all right
        assert r.xread({"nothing": "$"}, block=500) in ([], {}, None)
        assert time.monotonic() - begin > 1.2
        server.kill()
        restart = later(0.3, server.start_again)
        assert r.incr("other") == 1  # refused connections: not sent, so it waits
        restart.join()


@pytest.mark.real_redis
def test_a_server_that_loads_its_data(server_kind: str) -> None:
    slow = ("--key-load-delay", "400", "--loading-process-events-interval-bytes", "1024")
    with servers.lone(server_kind, *servers.VOLATILE) as server:
        plain = server.client()
        with plain.pipeline(transaction=False) as pipe:
            for i in range(3000):
                pipe.set(f"k{i}", b"x" * 1000)
            pipe.execute()
        plain.save()
        server.stop(keep_folder=True)
        server.options = (*server.options, *slow)
        server.start()
        with pytest.raises(redis.BusyLoadingError):
            server.client(retry=ONCE).get("k1")
        r: Any = connect(server.url)
        assert r.incr("n") == 1
        assert r.get("k2999") == b"x" * 1000


@pytest.mark.real_redis
def test_a_primary_that_is_demoted_or_lacks_replicas(server_kind: str) -> None:
    with servers.replicated(server_kind) as (primary, _):
        r: Any = connect(primary.url)
        admin = primary.client()
        assert r.incr("n") == 1
        admin.execute_command("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(redis.ReadOnlyError):
            admin.incr("n")
        timer = later(0.4, lambda: admin.execute_command("REPLICAOF", "NO", "ONE"))
        assert r.incr("n") == 2  # refused is not executed
        timer.join()
        admin.config_set("min-replicas-to-write", 5)
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            admin.incr("n")
        timer = later(0.4, lambda: admin.config_set("min-replicas-to-write", 0))
        assert r.pipeline().incr("n").set("k", 1).execute() == [3, True]
        timer.join()


# --- Confirmed -----------------------------------------------------------------------------------


@pytest.mark.real_redis
def test_confirmed_says_how_many_have_it(server_kind: str) -> None:
    with servers.replicated(server_kind, replicas=2) as (primary, followers):
        for r in (connect(primary.url), primary.client()):
            with confirmed(r, "k", replicas=2) as pipe:
                pipe.set("k", 1).hset("h", "f", "v")
                pipe.hgetall("h")
            assert pipe.acknowledged == 2
            assert pipe.replies[0] is True
            assert pipe.replies[2] == {b"f": b"v"}
            assert [f.client().get("k") for f in followers] == [b"1", b"1"]
            with pytest.raises(redis.ResponseError, match="WRONGTYPE"), confirmed(r, "k") as pipe:
                pipe.set("k", 1).lpush("k", 1)
            script = r.register_script("return redis.call('INCR', KEYS[1])")
            with confirmed(r, "s") as pipe:
                script(keys=["s"], client=pipe)
            with contextlib.suppress(ZeroDivisionError), confirmed(r, "k") as pipe:
                pipe.set("k", "never")
                raise ZeroDivisionError
            assert r.get("k") == b"1"
            followers[0].freeze()
            pipe = confirmed(r, "n", replicas=2, timeout_s=0.2)
            with pytest.raises(NotReplicated, match="1 of 2") as raised, pipe:
                pipe.incr("n")
            followers[0].wake()
            assert (raised.value.acknowledged, raised.value.wanted) == (1, 2)
            with confirmed(r, "empty"):
                pass
        assert primary.client().get("n") == b"2"  # once a client
        with pytest.raises(ValueError, match="replicas"):
            confirmed(primary.client(), "k", replicas=0)
        once = confirmed(connect(primary.url), "once").incr("once")
        with losing(lambda reply: isinstance(reply, list)) as lost, pytest.raises(OutcomeUnknown):
            once.execute()
        assert lost
        assert primary.client().get("once") == b"1"


@pytest.mark.real_redis
def test_confirmed_on_a_cluster_wants_keys_of_one_slot(cluster: redis.RedisCluster) -> None:
    with pytest.raises(ValueError, match="hash slot"), confirmed(cluster, "a") as pipe:
        pipe.set("b", 1)
    with pytest.raises(NotReplicated, match="0 of 1"):
        confirmed(cluster, "a", timeout_s=0.05).set("a", 1).execute()
    assert cluster.get("a") == b"1"


@pytest.mark.real_redis
def test_trap_wait_on_a_cluster_asks_another_node_and_the_remedy(server_kind: str) -> None:
    with servers.cluster(server_kind, replicas=3) as built:
        plain, r = built.client(), connect(f"redis+cluster://{of(*built.nodes[:3])}")
        port = plain.get_node_from_key("{t}").port
        index = next(i for i, node in enumerate(built.primaries) if node.port == port)
        primary, follower = built.primaries[index], built.replicas[index]
        for i in range(20):
            with confirmed(r, "{t}", timeout_s=5) as pipe:
                pipe.set(f"{{t}}confirmed{i}", 1)
        follower.freeze()
        for i in range(40):  # more than the sockets hold for the replica that stands still
            plain.set(f"{{t}}filler{i}", b"x" * 1_000_000)
        trapped = []
        for i in range(60):
            plain.set(f"{{t}}trapped{i}", 1)
            trapped += [i] if plain.wait(1, 5) >= 1 else []
        assert trapped  # it says 1, and the only replica stands still
        with pytest.raises(NotReplicated, match="0 of 1"):  # the remedy says so
            confirmed(plain, "{t}", timeout_s=0.1).set("{t}unconfirmed", 1).execute()
        primary.kill()
        follower.wake()
        assert all(r.get(f"{{t}}confirmed{i}") == b"1" for i in range(20))  # it waits by itself
        assert not any(r.get(f"{{t}}trapped{i}") for i in trapped)  # all lost


@pytest.mark.real_redis
def test_trap_min_replicas_bounds_the_loss_and_the_remedy_prevents_it(server_kind: str) -> None:
    with servers.sentinel(server_kind, *MIN_REPLICAS) as (primary, followers, watchers):
        r: Any = connect(f"redis+sentinel://{of(*watchers)}/main")
        plain = primary.client()
        for i in range(20):
            with confirmed(r, "k", timeout_s=5) as pipe:
                pipe.set(f"confirmed{i}", 1)
        for follower in followers:
            follower.freeze()
        for i in range(40):
            plain.set(f"filler{i}", b"x" * 1_000_000)
        plain.set("acknowledged", 1)  # a server with min-replicas-to-write 1 took it
        with pytest.raises(NotReplicated, match="0 of 1"):
            confirmed(r, "k", timeout_s=0.1).set("unconfirmed", 1).execute()

        def is_refused() -> bool:
            with contextlib.suppress(redis.ResponseError):
                return not plain.set("more", 1)
            return True

        servers.wait_until(is_refused, what="writes are refused after min-replicas-max-lag")
        primary.kill()
        for follower in followers:
            follower.wake()
        assert r.set("goes on", 1)
        assert all(r.get(f"confirmed{i}") == b"1" for i in range(20))
        assert r.get("acknowledged") is None  # lost


# --- Failovers -----------------------------------------------------------------------------------


class Load:
    """Threads that write, count, confirm and read until stopped; and what came of it."""

    def __init__(self, r: Any, readers: Any) -> None:
        self.counted, self.unknown, self.confirmed = 0, 0, 0
        self.errors: list[Exception] = []
        self.times: dict[str, list[float]] = {"write": [], "read": []}
        self._stop = threading.Event()
        self._r, self._readers = r, readers
        jobs = (self._write, self._count, self._confirm, self._read)
        self._threads = [threading.Thread(target=self._run, args=(job,)) for job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def is_under_way(self) -> bool:
        return self.confirmed > 20 and all(self.times.values())

    def gap(self, kind: str) -> float:
        times = self.times[kind]
        return max(b - a for a, b in itertools.pairwise(times))

    def _run(self, job: Callable[[int], None]) -> None:
        n = 0
        while not self._stop.wait(0.002):
            try:
                job(n)
                n += 1
            except Exception as error:
                self.errors.append(error)

    def _write(self, n: int) -> None:
        self._r.set("{t}written", n)
        self._r.pipeline().set("{t}a", n).hset("{t}h", "n", n).execute()
        self.times["write"].append(time.monotonic())

    def _count(self, n: int) -> None:
        try:
            self._r.incr("{t}counter")
            self.counted += 1
        except OutcomeUnknown:
            self.unknown += 1

    def _confirm(self, n: int) -> None:
        with contextlib.suppress(NotReplicated):
            with confirmed(self._r, "{t}", timeout_s=0.5) as pipe:
                pipe.set(f"{{t}}confirmed{self.confirmed}", n)
            self.confirmed += 1

    def _read(self, n: int) -> None:
        self._readers.get("{t}written")
        self.times["read"].append(time.monotonic())


def ride_through(r: Any, readers: Any, harm: Callable[[], Any]) -> Load:
    r.set("{t}written", 0)
    load = Load(r, readers)
    try:
        servers.wait_until(load.is_under_way, what="load")
        harm()
        harmed = time.monotonic()
        servers.wait_until(
            lambda: load.times["write"][-1] > harmed + 0.5, timeout_s=30, what="writes go on"
        )
    finally:
        load.stop()
    assert not load.errors
    assert 0.3 < load.gap("write") < 25
    assert load.gap("read") < 25
    assert all(r.get(f"{{t}}confirmed{i}") is not None for i in range(load.confirmed))
    assert load.unknown <= 5
    assert int(r.get("{t}counter")) <= load.counted + load.unknown  # none twice
    return load


@pytest.mark.real_redis
def test_a_sentinel_failover_is_ridden_through(server_kind: str) -> None:
    with servers.sentinel(server_kind) as (primary, _, watchers):
        url = f"redis+sentinel://{of(*watchers)}/main"
        r = connect(url, timeout_s=1)
        watchers[0].freeze()  # a Sentinel that hangs must not matter
        readers = connect(url, timeout_s=1, read_replicas=True)
        harm = {"valkey": primary.kill, "redis": primary.freeze}[server_kind]
        load = ride_through(r, readers, harm)
        assert load.gap("read") < load.gap("write")  # replicas went on answering
        watchers[0].wake()


@pytest.mark.real_redis
def test_a_cluster_failover_is_ridden_through(server_kind: str) -> None:
    with servers.cluster(server_kind, replicas=3) as built:
        url = f"redis+cluster://{of(*built.nodes[:2])}"
        r: Any = connect(url, timeout_s=1)
        readers = connect(url, timeout_s=1, read_replicas=True)
        port = r.get_node_from_key("{t}").port
        primary = next(node for node in built.nodes if node.port == port)
        ride_through(r, readers, primary.kill)


@pytest.mark.real_redis
def test_drill_kills_the_primary_and_counts(server_kind: str) -> None:
    """Here a supervisor starts the server again, with its AOF: that loses nothing either."""
    with servers.replicated(server_kind, "--save", "", "--appendonly", "yes") as (primary, _):

        def supervise() -> None:
            servers.wait_until(primary._has_exited, what="the drill has killed it")
            killed.append(primary.pid)
            primary.start_again()

        killed: list[int] = []
        supervisor = later(0, supervise)
        r = connect(primary.url)
        seen = drill(r, how="kill", replicas=1, lag_s=0.3, load_s=0.3)
        supervisor.join()
        assert len(killed) == 1
        assert seen.acknowledged > 0
        assert seen.lost == 0
        assert 0.3 < seen.gap_s < 30  # the replica stood still for as long
        assert not list(r.scan_iter("{drill:*"))
        with pytest.raises(KeyError):
            drill(r, how="tickle")


@pytest.mark.real_redis
def test_drill_freezes_a_lone_server_or_calls_you(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        r = connect(server.url, timeout_s=0.3)
        called: list[int] = []
        seen = drill(r, how=lambda: called.append(1), load_s=0.1)
        assert (len(called), seen.lost) == (1, 0)
        timer = later(1.2, server.wake)
        seen = drill(r, how="freeze", load_s=0.2)
        timer.join()
        assert seen.gap_s > 0.5
        assert seen.lost == 0
        with pytest.raises(Unavailable):
            drill(r, how="freeze", load_s=0.1, wait_s=0.5)
        assert r.set("awake", 1)


@pytest.mark.real_redis
def test_drill_kills_no_process_of_another_machine(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.CompletedProcess([], 1, stdout="")
    monkeypatch.setattr(ha.subprocess, "run", lambda *_, **__: gone)
    with pytest.raises(ValueError, match="this machine"):
        drill(connect(url))
    assert connect(url).ping()


# --- Resharding ----------------------------------------------------------------------------------


@pytest.mark.real_redis
def test_moved_and_ask_while_a_slot_moves(server_kind: str) -> None:
    with servers.cluster(server_kind) as built:
        r: Any = connect(f"redis+cluster://{of(*built.nodes)}")
        keys = [f"{{t}}{i}" for i in range(40)]
        slot = key_slot(b"t")
        port = r.get_node_from_key("{t}").port
        source = next(node.client() for node in built.nodes if node.port == port)
        target_node = next(node for node in built.nodes if node.port != port)
        target = target_node.client()
        ids = {c: c.execute_command("CLUSTER", "MYID") for c in (source, target)}

        def count_all() -> None:
            for key in keys:
                r.incr(key)
            pipe = r.pipeline()
            for key in keys:
                pipe.incr(key)
            pipe.execute()

        def move(some: list[str]) -> None:
            source.execute_command(
                "MIGRATE", "127.0.0.1", target_node.port, "", 0, 5000, "KEYS", *some
            )

        count_all()
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        move(keys[:20])
        count_all()  # half of the replies are ASK

        def finish() -> None:
            move(keys[20:])
            for client in (target, source):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

        timer = later(0.3, finish)
        both = [keys[0], keys[-1]]  # one here and one there: waits until the slot has moved
        assert r.pipeline(transaction=True).incr(both[0]).incr(both[1]).execute() == [5, 5]
        timer.join()
        count_all()  # MOVED
        assert [int(value) for value in r.mget_nonatomic(keys)] == [7, *[6] * 38, 7]
        stale: Any = connect(f"redis+cluster://{of(*built.nodes)}")
        source_node = stale.get_node(host="127.0.0.1", port=port)
        stale.nodes_manager.slots_cache[slot] = [source_node]
        with pytest.raises(NotReplicated), confirmed(stale, "{t}", timeout_s=0.05) as pipe:
            pipe.incr(keys[0])  # MOVED is refused as a whole, and sent to the right node
        assert r.get(keys[0]) == b"8"


# --- Configurations ------------------------------------------------------------------------------


@contextlib.contextmanager
def started(kind: str, files: dict[str, str], folder: Path) -> Iterator[dict[str, servers.Server]]:
    """Start what the files say, each in a folder of its own, as their first lines tell."""
    with contextlib.ExitStack() as stack:
        running = {}
        for name in (name for name in files if name.endswith(".conf")):
            is_sentinel = ["--sentinel"] if "sentinel" in name else []
            (folder / name.removesuffix(".conf")).mkdir()
            path = folder / name.removesuffix(".conf") / name
            path.write_text(files[name])
            how = files[name].splitlines()[0]
            assert f"redis-server {name}" in how
            port = int(files[name].split("\nport ")[1].split()[0])
            assert ("--sentinel" in how) == bool(is_sentinel)
            options = is_sentinel or servers.FAST_REPLICATION
            server = servers.Server(
                servers.binary(kind), str(path), *options, port=port, folder=path.parent
            )
            stack.callback(server.stop)
            running[name] = server
        yield running


# A name must stand for an IPv4 address first; not on every machine does this one.
NAMES = ["localhost"] * (socket.getaddrinfo("localhost", None)[0][0] == socket.AF_INET)


@pytest.mark.real_redis
@pytest.mark.parametrize("host", ["127.0.0.1", *NAMES])
def test_a_rendered_sentinel_setup_starts(host: str, server_kind: str, tmp_path: Path) -> None:
    hosts = [f"{host}:{free_port()}" for _ in range(3)]
    files = ha.render_sentinel(
        hosts, service="jobs", sentinels=[f"{host}:{free_port()}" for _ in range(3)],
        down_after_ms=3000,
    )  # fmt: skip
    url = files["start.txt"].split("connect to ")[1].strip()
    assert "jobs" in url
    with started(server_kind, files, tmp_path) as running:
        r: Any = connect(url, retry_s=40)

        def is_replicated() -> bool:
            with contextlib.suppress(NotReplicated), confirmed(r, "k", replicas=2) as pipe:
                pipe.set("k", 1)
            return pipe.acknowledged == 2

        servers.wait_until(is_replicated, timeout_s=40, what="both replicas are in touch")
        watchers = [running[f"sentinel-{i}.conf"] for i in (1, 2, 3)]
        password = url.rpartition("=")[2]
        for node in running.values():
            with pytest.raises(redis.AuthenticationError):
                node.client(retry=ONCE).execute_command("INFO")
        for watcher in watchers:
            admin = watcher.client(password=password)
            servers.wait_until(
                lambda admin=admin: admin.sentinel_master("jobs")["num-other-sentinels"] == 2,  # type: ignore[misc]
                timeout_s=40,
                what="the Sentinels see each other",
            )
        quorum = admin.execute_command("SENTINEL", "CKQUORUM", "jobs")
        assert b"3 usable Sentinels" in quorum
        assert admin.sentinel_master("jobs")["failover-timeout"] == 10_000
        if host == "localhost":
            running["primary-1.conf"].kill()
            assert r.set("k", 2)  # another one is the primary
            # all of them under their addresses: under two names a server would count twice
            known = {f"127.0.0.1:{h.rpartition(':')[2]}" for h in hosts}
            for watcher in watchers:
                admin = watcher.client(password=password)
                servers.wait_until(
                    lambda admin=admin: known == names_of(admin, "jobs"),  # type: ignore[misc]
                    timeout_s=20,
                    what=f"the Sentinels know {known}",
                )


def names_of(admin: Any, service: str) -> set[str]:
    host, port = admin.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    replicas = {node["name"] for node in admin.sentinel_slaves(service)}
    return {f"{host.decode()}:{port.decode()}"} | replicas


@pytest.mark.real_redis
def test_a_rendered_cluster_starts(server_kind: str, tmp_path: Path) -> None:
    nodes = [f"127.0.0.1:{free_port()}" for _ in range(6)]
    files = ha.render_cluster(nodes, node_timeout_ms=2000)
    *_, url_or_how, join = files["start.txt"].splitlines()
    assert "redis-server node-6.conf" in url_or_how
    setting, *command = shlex.split(join)
    name, _, password = setting.partition("=")
    assert command[:4] == ["redis-cli", "--cluster", "create", nodes[0]]
    with started(server_kind, files, tmp_path) as running:
        clients = [node.client(password=password) for node in running.values()]
        for client in clients:
            servers.wait_until(client.ping, what="the node answers")
        if shutil.which("redis-cli"):
            subprocess.run(command, env={name: password, "PATH": "/usr/bin:/bin"}, check=True,
                           capture_output=True, timeout=60)  # fmt: skip
            r: Any = connect(f"redis+cluster://:{password}@{','.join(nodes[:3])}", retry_s=40)
            servers.wait_until(lambda: r.set("k", 1), timeout_s=40, what="the cluster is ready")

            def is_replicated() -> bool:
                with contextlib.suppress(NotReplicated), confirmed(r, "k") as pipe:
                    pipe.set("k", 1)
                return pipe.acknowledged == 1

            servers.wait_until(is_replicated, timeout_s=40, what="each primary has a replica")


def test_what_cannot_fail_over_is_not_rendered() -> None:
    with pytest.raises(ValueError, match="3 Sentinels"):
        ha.render_sentinel(["a", "b"])
    with pytest.raises(ValueError, match="quorum"):
        ha.render_sentinel(["a", "b", "c"], quorum=4)
    with pytest.raises(ValueError, match="6 nodes"):
        ha.render_cluster(["a", "b", "c"])
    files = ha.render_sentinel(["a", "b", "c"], password="given")
    assert "sentinel monitor main a 6379 2" in files["sentinel-2.conf"]
    assert "replicaof a 6379" in files["replica-2.conf"]
    assert "requirepass given" in files["primary-1.conf"]
    assert (
        ha.render_cluster(["a"] * 6)["node-1.conf"] != ha.render_cluster(["a"] * 6)["node-1.conf"]
    )


@pytest.mark.parametrize("host", ["::1", "[::1]", "[::1]:7000", "a b", "a:", "a:b", "a;b", "{x}"])
def test_a_host_that_would_be_read_as_something_else_is_refused(host: str) -> None:
    for render, hosts in (
        (ha.render_sentinel, [host] * 3),
        (lambda wrong: ha.render_sentinel(["a"] * 3, sentinels=wrong), [host] * 3),
        (ha.render_cluster, [host] * 6),
    ):
        with pytest.raises(ValueError, match=r"host '.*': .* a name or IPv4\[:port\]"):
            render(hosts)  # type: ignore[operator]


@pytest.mark.parametrize(
    "secret", ["my secret", '"my', "p/w@1?#%41", "x\nslaveof no one", "x\n", "$(id)", "\u00fc"]
)
def test_a_password_that_would_need_quotes_is_refused(secret: str) -> None:
    for render in (ha.render_sentinel, ha.render_cluster):
        with pytest.raises(ValueError, match="password: give letters, digits") as refused:
            render(["a"] * 6, password=secret)
        assert secret not in str(refused.value)
    with pytest.raises(ValueError, match="service: give letters"):
        ha.render_sentinel(["a", "b", "c"], service=secret)


def test_a_password_of_plain_characters_stands_in_all_places() -> None:
    files = ha.render_sentinel(["a", "b-1.c"], sentinels=["10.0.0.1"] * 3, password="-aA0_.~")
    assert "\nrequirepass -aA0_.~\n" in files["sentinel-1.conf"]
    url = files["start.txt"].split("connect to ")[1].strip()
    pool = connect(url).connection_pool  # type: ignore[union-attr]
    assert pool.connection_kwargs["password"] == "-aA0_.~"
    assert pool.sentinel_manager.sentinel_kwargs["password"] == "-aA0_.~"
    join = ha.render_cluster(["a"] * 6, password="-aA0_.~")["start.txt"].splitlines()[-1]
    assert shlex.split(join)[0] == "REDISCLI_AUTH=-aA0_.~"
