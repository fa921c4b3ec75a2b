"""training_data beside HGET a row, LMDB, a torch DataLoader, np.memmap. Wants: torch, lmdb."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks.harness import Benchmark, Run
from recipes import connect, url_of
from recipes.training_data import Dataset, delete, write

ROWS, BATCH, FEW = 60_000, 256, 3_000
Ways = dict[str, Run | tuple[Run, float]]


def images(rows: int = ROWS) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (rows, 784), np.uint8),
        "y": np.sort(rng.integers(0, 10, rows)).astype(np.uint8),
    }


def main() -> None:
    r = connect()
    bench = Benchmark("training_data", "Training data, measured", r)
    data = images()
    write(r, "bench", data)
    ds = Dataset(r, "bench")
    limit = "limit: pipelined GET of the chunks, nothing else"
    with tempfile.TemporaryDirectory() as folder:
        ways: Ways = {
            **rows_in_hashes(r, data),
            **files(bench, data, Path(folder)),
            "recipe": lambda: epoch(ds),
            "recipe, one of two ranks": (lambda: epoch(ds, world_size=2), ROWS / 2),
            limit: lambda: bare(r),
            "raw socket: the same bytes, no client": raw_socket(ROWS * 785),
        }
        bench.compare(
            "epoch", f"One shuffled epoch: {ROWS:,} rows x 784 uint8, a label; batches of {BATCH}",
            ways, against=limit, unit="rows", amount=ROWS,
        )  # fmt: skip
    random_rows(bench, r, data)
    ranks(bench, r)
    delete(r, "bench")
    r.unlink("rows")
    shuffle_quality(bench, r)
    memory(bench, r)
    bench.write()


def epoch(ds: Dataset, world_size: int = 1) -> None:
    seen = sum(len(b["y"]) for b in ds.batches(BATCH, world_size=world_size))
    assert seen == ROWS // world_size


def bare(r: redis.Redis) -> None:
    keys = [key for key, *_ in Dataset(r, "bench").manifest.chunks]
    for at in range(0, len(keys), 8):
        pipe = r.pipeline(transaction=False)
        for key in keys[at : at + 8]:
            pipe.get(key)
        assert None not in pipe.execute()


def rows_in_hashes(r: redis.Redis, data: dict[str, np.ndarray[Any, Any]]) -> Ways:
    pipe = r.pipeline(transaction=False)
    for i in range(ROWS):
        pipe.hset("rows", str(i), data["x"][i].tobytes() + data["y"][i].tobytes())
        if i % 2_000 == 1_999:
            pipe.execute()

    def a_row() -> None:
        for i in np.random.default_rng(1).permutation(ROWS)[:FEW]:
            np.frombuffer(r.hget("rows", str(i)), np.uint8)  # type: ignore[arg-type]

    def a_batch() -> None:
        order = np.random.default_rng(1).permutation(ROWS)[: 10 * FEW]
        for at in range(0, len(order), BATCH):
            raw: Any = r.hmget("rows", list(map(str, order[at : at + BATCH])))
            np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 785)

    return {
        "naive: one HGET a row": (a_row, FEW),
        "one HMGET a batch": (a_batch, 10 * FEW),
    }


def files(bench: Benchmark, data: dict[str, np.ndarray[Any, Any]], folder: Path) -> Ways:
    rows = np.concatenate([data["x"], data["y"][:, None]], axis=1)
    np.save(folder / "rows.npy", rows)
    mapped = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    ways: Ways = {"np.memmap, a full permutation": lambda: permuted(mapped)}
    try:
        import lmdb

        store = lmdb.open(str(folder / "lmdb"), map_size=1 << 30)
        with store.begin(write=True) as transaction:
            for i, row in enumerate(rows):
                transaction.put(i.to_bytes(4, "big"), row.tobytes())

        def lmdb_epoch() -> None:
            with store.begin(buffers=True) as transaction:
                for order in batches_of(ROWS):
                    raw = [transaction.get(int(i).to_bytes(4, "big")) for i in order]
                    np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 785)

        ways["LMDB, a full permutation"] = lmdb_epoch
    except ImportError:
        bench.note("LMDB is not installed: left out.")
    try:
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        pair = TensorDataset(torch.from_numpy(mapped.copy()), torch.arange(ROWS))
        loader = DataLoader(pair, batch_size=BATCH, shuffle=True)
        ways["torch DataLoader over the array in memory"] = lambda: _exhaust(loader)

        class Mapped(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return ROWS

            def __getitem__(self, i: int) -> Any:
                return torch.from_numpy(mapped[i].copy()), 0

        over_memmap = DataLoader(Mapped(), batch_size=BATCH, shuffle=True)
        ways["torch DataLoader over a memmap"] = lambda: _exhaust(over_memmap)
    except ImportError:
        bench.note("PyTorch is not installed: left out.")
    return ways


def _exhaust(batches: Any) -> None:
    for _ in batches:
        pass


def batches_of(rows: int) -> Iterator[np.ndarray[Any, Any]]:
    order = np.random.default_rng(1).permutation(rows)
    yield from (order[at : at + BATCH] for at in range(0, rows, BATCH))


def permuted(mapped: np.ndarray[Any, Any]) -> None:
    for order in batches_of(ROWS):
        np.ascontiguousarray(mapped[order])


def raw_socket(nbytes: int) -> Callable[[], float]:
    """A process that sends the bytes as fast as the loopback takes them."""
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); c, _ = s.accept(); block = bytes(1 << 20); "
        f"n = {nbytes}\nwhile n > 0:\n  c.sendall(block[:n]); n -= len(block)"
    )

    def run() -> float:
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as sender:
            assert sender.stdout is not None
            port = int(sender.stdout.readline())
            buffer = bytearray(1 << 20)
            start = time.perf_counter()
            with socket.create_connection(("127.0.0.1", port)) as receiver:
                while receiver.recv_into(buffer):
                    pass
            return time.perf_counter() - start

    return run


def random_rows(bench: Benchmark, r: redis.Redis, data: dict[str, np.ndarray[Any, Any]]) -> None:
    """256 rows from anywhere, by rows() and by HMGET."""
    write(r, "bench-small", data, chunk_bytes=16 << 10)
    rng = np.random.default_rng(2)
    large, small = Dataset(r, "bench"), Dataset(r, "bench-small")

    def hmget() -> None:
        fields = list(map(str, rng.integers(0, ROWS, BATCH)))
        raw: Any = r.hmget("rows", fields)
        np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 785)

    def hget() -> None:
        for i in rng.integers(0, ROWS, BATCH):
            np.frombuffer(r.hget("rows", str(i)), np.uint8)  # type: ignore[arg-type]

    def some(ds: Dataset) -> None:
        assert len(ds.rows(rng.integers(0, ROWS, BATCH))["y"]) == BATCH

    one = "one HMGET"
    bench.compare(
        "rows", f"{BATCH} random rows of {ROWS:,}",
        {
            "naive: one HGET a row": hget,
            one: hmget,
            "rows(), chunks as by default": lambda: some(large),
            "rows(), chunk_bytes=16 KiB": lambda: some(small),
        },
        against=one, unit="rows", amount=BATCH,
    )  # fmt: skip
    delete(r, "bench-small")


def ranks(bench: Benchmark, r: redis.Redis) -> None:
    """What the server sent in one epoch, to all ranks together."""
    manifest, rows = Dataset(r, "bench").manifest, []
    stored = sum(r.strlen(key) for key, *_ in manifest.chunks)
    for world_size in (1, 2, 4, 8, 3, 16):
        before = r.info("stats")["total_net_output_bytes"]
        for rank in range(world_size):
            _exhaust(Dataset(r, "bench").batches(BATCH, rank=rank, world_size=world_size))
        sent = r.info("stats")["total_net_output_bytes"] - before
        rows.append((world_size, f"{sent / stored:.2f}"))
    bench.table(
        "ranks", f"Bytes that the server sent in one epoch; 1 is the stored data, "
        f"{stored / 2**20:.0f} MiB in {len(manifest.chunks)} chunks.",
        ("ranks", "all of them read"), rows,
    )  # fmt: skip


def shuffle_quality(bench: Benchmark, r: redis.Redis) -> None:
    """Mean entropy of the labels of a batch, on data sorted by label."""
    labels = np.sort(np.arange(ROWS) % 10).astype(np.uint8)
    write(r, "bench", {"x": np.zeros((ROWS, 784), np.uint8), "y": labels})
    recipe = np.mean([entropy(b["y"]) for b in Dataset(r, "bench").batches(BATCH, seed=1)])
    full = np.mean([entropy(labels[order]) for order in batches_of(ROWS)])
    delete(r, "bench")
    bench.table(
        "shuffle", f"Mean label entropy of batches of {BATCH}, {ROWS:,} rows sorted by label.",
        ("way", "bits", "ratio"),
        [
            ("full permutation", f"{full:.3f}", "1"),
            ("recipe", f"{recipe:.3f}", f"{recipe / full:.3f}"),
        ],
    )  # fmt: skip


def entropy(labels: np.ndarray[Any, Any]) -> float:
    p = np.bincount(labels, minlength=10) / len(labels)
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


MEASURE = """
import sys
import numpy as np, redis
from recipes.training_data import Dataset, write
r, rows, job = redis.Redis.from_url(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
Dataset(r, "warm").rows([0])
def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from now
before = peak()
if job == "write":
    block = {"x": np.ones((2_000, 784), np.uint8)}
    write(r, "memory", (block for _ in range(rows // 2_000)))
else:
    for batch in Dataset(r, "memory").batches(256):
        pass
print(peak() - before)
"""


def memory(bench: Benchmark, r: redis.Redis) -> None:
    """Peak memory of a process that writes from an iterable, and of one that reads an epoch."""
    write(r, "warm", {"x": np.zeros((8, 784), np.uint8)})
    rows = []
    for count in (60_000, 240_000, 960_000):
        peaks = []
        for job in ("write", "read"):
            command = [sys.executable, "-c", MEASURE, url_of(r), str(count), job]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(f"{int(run.stdout) / 1024:.0f} MiB")
        rows.append((f"{count:,}", f"{count * 784 / 2**20:,.0f} MiB", *peaks))
        delete(r, "memory")
    delete(r, "warm")
    bench.table(
        "memory", "What a process needs beside its imports, at its peak.",
        ("rows", "data", "writing from an iterable", "reading an epoch"), rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
