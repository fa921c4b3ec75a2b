"""Kill primaries under load: how long writes stop, and which acknowledged ones are gone.

Starts Sentinel and Cluster sets of the embedded server on this machine. Wants nothing beside
requirements.txt.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.sentinel import Sentinel

from benchmarks.harness import Benchmark
from recipes import connect as connect_to_house
from recipes.high_availability import confirmed, connect, drill
from tests import servers

BOUND = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")


def main() -> None:
    bench = Benchmark("high_availability", "High availability", connect_to_house())
    naive(bench)
    losses(bench)
    costs(bench)
    bench.write()


@contextmanager
def sentinel(*options: str) -> Iterator[Any]:
    with servers.sentinel("valkey", *servers.VOLATILE, *options) as (_, _, watchers):
        hosts = ",".join(f"127.0.0.1:{watcher.port}" for watcher in watchers)
        yield connect(f"redis+sentinel://{hosts}/main")


@contextmanager
def cluster(*options: str) -> Iterator[Any]:
    with servers.cluster("valkey", *servers.VOLATILE, *options, replicas=6) as built:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in built.primaries)
        yield connect(f"redis+cluster://{hosts}")


def naive(bench: Benchmark) -> None:
    """One failover, seen by clients of several kinds at the same time."""
    with servers.sentinel("valkey") as (primary, _, watchers):
        at = [("127.0.0.1", watcher.port) for watcher in watchers]
        hosts = ",".join(f"127.0.0.1:{watcher.port}" for watcher in watchers)
        clients: dict[str, Any] = {
            "redis.Redis(host, port)": redis.Redis(port=primary.port),
            "redis-py's Sentinel(...).master_for(...)": Sentinel(at).master_for("main"),
            "connect('redis+sentinel://...')": connect(f"redis+sentinel://{hosts}/main"),
        }
        seen: dict[str, list[tuple[float, str]]] = {name: [] for name in clients}
        stop = threading.Event()

        def write(name: str) -> None:
            while not stop.wait(0.001):
                try:
                    clients[name].set(name, 1)
                    seen[name].append((time.monotonic(), ""))
                except redis.RedisError as error:
                    seen[name].append((time.monotonic(), type(error).__name__))

        threads = [threading.Thread(target=write, args=(name,)) for name in clients]
        for thread in threads:
            thread.start()
        stop.wait(1)
        primary.kill()
        stop.wait(10)
        stop.set()
        for thread in threads:
            thread.join()
    rows = []
    for name, events in seen.items():
        good = [at for at, error in events if not error] + [events[-1][0]]
        errors = [error for _, error in events if error]
        gap = max(b - a for a, b in itertools.pairwise(good))
        kinds = ", ".join(sorted(set(errors))) or "none"
        rows.append(
            (
                name,
                len(errors),
                kinds,
                f"{gap:.1f} s{' (never again)' * bool(errors and events[-1][1])}",
            )
        )
    bench.table(
        "naive",
        "SET in a loop while a primary under Sentinel (down-after 1 s) is killed; 10 s watched.",
        ("client", "errors that the caller sees", "which", "longest time without a write"),
        rows,
    )


def losses(bench: Benchmark) -> None:
    """The drill, under Sentinel and Cluster."""
    ways: list[tuple[str, Callable[..., Any], tuple[str, ...], dict[str, Any]]] = []
    for name, start in (("Sentinel 1+2+3", sentinel), ("Cluster 3+6", cluster)):
        ways += [
            (f"{name}: plain, replicas keep up", start, (), {}),
            (f"{name}: plain, replicas lag", start, (), {"lag_s": 1.5}),
            (f"{name}: min-replicas-to-write 1, replicas lag", start, BOUND, {"lag_s": 1.5}),
            (f"{name}: confirmed by 1, replicas lag", start, (), {"lag_s": 1.5, "replicas": 1}),
        ]
    rows = []
    for name, start, options, how in ways:
        with start(*options) as r:
            seen = drill(r, batch=100, size=4000, **how)
        share = f"{seen.lost / seen.acknowledged:.0%}"
        rows.append(
            (name, f"{seen.acknowledged:,}", f"{seen.lost:,}", share, f"{seen.gap_s:.1f} s")
        )
    bench.table(
        "loss",
        "drill(): kill -9 of a primary under load of 4 KB values in batches of 100. Where replicas "
        "lag, they stood still for 1.5 s before. Sentinel's down-after 1 s, the cluster's node "
        "timeout 2 s.",
        ("set-up", "acknowledged writes", "of these lost", "share", "longest gap between writes"),
        rows,
    )


def costs(bench: Benchmark) -> None:
    """What confirming costs, on one primary with one replica."""
    with servers.replicated("valkey") as (primary, _):
        r: Any = connect(primary.url)
        bare = primary.client()
        value = b"x" * 1000

        def one_by_one(client: Any, count: int = 300) -> None:
            for i in range(count):
                client.set(f"k{i}", value)

        def batches(confirm: bool, size: int, count: int) -> None:
            for start in range(0, count, size):
                pipe = confirmed(r, "k") if confirm else r.pipeline()
                for i in range(start, start + size):
                    pipe.set(f"k{i}", value)
                pipe.execute()

        bench.compare(
            "cost",
            "SET of 1 KB, one primary and one replica on one machine",
            {
                "limit: redis-py's own client, one at a time": lambda: one_by_one(bare),
                "connect(), one at a time": lambda: one_by_one(r),
                "confirmed, one at a time": lambda: batches(True, 1, 300),
                "connect(), transactions of 100": (lambda: batches(False, 100, 6_000), 6_000),
                "confirmed, transactions of 100": (lambda: batches(True, 100, 6_000), 6_000),
            },
            against="limit: redis-py's own client, one at a time",
            unit="writes",
            amount=300,
        )


if __name__ == "__main__":
    main()
