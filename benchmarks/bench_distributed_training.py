"""Benchmark of recipes/distributed_training.py.

Peers: torch (for torch.distributed's gloo); scikit-learn for the digits.
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import redis

from benchmarks.harness import Benchmark
from recipes import connect, free_port, url_of
from recipes.distributed_training import AllReduce, train

SIZE = 1_000_000
STEPS = 30  # all-reduces in one run


def ours(url: str, rank: int, world: int, port: int) -> Callable[[], Any]:
    link = AllReduce(redis.Redis.from_url(url), f"bench-{world}", rank, world)
    vector = np.ones(SIZE, np.float32)
    return lambda: link.mean(vector)


def naive(url: str, rank: int, world: int, port: int) -> Callable[[], Any]:
    """Each worker stores its whole gradient and asks again and again for the others'."""
    r, vector, step = redis.Redis.from_url(url), np.ones(SIZE, np.float32), iter(range(1 << 30))

    def mean() -> Any:
        number, total = next(step), vector.copy()
        r.set(f"naive:{world}:{number}:{rank}", vector.tobytes(), ex=30)
        for i in range(world):
            while i != rank:
                if data := r.get(f"naive:{world}:{number}:{i}"):
                    total += np.frombuffer(data, np.float32)
                    break
        return total / world

    return mean


def limit(url: str, rank: int, world: int, port: int) -> Callable[[], Any]:
    """The same bytes in SETs and GETs of the same size; nobody waits, nothing is added."""
    r = redis.Redis.from_url(url)
    bytearray(1 << 24)  # as the recipe: buffers are reused
    shard = np.ones(SIZE // world, np.float32).tobytes()

    def copy() -> None:
        for i in range(2 * (world - 1)):
            r.set(f"limit:{rank}:{i}", shard, ex=30)
            r.get(f"limit:{rank}:{i}")

    return copy


def gloo(url: str, rank: int, world: int, port: int) -> Callable[[], Any]:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    vector = torch.ones(SIZE)

    def mean() -> Any:
        total = vector.clone()
        dist.all_reduce(total)
        return total.div_(world)

    return mean


def worker(pipe: Any, way: Callable[..., Any], url: str, rank: int, world: int, port: int) -> None:
    step = way(url, rank, world, port)
    while pipe.recv():
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        pipe.send(time.perf_counter() - start)


class Group:
    """`world` processes that do the same way of averaging when asked to."""

    def __init__(self, way: Callable[..., Any], url: str, world: int) -> None:
        context, port = mp.get_context("spawn"), free_port()
        self.pipes = []
        for rank in range(world):
            ours_, theirs = context.Pipe()
            args = (theirs, way, url, rank, world, port)
            context.Process(target=worker, args=args, daemon=True).start()
            self.pipes.append(ours_)

    def __call__(self) -> float:
        for pipe in self.pipes:
            pipe.send(True)
        return max(pipe.recv() for pipe in self.pipes)

    def stop(self) -> None:
        for pipe in self.pipes:
            pipe.send(False)


def digits(r: redis.Redis, options: dict[str, Any]) -> tuple[float, int, float]:
    """Train a net 64-32-10 on digits with four workers: accuracy, bytes sent, seconds."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x / 16, y, test_size=360, random_state=0)
    rng = np.random.default_rng(0)
    start = {"w1": rng.normal(size=(64, 32)) * 0.18, "b1": np.zeros(32)}
    start |= {"w2": rng.normal(size=(32, 10)) * 0.25, "b2": np.zeros(10)}

    def gradient(p: Any, rows: Any) -> Any:
        hidden = np.maximum(x[rows] @ p["w1"] + p["b1"], 0)
        odds = np.exp(hidden @ p["w2"] + p["b2"])
        error = (odds / odds.sum(1, keepdims=True) - np.eye(10)[y[rows]]) / len(rows)
        back = (error @ p["w2"].T) * (hidden > 0)
        first = {"w1": x[rows].T @ back, "b1": back.sum(0)}
        return first | {"w2": hidden.T @ error, "b2": error.sum(0)}

    def share(step: int, rank: int, world_size: int) -> Any:
        return np.random.default_rng(step).permutation(len(x))[:128][rank::world_size]

    def work(rank: int) -> Any:
        every = {"lr": 0.3, "steps": 300, "world_size": 4}
        return train(r, "bench", rank, start, gradient, share, **every, **options)

    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(work, range(4)))[3]
    seconds = time.perf_counter() - begin
    p = result.params
    found = (np.maximum(x_test @ p["w1"] + p["b1"], 0) @ p["w2"] + p["b2"]).argmax(1)
    return float((found == y_test).mean()), result.bytes_sent, seconds


def main() -> None:
    r = connect()
    bench = Benchmark("distributed_training", "Distributed training", r)
    ways = {"this recipe": ours, "naive: whole gradients, polling": naive}
    ways["limit: the same bytes, SET and GET"] = limit
    if importlib.util.find_spec("torch"):
        ways["torch.distributed, gloo"] = gloo
    else:
        bench.note("torch is not installed: gloo is left out.")
    against = "torch.distributed, gloo" if gloo in ways.values() else "this recipe"
    for world in (2, 4):
        groups = {name: Group(way, url_of(r), world) for name, way in ways.items()}
        bench.compare(
            f"processes-{world}",
            f"The mean of 1,000,000 float32 over {world} processes",
            {name: partial(group) for name, group in groups.items()},
            against=against, unit="means", amount=STEPS, repeats=15,
        )  # fmt: skip
        for group in groups.values():
            group.stop()
    rows, dense = [], 0
    for name, options in {
        "every step": {},
        "`sync_every=10`": {"sync_every": 10},
        "`compress=0.01`": {"compress": 0.01},
        "both": {"sync_every": 10, "compress": 0.05},
    }.items():
        accuracy, sent, seconds = digits(r, options)
        dense = dense or sent
        label = "`sync_every=10, compress=0.05`" if name == "both" else name
        rows.append(
            (label, f"{accuracy:.1%}", f"{sent:,}", f"{dense / sent:.1f}", f"{seconds:.2g} s")
        )
    bench.table(
        "variants",
        "A net of 2,410 float64 on digits, 300 steps, 4 threads: accuracy on 360 unseen digits, "
        "bytes that one worker sent.",
        ("average", "accuracy", "bytes sent", "times fewer", "time"), rows,
    )  # fmt: skip
    for key in r.scan_iter("naive:*"):
        r.unlink(key)
    for key in r.scan_iter("limit:*"):
        r.unlink(key)
    bench.write()


if __name__ == "__main__":
    main()
