"""Benchmark of training_checkpoints: save and load of 100 MB, and the share of a training step.

Peers: none beyond the cookbook's own requirements (numpy.savez to disk, pickle).
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import redis

from benchmarks.harness import Benchmark
from recipes import connect
from recipes.training_checkpoints import Checkpoints

TENSORS, ROWS, COLUMNS = 100, 512, 512  # float32: 1 MiB each
BATCH, HIDDEN = 128, 256


def main() -> None:
    r = connect()
    bench = Benchmark("training_checkpoints", "Training checkpoints, measured", r)
    rng = np.random.default_rng(0)
    arrays = {
        f"layer {i}": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32) for i in range(TENSORS)
    }
    state = {"rng": rng.bit_generator.state, "epoch": 3}
    checkpoints = Checkpoints(r, "bench", keep=1)
    with tempfile.TemporaryDirectory() as folder, checkpoints.acquire("bench", ttl_s=600) as lease:

        def save() -> None:
            checkpoints.save(lease, 1, arrays, state)

        def load() -> None:
            checkpoints.latest()

        transfer(bench, r, arrays, state, save, load, Path(folder) / "checkpoint.npz")
        per_step(bench, checkpoints, lease.renew)
    checkpoints.delete()
    for key in r.scan_iter("bench-plain:*"):
        r.unlink(key)
    bench.write()


def transfer(
    bench: Benchmark,
    r: redis.Redis,
    arrays: dict[str, np.ndarray],
    state: object,
    save: Callable[[], None],
    load: Callable[[], None],
    file: Path,
) -> None:
    """Compare saving and loading all arrays."""
    chunks = [array.tobytes() for array in arrays.values()]
    megabytes = sum(map(len, chunks)) / 1e6

    def to_disk() -> None:
        with file.open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())

    def from_disk() -> None:
        with np.load(file, allow_pickle=False) as stored:
            for name in stored.files:
                _ = stored[name]

    def bare_set() -> None:
        for first in range(0, len(chunks), 8):
            with r.pipeline(transaction=False) as pipe:
                for i in range(first, min(first + 8, len(chunks))):
                    pipe.set(f"bench-plain:{i}", chunks[i])
                pipe.execute()

    def bare_get() -> None:
        for first in range(0, len(chunks), 8):
            with r.pipeline(transaction=False) as pipe:
                for i in range(first, min(first + 8, len(chunks))):
                    pipe.get(f"bench-plain:{i}")
                pipe.execute()

    def pickled_set() -> None:
        r.set("bench-plain:pickle", pickle.dumps((arrays, state), protocol=5))

    def pickled_get() -> None:
        data = r.get("bench-plain:pickle")
        assert isinstance(data, bytes)
        pickle.loads(data)  # noqa: S301 (the naive way)

    bench.compare(
        "save",
        f"Save a checkpoint of {megabytes:.0f} MB",
        {
            "training_checkpoints: save": save,
            "naive: pickle and one SET": pickled_set,
            "numpy.savez to a file, fsync": to_disk,
            "limit: pipelined SET of the same bytes": bare_set,
        },
        against="limit: pipelined SET of the same bytes",
        unit="MB",
        amount=megabytes,
        repeats=7,
    )
    bench.compare(
        "load",
        f"Load a checkpoint of {megabytes:.0f} MB",
        {
            "training_checkpoints: latest": load,
            "naive: one GET and pickle": pickled_get,
            "numpy.load of the file (in the page cache)": from_disk,
            "limit: pipelined GET of the same bytes": bare_get,
        },
        against="limit: pipelined GET of the same bytes",
        unit="MB",
        amount=megabytes,
        repeats=7,
    )


def per_step(bench: Benchmark, checkpoints: Checkpoints, renew: Callable[[], object]) -> None:
    """What a checkpoint costs beside a training step of a small network."""
    rng = np.random.default_rng(1)
    at = {"w1": rng.normal(size=(64, HIDDEN)) / 8, "w2": rng.normal(size=(HIDDEN, 10)) / 16}
    at |= {f"momentum of {name}": np.zeros_like(w) for name, w in at.items()}
    x, y = rng.normal(size=(BATCH, 64)), rng.normal(size=(BATCH, 10))

    def train() -> None:
        hidden = np.tanh(x @ at["w1"])
        error = (hidden @ at["w2"] - y) / BATCH
        back = error @ at["w2"].T * (1 - hidden**2)
        for name, gradient in (("w2", hidden.T @ error), ("w1", x.T @ back)):
            at[f"momentum of {name}"] *= 0.9
            at[f"momentum of {name}"] -= 0.01 * gradient
            at[name] += at[f"momentum of {name}"]

    state = {"rng": rng.bit_generator.state}
    with Checkpoints(checkpoints.r, "bench-step").acquire("bench", ttl_s=600) as lease:
        own = lease.checkpoints
        steps = iter(range(1_000_000))
        seconds: dict[str, list[float]] = {"step": [], "save": [], "renew": []}
        ways = {
            "step": train,
            "save": lambda: own.save(lease, next(steps), at, state),
            "renew": renew,
        }
        for _ in range(300):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        own.delete()
    step, save, beat = (median(values) for values in seconds.values())
    size = sum(array.nbytes for array in at.values()) / 1e3
    rows = [
        (every, f"{(step + save / every) * 1e3:.2f} ms", f"{save / every / step:.1%}")
        for every in (1, 10, 100, 1000)
    ]
    bench.table(
        "step",
        f"A network of 64, {HIDDEN} and 10 units in numpy, batches of {BATCH}: a training step "
        f"takes {step * 1e3:.2f} ms, save of its {size:.0f} kB {save * 1e3:.2f} ms, renew "
        f"{beat * 1e3:.2f} ms (medians of 300, in turn).",
        ("save every ... steps", "time of a step with its share of a save", "added by saving"),
        rows,
    )


if __name__ == "__main__":
    main()
