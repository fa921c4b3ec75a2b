"""Ride through a failover: repeat what is harmless, confirm what must stay.

Use when: a training or serving job must outlive the death of its Redis server.
Not when: one server with an AOF and a restart in seconds will do (persistence); two regions must
    both take writes (Redis Enterprise Active-Active); no write may ever be lost (PostgreSQL, etcd).
Keys: none of its own. drill() writes strings {drill:ID}:N (1 KB) with a TTL of an hour, and
    removes them at its end.
Guarantees: While a primary is replaced, reads and idempotent writes wait for the new one, up to
    `retry_s`. Other commands are sent once: an answer, an error, or OutcomeUnknown. A confirmed
    write was acknowledged by `replicas` replicas, of the right node, before the block ends; it
    survives the loss of the primary if one of those is promoted. Nothing here is consensus.
Cost: connect: no round trip, some microseconds a command. confirmed: 2 round trips, and the
    replicas'. A failover: the detection time that you configure, and an election.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis
Run: python recipes/high_availability.py loses a reply on purpose, and renders a Sentinel set-up.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import redis
from redis import backoff, cluster, connection, retry, sentinel
from redis import exceptions as ex

Client = redis.Redis | cluster.RedisCluster
Key = str | bytes


class OutcomeUnknown(redis.RedisError):
    """The command was sent and no reply came: it was executed once or not at all. Look, then act.

    Not a redis.ConnectionError, so that no loop around it sends the command again by mistake.
    """


class Unavailable(redis.ConnectionError):
    """Nobody took the command for `retry_s` seconds. What is not idempotent was not executed."""


class NotReplicated(redis.RedisError):
    """Executed, but only `acknowledged` of `wanted` replicas have it: a failover may lose it."""

    def __init__(self, key: object, acknowledged: int, wanted: int) -> None:
        super().__init__(f"{acknowledged} of {wanted} replicas have {key!r}: confirm it again")
        self.acknowledged, self.wanted = acknowledged, wanted


class _Refused(redis.ConnectionError):
    """The server said that it did not execute the command."""


# --8<-- [start:retry]
# redis-py's Retry repeats every command. If only the reply was lost, INCR then counts twice. So
# only these are repeated: applied twice they leave the same state. Their reply may be that of the
# second time (DEL says 0); where the reply is the point (SET NX), they are not repeated. Reading
# for a group is: what the lost reply handed out stays pending until it is claimed.
WRITES = """SET MSET SETEX PSETEX SETRANGE SETBIT GETEX LSET DEL UNLINK TOUCH PERSIST EXPIRE PEXPIRE
EXPIREAT PEXPIREAT HSET HMSET HDEL HEXPIRE HPEXPIRE HPERSIST SADD SREM ZADD ZREM ZREMRANGEBYSCORE
ZREMRANGEBYLEX PFADD GEOADD XACK XDEL XTRIM XREADGROUP XCLAIM XAUTOCLAIM"""
OTHERS = "PING ECHO TIME INFO ROLE OBJECT MEMORY COMMAND WATCH UNWATCH WAIT WAITAOF PFCOUNT XINFO"
READS = redis.commands.READ_COMMANDS
IDEMPOTENT = READS.union(WRITES.split(), OTHERS.split(), ("SCRIPT LOAD", "CLUSTER SLOTS"))
UNLESS = {"SET": {"NX", "XX", "GET", "IFEQ"}, "ZADD": {"INCR"}, "XREADGROUP": {"NOACK"}}
FOR_GOOD = (ex.AuthenticationError, ex.AuthorizationError, ex.MaxConnectionsError)
UNREACHABLE = (redis.ConnectionError, redis.TimeoutError)
BY_STATE = (ex.ReadOnlyError, ex.BusyLoadingError, ex.MasterDownError)
REFUSED = (_Refused, ex.ClusterDownError, ex.SlotNotCoveredError, ex.AskError, ex.TryAgainError)
REFUSED_TEXT = ("NOREPLICAS", "BUSY ", "UNBLOCKED", "TTL exhausted")


def is_idempotent(*command: Any) -> bool:
    """Tell whether connect() repeats this command, given as its words: "SET", "key", 1, "NX"."""
    name = _word(command[0])
    unless = UNLESS.get(name, set())
    rest = command[3 if name == "SET" else 2 :] if unless else ()  # not the values: they are long
    return bool({name, name.split()[0]} & IDEMPOTENT) and unless.isdisjoint(map(_word, rest))


def _word(word: Any) -> str:
    return (word.decode("latin-1") if isinstance(word, bytes) else str(word)).upper()


class _Rides:
    """What connect() adds to a client of redis-py."""

    retry_s: float = 20.0
    retry_also: frozenset[str] = frozenset()


def _repeat(send: Callable[[], Any], commands: Any, r: Any, whole: bool = True) -> Any:
    """Return send(), repeated where that does no harm. whole: all is done, or nothing.

    `r`: the client, or None: once, as another connection would not be watching.
    """
    if len(commands) == 1 and _word(commands[0][0]) in ("WAIT", "WAITAOF"):
        r = None  # alone on another connection it would answer for no write at all
    also = getattr(r, "retry_also", ())
    safe = all(is_idempotent(*c) or str(c[0]).upper() in also for c in commands)
    deadline = time.monotonic() + getattr(r, "retry_s", 0.0)
    pauses = backoff.DecorrelatedJitterBackoff(cap=1.0, base=0.01)  # seconds; they grow
    while True:
        try:
            return send()
        except (redis.RedisError, ex.RedisClusterException) as error:
            text = str(error).rpartition("caused error: ")[2]
            lost = isinstance(error, OutcomeUnknown)
            refused = isinstance(error, REFUSED + BY_STATE) or text.startswith(REFUSED_TEXT)
            cause = error.__cause__ if isinstance(error, ex.RedisClusterException) else error
            away = isinstance(cause, UNREACHABLE) and not isinstance(cause, FOR_GOOD)
            if not lost and not refused and not away:
                raise
            partly = not whole and (refused or isinstance(r, cluster.RedisCluster))
            if not safe and (lost or partly):
                raise OutcomeUnknown(f"{commands[0][0]}: once or not at all: {text}") from error
            if time.monotonic() + (pause := pauses.compute(1)) > deadline:
                raise Unavailable(f"nobody took it until retry_s was over: {text}") from error
        time.sleep(pause)


# A lost connection is one error in redis-py, whether the command was sent or not. Here an error
# before the first byte stays a ConnectionError, and one after it becomes an OutcomeUnknown.
class _Link:
    """Stands before a connection class of redis-py, see _link()."""

    waits_s = 0.0  # how long the commands that were sent may wait before they are answered

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"health_check_interval": 15, **options})  # seconds

    def connect_check_health(self: Any, *args: Any, **options: Any) -> None:
        with _nothing_sent():
            super().connect_check_health(*args, **options)  # type: ignore[misc]

    def send_command(self, *args: Any, **options: Any) -> None:
        self.waits_s = _waits_s(args)
        super().send_command(*args, **options)  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> Any:
        self.waits_s = sum(map(_waits_s, known := list(commands)))
        return super().pack_commands(known)  # type: ignore[misc]

    def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        waits_s = self.waits_s
        with _nothing_sent():
            self.connect()  # if it is not
            if check_health:
                self.check_health()
        self.waits_s = waits_s
        try:
            super().send_packed_command(command, check_health=False)  # type: ignore[misc]
        except UNREACHABLE as error:
            raise OutcomeUnknown(str(error)) from error

    def read_response(self: Any, *args: Any, **options: Any) -> Any:
        if self.waits_s and self.socket_timeout:
            longer = self.socket_timeout + self.waits_s
            options["timeout"] = None if longer == math.inf else longer
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except FOR_GOOD:
            raise
        except (*BY_STATE, *UNREACHABLE) as error:
            self.disconnect()  # its address may be another's by now
            kind = _Refused if isinstance(error, BY_STATE) else OutcomeUnknown
            raise kind(str(error)) from error


@contextlib.contextmanager
def _nothing_sent() -> Iterator[None]:
    try:
        yield
    except (redis.TimeoutError, OutcomeUnknown) as error:
        raise redis.ConnectionError(f"no connection: {error}") from error


def _link(base: Any, of_sentinel: bool = False) -> Any:
    return type("Link", (*[sentinel.SentinelManagedConnection] * of_sentinel, _Link, base), {})


WAITS = {  # where the time is; 0: for ever
    "BLMPOP": 1, "BZMPOP": 1, "WAIT": -1, "WAITAOF": -1, "BLPOP": -1, "BRPOP": -1, "BLMOVE": -1,
    "BRPOPLPUSH": -1, "BZPOPMIN": -1, "BZPOPMAX": -1,
}  # fmt: skip


def _waits_s(command: Sequence[Any]) -> float:
    """Return how long the command itself may wait; its reply is not late before that."""
    name, words = str(command[0]).upper(), list(command)
    at = [WAITS[name]] if name in WAITS else []
    if name in ("XREAD", "XREADGROUP"):
        at = [i + 1 for i, word in enumerate(words) if word in ("BLOCK", b"BLOCK")][:1]
    return sum(float(words[i]) / (1000 if name[0] in "WX" else 1) or math.inf for i in at)


# --8<-- [end:retry]
# --8<-- [start:connect]
# A client that knows one address is lost with it, and one that tries three times in a second gives
# up before the failover ends. One deadline for all attempts covers it; the pauses grow and are
# random, or all clients come back at once (M. Brooker, "Exponential Backoff And Jitter", 2015).
class _Redis(_Rides, redis.Redis):
    replica: redis.Redis | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.replica and str(args[0]).upper() in READS:
            return self.replica.execute_command(*args, **options)  # type: ignore[no-untyped-call]
        send: Any = super().execute_command
        return _repeat(lambda: send(*args, **options), [args], self)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> _Pipeline:
        pipe = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.retry_s, pipe.retry_also = self.retry_s, self.retry_also
        return pipe


class _Pipeline(_Rides, redis.client.Pipeline):
    def execute(self, raise_on_error: bool = True) -> Any:
        stack, scripts, is_multi = self.command_stack, self.scripts, vars(self)["transaction"]

        def send() -> Any:
            self.command_stack, self.scripts = list(stack), set(scripts)
            return self._execute_once(raise_on_error)

        if self.watching:
            return _repeat(send, [("EXEC",)], None)
        whole = is_multi or self.explicit_transaction or len(stack) == 1
        return _repeat(send, [args for args, _ in stack], self, whole)

    def _execute_once(self, raise_on_error: bool) -> Any:
        return super().execute(raise_on_error)


class _Cluster(_Rides, cluster.RedisCluster):
    def execute_command(self, *args: Any, **options: Any) -> Any:
        send: Any = super().execute_command
        return _repeat(lambda: send(*args, **dict(options)), [args], self)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        pipe: Any = super().pipeline(transaction, shard_hint)  # type: ignore[no-untyped-call]
        once, strategy = pipe.execute, pipe._execution_strategy

        def execute(raise_on_error: bool = True) -> Any:
            stack = [(c.args, dict(c.options)) for c in strategy.command_queue]

            def send() -> Any:
                pipe.reset()
                for args, options in stack:
                    pipe.execute_command(*args, **options)
                return once(raise_on_error)

            if getattr(strategy, "_watching", False):
                return _repeat(lambda: once(raise_on_error), [("EXEC",)], None)
            whole = isinstance(strategy, cluster.TransactionStrategy) or len(stack) == 1
            return _repeat(send, [args for args, _ in stack], self, whole)

        pipe.execute = execute
        return pipe


def connect(
    url: str, *, timeout_s: float = 2.0, retry_s: float = 20.0, read_replicas: bool = False,
    retry_also: Iterable[str] = (), **options: Any,
) -> Client:  # fmt: skip
    """Return a client that finds the primary, and the next one when that dies.

    `url`, with `?option=value` of redis-py (`db`, `socket_timeout`, `ssl_ca_certs`, ...):
        redis://user:password@host:6379/0, rediss:// (TLS), unix:///path/to/socket
        redis+sentinel://user:password@h1:26379,h2,h3/service or /service/db; the password of the
            Sentinels themselves is `?sentinel_password=`; rediss+sentinel:// is TLS to all
        redis+cluster://user:password@h1:6379,h2 or rediss+cluster://
    `timeout_s`: of a connection, and of a reply; a blocking command has it on top of its own time.
    `retry_s`: how long a command is tried, at least; longer than a failover takes.
    `read_replicas`: reads outside of pipelines go to replicas too. They may be stale.
    `retry_also`: commands that you know to be harmless when applied twice, such as "EVALSHA".
    `options`: of redis-py's connections, over those of the URL.

    Connects at the first command; only a Cluster is asked for its layout at once. Raises
    ValueError for another form of URL. Commands raise OutcomeUnknown and Unavailable.
    """
    parts = urlsplit(url)
    (scheme, _, kind), (login, _, hosts) = parts.scheme.partition("+"), parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    found = [urlsplit(f"//{host.strip()}") for host in hosts.split(",") if host.strip()]
    known = scheme in ("redis", "rediss", "unix") and kind in ("", "sentinel", "cluster")
    if not known or (kind and (not found or (kind == "sentinel") != bool(service.strip("0")))):
        raise ValueError("wanted: redis://h, redis+sentinel://h1,h2/service, redis+cluster://h1,h2")
    nodes = [(h.hostname, h.port or (26379 if kind == "sentinel" else 6379)) for h in found]
    plain = f"{scheme}://{login}@{hosts.split(',')[0]}{f'/{db}' if kind else parts.path}"
    given: Any = connection.parse_url(f"{plain}?{parts.query}")  # type: ignore[no-untyped-call]
    base: Any = given.pop("connection_class", redis.Connection)
    once = retry.Retry(backoff.NoBackoff(), 0)
    usual = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": once}
    options = usual | ({"socket_keepalive": True} if found else {}) | given | options
    options["connection_class"] = _link(base, of_sentinel=kind == "sentinel")
    rides, client = _Rides(), cast(Any, None)
    rides.retry_s, rides.retry_also = retry_s, frozenset(map(str.upper, retry_also))
    if not kind:
        client = _Redis.from_pool(connection.ConnectionPool(**options))
    elif kind == "cluster":
        options |= {"host": None, "url": f"redis://{found[0].netloc}"}
        options["startup_nodes"] = [cluster.ClusterNode(*node) for node in nodes]  # type: ignore[no-untyped-call]
        balanced = cluster.LoadBalancingStrategy.ROUND_ROBIN if read_replicas else None
        client = _repeat(lambda: _Cluster(load_balancing_strategy=balanced, **options), [], rides)
    else:
        own = {k: v for k, v in options.items() if k.startswith(("ssl", "socket_"))}
        own |= {k[9:]: options.pop(k) for k in [*options] if k.startswith("sentinel_")}
        options = {k: v for k, v in options.items() if k not in ("host", "port")}
        own |= {"ssl": base is connection.SSLConnection, "retry": once}
        watch: Any = sentinel.Sentinel(nodes, 0, own)  # type: ignore[no-untyped-call]
        client = watch.master_for(service, _Redis, **options)
        client.replica = watch.replica_for(service, _Redis, **options) if read_replicas else None
    for each in filter(None, (client, getattr(client, "replica", None))):
        each.retry_s, each.retry_also = rides.retry_s, rides.retry_also
    return cast(Client, client)


# --8<-- [end:connect]
# --8<-- [start:confirmed]
# A reply to SET says that the primary has it, in memory. WAIT says how many replicas have it too,
# but only for what this connection wrote: RedisCluster.wait() asks another node, and says 1 while
# the write is lost. So the commands and WAIT go to the key's primary, on one connection.
class Confirmed(_Pipeline):
    """The pipeline of confirmed(); afterwards it has `replies`, and how many `acknowledged`."""

    replies, acknowledged = (), 0

    def __init__(self, r: Any, key: Key, replicas: int, timeout_s: float) -> None:
        if replicas < 1 or timeout_s < 0.001:
            raise ValueError(f"wanted: replicas >= 1, timeout_s >= 0.001: {replicas}, {timeout_s}")
        node, rides = primary_of(r, key), r if isinstance(r, _Rides) else _Rides()
        super().__init__(node.connection_pool, node.response_callbacks, True, None)
        self.retry_s, self.retry_also = rides.retry_s, rides.retry_also
        self.r, self.key, self.replicas, self.wait_s = r, key, replicas, timeout_s

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None and self.command_stack:
            self.execute()
        self.reset()

    def execute(self, raise_on_error: bool = True) -> Any:
        """Send what was called so far as one transaction, and WAIT; return the replies."""
        for args, _ in self.command_stack if isinstance(self.r, cluster.RedisCluster) else ():
            if self.r.determine_slot(*args) != self.r.keyslot(self.key):
                raise ValueError(f"{args[0]}: its key is not in the hash slot of {self.key!r}")
        self.replies = super().execute(raise_on_error)
        return self.replies

    def _execute_once(self, raise_on_error: bool) -> Any:
        if not self.connection:  # else it is watching
            self.connection_pool = primary_of(self.r, self.key).connection_pool
        try:
            return super()._execute_once(raise_on_error)
        except (ex.MovedError, *UNREACHABLE):  # an AskError ends when the slot has moved
            if isinstance(self.r, cluster.RedisCluster):
                self.r.nodes_manager.initialize()
            raise

    def _execute_transaction(self, connection: Any, *args: Any) -> Any:
        try:
            replies = super()._execute_transaction(connection, *args)
            connection.send_command("WAIT", self.replicas, math.ceil(self.wait_s * 1000))
            self.acknowledged = connection.read_response()
        except UNREACHABLE as error:
            raise error if isinstance(error, _Refused) else OutcomeUnknown(str(error)) from error
        if self.acknowledged < self.replicas:
            raise NotReplicated(self.key, self.acknowledged, self.replicas)
        return replies


def confirmed(r: Client, key: Key, *, replicas: int = 1, timeout_s: float = 1.0) -> Confirmed:
    """Return a pipeline whose block ends when `replicas` replicas have what it wrote.

        with confirmed(r, "model:7", replicas=1, timeout_s=0.5) as pipe:
            pipe.set("model:7", weights)

    The commands are one transaction, on keys in the hash slot of `key`. Raises NotReplicated if
    after `timeout_s` seconds fewer replicas have acknowledged it (it is written, nothing is undone:
    do it again if it is idempotent), and OutcomeUnknown as connect() says. A client of redis-py's
    own does as well. WAIT is no consensus: see redis.io/docs/latest/commands/wait.
    """
    return Confirmed(r, key, replicas, timeout_s)


def primary_of(r: Any, key: Key) -> Any:
    """Return a client of the primary that has this key."""
    is_cluster = isinstance(r, cluster.RedisCluster)
    return r.get_redis_connection(r.get_node_from_key(key)) if is_cluster else r


# --8<-- [end:confirmed]
# --8<-- [start:drill]
# A failover that was never tried does not work on the day. This one is real: under load it makes
# the replicas lag, kills the primary, and counts which acknowledged writes are gone afterwards.
class Drill(NamedTuple):
    """What drill() saw: acknowledged writes, those of them that are gone, the longest wait."""

    acknowledged: int
    lost: int
    gap_s: float


def drill(
    r: Client, *, how: str | Callable[[], object] = "kill", replicas: int = 0, lag_s: float = 0.0,
    load_s: float = 1.0, batch: int = 20, size: int = 1000, wait_s: float = 60.0,
) -> Drill:  # fmt: skip
    """Harm a primary under load; return the longest gap between two writes, and the loss.

    `how`: "kill" (SIGKILL; you start it again) or "freeze" (SIGSTOP until the end) its process, if
    that is on this machine, else ValueError; or your own callable. `replicas`: of confirmed(); 0:
    plain pipelines. `lag_s`: its replicas stand still for so long before. `load_s`: of load before
    and after. `batch`: writes of `size` bytes at a time. Raises Unavailable if after `wait_s` no
    write succeeds. Not for servers that others need.
    """
    tag, value, stop = f"{{drill:{os.urandom(6).hex()}}}", os.urandom(size), threading.Event()
    primary: Any = primary_of(r, tag)
    fatal = {"kill": SIGKILL, "freeze": SIGSTOP}[how if isinstance(how, str) else "kill"]
    victim = [] if callable(how) else [_process(primary)]
    state, known = primary.info("replication"), primary.get_connection_kwargs()
    login: Any = {k: known.get(k) for k in ("username", "password")}
    others = [state[f"slave{i}"] for i in range(state["connected_slaves"] if lag_s else 0)]
    frozen = [_process(redis.Redis(x["ip"], x["port"], **login)) for x in others]
    done, times = cast(list[int], []), [time.monotonic()]

    def names(start: int) -> list[str]:
        return [f"{tag}:{n}" for n in range(start, start + batch)]

    def write() -> None:
        for start in itertools.takewhile(lambda _: not stop.is_set(), itertools.count(0, batch)):
            with contextlib.suppress(redis.RedisError, ex.RedisClusterException):
                pipe: Any = confirmed(r, tag, replicas=replicas) if replicas else r.pipeline(False)
                for name in names(start):
                    pipe.set(name, value, ex=3600)
                pipe.execute()
                done.append(start)
                times.append(time.monotonic())

    with futures.ThreadPoolExecutor() as pool:
        try:
            pool.submit(write)
            stop.wait(load_s)
            _signal(SIGSTOP, frozen)
            stop.wait(lag_s)
            how() if callable(how) else _signal(fatal, victim)
            harmed = time.monotonic()
            _signal(SIGCONT, frozen)
            while times[-1] < harmed + 0.3:
                if stop.wait(0.01) or time.monotonic() > harmed + wait_s:
                    raise Unavailable(f"no write succeeded for {wait_s:g} s")
            stop.wait(load_s)
        finally:
            stop.set()
            _signal(SIGCONT, frozen + (victim if how == "freeze" else []))
    node = primary_of(r, tag)
    kept = {start: node.unlink(*names(start)) for start in range(0, done[-1] + batch, batch)}
    lost = sum(batch - kept[start] for start in done)
    return Drill(batch * len(done), lost, max(b - a for a, b in itertools.pairwise(times)))


def _process(r: redis.Redis) -> int:
    info: Any = r.info("server")
    ps = ["ps", "-ww", "-o", "args=", "-p", str(info["process_id"])]
    if str(info["tcp_port"]) not in subprocess.run(ps, capture_output=True, text=True).stdout:
        raise ValueError("the server is not a process of this machine: give how=callable")
    return int(info["process_id"])


def _signal(number: int, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


# --8<-- [end:drill]
# --8<-- [start:render]
# Two Sentinels elect nobody when one of them is gone; a primary without persistence that restarts
# empties its replicas; a bare port is open to all. These files start from what has to hold.
SERVER = """\
# {name}: on {host}, in a folder of its own: redis-server {name}
bind {host}
port {port}
# Without persistence a primary that restarts comes back empty, and its replicas follow it.
appendonly yes
# A replica that was away for a moment catches up from this, without a full copy.
repl-backlog-size 64mb
# With fewer replicas in touch (see min-replicas-max-lag: 10 s) writes are refused. That bounds
# what a failover loses. For a single write, confirmed() waits until replicas have it.
min-replicas-to-write {min_replicas}
requirepass {password}
masterauth {password}
"""
CLUSTER = """\
cluster-enabled yes
# A primary is dead after this time; a majority of the primaries must say so.
cluster-node-timeout {timeout_ms}
"""
SENTINEL = """\
# {name}: on {host}, in a folder of its own: redis-server {name} --sentinel (it rewrites the file)
bind {host}
port {port}
# Names are looked up when this is read (Redis 6.2); Sentinels tell each other IP addresses.
sentinel resolve-hostnames yes
# {quorum} must find the primary dead; a majority of all Sentinels must elect who replaces it.
sentinel monitor {service} {primary} {quorum}
# Shorter: faster, and more false alarms (a slow disk, a fork, a long script).
sentinel down-after-milliseconds {service} {timeout_ms}
# A vote that nobody won is repeated after twice this time (by default that is 6 minutes).
sentinel failover-timeout {service} 10000
sentinel auth-pass {service} {password}
sentinel sentinel-pass {password}
requirepass {password}
"""


def render_sentinel(
    hosts: Sequence[str], *, service: str = "main", sentinels: Sequence[str] = (), quorum: int = 0,
    down_after_ms: int = 5000, min_replicas: int = 1, password: str = "",
) -> dict[str, str]:  # fmt: skip
    """Return file name -> text: primary-1.conf, replica-1.conf, ..., sentinel-1.conf, start.txt.

    `hosts`: "host" or "host:port" of each server, the first primary first: an IPv4 address, better
    than a name, which must resolve to one. `sentinels`: of each Sentinel, 3 or more; by default one
    beside each server. `quorum`: by default a majority. `password`: by default a fresh one; given
    ones, and `service`, are of letters, digits and _.~- as they stand in a URL and a shell line.
    Raises ValueError for what cannot fail over, or would be read as something else.
    """
    watchers = sentinels or [host.partition(":")[0] for host in hosts]
    quorum = quorum or len(watchers) // 2 + 1
    if len(watchers) < 3 or not 1 <= quorum <= len(watchers) or len(hosts) < 1 + min_replicas:
        raise ValueError(f"wanted: 3 Sentinels, a quorum of them, {1 + min_replicas} servers")
    servers = [h if ":" in h else f"{h}:6379" for h in hosts]
    watchers = [h if ":" in h else f"{h}:26379" for h in watchers]
    fields = {"service": service, "quorum": quorum, "timeout_ms": down_after_ms}
    kinds = {"primary": (SERVER, servers[:1]), "sentinel": (SENTINEL, watchers)}
    kinds["replica"] = (SERVER + "replicaof {primary}\n", servers[1:])
    last = "# Then connect to redis+sentinel://:{password}@" + ",".join(watchers)
    last += "/{service}?sentinel_password={password}"
    return _render(kinds, fields | {"min_replicas": min_replicas}, password, last)


def render_cluster(
    hosts: Sequence[str], *, replicas: int = 1, node_timeout_ms: int = 5000, min_replicas: int = 0,
    password: str = "",
) -> dict[str, str]:  # fmt: skip
    """Return file name -> text: node-1.conf, ..., start.txt, whose last line joins the nodes.

    `hosts`: "host" or "host:port" of each node: at least 3 primaries with `replicas` each. What a
    host and a `password` may be, and the errors: as in render_sentinel().
    """
    if len(hosts) < 3 * (1 + replicas):
        raise ValueError(f"wanted: 3 primaries with {replicas} each: {3 + 3 * replicas} nodes")
    nodes = [h if ":" in h else f"{h}:6379" for h in hosts]
    last = "REDISCLI_AUTH={password} redis-cli --cluster create " + " ".join(nodes)
    fields = {"min_replicas": min_replicas, "timeout_ms": node_timeout_ms}
    last += f" --cluster-replicas {replicas} --cluster-yes"
    return _render({"node": (SERVER + CLUSTER, nodes)}, fields, password, last)


def _render(kinds: Any, fields: dict[str, Any], password: str, last: str) -> dict[str, str]:
    files, fields["password"] = {}, password or os.urandom(16).hex()
    # No quoting suits them all: configuration files, a URL, and a line for the shell.
    given = [(f"host {n!r}", n) for _, nodes in kinds.values() for n in nodes] + [*fields.items()]
    if bad := [k for k, v in given if not re.fullmatch(r"(?a)[\w.~-]+(:\d+)?", str(v))]:
        raise ValueError(f"{bad[0]}: give letters, digits, _.~- only; host: a name or IPv4[:port]")
    for kind, (text, nodes) in sorted(kinds.items()):
        for i, node in enumerate(nodes, 1):
            name, (host, port) = f"{kind}-{i}.conf", node.split(":")
            fields.setdefault("primary", f"{host} {port}")  # that file comes first
            files[name] = text.format(name=name, host=host, port=port, **fields)
    how = "\n".join(text.partition("\n")[0] for text in files.values())  # they say it themselves
    return files | {"start.txt": f"{how}\n{last.format(**fields)}\n"}


# --8<-- [end:render]
# --8<-- [start:usage]
# Nobody loses a reply by hand, so nobody sees what the client does then. lossy() loses one for you.
def lossy(r: redis.Redis, *commands: str, careful: bool = True) -> redis.Redis:
    """Return a client of r's server that loses the first reply to each of these commands.

    For tests of your own code. `careful`: it repeats as connect() does; else as redis-py does.
    """
    base, left = cast(Any, r.connection_pool.connection_class), set(commands)

    class Lossy(base):  # type: ignore[misc, valid-type]
        def send_command(self, *args: Any, **options: Any) -> None:
            self.sent = args[0]
            super().send_command(*args, **options)

        def read_response(self, *args: Any, **options: Any) -> Any:
            reply = super().read_response(*args, **options)
            if self.sent in left:
                left.remove(self.sent)
                self.disconnect()
                raise redis.ConnectionError("the reply was lost")
            return reply

    link, tries, kind = (_link(Lossy), 0, _Redis) if careful else (Lossy, 1, redis.Redis)
    options = r.connection_pool.connection_kwargs | {"connection_class": link}
    options["retry"] = retry.Retry(backoff.NoBackoff(), tries)
    return kind.from_pool(connection.ConnectionPool(**options))


def demo(r: redis.Redis) -> None:
    """Lose replies: what redis-py makes of it, and what this client does; render a set-up."""
    for command in (("GET", "k"), ("SET", "k", 1), ("SET", "k", 1, "NX"), ("INCRBY", "k", 1)):
        print(*command, "is repeated" if is_idempotent(*command) else "is sent once")
    lossy(r, "INCRBY", careful=False).incr("ha:naive")
    print("One INCR whose reply was lost, as redis-py repeats it:", int(r.get("ha:naive") or 0))
    careful = lossy(r, "INCRBY", "SET")
    try:
        careful.incr("ha:careful")
    except OutcomeUnknown as error:
        print("OutcomeUnknown:", error, "- the counter tells:", int(r.get("ha:careful") or 0))
    print("One SET whose reply was lost, repeated:", careful.set("ha:careful", 5))
    r.unlink("ha:naive", "ha:careful")
    print(", ".join(render_sentinel(["10.0.0.1", "10.0.0.2", "10.0.0.3"])))
    print("What may be repeated was, what may not said so. The tests kill real primaries.")


# --8<-- [end:usage]

if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
