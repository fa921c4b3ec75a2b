"""Tests of recipes/parameter_server.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes import parameter_server as ps
from recipes.parameter_server import BadGradient, ServerError, WorkerTimeout, serve, work
from tests import servers

ROOT = Path(__file__).parent.parent.parent
START = np.zeros(3)
LAYOUT = "float64 (3,)"
QUICK = {"timeout_s": 15, "ttl_s": 60}


def keys_of(r: Any) -> list[bytes]:
    return sorted(r.scan_iter("ps:*"))


def ones(params: np.ndarray, batch: Any) -> np.ndarray:
    """A gradient that counts: with lr=-1 the parameters are the number of gradients applied."""
    return np.ones(3)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run all at once; return results or exceptions."""

    def guarded(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(guarded, calls))


def counted(r: Any, job: str, workers: int, steps: int, **options: Any) -> list[Any]:
    every = {"steps": steps, "lease_s": 2} | QUICK | options
    return together(
        lambda: serve(r, job, START, lr=-1, **QUICK),
        *(lambda i=i: work(r, job, i, START, ones, int, **every) for i in range(workers)),
    )


def test_each_gradient_is_applied_once_and_nothing_is_left(r: redis.Redis) -> None:
    params, *reports = counted(r, "once", 3, 20)
    steps = [report.steps for report in reports]  # who enters later starts where the slowest is
    assert max(steps) == 20 and params.tolist() == [sum(steps)] * 3
    assert keys_of(r) == []


