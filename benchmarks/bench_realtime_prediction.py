"""Real-time prediction beside Feast's Redis store, HGETALL, bare MGET, and one request at a time.

Wants scikit-learn, and `feast[redis]` as a peer. Feast's dependencies may clash with those of the
rest: it is run as another process, by the Python that FEAST_PYTHON names (default: this one).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import redis

from benchmarks.harness import Benchmark
from recipes import connect, url_of
from recipes import realtime_prediction as rp

IDS = [f"user:{i}" for i in range(100)]
NAMES = [f"f{i}" for i in range(10)]
REPEATS = 100  # reads in one timed run
CLIENTS = 256

# Writes 100 entities of 10 features once, then reads them REPEATS times for each line it gets.
FEAST = """
import datetime, json, sys, time
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64
folder, host, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = [f"f{i}" for i in range(10)]
now = datetime.datetime.now(datetime.timezone.utc)
frame = pd.DataFrame({"user": [f"user:{i}" for i in range(100)], "at": now,
                      **{name: [float(i) for i in range(100)] for name in names}})
frame.to_parquet(folder + "/rows.parquet")
store = FeatureStore(config=RepoConfig(
    project="bench", provider="local", registry=folder + "/registry.db",
    online_store={"type": "redis", "connection_string": host},
    entity_key_serialization_version=3))
user = Entity(name="user", join_keys=["user"])
view = FeatureView(name="v", entities=[user], schema=[Field(name=n, dtype=Float64) for n in names],
                   source=FileSource(path=folder + "/rows.parquet", timestamp_field="at"))
store.apply([user, view])
store.write_to_online_store("v", frame)
rows = [{"user": f"user:{i}"} for i in range(100)]
features = [f"v:{name}" for name in names]
def read():
    return store.get_online_features(features=features, entity_rows=rows)
assert read().to_dict()["f3"] == [float(i) for i in range(100)]
print("ready", flush=True)
for line in sys.stdin:
    begin = time.perf_counter()
    for _ in range(repeats):
        read()
    print(json.dumps(time.perf_counter() - begin), flush=True)
