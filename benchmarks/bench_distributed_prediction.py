"""Benchmark of distributed_prediction: one worker beside job queues, and scaling over workers.

Peers, each left out if it is not installed: rq, celery, taskiq with taskiq-redis. Every worker is
a process of its own, on a real server. A job is one call of predict: of one row of 8 float32, or
of 256 such rows. Only the workers are timed; what they work off is submitted before.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks.harness import Benchmark, ratio_text
from recipes import connect, url_of
from recipes.distributed_prediction import delete, pack, progress, submit, unpack, work

ROOT = Path(__file__).parent.parent
ROWS, WIDTH, JOB = 256, 8, "bench"
SLEEP_S, SLEEPS = 0.005, 1200


def main() -> None:
    r = connect()
    bench = Benchmark("distributed_prediction", "Distributed prediction, measured", r)
    naive(bench, r)
    with tempfile.TemporaryDirectory() as folder:
        queues(bench, r, Path(folder))
    scaling(bench, r)
    bench.write()


def predict(batch: dict[str, Any]) -> Any:
    return batch["x"].sum(axis=1)


def recipe(r: redis.Redis, rows: int, batches: int) -> Callable[[], float]:
    """One worker of the recipe, with all its guarantees."""
    data = {"x": np.random.default_rng(0).random((rows, WIDTH), dtype=np.float32)}

    def run() -> float:
        submit(r, JOB, (data for _ in range(batches)))
        begin = time.perf_counter()
        assert work(r, JOB, predict, consumer="a").done == batches
        seconds = time.perf_counter() - begin
        delete(r, JOB)
        return seconds

    return run


# --- The naive way, and the limit -----------------------------------------------------------------


def naive(bench: Benchmark, r: redis.Redis) -> None:
    row = np.random.default_rng(0).random((1, WIDTH), dtype=np.float32)
    blob = pack({"x": row.repeat(ROWS, axis=0)})
    answer = pack({"result": row.repeat(ROWS)})

    def one_by_one() -> float:
        with r.pipeline(transaction=False) as pipe:
            for i in range(3000):
                pipe.rpush("bench:list", json.dumps([i, row.tolist()]))
            pipe.execute()
        begin = time.perf_counter()
        while job := r.lpop("bench:list"):
            i, x = json.loads(job)  # type: ignore[arg-type]
            r.hset("bench:results", i, json.dumps(np.array(x).sum(axis=1).tolist()))
        seconds = time.perf_counter() - begin
        r.unlink("bench:results")
        return seconds

    def bytes_only() -> float:
        n = 2000
        with r.pipeline(transaction=False) as pipe:
            for _ in range(n):
                pipe.rpush("bench:list", blob)
            pipe.execute()
        begin = time.perf_counter()
        for i in range(0, n, 100):
            found = r.lpop("bench:list", 100)
            r.hset("bench:results", mapping={str(i + k): answer for k in range(len(found))})  # type: ignore[arg-type]
        seconds = time.perf_counter() - begin
        r.unlink("bench:results")
        return seconds

    def alone() -> None:
        for _ in range(5000):
            pack({"result": predict(unpack(blob))})

    bench.compare(
        "naive",
        "One worker, rows of 8 float32 predicted and stored",
        {
            "LPOP, predict, HSET of JSON, row by row": (one_by_one, 3000),
            "recipe, batches of 1 row": (recipe(r, 1, 8000), 8000),
            "recipe, batches of 256 rows": (recipe(r, ROWS, 4000), 4000 * ROWS),
            "limit: the same bytes by LPOP and HSET of 100, nothing else": (
                bytes_only,
                2000 * ROWS,
            ),
            "limit: unpack, predict and pack without Redis": (alone, 5000 * ROWS),
        },
        against="LPOP, predict, HSET of JSON, row by row",
        unit="rows",
        amount=1,
    )


# --- Beside job queues ----------------------------------------------------------------------------

PEERS = """
import base64, os
import numpy as np
URL = os.environ["PEERS_URL"]

def predict(text):
    rows = np.frombuffer(base64.b64decode(text), np.float32).reshape(-1, 8)
    return base64.b64encode(rows.sum(axis=1).tobytes()).decode()

def celery_app():
    from celery import Celery
    app = Celery("peers", broker=URL, backend=URL)
    app.task(predict, name="predict")
    return app

if os.environ.get("PEER") == "celery":
    app = celery_app()

def taskiq_broker():
    from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
    broker = ListQueueBroker(URL).with_result_backend(RedisAsyncResultBackend(URL))
    broker.register_task(predict, "predict")
    return broker