def test_one_worker_without_staleness_is_plain_sgd(r: redis.Redis) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    y = x @ np.arange(3.0)

    def gradient(w: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return 2 * x[rows].T @ (x[rows] @ w - y[rows]) / len(rows)

    def rows(step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, 50, 8)

    params, _ = together(
        lambda: serve(r, "sgd", START, lr=0.05, **QUICK),
        lambda: work(r, "sgd", "a", START, gradient, rows, steps=30, staleness=0, **QUICK),
    )
    expected = START.copy()
    for step in range(30):
        expected -= 0.05 * gradient(expected, rows(step))
    np.testing.assert_allclose(params, expected, rtol=1e-12)


def test_an_update_just_before_the_last_worker_leaves_counts(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ps.update(r, "last", "enter", "w", 0, 60, 60)
    plain, looks = ps.update, []

    def slow_look(r: Any, job: str, verb: str, *rest: Any) -> Any:
        looks.append(verb)
        if len(looks) == 2:  # serve() has just seen that there is nothing new
            ps.store(r, "ps:last:grads:w:1", np.ones(3), 60)
            plain(r, "last", "push", "w", 1, 60, 60)
            plain(r, "last", "leave", "w", 0, 60, 60)
        return plain(r, job, verb, *rest)

    monkeypatch.setattr(ps, "update", slow_look)
    assert serve(r, "last", START, lr=-1, **QUICK).tolist() == [1.0] * 3
    assert len(looks) > 2 and keys_of(r) == []


@pytest.mark.parametrize("staleness", [0, 2])
def test_nobody_is_ahead_by_more_than_the_bound(r: redis.Redis, staleness: int) -> None:
    both, seen = threading.Event(), []

    def slow(params: np.ndarray, batch: int) -> np.ndarray:
        both.set()
        threading.Event().wait(0.01)
        return np.ones(3)

    def fast(params: np.ndarray, batch: int) -> np.ndarray:
        both.wait(10)
        _, version = ps.newest(r, "bound")
        if version is not None and "slow" in version.clocks:
            seen.append((batch, version.clocks["slow"], params[0]))
        return np.ones(3)

    options = {"steps": 15, "staleness": staleness} | QUICK
    params, _, _ = together(
        lambda: serve(r, "bound", START, lr=-1, **QUICK),
        lambda: work(r, "bound", "slow", START, slow, int, **options),
        lambda: work(r, "bound", "fast", START, fast, int, **options),
    )
    assert 28 <= params[0] <= 30
    middle = [entry for entry in seen if entry[0] < 15 - 3]
    assert len(middle) > 5
    for step, slows, first in middle:
        assert step - slows <= staleness
        assert first >= 2 * (step - staleness) - staleness - 1  # it sees what it must


def test_a_dead_worker_holds_nobody_for_longer_than_its_lease(r: redis.Redis) -> None:
    dead = threading.Event()

    def part(worker: str) -> Any:
        if worker == "dead":  # it enters, and is never heard of again
            ps.update(r, "dead", "enter", "dead", 0, 0.5, 60)
            dead.set()
            return None
        dead.wait(10)
        return work(r, "dead", worker, START, ones, int, steps=10, staleness=1, **QUICK)

    params, report, _ = together(
        lambda: serve(r, "dead", START, lr=-1, **QUICK), lambda: part("alive"), lambda: part("dead")
    )
    assert params.tolist() == [10.0] * 3 and report.steps == 10
    assert keys_of(r) == []


def killed(r: Any, job: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker a does `steps` steps, and ends as by kill -9: it does not leave."""
    plain = ps.update

    def gradient(params: np.ndarray, batch: int) -> np.ndarray:
        if batch == steps:
            raise InterruptedError
        return np.ones(3)

    def update(r: Any, job: str, verb: str, *rest: Any) -> Any:
        return None if verb == "leave" else plain(r, job, verb, *rest)

    ps._publish(r, job, START, ps.Version(0, "0-0", {}, LAYOUT), 60)  # so does serve()
    with monkeypatch.context() as patch:
        patch.setattr(ps, "update", update)
        with pytest.raises(InterruptedError):
            work(r, job, "a", START, gradient, int, steps=10, lease_s=0.3, **QUICK)


def test_the_only_worker_is_killed_and_comes_again(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(r, "only", 2, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(serve, r, "only", START, lr=-1, **QUICK)
        servers.wait_until(
            lambda: not ps.update(r, "only", "look", "", 0, 1, 60)[2], what="its lease is over"
        )
        with pytest.raises(TimeoutError):
            server.result(timeout=0.5)  # serve() waits for it
        report = work(r, "only", "a", START, ones, int, steps=10, **QUICK)
        assert server.result().tolist() == [10.0] * 3 and report.steps == 8
    assert keys_of(r) == []


def test_who_was_killed_and_does_not_come_again_is_named(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(r, "named", 2, monkeypatch)
    with pytest.raises(WorkerTimeout, match=r"^a: nothing for 0\.6 s"):
        serve(r, "named", START, lr=-1, timeout_s=0.6, ttl_s=60)
    with ThreadPoolExecutor(1) as pool:  # nothing is lost
        server = pool.submit(serve, r, "named", START, lr=-1, **QUICK)
        work(r, "named", "a", START, ones, int, steps=10, **QUICK)
        assert server.result().tolist() == [10.0] * 3


@pytest.mark.parametrize("ahead", [False, True])
def test_who_left_ends_the_job_unless_a_dead_worker_was_ahead(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    killed(r, "early", 2, monkeypatch)
    start = 1 if ahead else 2  # where b raised an error, or had done its steps
    ps.update(r, "early", "enter", "b", start, 60, 60)
    ps.update(r, "early", "leave", "b", 0, 60, 60)
    if ahead:
        with pytest.raises(WorkerTimeout, match=r"^a: nothing for 0\.6 s"):
            serve(r, "early", START, lr=-1, timeout_s=0.6, ttl_s=60)
    else:
        assert serve(r, "early", START, lr=-1, **QUICK).tolist() == [2.0] * 3


def test_params_of_another_shape_are_refused_by_name(r: redis.Redis) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(serve, r, "shape", np.zeros((2, 3)), lr=-1, **QUICK)
        servers.wait_until(lambda: ps.newest(r, "shape")[1] is not None, what="a version")
        for other in (np.zeros((3, 2)), np.zeros(5), np.zeros((2, 3), "f4")):
            with pytest.raises(BadGradient) as caught:
                work(r, "shape", "b", other, lambda p, b: p * 0 + 1, int, steps=2, **QUICK)
            mine = f"worker 'b' has {other.dtype} {other.shape}"
            assert str(caught.value) == f"{mine}, but serve() has float64 (2, 3)"
            with pytest.raises(BadGradient, match=r"job 'shape' trains float64 \(2, 3\)"):
                serve(r, "shape", other, lr=-1, **QUICK)
        work(r, "shape", "a", np.zeros((2, 3)), lambda p, b: p * 0 + 1, int, steps=2, **QUICK)
        assert server.result().tolist() == [[2.0] * 3] * 2


def test_who_lost_its_lease_cannot_add_an_old_gradient(r: redis.Redis) -> None:
    held, done, _ = ps.update(r, "late", "enter", "w", 0, 60, 60)
    assert (held, done) == (False, 0)
    r.zrem("ps:{late}:leases", "w")  # the lease is over
    assert ps.update(r, "late", "push", "w", 1, 60, 60)[:2] == (False, 0)
    assert r.xlen("ps:{late}:updates") == 1  # only that it has entered
    ps.update(r, "late", "enter", "w", 0, 60, 60)
    for _ in range(3):  # retries of one push
        assert ps.update(r, "late", "push", "w", 1, 60, 60)[:2] == (True, 1)
    assert r.xlen("ps:{late}:updates") == 2


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (np.array([1, np.nan, 1]), "NaN"),
        (np.ones(2), r"\(2,\)"),
        (np.ones(3, np.float32), "float32"),
        (np.ones(3, int), "int64"),
    ],
)
def test_a_bad_gradient_is_refused_with_the_workers_name(
    r: redis.Redis, bad: np.ndarray, word: str
) -> None:
    params, error = together(
        lambda: serve(r, "bad", START, lr=-1, **QUICK),
        lambda: work(r, "bad", "node-7", START, lambda p, b: bad, int, steps=3, **QUICK),
    )
    with pytest.raises(BadGradient, match=f"worker 'node-7'.*{word}"):
        raise error
    assert params.tolist() == [0.0] * 3 and keys_of(r) == []


def test_timeouts_say_who_is_missing(r: redis.Redis) -> None:
    with pytest.raises(WorkerTimeout, match=r"all workers: nothing for 0\.3 s"):
        serve(r, "nobody", START, lr=1, timeout_s=0.3, ttl_s=5)
    with pytest.raises(WorkerTimeout, match=r"serve\(\) did nothing"):
        work(r, "noserver", "w", START, ones, int, steps=1, timeout_s=0.3, ttl_s=5)
    ps._publish(r, "stuck", START, ps.Version(0, "0-0", {}, LAYOUT), 60)
    ps.update(r, "stuck", "enter", "b", 0, 60, 60)
    ps._publish(r, "stuck", START, ps.Version(1, "0-0", {"a": 5, "b": 0}, LAYOUT), 60)
    r.hset("ps:{stuck}:clocks", "a", 5)
    with pytest.raises(WorkerTimeout, match="worker 'a': b did nothing"):
        work(r, "stuck", "a", START, ones, int, steps=9, staleness=2, timeout_s=0.3, ttl_s=5)


def test_all_keys_have_a_ttl(r: redis.Redis) -> None:
    seen: dict[bytes, int] = {}

    def look(params: np.ndarray, batch: int) -> np.ndarray:
        seen.update({key: r.pttl(key) for key in keys_of(r)})
        return np.ones(3)

    together(
        lambda: serve(r, "ttl", START, lr=-1, **QUICK),
        lambda: work(r, "ttl", "w", START, look, int, steps=5, **QUICK),
    )
    assert len(seen) >= 5
    assert all(0 < ttl <= 60_000 for ttl in seen.values() if ttl != -2), seen


def test_what_has_expired_is_said(r: redis.Redis) -> None:
    ps._publish(r, "gone", START, ps.Version(0, "0-0", {}, LAYOUT), 60)
    ps.delete(r, "ps:gone:params:0", START)
    with pytest.raises(ServerError, match="use another name"):
        serve(r, "gone", START, lr=1, **QUICK)
    ps.update(r, "lost", "enter", "w", 0, 60, 60)
    ps.update(r, "lost", "push", "w", 1, 60, 60)
    with pytest.raises(ServerError, match="make ttl_s longer"):
        serve(r, "lost", START, lr=1, **QUICK)


def test_a_version_that_is_cut_off_does_not_stay(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that are not in a MULTI may end anywhere: here before the second one, the TTL."""
    plain = redis.client.Pipeline._execute_pipeline

    def cut(self: Any, connection: Any, commands: Any, *args: Any) -> None:
        plain(self, connection, commands[:1], *args)
        raise redis.ConnectionError("cut off")

    monkeypatch.setattr(redis.client.Pipeline, "_execute_pipeline", cut)
    with contextlib.suppress(redis.ConnectionError):
        ps._publish(r, "cut", START, ps.Version(0, "0-0", {}, LAYOUT), 60)
    assert keys_of(r) and -1 not in [r.pttl(key) for key in keys_of(r)]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(0, 50), dtype=st.sampled_from(["f4", "f8"]))
def test_vectors_come_back_in_chunks(r: redis.Redis, size: int, dtype: str) -> None:
    vector = np.random.default_rng(size).normal(size=size).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ps, "CHUNK", 64)
        ps.store(r, "ps:v", vector, 60)
        loaded = ps.load(r, "ps:v", vector)
        assert loaded is not None and loaded.tobytes() == vector.tobytes()
        assert len(keys_of(r)) == -(-vector.nbytes // 64)
        if len(keys_of(r)) > 1:  # a chunk in another's place is refused
            first, second = r.get("ps:v:0"), r.get("ps:v:1")
            r.set("ps:v:0", second), r.set("ps:v:1", first)
            with pytest.raises(ServerError, match="damaged"):
                ps.load(r, "ps:v", vector)
        ps.delete(r, "ps:v", vector)
    assert keys_of(r) == []


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=80), flip=st.integers(0, 47))
def test_hostile_bytes_are_refused(r: redis.Redis, data: bytes, flip: int) -> None:
    ps.store(r, "ps:h", START, 60)
    good = bytearray(r.get("ps:h:0") or b"")
    good[flip] ^= 1
    for value in (data, bytes(good), bytes(good[:-1])):
        r.set("ps:h:0", value)
        with pytest.raises(ServerError):
            ps.load(r, "ps:h", START)


