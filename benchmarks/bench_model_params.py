"""Benchmark of model_params: 100 MB saved, saved again, loaded, loaded in part, and followed.

Peer: torch (torch.save in one value); left out where it is not installed.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import threading
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import redis

from benchmarks.harness import Benchmark
from recipes import connect
from recipes.model_params import ParamStore, Version

TENSORS, FLOATS = 100, 250_000  # float32: 1 MB each
AT_ONCE = 8
PLAIN = "bench-model-params"
BARE_SET, BARE_GET = "bare pipelined SET, same bytes", "bare pipelined GET, same bytes"


def main() -> None:
    r = connect()
    bench = Benchmark("model_params", "Model parameters, measured", r)
    rng = np.random.default_rng(0)
    params = {f"layer{i}": rng.standard_normal(FLOATS, np.float32) for i in range(TENSORS)}
    store = ParamStore(r, "bench")
    torch_ways = through_torch(bench, r, params)
    save(bench, r, params, torch_ways)
    load(bench, r, store, params, torch_ways)
    again(bench, r, store, params)
    follow(bench, r)
    store.delete()
    r.unlink(*(f"{PLAIN}:{name}" for name in (*params, "pickle", "torch", "floats")))
    bench.write()


def save(
    bench: Benchmark, r: redis.Redis, params: dict[str, np.ndarray], torch_ways: dict[str, Callable]
) -> None:
    """Compare publishing 100 MB of which nothing is stored."""
    values = {name: array.tobytes() for name, array in params.items()}

    def bare() -> None:
        for first in range(0, TENSORS, AT_ONCE):
            with r.pipeline(transaction=False) as pipe:
                for name in list(values)[first : first + AT_ONCE]:
                    pipe.set(f"{PLAIN}:{name}", values[name])
                pipe.execute()

    def recipe() -> float:
        fresh = ParamStore(r, "bench-new")
        start = time.perf_counter()
        fresh.save(params)
        seconds = time.perf_counter() - start
        fresh.delete()
        return seconds

    def floats() -> None:
        """naive: one field a number, as text"""
        with r.pipeline(transaction=False) as pipe:
            for at in range(0, 25_000, 1000):
                some = params["layer0"][at : at + 1000]
                pipe.hset(f"{PLAIN}:floats", mapping={at + i: float(x) for i, x in enumerate(some)})
            pipe.execute()

    ways = {
        BARE_SET: bare,
        "this recipe: save()": recipe,
        "pickle, one SET": lambda: done(r.set(f"{PLAIN}:pickle", pickle.dumps(params))),
        **({"torch.save, one SET": torch_ways["save"]} if torch_ways else {}),
        "naive: HSET, a field for each number": (floats, 0.1),
    }
    bench.compare(
        "save", "Save 100 MB in 100 tensors", ways, against=BARE_SET, unit="MB", amount=100
    )


def load(
    bench: Benchmark,
    r: redis.Redis,
    store: ParamStore,
    params: dict[str, np.ndarray],
    torch_ways: dict[str, Callable],
) -> None:
    """Compare loading 100 MB, hashes checked, and one tensor of 100."""
    store.save(params)

    def bare() -> None:
        found: list[bytes] = []
        for first in range(0, TENSORS, AT_ONCE):
            with r.pipeline(transaction=False) as pipe:
                for name in list(params)[first : first + AT_ONCE]:
                    pipe.get(f"{PLAIN}:{name}")
                found += pipe.execute()

    def floats() -> None:
        """naive: one field a number, as text"""
        found = r.hgetall(f"{PLAIN}:floats")
        np.array([float(found[b"%d" % i]) for i in range(len(found))], np.float32)

    ways = {
        BARE_GET: bare,
        "this recipe: load()": lambda: done(store.load()),
        "GET, one pickle": lambda: done(pickle.loads(r.get(f"{PLAIN}:pickle"))),  # noqa: S301
        **({"GET, one torch.load": torch_ways["load"]} if torch_ways else {}),
        "naive: HGETALL, a field for each number": (floats, 0.1),
    }
    bench.compare(
        "load", "Load 100 MB in 100 tensors", ways, against=BARE_GET, unit="MB", amount=100
    )

    def settled(action: Callable[[], object]) -> float:
        r.ping()  # the server frees the 100 MB of the way before; that is not this way's time
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    one = {
        "GET, one pickle, then one tensor": ways["GET, one pickle"],
        "this recipe: load(names=[...])": lambda: settled(lambda: store.load(names=["layer7"])),
        "bare GET of that tensor": lambda: settled(lambda: r.get(f"{PLAIN}:layer7")),
    }
    bench.compare(
        "part", "Load one tensor of 100", one,
        against="GET, one pickle, then one tensor", unit="loads", amount=1,
    )  # fmt: skip


def again(
    bench: Benchmark, r: redis.Redis, store: ParamStore, params: dict[str, np.ndarray]
) -> None:
    """Count what travels when 1 tensor of 100 has changed, or none."""

    def received(action: Callable[[], object]) -> tuple[float, float]:
        before, start = r.info("stats")["total_net_input_bytes"], time.perf_counter()
        action()
        seconds = time.perf_counter() - start
        return r.info("stats")["total_net_input_bytes"] - before, seconds

    rows, first = [], ParamStore(r, "bench-new")
    changed = params | {"layer7": params["layer7"] + 1}
    whole, seconds = received(lambda: first.save(params))
    for what, action in (
        ("save(), nothing is stored yet", None),
        ("save(), 1 tensor of 100 changed", lambda: first.save(changed)),
        ("save(), nothing changed", lambda: first.save(changed)),
        ("pickle, one SET", lambda: r.set(f"{PLAIN}:pickle", pickle.dumps(changed))),
    ):
        sent, took = (whole, seconds) if action is None else received(action)
        rows.append((what, f"{sent:,.0f}", f"{sent / whole:.2%}", f"{took * 1e3:.0f} ms"))
    first.delete()
    bench.table(
        "again", "Bytes that the server receives, all commands counted; one run.",
        ("what", "bytes", "of the first", "time"), rows,
    )  # fmt: skip


def follow(bench: Benchmark, r: redis.Redis) -> None:
    """Time from before promote() to a watcher in another thread that has the version."""
    store = ParamStore(r, "bench-watch")
    versions = [store.save({"w": np.full(1000, n, "f4")}) for n in range(2)]
    arrived: list[float] = []
    ready = threading.Semaphore(0)

    def watch() -> None:
        version: Version
        for version in ParamStore(r, "bench-watch").watch("production", timeout_s=3):
            assert version
            arrived.append(time.perf_counter())
            ready.release()

    thread = threading.Thread(target=watch)
    thread.start()
    waits, calls = [], []
    for n in range(200):
        start = time.perf_counter()
        store.promote(versions[n % 2])
        calls.append(time.perf_counter() - start)
        ready.acquire(timeout=10)
        waits.append(arrived[-1] - start)
    thread.join()
    store.delete()
    bench.table(
        "follow", "From the start of the call; median and 95th percentile of 200.",
        ("what", "median", "95th percentile"),
        [(what, f"{median(x) * 1e3:.2f} ms", f"{sorted(x)[190] * 1e3:.2f} ms")
         for what, x in (("promote() returns", calls), ("watch() has the version", waits))],
    )  # fmt: skip


def done(_: object) -> None:
    """Drop what was loaded: the harness takes only seconds."""


def through_torch(
    bench: Benchmark, r: redis.Redis, params: dict[str, np.ndarray]
) -> dict[str, Callable]:
    """Return the ways through torch.save, if torch is installed."""
    if importlib.util.find_spec("torch") is None:
        bench.note("Left out, as it is not installed: torch (pip install torch).")
        return {}
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in params.items()}

    def save_all() -> None:
        file = io.BytesIO()
        torch.save(tensors, file)
        r.set(f"{PLAIN}:torch", file.getvalue())

    def load_all() -> None:
        torch.load(io.BytesIO(r.get(f"{PLAIN}:torch")), weights_only=True)

    return {"save": save_all, "load": load_all}


if __name__ == "__main__":
    main()
