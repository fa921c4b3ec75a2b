"""Benchmark of recipes/parameter_server.py. It needs no peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import redis

from benchmarks.harness import Benchmark
from recipes import connect, distributed_training
from recipes.parameter_server import serve, work

WORKERS, STEPS, SIZE = 4, 40, 10_000
START = np.zeros(SIZE)


def uneven(worker: int) -> Callable[[Any, Any], Any]:
    """A gradient of ones that takes 2 ms, and each so often, at random, 40 ms."""
    rng = np.random.default_rng(worker)

    def gradient(params: Any, batch: Any) -> Any:
        time.sleep(0.04 if rng.random() < 0.1 else 0.002)
        return np.ones(SIZE)

    return gradient


def asynchronous(r: redis.Redis, staleness: int) -> tuple[float, int, int]:
    with ThreadPoolExecutor(WORKERS + 1) as pool:
        begin = time.perf_counter()
        server = pool.submit(serve, r, "bench", START, lr=-1)
        options = {"steps": STEPS, "staleness": staleness}
        runs = [
            pool.submit(work, r, "bench", i, START, uneven(i), int, **options)  # type: ignore[arg-type]
            for i in range(WORKERS)
        ]
        wait(runs)
        elapsed = time.perf_counter() - begin
        return elapsed, sum(run.result().steps for run in runs), int(server.result()[0])


def synchronous(r: redis.Redis) -> float:
    with ThreadPoolExecutor(WORKERS) as pool:
        begin = time.perf_counter()
        options = {"lr": -1, "steps": STEPS, "world_size": WORKERS}
        runs = [
            pool.submit(
                distributed_training.train, r, "bench", i, START, uneven(i), lambda *_: 0, **options
            )  # type: ignore[arg-type]
            for i in range(WORKERS)
        ]
        wait(runs)
        return time.perf_counter() - begin


def overwrite(r: redis.Redis) -> tuple[float, int]:
    """The naive way: each worker reads the parameters, adds its gradient, and writes them."""
    r.set("bench:naive", START.tobytes(), ex=60)

    def run(worker: int) -> None:
        gradient = uneven(worker)
        for step in range(STEPS):
            params = np.frombuffer(r.get("bench:naive") or b"")
            r.set("bench:naive", (params + gradient(params, step)).tobytes(), ex=60)

    begin = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(run, range(WORKERS)))
    elapsed = time.perf_counter() - begin
    kept = int(np.frombuffer(r.get("bench:naive") or b"")[0])
    r.unlink("bench:naive")
    return elapsed, kept


def main() -> None:
    r = connect()
    bench = Benchmark("parameter_server", "Parameter server", r)
    ways: dict[str, Callable[[], float | None]] = {
        "synchronous: distributed_training": partial(synchronous, r),
        "naive: overwrite (loses gradients)": lambda: overwrite(r)[0],
    }
    for staleness in (0, 2, 8, 1_000_000):
        name = "no bound" if staleness > STEPS else f"staleness={staleness}"
        ways[name] = lambda staleness=staleness: asynchronous(r, staleness)[0]  # type: ignore[misc]
    bench.compare(
        "uneven",
        f"{WORKERS} workers (threads) of uneven speed, {STEPS} steps each, {SIZE:,} float64",
        ways, against="synchronous: distributed_training", unit="steps",
        amount=WORKERS * STEPS, repeats=3,
    )  # fmt: skip
    _, sent, applied = asynchronous(r, 2)
    rows = [
        ("naive: overwrite", WORKERS * STEPS, overwrite(r)[1]),
        ("this recipe", sent, applied),
    ]
    bench.table(
        "lost",
        "Gradients sent, and gradients in the parameters at the end.",
        ("way", "sent", "applied"),
        rows,
    )
    bench.write()


if __name__ == "__main__":
    main()