PROGRAM = """
import sys
import numpy as np, redis
from recipes import parameter_server as ps
url, role = sys.argv[1:]
r, start = redis.Redis.from_url(url), np.zeros(3)
if role == "serve":
    print(ps.serve(r, "kill", start, lr=-1, timeout_s=30, ttl_s=60)[0])
else:
    def gradient(params, batch):
        import threading
        threading.Event().wait(0.005)
        return np.ones(3)
    ps.work(r, "kill", role, start, gradient, int, steps=100, lease_s=0.7, timeout_s=30, ttl_s=60)
"""


@pytest.mark.real_redis
def test_kill_9_of_server_and_worker_loses_and_doubles_nothing(r: redis.Redis, url: str) -> None:
    children: list[subprocess.Popen[str]] = []

    def start(role: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), url, role]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        children.append(child)
        return child

    def steps() -> int:
        _, version = ps.newest(r, "kill")
        return sum(version.clocks.values()) if version else 0

    for worker in ("a", "b"):  # both from step 0
        ps.update(r, "kill", "enter", worker, 0, 20, 60)
    try:
        server, _, victim = start("serve"), start("a"), start("b")
        for point in (30, 60, 90):
            servers.wait_until(lambda p=point: steps() >= p, what="some steps")
            os.kill(server.pid, signal.SIGKILL)
            server = start("serve")
        os.kill(victim.pid, signal.SIGKILL)
        again = start("b")
        out, _ = server.communicate(timeout=60)
        assert again.wait(30) == 0
        assert out.strip() == "200.0"  # 100 gradients of each, each once
    finally:
        for child in children:
            child.kill()
            child.communicate()
    left = [key for key in keys_of(r) if not 0 < r.pttl(key) <= 60_000]
    assert left == []


@pytest.mark.real_redis
def test_it_works_on_a_redis_cluster(cluster: redis.RedisCluster) -> None:
    params, *reports = counted(cluster, "cluster", 2, 8)
    assert params.tolist() == [sum(report.steps for report in reports)] * 3
    assert keys_of(cluster) == []


def test_a_client_that_decodes_is_refused_and_changes_nothing(r: redis.Redis) -> None:
    ps.store(r, "text", START, 60)
    before, decodes = {key: r.dump(key) for key in r.scan_iter()}, servers.decoding(r)
    for call in (
        lambda: ps.store(decodes, "text", START + 1, 60),
        lambda: ps.load(decodes, "text", START),
        lambda: ps.delete(decodes, "text", START),
        lambda: ps.newest(decodes, "text"),
        lambda: ps.update(decodes, "text", "enter", "me", 0, 1, 60),
        lambda: ps.wait_for_entry(decodes, "text", "0-0", 0.001),
        lambda: serve(decodes, "text", START, lr=1),
        lambda: work(decodes, "text", "me", START, ones, int, steps=1),
        lambda: ps.demo(decodes),
    ):
        with pytest.raises(TypeError, match="without decode_responses=True"):
            call()
    assert {key: r.dump(key) for key in r.scan_iter()} == before
