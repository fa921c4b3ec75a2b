"""Tests of recipes/distributed_training.py."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
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

from recipes import distributed_training as dt
from recipes.distributed_training import AllReduce, BadGradient, TrainingError, WorkerTimeout
from tests import servers

ROOT = Path(__file__).parent.parent.parent
STEPS = 40


def together(n: int, work: Callable[[int], Any]) -> list[Any]:
    """Run work(rank) in n threads; return results or exceptions."""

    def guarded(rank: int) -> Any:
        try:
            return work(rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(guarded, range(n)))


def keys_of(r: Any) -> list[bytes]:
    return sorted(r.scan_iter("dt:*"))


# --- The model of most tests: a line through points, and the same by one process ------------------

X = np.random.default_rng(0).normal(size=(480, 5))
Y = X @ np.arange(5.0) + 1


def share(step: int, rank: int, world_size: int) -> np.ndarray:
    return np.random.default_rng(step).permutation(480)[:24][rank::world_size]


def gradient(params: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    error = X[rows] @ params["w"] + params["b"] - Y[rows]
    return {"w": 2 * X[rows].T @ error / len(rows), "b": np.array([2 * error.mean()])}


def start() -> dict[str, np.ndarray]:
    return {"w": np.zeros(5), "b": np.zeros(1)}


def one_process(steps: int = STEPS) -> np.ndarray:
    """The oracle: plain SGD on the global batches, without Redis."""
    params = start()
    for step in range(steps):
        grads = gradient(params, share(step, 0, 1))
        params = {name: params[name] - 0.05 * grads[name] for name in params}
    return flat(params)


def flat(params: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([params["w"], params["b"]])


def learn(r: Any, job: str, worker: Any, **options: Any) -> dt.Result:
    options = {"lr": 0.05, "steps": STEPS, "lease_s": 1, "timeout_s": 15} | options
    return dt.train(r, job, worker, options.pop("params", start()), gradient, share, **options)


def assert_one_result(results: list[Any], steps: int = STEPS) -> None:
    """All finished, equal to the bit, and equal to one process to 1e-9 relative."""
    assert all(isinstance(result, dt.Result) for result in results), results
    assert {result.steps for result in results} == {steps}
    assert len({flat(result.params).tobytes() for result in results}) == 1
    np.testing.assert_allclose(flat(results[0].params), one_process(steps), rtol=1e-9)


# --- AllReduce ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_mean_is_numpys_and_equal_to_the_bit(r: redis.Redis, n: int, dtype: str) -> None:
    vectors = np.random.default_rng(n).normal(size=(n, 3, 7)).astype(dtype)
    reducers = [AllReduce(r, "mean", i, n) for i in range(n)]
    for _ in range(3):
        means = together(n, lambda i: reducers[i].mean(vectors[i]))
        assert {mean.tobytes() for mean in means} == {means[0].tobytes()}
        assert (means[0].shape, means[0].dtype) == ((3, 7), np.dtype(dtype))
        np.testing.assert_allclose(means[0], vectors.mean(axis=0), rtol=1e-5, atol=1e-7)
        assert means[0].tobytes() == (sum(vectors) / n).tobytes()  # added in rank order
    assert keys_of(r) == []


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(0, 40), n=st.integers(1, 4), round_bytes=st.sampled_from([16, 64, 1 << 20]))
def test_mean_of_any_size_in_any_number_of_rounds(
    r: redis.Redis, size: int, n: int, round_bytes: int
) -> None:
    vectors = np.random.default_rng(size).normal(size=(n, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dt, "ROUND_BYTES", round_bytes)
        means = together(n, lambda i: AllReduce(r, "any", i, n, timeout_s=5).mean(vectors[i]))
    for mean in means:
        np.testing.assert_allclose(mean, vectors.mean(axis=0), rtol=1e-12)
    assert keys_of(r) == []


def test_mean_takes_whole_numbers_lists_and_strided_arrays(r: redis.Redis) -> None:
    given_ = [[1, 2, 3], np.arange(6)[::2]]
    means = together(2, lambda i: AllReduce(r, "liberal", i, 2).mean(given_[i]))
    assert [mean.tolist() for mean in means] == [[0.5, 2.0, 3.5]] * 2


def test_timeout_names_the_silent_rank(r: redis.Redis) -> None:
    def work(rank: int) -> Any:
        return AllReduce(r, "late", rank, 3, timeout_s=0.5).mean(np.ones(9)) if rank != 1 else None

    first, _, third = together(3, work)
    for error in (first, third):
        assert isinstance(error, WorkerTimeout) and "rank 1 of 3" in str(error)
    assert keys_of(r) == []


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (np.ones(5), "5 x <f8"),
        (np.ones(4, "f4"), "4 x <f4"),
        (np.ones((2, 2)), r"4 x <f8, not the layout here: 4 x <f8, (4,)"),
    ],
)
def test_vectors_that_differ_are_refused_by_name(
    r: redis.Redis, other: np.ndarray, word: str
) -> None:
    vectors = [np.ones(4), other]
    errors = together(2, lambda i: AllReduce(r, "differ", i, 2, timeout_s=2).mean(vectors[i]))
    assert isinstance(errors[0], BadGradient)
    assert "rank 1 of 2" in str(errors[0]) and word in str(errors[0])
    assert isinstance(errors[1], BadGradient) and "rank 0 of 2" in str(errors[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_before_it_is_sent(r: redis.Redis, bad: float) -> None:
    with pytest.raises(BadGradient, match="rank 1 of 2 has NaN"):
        AllReduce(r, "nan", 1, 2).mean(np.array([1.0, bad]))
    with pytest.raises(BadGradient, match="float16"):
        AllReduce(r, "nan", 1, 2).mean(np.ones(2, np.float16))
    assert keys_of(r) == []
    big = np.full(4, 3e38, np.float32)  # the sum overflows, the numbers do not
    assert AllReduce(r, "nan", 0, 1).mean(big).tobytes() == big.tobytes()


def test_a_damaged_message_is_refused_by_name(r: redis.Redis) -> None:
    inbox = "dt:{damaged:0:0:0}"
    head = dt.HEAD.pack(b"DTR2", 0, 0, 0, 1, 0, 1, 4, 0, 12345)
    entries = {
        "rank 1 of 2 is damaged": {"head": head},
        "no worker wrote": {"head": b"DTR9" + head[4:]},
        "no worker wrote: b''": {"other": b""},
        "no worker wrote: b'DTR2": {"head": head[:20]},
    }
    for message, entry in entries.items():
        r.set(f"{inbox}:0:1", np.ones(2).tobytes())
        r.xadd(inbox, entry)
        with pytest.raises(TrainingError, match=message):
            AllReduce(r, "damaged", 0, 2, timeout_s=2).mean(np.ones(4))
        r.unlink(inbox)


def test_one_flipped_bit_is_noticed(r: redis.Redis) -> None:
    def damage_then_read() -> Any:
        key = "dt:{flip:0:0:0}:0:1"
        servers.wait_until(lambda: r.exists(key), what="rank 1 has sent")
        value = bytearray(r.get(key) or b"")
        value[3] ^= 1
        r.set(key, bytes(value))
        return AllReduce(r, "flip", 0, 2, timeout_s=2).mean(np.ones(4))

    def work(rank: int) -> Any:
        if rank == 0:
            return damage_then_read()
        return AllReduce(r, "flip", 1, 2, timeout_s=2).mean(np.ones(4))

    error, _ = together(2, work)
    assert isinstance(error, TrainingError) and "rank 1 of 2 is damaged" in str(error)


def test_a_part_deleted_by_who_saw_a_new_world_means_a_new_world(r: redis.Redis) -> None:
    head = dt.HEAD.pack(b"DTR2", 7, 0, 0, 1, 0, 1, 4, 0, 0)
    r.xadd("dt:{gone:7:0:0}", {"head": head})
    with pytest.raises(dt.WorldChanged):
        AllReduce(r, "gone", 0, 2, generation=7, timeout_s=2).mean(np.ones(4))


def test_a_message_of_an_old_generation_is_not_read(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = AllReduce(r, "old", 1, 2, generation=5, timeout_s=0.5)
    monkeypatch.setattr(late, "abandon", lambda: None)  # it is killed, or paused again
    with pytest.raises(WorkerTimeout):
        late.mean(np.full(3, 1e9))
    assert [r.persist(key) for key in keys_of(r)] == [1, 1]  # however slow this test is
    links = [AllReduce(r, "old", i, 2, generation=6) for i in range(2)]
    means = together(2, lambda i: links[i].mean(np.full(3, float(i))))
    assert [mean.tolist() for mean in means] == [[0.5] * 3] * 2


@given(head=st.binary(max_size=60), data=st.binary(max_size=40))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_hostile_bytes_never_become_a_mean(r: redis.Redis, head: bytes, data: bytes) -> None:
    inbox = "dt:{hostile:0:0:0}"
    r.set(f"{inbox}:0:1", data)
    r.xadd(inbox, {"head": b"DTR2" + head[: dt.HEAD.size - 4].ljust(dt.HEAD.size - 4)})
    with pytest.raises(TrainingError):
        AllReduce(r, "hostile", 0, 2, timeout_s=0.02).mean(np.ones(4))
    assert not r.exists(inbox)


def test_a_message_that_came_twice_counts_once(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = type(r.pipeline()).execute

    def twice(self: Any, *args: Any) -> Any:  # what a retry does whose first reply was lost
        commands = list(self.command_stack)
        if any(command[0][0] == "XADD" for command in commands):
            plain(self, *args)
            self.command_stack = commands
        return plain(self, *args)

    monkeypatch.setattr(type(r.pipeline()), "execute", twice)
    reducers = [AllReduce(r, "twice", i, 3) for i in range(3)]
    for k in range(4):
        means = together(3, lambda i, k=k: reducers[i].mean(np.arange(4.0) + i + k))
        assert [mean.tolist() for mean in means] == [[1.0 + k, 2 + k, 3 + k, 4 + k]] * 3


@pytest.mark.parametrize("n", [2, 4])
def test_bytes_per_step_are_as_the_header_says(r: redis.Redis, n: int) -> None:
    size = 10_000
    reducers = [AllReduce(r, "bytes", i, n) for i in range(n)]
    together(n, lambda i: reducers[i].mean(np.ones(size)))
    formula = 2 * 8 * size * (n - 1) / n
    for reducer in reducers:
        assert formula <= reducer.bytes_sent <= formula + 6 * dt.HEAD.size
        assert reducer.bytes_received == reducer.bytes_sent


def test_two_workers_need_four_round_trips(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    trips: list[Any] = []

    def count(owner: type, name: str) -> None:
        plain = getattr(owner, name)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                trips.append(args[:1] or "pipeline")
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(AllReduce(r, "trips", 1, 2).mean, np.ones(9))
        servers.wait_until(lambda: r.exists("dt:{trips:0:0:0}"), what="rank 1 has sent")
        count(type(r), "execute_command")
        count(type(r.pipeline()), "execute")
        mean = AllReduce(r, "trips", 0, 2).mean(np.zeros(9))
        assert len(trips) == 4, trips
        assert mean.tolist() == other.result().tolist() == [0.5] * 9


# --- train ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
def test_n_workers_end_where_one_process_ends(r: redis.Redis, n: int) -> None:
    results = together(n, lambda i: learn(r, "same", i, world_size=n))
    assert_one_result(results)
    assert [result.worker for result in results] == [str(i) for i in range(n)]
    assert keys_of(r) == []


def test_all_start_from_rank_zero_and_arrays_are_not_changed(r: redis.Redis) -> None:
    mine = [start(), {"w": np.full(5, 9.0), "b": np.full(1, 9.0)}]
    results = together(2, lambda i: learn(r, "init", i, world_size=2, params=mine[i]))
    assert_one_result(results)
    assert mine[1]["w"].tolist() == [9.0] * 5 and mine[0]["w"].tolist() == [0.0] * 5


def test_one_array_and_float32_train_too(r: redis.Redis) -> None:
    def slope(w: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return (2 * X[rows].T @ (X[rows] @ w - Y[rows]) / len(rows)).astype(np.float32)

    results = together(
        2,
        lambda i: dt.train(
            r, "f4", i, np.zeros(5, np.float32), slope, share, lr=0.05, steps=60, world_size=2
        ),
    )
    assert results[0].params.dtype == np.float32
    np.testing.assert_allclose(results[0].params, np.arange(5.0), atol=0.5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda g: {**g, "w": g["w"] * np.nan}, "NaN"),
        (lambda g: {**g, "w": g["w"][:3]}, r"\(3,\)"),
        (lambda g: {**g, "w": g["w"].astype("f4")}, "float32"),
        (lambda g: {"w": g["w"]}, "lacks names"),
    ],
)
def test_a_bad_gradient_is_refused_with_the_workers_name(
    r: redis.Redis, change: Any, word: str
) -> None:
    def work(rank: int) -> dt.Result:
        def broken(params: Any, rows: Any) -> Any:
            grads = gradient(params, rows)
            return change(grads) if rank == 1 else grads

        options = {"lr": 0.05, "steps": 10, "world_size": 2, "lease_s": 1, "timeout_s": 15}
        return dt.train(r, "bad", f"node-{rank}", start(), broken, share, **options)

    good, bad = together(2, work)
    assert isinstance(bad, BadGradient) and "worker 'node-1'" in str(bad)
    assert re.search(word, str(bad))
    assert_one_result([good], steps=10)  # the other one goes on alone
    assert keys_of(r) == []


def test_missing_workers_are_counted(r: redis.Redis) -> None:
    with pytest.raises(WorkerTimeout, match=r"1 of 2 workers came in 0\.4 s: \['node-7'\]"):
        learn(r, "few", "node-7", world_size=2, timeout_s=0.4)
    assert keys_of(r) == []


@pytest.mark.parametrize(
    ("worker", "options", "word"),
    [
        ("w", {"sync_every": 0}, "sync_every=0"),
        ("w", {"compress": 0}, "compress=0"),
        ("w", {"compress": -1}, "compress=-1"),
        ("w", {"compress": 2.0}, "compress=2.0"),
        ("two\nlines", {}, "two"),
        ("w", {"params": {}}, "shapes={}"),
        ("w", {"params": np.zeros(0)}, r"shapes=.*\(0,\)"),
    ],
)
def test_options_that_cannot_train_are_refused(
    r: redis.Redis, worker: str, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        learn(r, "options", worker, **options)
    assert keys_of(r) == []


@pytest.mark.parametrize("compress", [None, 0.5])
def test_the_order_of_names_does_not_matter(r: redis.Redis, compress: float | None) -> None:
    orders = [("a", "b", "c"), ("c", "b", "a")]

    def work(rank: int) -> dt.Result:
        def constant(params: Any, batch: Any) -> dict[str, np.ndarray]:
            grads = {"a": np.full((2, 3), 1.0), "b": np.full((3, 2), 100.0), "c": np.full(2, 9.0)}
            return {name: grads[name] for name in reversed(orders[rank])}

        shapes = {"a": (2, 3), "b": (3, 2), "c": (2,)}
        params = {name: np.zeros(shapes[name]) for name in orders[rank]}
        every = {"lr": 1, "steps": 2, "world_size": 2, "timeout_s": 15, "compress": compress}
        return dt.train(r, "order", f"node-{rank}", params, constant, share, **every)

    for result, order in zip(together(2, work), orders, strict=True):
        assert tuple(result.params) == order
        assert {name: array.shape for name, array in result.params.items()} == {
            "a": (2, 3), "b": (3, 2), "c": (2,)
        }  # fmt: skip
        if compress is None:
            assert {k: set(v.flat) for k, v in result.params.items()} == {
                "a": {-2.0}, "b": {-200.0}, "c": {-18.0}
            }  # fmt: skip
        else:  # the largest half of 14 numbers is in b, but for one
            assert set(result.params["b"].flat) == {-200.0}


def zeros_like_params(params: Any, batch: Any) -> Any:
    return {k: v * 0 for k, v in params.items()} if isinstance(params, dict) else params * 0


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (np.zeros((3, 2)), "6 x <f8"),
        (np.zeros(7), "7 x <f8"),
        (np.zeros((2, 3), "f4"), "6 x <f4"),
        ({"w": np.zeros((2, 3))}, "6 x <f8"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"sync_every": 2}, {"compress": 0.5}])
def test_params_of_another_layout_are_refused_by_name(
    r: redis.Redis, other: Any, word: str, options: dict[str, Any]
) -> None:
    params = [np.zeros((2, 3)), other]
    every = {"lr": 1, "steps": 4, "world_size": 2, "timeout_s": 15} | options
    errors = together(
        2,
        lambda i: dt.train(
            r, "layout", f"node-{i}", params[i], zeros_like_params, share, **every
        ),
    )  # fmt: skip
    for error, name in zip(
        errors, ("'node-1' (rank 1 of 2)", "'node-0' (rank 0 of 2)"), strict=True
    ):
        assert isinstance(error, BadGradient) and name in str(error), error
    assert word in str(errors[0]) and "'it': (2, 3)" in str(errors[0])


def test_a_newcomer_of_another_layout_is_refused_by_name(r: redis.Redis) -> None:
    there = threading.Event()

    def work(rank: int) -> dt.Result:
        if rank == 1:
            there.wait(20)

        def note(step: int, params: Any) -> None:
            there.set()
            threading.Event().wait(0.01)

        params = np.zeros((2, 3) if rank == 0 else (3, 2))
        every = {"lr": 1, "steps": 1000, "timeout_s": 15, "on_round": note}
        return dt.train(r, "new", f"node-{rank}", params, zeros_like_params, share, **every)

    first, newcomer = together(2, work)
    assert isinstance(first, BadGradient) and "worker 'node-1'" in str(first), first
    assert isinstance(newcomer, BadGradient) and "worker 'node-0'" in str(newcomer), newcomer


def test_a_stuck_worker_is_named(r: redis.Redis) -> None:
    free = threading.Event()

    def work(rank: int) -> dt.Result:
        def slow(params: Any, rows: Any) -> Any:
            if rank == 1:
                free.wait(20)
            return gradient(params, rows)

        options = {"lr": 0.05, "steps": 2, "world_size": 2, "lease_s": 1, "timeout_s": 1}
        try:
            return dt.train(r, "stuck", f"node-{rank}", start(), slow, share, **options)
        finally:
            free.set()

    first, _ = together(2, work)
    assert isinstance(first, WorkerTimeout) and "worker 'node-1' (rank 1 of 2)" in str(first)


# --- Elastic --------------------------------------------------------------------------------------


class Vanish(Exception):
    """Ends a thread as kill -9 ends a process: without leaving its lease."""


def vanishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that raises Vanish keeps its lease and stops renewing it."""
    plain = dt.Lease.__exit__

    def leave(self: Any, kind: Any, *rest: Any) -> None:
        if kind is Vanish:
            self._stop.set()
            self._thread.join()
        else:
            plain(self, kind, *rest)

    monkeypatch.setattr(dt.Lease, "__exit__", leave)