"""
COMMANDS = {
    "rq": [
        "-m",
        "rq.cli",
        "worker",
        "--worker-class",
        "rq.SimpleWorker",
        "--quiet",
        "--url",
        "URL",
    ],
    "celery": [
        *("-m", "celery", "-A", "peers:app", "worker", "--pool", "solo"),
        *("--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"),
    ],
    "taskiq": [
        *("-m", "taskiq", "worker", "peers:taskiq_broker", "--workers", "1"),
        *("--log-level", "ERROR", "--no-configure-logging"),
    ],
}
JOBS = {"rq": 300, "celery": 600, "taskiq": 2000}


def queues(bench: Benchmark, r: redis.Redis, folder: Path) -> None:
    (folder / "peers.py").write_text(PEERS)
    url = f"{url_of(r).rpartition('/')[0]}/1"  # a database of their own
    os.environ["PEERS_URL"] = url
    sys.path.insert(0, str(folder))
    module = importlib.import_module("peers")
    found = []
    for name, package in (("rq", "rq"), ("celery", "celery"), ("taskiq", "taskiq_redis")):
        if importlib.util.find_spec(package):
            found.append(name)
        else:
            bench.note(f"{name} is not installed, and so left out.")
    against = "taskiq" if "taskiq" in found else "recipe"
    timings = {}
    with redis.Redis.from_url(url) as client:
        for section, rows, batches in (("one-row", 1, 8000), ("many-rows", ROWS, 4000)):
            text = module.base64.b64encode(np.ones((rows, WIDTH), np.float32).tobytes()).decode()
            ways: dict[str, Any] = {
                name: (peer(name, module, client, url, folder, text), JOBS[name]) for name in found
            }
            ways["recipe"] = (recipe(r, rows, batches), batches)
            timings[section] = bench.compare(
                section,
                f"One worker, jobs of {rows} row{'s' * (rows > 1)} of 8 float32",
                ways,
                against=against,
                unit="jobs",
                amount=1,
                repeats=3,
            )
    names = list(ways)
    base = timings["one-row"][against].rate
    rates = {
        name: (timings["one-row"][name].rate, timings["many-rows"][name].rate * ROWS)
        for name in names
    }
    bench.table(
        "rows",
        f"Rows per second of the two tables above; 1 is {against!r} with one row a job.",
        ("way", "one row a job", "ratio", f"{ROWS} rows a job", "ratio"),
        [
            (name, f"{one:,.0f}", ratio_text(one / base), f"{many:,.0f}", ratio_text(many / base))
            for name, (one, many) in rates.items()
        ],
    )
    bench.note(
        "RQ runs its SimpleWorker (no fork a job), Celery its solo pool, taskiq its "
        "ListQueueBroker; all store their results in Redis. Their rates are those between a tenth "
        "and nine tenths of the results."
    )


def peer(
    name: str, module: Any, client: redis.Redis, url: str, folder: Path, text: str
) -> Callable[[], float]:
    def run() -> float:
        remove_all(client)
        enqueue(name, module, client, text)
        before, jobs = client.dbsize(), JOBS[name]

        def results() -> int:  # each is a key of its own
            return int(client.dbsize()) - before

        command = [url if part == "URL" else part for part in COMMANDS[name]]
        with process([sys.executable, *command], folder, PEER=name):
            wait_for(lambda: results() > jobs * 0.1)
            begin, first = time.perf_counter(), results()
            wait_for(lambda: results() > jobs * 0.9)
            seconds, done = time.perf_counter() - begin, results() - first
        remove_all(client)
        return seconds * jobs / done

    return run


def enqueue(name: str, module: Any, client: redis.Redis, text: str) -> None:
    if name == "rq":
        from rq import Queue

        data = [Queue.prepare_data(module.predict, (text,)) for _ in range(JOBS[name])]
        Queue("default", connection=client).enqueue_many(data)
    elif name == "celery":
        task = module.celery_app().tasks["predict"]
        for _ in range(JOBS[name]):
            task.delay(text)
    else:

        async def send() -> None:
            broker = module.taskiq_broker()
            await broker.startup()
            task = broker.find_task("predict")
            for _ in range(JOBS[name]):
                await task.kiq(text)
            await broker.shutdown()

        asyncio.run(send())


def remove_all(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipe:
        for key in client.scan_iter(count=1000):
            pipe.unlink(key)
        pipe.execute()


@contextmanager
def process(command: list[str], folder: Path, **settings: str) -> Iterator[None]:
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **settings}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, cwd=folder, env=env, **quiet)  # type: ignore[call-overload]
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a worker did not finish")
        time.sleep(0.001)


# --- Scaling --------------------------------------------------------------------------------------

WORKER = f"""
import sys, time
import redis
from recipes.distributed_prediction import work

def predict(batch):
    time.sleep({SLEEP_S})
    return batch["x"]

r = redis.Redis.from_url(sys.argv[1])
r.incr("bench:ready")
work(r, {JOB!r}, predict, consumer=sys.argv[2], wait_s=60)
"""


def scaling(bench: Benchmark, r: redis.Redis) -> None:
    data = {"x": np.ones((32, WIDTH), np.float32)}

    def run(n: int) -> float:
        r.unlink("bench:ready")
        with ExitStack() as stack:
            for i in range(n):
                stack.enter_context(
                    process([sys.executable, "-c", WORKER, url_of(r), str(i)], ROOT)
                )
            wait_for(lambda: int(r.get("bench:ready") or 0) == n)
            begin = time.perf_counter()
            submit(r, JOB, (data for _ in range(SLEEPS)))
            wait_for(lambda: progress(r, JOB).finished)
            seconds = time.perf_counter() - begin
        delete(r, JOB)
        r.unlink("bench:ready")
        return seconds

    timings = bench.compare(
        "scaling",
        f"{SLEEPS} batches, a predict that waits {SLEEP_S * 1000:.0f} ms (a GPU, a remote model)",
        {f"{n} worker{'s' * (n > 1)}": lambda n=n: run(n) for n in (1, 2, 4)},  # type: ignore[misc]
        against="1 worker",
        unit="batches",
        amount=SLEEPS,
        repeats=3,
    )
    shares = [(label, f"{t.ratio / int(label.split()[0]):.3f}") for label, t in timings.items()]
    bench.table("linear", "Share of linear scaling.", ("workers", "of linear"), shares)


if __name__ == "__main__":
    main()