store.teardown()
"""


class Feast:
    """Feast in a process of its own; calling it times one run."""

    def __init__(self, r: redis.Redis, folder: str) -> None:
        python = os.environ.get("FEAST_PYTHON", sys.executable)
        host = url_of(r).removeprefix("redis://").split("/")[0]
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", FEAST, folder, host, str(REPEATS // 10)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "FEAST_USAGE": "False"},
        )  # fmt: skip
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) and line != "ready\n":
            pass
        self.is_there = bool(line)

    def __call__(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return 10 * float(json.loads(self.process.stdout.readline()))

    def close(self) -> str:
        _, errors = self.process.communicate()
        return errors.strip().rpartition("\n")[2]


def many(work: Any) -> Any:
    def run() -> None:
        for _ in range(REPEATS):
            work()

    return run


def reading(bench: Benchmark, r: redis.Redis, table: rp.FeatureTable) -> None:
    values = {name: np.random.default_rng(0).normal(size=100) for name in NAMES}
    table.put(IDS, values)
    keys = [f"{table.name}:row:{id}" for id in IDS]
    hashes = [f"{table.name}:row:h:{id}" for id in IDS]
    for i, key in enumerate(hashes):
        r.hset(key, mapping={name: float(values[name][i]) for name in NAMES})

    def decode(rows: list[dict[bytes, bytes]]) -> dict[str, Any]:
        return {n: np.array([float(row[n.encode()]) for row in rows]) for n in NAMES}

    def pipelined() -> dict[str, Any]:
        with r.pipeline(transaction=False) as pipe:
            for key in hashes:
                pipe.hgetall(key)
            return decode(pipe.execute())

    assert all((decode([r.hgetall(k) for k in hashes])[n] == values[n]).all() for n in NAMES)
    ways = {
        "HGETALL, one round trip an entity": many(lambda: decode([r.hgetall(k) for k in hashes])),
        "HGETALL in one pipeline": many(pipelined),
        "this recipe: get()": many(lambda: table.get(IDS)),
        "limit: bare MGET, nothing decoded": many(lambda: r.mget(keys)),
    }
    with tempfile.TemporaryDirectory() as folder:
        feast = Feast(r, folder)
        if feast.is_there:
            ways = {"Feast's Redis store": feast, **ways}
        against = next(iter(ways))
        timings = bench.compare(
            "read", "100 entities of 10 features, read and decoded", ways,
            against=against, unit="reads", amount=REPEATS, repeats=7,
        )  # fmt: skip
        why = feast.close()
    if feast.is_there:
        rows = [
            (t.name, f"{1e3 * t.seconds / REPEATS:.3g} ms",
             f"{t.seconds / timings[against].seconds:.3g}")
            for t in timings.values()
        ]  # fmt: skip
        bench.table("feast", "The same, as the time of one read.", ("way", "time", "of Feast's"),
                    rows)  # fmt: skip
    else:
        bench.note(f"Feast is not installed and so left out ({why}).")


def model() -> tuple[Any, Any]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_breast_cancer()
    return data, make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)


def predict(trained: Any, columns: dict[str, Any]) -> Any:
    return trained.predict_proba(np.column_stack([*columns.values()]))[:, 1]


def serving(bench: Benchmark, r: redis.Redis) -> None:
    data, trained = model()
    columns = {f"c{i:02}": data.data[:, i] for i in range(data.data.shape[1])}
    table = rp.FeatureTable(r, "bench:realtime_prediction:cells", dict.fromkeys(columns, "f8"))
    n = len(data.data)
    table.put(range(n), columns)
    latencies: dict[str, list[float]] = {}

    def one_at_a_time(amount: int, note: list[float]) -> None:
        for i in range(amount):
            begin = time.perf_counter()
            predict(trained, table.get([i % n]).columns)
            note.append((time.perf_counter() - begin) * 1e3)

    async def clients(amount: int, count: int, note: list[float], **options: Any) -> float:
        async with rp.Predictor(r, table, lambda _: (1, trained), predict, **options) as predictor:
            await predictor(0)

            async def client(number: int) -> None:
                for i in range(number, amount, count):
                    answer = await predictor(i % n)
                    assert answer.source == "model", answer
                    note.append(answer.latency_ms)

            begin = time.perf_counter()
            await asyncio.gather(*map(client, range(count)))
            return time.perf_counter() - begin

    def batched(label: str, amount: int, count: int, **options: Any) -> Any:
        note = latencies.setdefault(label, [])
        return lambda: asyncio.run(clients(amount, count, note, budget_ms=2000, **options)), amount

    alone = "one request at a time: read, predict"
    note = latencies.setdefault(alone, [])
    unbatched = f"Predictor, max_batch=1, {CLIENTS} clients"
    micro = f"Predictor, {CLIENTS} clients"
    few = "Predictor, 16 clients"
    bench.compare(
        "serve", "Requests answered by a scikit-learn model on 30 features",
        {
            alone: (lambda: one_at_a_time(1000, note), 1000),
            unbatched: batched(unbatched, 1000, CLIENTS, max_batch=1),
            few: batched(few, 2000, 16),
            micro: batched(micro, 20_000, CLIENTS),
        },
        against=alone, unit="requests", amount=1000,
    )  # fmt: skip
    rows = [
        (label, *(f"{np.percentile(values, q):.2f} ms" for q in (50, 99)))
        for label, values in latencies.items()
    ]
    bench.table("latency", "How long a request waited, in the runs above.",
                ("way", "p50", "p99"), rows)  # fmt: skip
    table.delete()


def main() -> None:
    r = connect()
    bench = Benchmark("realtime_prediction", "Real-time prediction", r)
    table = rp.FeatureTable(r, "bench:realtime_prediction", dict.fromkeys(NAMES, "f8"))
    reading(bench, r, table)
    table.delete()
    serving(bench, r)
    bench.write()


if __name__ == "__main__":
    main()