@pytest.mark.parametrize("dead", [0, 2])
def test_the_rest_finish_when_one_vanishes(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    vanishing(monkeypatch)

    def work(rank: int) -> dt.Result:
        def die(step: int, _: Any) -> None:
            if rank == dead and step == 15:
                raise Vanish

        return learn(r, "vanish", rank, world_size=3, on_round=die)

    results = together(3, work)
    assert isinstance(results.pop(dead), Vanish)
    assert_one_result(results)
    assert min(result.worlds for result in results) >= 2
    assert keys_of(r) == []


def test_a_newcomer_joins_in_mid_run(r: redis.Redis) -> None:
    there, joined = threading.Event(), threading.Event()
    rounds: list[tuple[int, int]] = []

    def work(rank: int) -> dt.Result:
        if rank == 2:
            there.wait(20)

        def note(step: int, params: Any) -> None:
            rounds.append((rank, step))
            if step == 5:
                there.set()
            if rank == 0 and not joined.is_set() and step > 5:
                joined.wait(0.02)
            if rank == 2:
                joined.set()

        return learn(r, "join", rank, world_size=2 if rank < 2 else 1, on_round=note, steps=60)

    results = together(3, work)
    assert_one_result(results, steps=60)
    first = min(step for rank, step in rounds if rank == 2)
    assert 5 < first <= 60, first
    assert keys_of(r) == []


def test_who_was_interrupted_takes_the_state_of_who_was_not(r: redis.Redis) -> None:
    links = [AllReduce(r, "behind", i, 3, generation=7) for i in range(3)]
    states = [(4, np.full(3, 4.0)), (5, np.full(3, 5.0)), (9, np.zeros(3), True)]
    for step, vector in together(3, lambda i: links[i].furthest(*states[i])):
        assert (step, vector.tolist()) == (5, [5.0] * 3)


@pytest.mark.parametrize(("steps", "best"), [((0, 0), 0), ((6, 6), 0), ((5, 6), 1)])
def test_if_all_are_new_the_state_of_one_is_everyones(
    r: redis.Redis, steps: tuple[int, int], best: int
) -> None:
    links = [AllReduce(r, "new", i, 2, generation=7) for i in range(2)]
    got = together(2, lambda i: links[i].furthest(steps[i], np.full(3, float(i)), True))
    assert [(step, vector.tolist()) for step, vector in got] == [(steps[best], [best] * 3)] * 2


def interrupt(monkeypatch: pytest.MonkeyPatch, at_round: int, then: Callable[[Any], None]) -> None:
    """Rank 0 is interrupted at the very end of a round that all others have completed."""
    plain, done = AllReduce.mean, []

    def mean(self: AllReduce, vector: Any) -> Any:
        result = plain(self, vector)
        if self.rank == 0 and self.round == at_round and not done:
            done.append(1)
            then(self)
            raise dt.WorldChanged
        return result

    monkeypatch.setattr(AllReduce, "mean", mean)


def other_alone(params: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """A gradient that shows whether a step was done by one worker alone."""
    grads = gradient(params, rows)
    return {**grads, "b": grads["b"] + 0.1} if len(rows) == 24 else grads


def test_who_was_thought_dead_does_not_bring_its_state_back(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, mine = "dt:{thought}:leases", list[dt.Lease]()

    class Lease(dt.Lease):
        def __enter__(self) -> dt.Lease:
            mine.extend([self] if self.worker == "0" else [])
            return super().__enter__()

    def is_back() -> bool:
        """Say whether both are in the newest world, and rank 0 knows of it."""
        (id, fields), *_ = r.xrevrange("dt:{thought}:world", count=1)
        return b"\n" in fields[b"world"] and mine[0].generation == int(id.split(b"-")[0])

    def expel(link: AllReduce) -> None:  # rank 1 has applied the round, and its lease ends
        done[1].wait(10)
        member = next(name for name in r.zrange(leases, 0, 9) if name.startswith(b"1#"))
        r.zrem(leases, member)

    done = [threading.Event(), threading.Event()]
    interrupt(monkeypatch, 12, expel)  # two rounds to catch up, then steps 1 to 10
    monkeypatch.setattr(dt, "Lease", Lease)

    def work(rank: int) -> dt.Result:
        def note(step: int, params: Any) -> None:
            if step == 10:
                done[rank].set()
            if rank == 0 and step == 10:  # done again, alone; now the other one comes back
                servers.wait_until(is_back, what="rank 1 is back")

        options = {"lr": 0.05, "steps": 15, "world_size": 2, "lease_s": 1, "timeout_s": 15}
        return dt.train(r, "thought", rank, start(), other_alone, share, on_round=note, **options)

    results = together(2, work)
    assert all(isinstance(result, dt.Result) for result in results), results
    assert results[1].worlds >= 2
    assert flat(results[0].params).tobytes() == flat(results[1].params).tobytes()


def test_two_who_were_thought_dead_agree_if_nobody_else_is_left(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing(monkeypatch)
    plain, done = AllReduce.mean, [threading.Event() for _ in range(3)]

    def mean(self: AllReduce, vector: Any) -> Any:
        """As if step 10 had been done in different worlds."""
        return plain(self, vector) + (self.rank if self.round == 12 else 0)

    def newest() -> set[bytes]:
        (_, fields), *_ = r.xrevrange("dt:{both}:world", count=1)
        return set(fields[b"world"].split(b"\n"))

    def work(rank: int) -> dt.Result:
        def note(step: int, _: Any) -> None:
            if step == 10:
                done[rank].set()
            if rank == 0 and step == 10:
                all(event.wait(10) for event in done)
                names = {name for name in newest() if not name.startswith(b"0#")}
                r.zrem("dt:{both}:leases", *names)
                servers.wait_until(lambda: len(newest() - names) == 3, what="both are back")
                raise Vanish  # before they have its state

        options = {"steps": 15, "world_size": 3, "on_round": note}
        return learn(r, "both", rank, **options)

    monkeypatch.setattr(AllReduce, "mean", mean)
    _, *results = together(3, work)
    assert all(isinstance(result, dt.Result) for result in results), results
    assert results[0].steps == results[1].steps == 15
    assert flat(results[0].params).tobytes() == flat(results[1].params).tobytes()


def test_nobody_leaves_while_another_needs_its_state(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing(monkeypatch)
    done = [threading.Event() for _ in range(3)]
    interrupt(monkeypatch, 12, lambda link: [event.wait(10) for event in done[1:]])

    def work(rank: int) -> dt.Result:
        def die(step: int, _: Any) -> None:
            if step == 10:
                done[rank].set()
            if rank == 2 and step == 10:
                raise Vanish

        options = {"lr": 0.05, "steps": 10, "world_size": 3, "lease_s": 1, "timeout_s": 15}
        return dt.train(r, "last", rank, start(), other_alone, share, on_round=die, **options)

    first, second, _ = together(3, work)
    assert flat(first.params).tobytes() == flat(second.params).tobytes()
    assert keys_of(r) == []


def test_one_script_makes_one_world_of_the_live(r: redis.Redis) -> None:
    leases = [dt.Lease(r, "world", f"w{i}", 3, 1.5, 5) for i in range(3)]
    worlds = together(3, lambda i: leases[i].world(0))
    assert len({generation for generation, _ in worlds}) == 1
    assert [m[:-9] for m in worlds[0][1]] == ["w0", "w1", "w2"]
    names = [lease.name for lease in leases]

    def two_renew() -> bool:
        return leases[0]._call("renew")[1] == leases[1]._call("renew")[1] == names[:2]

    servers.wait_until(two_renew, what="the third is out")
    generation, members, live, alive = leases[2]._call("renew")
    assert (members, live, alive) == (names[:2], 2, False) and generation > worlds[0][0]
    again = leases[2].world(after=generation)  # comes back as a newcomer, under another name
    assert again[0] > generation and again[1][:2] == names[:2] and again[1][2] != names[2]


def test_a_lease_that_ended_counts_until_another_worker_calls(r: redis.Redis) -> None:
    first, second = (dt.Lease(r, "ended", worker, 2, 5, 5) for worker in "01")
    first.name, second.name = "0#00000000", "1#11111111"
    ended = 1  # a microsecond after the epoch
    r.zadd("dt:{ended}:leases", {first.name: ended, second.name: ended})
    r.xadd("dt:{ended}:world", {"world": f"{first.name}\n{second.name}"}, id="7-0")
    generation, members, live, alive = second._call("renew")
    assert (members, live, alive) == ([second.name], 1, True) and generation > 7
    assert first._call("renew") == (generation, [second.name], 1, False)


@pytest.mark.parametrize("world_size", [1, 2])
def test_who_comes_back_as_the_job_ends_is_told(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """It finds another worker there, but that one ends the job before it can enter."""
    first, second = leases = [dt.Lease(r, "ends", worker, world_size, 5, 1) for worker in "01"]
    together(2, lambda i: leases[i].world(0))
    r.zrem("dt:{ends}:leases", second.name)
    ours, _, live, _ = first._call("renew")
    assert live == 1
    plain, ended = second._call, []

    def call(verb: str) -> Any:
        reply = plain(verb)
        if not ended:
            ended.append(first.finish(ours))
        return reply

    monkeypatch.setattr(second, "_call", call)
    with pytest.raises(TrainingError, match="the job ended while worker '1' slept"):
        second.world(ours)
    assert ended == [True]
    assert keys_of(r) == []


@pytest.mark.real_redis
def test_a_server_that_stops_for_longer_than_all_leases_ends_no_job(
    server_kind: str,
) -> None:
    def work(rank: int) -> dt.Result:
        def stop(step: int, _: Any) -> None:
            if rank == 0 and step == 20:
                server.freeze()
                threading.Event().wait(3 * lease_s)
                server.wake()

        with server.client() as r:
            options = {"world_size": 3, "lease_s": lease_s, "on_round": stop}
            return learn(r, "stop", rank, **options)

    lease_s = 0.4
    with servers.lone(server_kind) as server:
        results = together(3, work)
    late = [str(result) for result in results if isinstance(result, TrainingError)]
    assert len(late) < 3 and all("slept" in text for text in late)  # the first may end alone
    assert_one_result([result for result in results if not isinstance(result, TrainingError)])


def test_while_a_job_runs_all_its_keys_have_a_ttl(r: redis.Redis) -> None:
    seen: dict[bytes, int] = {}

    def work(rank: int) -> dt.Result:
        def look(params: Any, rows: Any) -> Any:
            if rank == 1:  # rank 0 has sent its part for this round
                servers.wait_until(lambda: len(keys_of(r)) > 3, what="a message")
                seen.update({key: r.pttl(key) for key in keys_of(r)})
            return gradient(params, rows)

        options = {"lr": 0.05, "steps": 3, "world_size": 2, "timeout_s": 15}
        return dt.train(r, "ttl", rank, start(), look, share, **options)

    assert_one_result(together(2, work), steps=3)
    assert len(seen) > 3
    assert all(0 < ttl <= 36_000 for ttl in seen.values() if ttl != -2), seen  # -2: just deleted


@pytest.mark.parametrize(("rank", "job"), [(2, "j"), (-1, "j"), (0, "{j}")])
def test_bad_arguments_are_refused(r: redis.Redis, rank: int, job: str) -> None:
    with pytest.raises(ValueError):
        AllReduce(r, job, rank, 2)


@pytest.mark.parametrize("places", [[3, 1], [1, 1], [1, 4]])
def test_places_that_are_not_in_order_are_refused(r: redis.Redis, places: list[int]) -> None:
    with pytest.raises(TrainingError, match="not in order"):
        AllReduce(r, "places", 0, 1).sparse_mean(np.ones(2), np.array(places), 4)


def test_a_message_that_is_cut_off_does_not_stay(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that are not in a MULTI may end anywhere: here before the last one, the TTL."""
    plain = redis.client.Pipeline._execute_pipeline

    def cut(self: Any, connection: Any, commands: Any, *args: Any) -> None:
        plain(self, connection, commands[:-1], *args)
        raise redis.ConnectionError("cut off")

    monkeypatch.setattr(redis.client.Pipeline, "_execute_pipeline", cut)
    link = AllReduce(r, "cut", 0, 2, timeout_s=0.2)
    monkeypatch.setattr(link, "abandon", lambda: None)  # it is killed
    with pytest.raises((WorkerTimeout, redis.ConnectionError)):
        link.mean(np.ones(4))
    assert -1 not in [r.pttl(key) for key in keys_of(r)]


# --- Processes, kill -9, SIGSTOP ------------------------------------------------------------------


# --8<-- [start:processes]
def child(url: str, rank: int, world_size: int, job: str, options: dict[str, Any]) -> dt.Result:
    """What the processes of these tests do; slow enough to be killed in mid-run."""
    options = dict(options)
    pause_s = options.pop("pause_s", 0.0)

    def note(step: int, params: Any) -> None:
        r.hset("progress:" + job, f"{rank}", f"{os.getpid()} {step}")
        if pause_s:
            threading.Event().wait(pause_s)

    with redis.Redis.from_url(url) as r:
        return learn(r, job, rank, world_size=world_size, on_round=note, **options)


# --8<-- [end:processes]


def background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(work())
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def progress(r: redis.Redis, job: str) -> dict[int, tuple[int, int]]:
    """rank -> (pid, step)"""
    found = r.hgetall("progress:" + job)
    return {int(k): (int(v.split()[0]), int(v.split()[1])) for k, v in found.items()}


@pytest.mark.real_redis
def test_launch_collects_results_in_rank_order(r: redis.Redis, url: str) -> None:
    results = dt.launch(url, child, 2, "launch", {})
    assert_one_result(results)
    assert [result.worker for result in results] == ["0", "1"]
    assert keys_of(r) == []


def fails(url: str, rank: int, world_size: int) -> int:
    if rank == 1:
        raise ValueError("no such file")
    return rank


def dies(url: str, rank: int, world_size: int, survivors: int) -> int:
    if rank >= survivors:
        os.kill(os.getpid(), signal.SIGKILL)
    return rank


def leaves(url: str, rank: int, world_size: int, code: Any) -> int:
    if rank == 1:
        sys.exit(code)
    return rank


def test_launch_says_who_failed_and_lives_through_kills() -> None:
    with pytest.raises(TrainingError, match="rank 1 raised SystemExit: config missing"):
        dt.launch("", leaves, 2, "config missing")
    assert dt.launch("", leaves, 2, 0) == [0]
    with pytest.raises(TrainingError, match="rank 1 raised ValueError: no such file"):
        dt.launch("", fails, 2)
    assert dt.launch("", dies, 3, 1) == [0]
    with pytest.raises(TrainingError, match="all died"):
        dt.launch("", dies, 1, 0)


@pytest.mark.real_redis
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_a_random_point(r: redis.Redis, url: str, seed: int) -> None:
    rng = random.Random(f"{seed} {r.connection_pool.connection_kwargs['port']}")
    job, options = f"kill{seed}", {"steps": 80, "pause_s": 0.005, "lease_s": 0.5}
    options |= [{}, {"sync_every": 3}, {"compress": 0.5}][seed]
    thread, got = background(lambda: dt.launch(url, child, 3, job, options))
    try:
        point = rng.randrange(1, 60)
        servers.wait_until(lambda: progress(r, job).get(0, (0, 0))[1] >= point, what="some steps")
        threading.Event().wait(rng.random() * 0.01)
        os.kill(progress(r, job)[rng.randrange(3)][0], signal.SIGKILL)
    finally:
        thread.join(60)
    assert len(got) == 1 and len(got[0]) == 2, got
    r.unlink("progress:" + job)
    if seed == 0:
        assert_one_result(got[0], steps=80)
    assert len({flat(result.params).tobytes() for result in got[0]}) == 1
    np.testing.assert_allclose(flat(got[0][0].params), one_process(80), atol=0.3)
    assert keys_of(r) == []


@pytest.mark.real_redis
def test_a_paused_worker_comes_back_as_a_newcomer(r: redis.Redis, url: str) -> None:
    options = {"steps": 150, "pause_s": 0.01, "lease_s": 0.4}
    thread, got = background(lambda: dt.launch(url, child, 3, "paused", options))
    try:
        servers.wait_until(lambda: len(progress(r, "paused")) == 3, what="all are under way")
        pid, _ = progress(r, "paused")[1]
        os.kill(pid, signal.SIGSTOP)
        try:
            before = progress(r, "paused")[0][1]
            servers.wait_until(lambda: progress(r, "paused")[0][1] > before + 5, what="they go on")
        finally:
            os.kill(pid, signal.SIGCONT)
    finally:
        thread.join(60)
    assert_one_result(got[0], steps=150)
    first, paused, third = (result.worlds for result in got[0])  # more, if a loaded machine ...
    assert first >= 3 and paused >= 2 and third >= 3  # ... makes another lease end
    r.unlink("progress:paused")
    assert keys_of(r) == []


@pytest.mark.real_redis
def test_who_sleeps_through_the_end_is_told(r: redis.Redis, url: str) -> None:
    options = {"steps": 60, "pause_s": 0.01, "lease_s": 0.5}
    thread, got = background(lambda: dt.launch(url, child, 2, "over", options))
    try:
        servers.wait_until(lambda: len(progress(r, "over")) == 2, what="both are under way")
        pid, _ = progress(r, "over")[1]
        os.kill(pid, signal.SIGSTOP)
        servers.wait_until(lambda: not r.exists("dt:{over}:world"), what="the job is over")
        os.kill(pid, signal.SIGCONT)
    finally:
        thread.join(60)
    assert isinstance(got[0], TrainingError) and "ended while worker '1' slept" in str(got[0])


@pytest.mark.real_redis
def test_it_works_on_a_redis_cluster(cluster: redis.RedisCluster) -> None:
    results = together(3, lambda i: learn(cluster, "cluster", i, world_size=3, steps=15))
    assert_one_result(results, steps=15)
    means = together(3, lambda i: AllReduce(cluster, "c", i, 3).mean(np.arange(5.0) * i))
    assert [mean.tolist() for mean in means] == [list(np.arange(5.0))] * 3
    assert keys_of(cluster) == []


@pytest.mark.real_redis
def test_both_protocols_read_alike(r: redis.Redis, url: str) -> None:
    with redis.Redis.from_url(url, protocol=3) as a, redis.Redis.from_url(url, protocol=2) as b:
        means = together(2, lambda i: AllReduce((a, b)[i], "resp", i, 2).mean(np.ones(3) * i))
    assert [mean.tolist() for mean in means] == [[0.5] * 3] * 2


# --- Fewer bytes ----------------------------------------------------------------------------------


def digits() -> tuple[Any, ...]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16, y, test_size=360, random_state=0)


def net_gradient(x: np.ndarray, y: np.ndarray) -> Callable[[Any, Any], Any]:
    """The gradient of a net 64-32-10 with ReLU, softmax and cross-entropy."""

    def gradient_of(p: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        hidden = np.maximum(x[rows] @ p["w1"] + p["b1"], 0)
        logits = hidden @ p["w2"] + p["b2"]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (odds / odds.sum(axis=1, keepdims=True) - np.eye(10)[y[rows]]) / len(rows)
        back = (error @ p["w2"].T) * (hidden > 0)
        grads = {"w1": x[rows].T @ back, "b1": back.sum(0), "w2": hidden.T @ error}
        return grads | {"b2": error.sum(0)}

    return gradient_of


def net_start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(64, 32)) * 0.18, rng.normal(size=(32, 10)) * 0.25
    return {"w1": w1, "b1": np.zeros(32), "w2": w2, "b2": np.zeros(10)}


def test_fewer_bytes_cost_less_than_one_percent_on_digits(r: redis.Redis) -> None:
    x, x_test, y, y_test = digits()

    def rows(step: int, rank: int, world_size: int) -> np.ndarray:
        return np.random.default_rng(step).permutation(len(x))[:128][rank::world_size]

    def run(**options: Any) -> tuple[float, int]:
        every = {"lr": 0.3, "steps": 200, "world_size": 4, "timeout_s": 15} | options
        results = together(
            4, lambda i: dt.train(r, "few", i, net_start(), net_gradient(x, y), rows, **every)
        )
        p, sent = results[3].params, results[3].bytes_sent
        logits = np.maximum(x_test @ p["w1"] + p["b1"], 0) @ p["w2"] + p["b2"]
        return float((logits.argmax(axis=1) == y_test).mean()), sent

    accuracy, sent = run()
    seldom, sent_seldom = run(sync_every=10)
    sparse, sent_sparse = run(compress=0.01)
    assert accuracy > 0.93
    assert min(seldom, sparse) > accuracy - 0.01, (accuracy, seldom, sparse)
    assert sent > 9.5 * sent_seldom and sent > 20 * sent_sparse


def test_what_compress_holds_back_is_sent_later(r: redis.Redis) -> None:
    def constant(w: np.ndarray, batch: Any) -> np.ndarray:
        return np.array([3.0, 2.0, 1.0, 1.0])

    results = together(
        2,
        lambda i: dt.train(
            r, "later", i, np.zeros(4), constant, share,
            lr=1, steps=8, compress=0.25, world_size=2,
        ),
    )  # fmt: skip
    assert results[0].params.tobytes() == results[1].params.tobytes()
    sent, due = -results[0].params, 8 * np.array([3.0, 2.0, 1.0, 1.0])
    assert (sent > 0).all() and (sent <= due).all() and sent.sum() >= due.sum() - 4 * 7


def test_a_client_that_decodes_is_refused_and_changes_nothing(r: redis.Redis) -> None:
    decodes = servers.decoding(r)
    for call in (
        lambda: AllReduce(decodes, "text", 0, 2),
        lambda: dt.Lease(decodes, "text", "me", 1, 5, 30),
        lambda: dt.train(decodes, "text", "me", start(), gradient, share, lr=0.05, steps=1),
        lambda: dt.demo(decodes),
    ):
        with pytest.raises(TypeError, match="without decode_responses=True"):
            call()
    assert not r.dbsize()
