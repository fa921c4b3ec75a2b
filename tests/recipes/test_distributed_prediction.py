"""A prediction job: nothing lost, nothing answered twice, whatever its workers do."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import ml_dtypes
import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recipes import distributed_prediction as dp
from recipes.distributed_prediction import (
    BadBatch,
    BatchesLost,
    Stats,
    dead_letters,
    delete,
    pack,
    progress,
    results,
    retry_dead,
    submit,
    unpack,
    work,
)
from tests import servers

ROOT = Path(__file__).parent.parent.parent


def some(n: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    for i in range(start, start + n):
        yield {"x": np.full((3, 2), i, np.float32), "id": np.array([i])}


def double(batch: dict[str, np.ndarray]) -> np.ndarray:
    return batch["x"].sum(axis=1) * 2


def assert_right(found: dict[int, np.ndarray], n: int) -> None:
    assert sorted(found) == list(range(n))
    for i, result in found.items():
        np.testing.assert_array_equal(result, np.full(3, 4 * i, np.float32))


@contextlib.contextmanager
def running(
    r: redis.Redis, *predicts: Callable[..., Any], **options: Any
) -> Iterator[list[Stats | BaseException]]:
    """Workers in threads, each with a client of its own; yields what they return or raise."""
    ended: list[Stats | BaseException] = []

    def run(predict: Callable[..., Any], name: str) -> None:
        with another(r) as client:
            try:
                ended.append(work(client, "j", predict, consumer=name, **options))
            except BaseException as error:
                ended.append(error)

    threads = [
        threading.Thread(target=run, args=(predict, f"w{i}")) for i, predict in enumerate(predicts)
    ]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        for thread in threads:
            thread.join()


def another(r: redis.Redis) -> redis.Redis:
    if isinstance(r, fakeredis.FakeRedis):
        return fakeredis.FakeRedis(server=r.connection_pool.connection_kwargs["server"])
    return redis.Redis(connection_pool=redis.ConnectionPool(**r.connection_pool.connection_kwargs))


class Killed(BaseException):
    """What a predict raises here to end its worker without a word, as kill -9 does."""


def killed(batch: dict[str, np.ndarray]) -> np.ndarray:
    raise Killed


# --- Packing --------------------------------------------------------------------------------------

ARRAYS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__"),
    st.one_of(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        for dtype in (
            hnp.integer_dtypes(endianness="="),
            hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
            hnp.boolean_dtypes(),
        )
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(ARRAYS, st.booleans())
def test_unpack_inverts_pack(arrays: dict[str, np.ndarray], transposed: bool) -> None:
    arrays = {k: v.T if transposed else v for k, v in arrays.items()}
    found = unpack(pack(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24).reshape(4, 6)[::2, ::-2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.float32(2.5),
        [[1, 2], [3, 4]],
    ],
)
def test_views_byte_orders_and_lists_keep_their_values(array: Any) -> None:
    np.testing.assert_array_equal(unpack(pack({"x": array}))["x"], array)


SMALL_FLOATS = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]


@pytest.mark.parametrize("name", [*SMALL_FLOATS, "complex64"])
def test_unpack_knows_every_dtype_that_pack_takes(name: str) -> None:
    array = np.array([[1, 2, 4], [0.5, 8, 1]]).astype(getattr(ml_dtypes, name, name)).T
    found = unpack(pack({"x": array}))["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable


def test_bfloat16_needs_ml_dtypes_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    small, single = (pack({"x": np.ones(3, dtype)}) for dtype in (ml_dtypes.bfloat16, "f4"))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # as if it were not installed
    assert unpack(single)["x"].dtype == np.float32
    with pytest.raises(ImportError, match="ml_dtypes"):
        unpack(small)


@pytest.mark.parametrize(
    "batch",
    [
        None,
        [np.zeros(3)],
        np.zeros(3),
        "text",
        {"x": np.array([object()])},
        {"x": "text"},
        {"x": None},
        {"x": [[1], [2, 3]]},
        {1: np.zeros(3)},
        {"x": np.zeros(2), "__metadata__": np.zeros(2)},
        {"x": np.zeros(2, np.complex128)},
        {"x": np.zeros(2, ml_dtypes.float8_e3m4)},
        {"x": np.zeros(2, ml_dtypes.int4)},
        {"x": np.zeros(dp.MAX_BLOB, np.uint8)},
    ],
)
def test_what_is_no_batch_is_refused(batch: Any) -> None:
    with pytest.raises(BadBatch):
        pack(batch)


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    blob = pack({"x": np.arange(5, dtype=np.int16)})
    for i, bit in itertools.product(range(len(blob)), range(8)):
        flipped = bytearray(blob)
        flipped[i] ^= 1 << bit
        with pytest.raises(BadBatch):
            unpack(bytes(flipped))
    for end in range(len(blob)):
        with pytest.raises(BadBatch):
            unpack(blob[:end])
    with pytest.raises(BadBatch):
        unpack(blob + b"\0")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[" * 5000,
        b'{"x":{"dtype":"F64","shape":[1099511627776],"data_offsets":[0,8]}}',
        b'{"x":{"dtype":"F64","shape":[-1],"data_offsets":[0,8]}}',
        b'{"x":{"dtype":"O","shape":[1],"data_offsets":[0,8]}}',
        b'{"x":{"dtype":"F64","shape":[1],"data_offsets":[0,80]}}',
        b'{"x":{"dtype":"F64","shape":[1],"data_offsets":[8,0]}}',
        b'{"x":1}',
    ],
)
def test_a_hostile_header_behind_a_right_checksum_is_refused(header: bytes) -> None:
    body = struct.pack("<Q", len(header)) + header + bytes(8)
    with pytest.raises(BadBatch):
        unpack(b"PBA1" + zlib.crc32(body).to_bytes(4, "big") + body)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_behind_a_right_checksum_raise_only_badbatch(body: bytes) -> None:
    with contextlib.suppress(BadBatch):
        unpack(b"PBA1" + zlib.crc32(body).to_bytes(4, "big") + body)


# --- One job --------------------------------------------------------------------------------------


def test_every_batch_has_its_result_and_numbers_go_on(r: redis.Redis) -> None:
    assert submit(r, "j", some(30)) == 30
    assert progress(r, "j").waiting == 30
    assert work(r, "j", double, consumer="a").done == 30
    assert submit(r, "j", list(some(20, start=30))) == 20
    state = progress(r, "j")
    assert (state.total, state.done, state.waiting, state.finished) == (50, 30, 20, False)
    assert work(r, "j", double, consumer="a").done == 20
    assert [i for i, _ in results(r, "j")] == list(range(50))  # in their order
    assert_right(dict(results(r, "j")), 50)
    assert progress(r, "j") == dp.Progress(50, 50, 0, 0, 0, True)


def test_workers_may_start_before_during_and_after_submit(r: redis.Redis) -> None:
    with running(r, double) as early:
        servers.wait_until(lambda: threading.active_count() > 1, what="the worker runs")
        with running(r, double) as later:

            def slow() -> Iterator[dict[str, np.ndarray]]:
                for batch in some(20):
                    time.sleep(0.01)  # load: a slow source
                    yield batch

            assert submit(r, "j", slow()) == 20
    assert isinstance(early[0], Stats)
    assert isinstance(later[0], Stats)
    assert early[0].done + later[0].done == 20
    assert work(r, "j", double, consumer="late") == Stats()
    assert_right(dict(results(r, "j")), 20)


def test_a_worker_waits_in_vain_only_so_long(r: redis.Redis) -> None:
    begin = time.monotonic()
    assert work(r, "j", double, consumer="a", wait_s=0.2) == Stats()
    assert 0.2 <= time.monotonic() - begin < 5
    assert r.dbsize() == 0


def test_a_slow_source_is_sent_as_it_comes(r: redis.Redis) -> None:
    seen = []

    def source() -> Iterator[dict[str, np.ndarray]]:
        for batch in some(5):
            time.sleep(0.02)  # load: a slow source
            yield batch
            seen.append(progress(r, "j").total)

    submit(r, "j", source())
    assert seen == [1, 2, 3, 4, 5]


def test_max_batches_is_kept(r: redis.Redis) -> None:
    submit(r, "j", some(100))
    assert work(r, "j", double, consumer="a", max_batches=0).done == 0
    assert work(r, "j", double, consumer="a", max_batches=np.int64(37)).done == 37
    state = progress(r, "j")
    assert (state.done, state.running, state.waiting) == (37, 0, 63)
    assert_right(dict(results(r, "j", wait_s=0)), 37)


def test_predict_may_change_its_batch_and_return_a_list(r: redis.Redis) -> None:
    def predict(batch: dict[str, np.ndarray]) -> list[float]:
        batch["x"] *= 2
        return [float(v) for v in batch["x"].sum(axis=1)]

    submit(r, "j", some(3))
    work(r, "j", predict, consumer="a")
    assert_right(dict(results(r, "j")), 3)


def test_batches_and_results_of_small_floats(r: redis.Redis) -> None:
    submit(r, "j", ({"x": np.ones(3, getattr(ml_dtypes, name))} for name in SMALL_FLOATS))
    assert work(r, "j", lambda b: b["x"][::2], consumer="a") == Stats(done=len(SMALL_FLOATS))
    assert [(y.dtype.name, y.tolist()) for _, y in results(r, "j")] == [
        (name, [1, 1]) for name in SMALL_FLOATS
    ]


def test_a_refused_batch_names_itself_and_those_before_it_are_in(r: redis.Redis) -> None:
    with pytest.raises(BadBatch, match="numbers"):
        submit(r, "j", [{"x": np.zeros(2)}, {"x": np.array([None])}], max_backlog=1)
    assert progress(r, "j").total == 1
    assert work(r, "j", lambda b: b["x"], consumer="a").done == 1  # no submit is left open


def test_bad_names_of_jobs_are_refused(r: redis.Redis) -> None:
    for name in ("", "}a", "a{b}"):
        with pytest.raises(ValueError, match="braces"):
            submit(r, name, some(1))
    assert r.dbsize() == 0


def test_delete_leaves_nothing_and_a_late_answer_brings_nothing_back(r: redis.Redis) -> None:
    submit(r, "j", some(3))
    _, (id, _), *_ = dp._eval(r, "j", dp._TAKE, "slow", 3, 1000)
    key = dp._keys("j")[1]
    delete(r, "j")
    assert r.dbsize() == 0
    assert progress(r, "j") == dp.Progress(0, 0, 0, 0, 0, True)
    assert list(results(r, "j", wait_s=0)) == []
    assert dp._eval(r, "j", dp._ANSWER, key, id, 0, pack({"result": np.zeros(1)})) == 0
    assert r.dbsize() == 0
    submit(r, "j", some(3))  # of the same name, and nothing of the old one in it
    assert dp._eval(r, "j", dp._ANSWER, key, id, 0, pack({"result": np.zeros(1)})) == 0
    work(r, "j", double, consumer="a")
    assert_right(dict(results(r, "j")), 3)


def test_a_group_sent_twice_is_added_once(r: redis.Redis) -> None:
    """As after a reply that was lost: the client sends the same command again."""
    blobs = [pack(batch) for batch in some(3)]
    for group in (0, 1, 1, 0, 2, 2, 1):
        dp._eval(r, "j", dp._SUBMIT, "token", group, *(blobs if group else ()))
    assert progress(r, "j").total == 6


def test_a_server_that_forgot_batches_is_noticed(r: redis.Redis) -> None:
    """As after a failover to a replica that lacked them; else all later indexes would be wrong."""

    def source() -> Iterator[dict[str, np.ndarray]]:
        for i, batch in enumerate(some(40)):
            if i == 25:
                r.hset(dp._keys("j")[3], "total", 10)
            yield batch

    with pytest.raises(BatchesLost, match=r"had \d+ before these"):
        submit(r, "j", source(), max_backlog=40)
    delete(r, "j")
    assert submit(r, "j", some(40), max_backlog=40) == 40


def test_a_crashed_submit_does_not_keep_the_workers(r: redis.Redis) -> None:
    dp._eval(r, "j", dp._SUBMIT, "crashed", 1, *map(pack, some(3)))
    assert 0 < r.ttl(dp._keys("j")[4]) <= 60
    assert work(r, "j", double, consumer="a", max_batches=3).done == 3
    assert not progress(r, "j").finished
    r.expire(dp._keys("j")[4], 0)
    assert work(r, "j", double, consumer="a") == Stats()


# --- The backlog ----------------------------------------------------------------------------------


def taken_by_submit(r: redis.Redis, n: int, **options: Any) -> tuple[list[int], threading.Thread]:
    taken: list[int] = []

    def source() -> Iterator[dict[str, np.ndarray]]:
        for i, batch in enumerate(some(n)):
            taken.append(i)
            yield batch

    thread = threading.Thread(target=submit, args=(another(r), "j", source()), kwargs=options)
    thread.start()
    return taken, thread


def test_submit_waits_while_too_many_are_unanswered(r: redis.Redis) -> None:
    taken, thread = taken_by_submit(r, 200, max_backlog=7)
    servers.wait_until(lambda: progress(r, "j").total == 7, what="the backlog is full")
    work(r, "j", double, consumer="a", max_batches=3)  # not only when all are answered
    servers.wait_until(lambda: progress(r, "j").total == 10, what="as many follow")
    highest = []
    while progress(r, "j").done < 200:
        highest.append(progress(r, "j").waiting)
        work(r, "j", double, consumer="a", max_batches=10)
        assert len(taken) <= progress(r, "j").done + 7 + 1  # and one in hand
    thread.join()
    assert max(highest) <= 7
    assert_right(dict(results(r, "j")), 200)


def test_submit_waits_while_too_many_bytes_are_unanswered(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(pack(next(some(1))))
    monkeypatch.setattr(dp, "MAX_BACKLOG_BYTES", 40 * size)
    monkeypatch.setattr(dp, "MAX_GROUP", 8)
    taken, thread = taken_by_submit(r, 100)
    servers.wait_until(lambda: progress(r, "j").total >= 40, what="the backlog is full")
    assert progress(r, "j").total <= 40 + 8
    work(r, "j", double, consumer="a")
    thread.join()
    assert progress(r, "j").done == len(taken) == 100


def test_waiting_costs_few_commands(r: redis.Redis) -> None:
    calls = []
    client = another(r)
    run = client.execute_command
    client.execute_command = lambda *a, **k: (calls.append(a[0]), run(*a, **k))[1]  # type: ignore[method-assign]
    submit(r, "j", some(1))
    dp._eval(r, "j", dp._TAKE, "hangs", 1, 1000)
    with contextlib.suppress(TimeoutError):
        list(results(client, "j", wait_s=0.3))
    assert len(calls) < 60
    calls.clear()
    work(client, "j", double, consumer="a", lease_s=0.5)
    assert len(calls) < 100


# --- Failures -------------------------------------------------------------------------------------


def test_a_failing_batch_is_tried_so_often_then_dead_and_blocks_no_other(r: redis.Redis) -> None:
    tries = []

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        if batch["id"][0] in (3, 11):
            tries.append(int(batch["id"][0]))
            raise ArithmeticError(f"no answer to {batch['id'][0]}")
        return double(batch)

    submit(r, "j", some(30))
    begin = time.monotonic()
    stats = work(r, "j", predict, consumer="a", max_deliveries=4, max_batches=100)
    assert time.monotonic() - begin < 5  # not after a lease of 30 s
    assert stats == Stats(done=28, failed=8)
    assert sorted(tries) == [3] * 4 + [11] * 4
    letters = dead_letters(r, "j")
    assert [(d.index, d.deliveries, d.consumer) for d in letters] == [(3, 4, "a"), (11, 4, "a")]
    assert letters[0].error == "ArithmeticError('no answer to 3')"
    state = progress(r, "j")
    assert (state.done, state.dead, state.running, state.finished) == (28, 2, 0, True)
    assert sorted(dict(results(r, "j"))) == [i for i in range(30) if i not in (3, 11)]

    assert retry_dead(r, "j") == 2
    assert retry_dead(r, "j") == 0
    assert progress(r, "j").waiting == 2
    assert work(r, "j", double, consumer="a").done == 2
    assert dead_letters(r, "j") == []
    assert_right(dict(results(r, "j")), 30)


def test_a_passing_error_costs_nothing(r: redis.Redis) -> None:
    seen: set[int] = set()

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        if (i := int(batch["id"][0])) not in seen:
            seen.add(i)
            raise OSError("try again")
        return double(batch)

    submit(r, "j", some(20))
    assert work(r, "j", predict, consumer="a") == Stats(done=20, failed=20)
    assert_right(dict(results(r, "j")), 20)


@pytest.mark.parametrize("answer", [None, {"y": 1}, "text", np.zeros(dp.MAX_BLOB, np.uint8)])
def test_a_result_that_cannot_be_stored_is_an_error_of_its_batch(
    r: redis.Redis, answer: Any
) -> None:
    submit(r, "j", some(1))
    assert work(r, "j", lambda b: answer, consumer="a") == Stats(failed=3)
    assert "BadBatch" in dead_letters(r, "j")[0].error


def test_a_batch_damaged_in_redis_becomes_a_dead_letter(r: redis.Redis) -> None:
    submit(r, "j", some(2))
    dp._eval(r, "j", dp._SUBMIT, "damaged", 1, pack(next(some(1)))[:-1] + b"?")
    r.delete(dp._keys("j")[4])
    assert work(r, "j", double, consumer="a").done == 2
    assert "changed" in dead_letters(r, "j")[0].error


def test_a_damaged_result_is_not_returned(r: redis.Redis) -> None:
    submit(r, "j", some(1))
    work(r, "j", double, consumer="a")
    r.hset(dp._keys("j")[1], 0, b"rubbish")  # type: ignore[arg-type]
    with pytest.raises(BadBatch):
        list(results(r, "j"))


def test_batches_of_a_lost_worker_go_to_others_after_the_lease(r: redis.Redis) -> None:
    submit(r, "j", some(20))
    assert len(dp._eval(r, "j", dp._TAKE, "lost", 5, 1000)) == 1 + 5
    assert progress(r, "j").running == 5
    begin = time.monotonic()
    stats = work(r, "j", double, consumer="a", lease_s=0.4)
    assert time.monotonic() - begin >= 0.35
    assert stats.done == 20
    assert_right(dict(results(r, "j")), 20)


def test_a_batch_that_kills_its_workers_takes_no_other_along(r: redis.Redis) -> None:
    """Batch 50 ends every worker that predicts it; 3 times, then it is dead, and it alone."""

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        if batch["id"][0] == 50:
            raise Killed
        return double(batch)

    submit(r, "j", some(200))
    ends = 0
    for name in range(10):
        try:
            work(r, "j", predict, consumer=str(name), lease_s=0.1)
            break
        except Killed:
            ends += 1
    assert ends == 3
    (letter,) = dead_letters(r, "j")
    assert (letter.index, letter.deliveries) == (50, 3)
    assert "lease" in letter.error
    assert sorted(dict(results(r, "j"))) == [i for i in range(200) if i != 50]


def test_of_two_answers_the_first_counts(r: redis.Redis) -> None:
    """A worker that hangs past its lease, and answers when another one has."""
    entered, go = threading.Event(), threading.Event()

    def hangs(batch: dict[str, np.ndarray]) -> np.ndarray:
        entered.set()
        go.wait(30)
        return np.full(1, -1.0)

    submit(r, "j", some(10))
    with running(r, hangs, lease_s=0.2) as ended:
        assert entered.wait(30)
        stats = work(r, "j", double, consumer="other", lease_s=0.2)
        go.set()
    assert stats.done == 10
    assert ended == [Stats(done=0, failed=0, late=1)]
    assert progress(r, "j") == dp.Progress(10, 10, 0, 0, 0, True)
    assert_right(dict(results(r, "j")), 10)


def test_slow_batches_behind_fast_ones_are_predicted_once(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has taken 12 slow batches at once, which together outlast its lease."""
    monkeypatch.setattr(dp, "GROUP_S", 10)  # a slow machine makes smaller groups
    at_slow, predicted = threading.Event(), list[int]()

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        predicted.append(i := int(batch["id"][0]))
        if i >= 63:  # the groups before: 1, 2, 4, 8, 16, 32
            at_slow.set()
            time.sleep(0.2)  # load: a slow batch
        return double(batch)

    submit(r, "j", some(63 + 12))
    with running(r, predict, lease_s=1.6) as first:
        assert at_slow.wait(30)
        assert progress(r, "j").running == 12
        second = work(r, "j", predict, consumer="second", lease_s=1.6)
    assert isinstance(first[0], Stats)
    assert sorted(predicted) == list(range(75))
    assert first[0].late == second.late == 0
    assert second.done > 0  # what was put back is shared
    assert first[0].done + second.done == 75
    assert_right(dict(results(r, "j")), 75)


def test_what_was_not_begun_counts_as_not_delivered(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp, "GROUP_S", 10)  # a slow machine makes smaller groups
    stream = dp._keys("j")[0]

    def pending() -> list[dict[str, Any]]:
        return r.xpending_range(stream, "workers", "-", "+", 10)

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        if (i := int(batch["id"][0])) > 3:
            raise Killed
        if i == 3:  # the groups before: 1, 2; this one is of 4
            r.xclaim(stream, "workers", "other", 0, [pending()[1]["message_id"]])
            time.sleep(0.55)  # load: longer than half of the lease
        return double(batch)

    submit(r, "j", some(7))
    with pytest.raises(Killed):
        work(r, "j", predict, consumer="a", lease_s=1)
    assert [(p["consumer"], p["times_delivered"]) for p in pending()] == [
        (b"other", 2),  # it was taken over before, and stays so
        (b"a", 1),  # it was put back, and taken at once
        (b"(put back)", 0),
    ]


def test_a_job_deleted_while_its_predict_fails_ends(r: redis.Redis) -> None:
    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        delete(r, "j")
        raise OSError("the disk is full")

    submit(r, "j", some(1))
    assert work(r, "j", predict, consumer="a", wait_s=0) == Stats(failed=1)
    assert r.dbsize() == 0


def test_four_workers_one_killed_one_paused_ten_thousand_batches(r: redis.Redis) -> None:
    """In threads: the killed one raises, the paused one waits until its lease is long over."""
    n, counted, go = 10_000, itertools.count(), threading.Event()

    def dies(batch: dict[str, np.ndarray]) -> np.ndarray:
        if next(counted) == 500:
            raise Killed
        return double(batch)

    def pauses(batch: dict[str, np.ndarray]) -> np.ndarray:
        if batch["id"][0] > 2_000:
            go.wait(60)
        return double(batch)

    with running(r, dies, pauses, double, double, lease_s=1) as ended:
        submit(r, "j", some(n))
        found = dict(results(r, "j"))
        go.set()
    assert_right(found, n)
    assert sum(isinstance(end, Killed) for end in ended) == 1
    assert sum(end.late for end in ended if isinstance(end, Stats)) > 0
    assert progress(r, "j") == dp.Progress(n, n, 0, 0, 0, True)
    assert r.xlen(dp._keys("j")[0]) == 0


WORKER = """
import json, sys, time
import redis
from recipes.distributed_prediction import work

def predict(batch):
    time.sleep(0.0002)
    return batch["x"].sum(axis=1) * 2

stats = work(redis.Redis.from_url(sys.argv[1]), "j", predict, consumer=sys.argv[2], lease_s=0.7)
print(json.dumps([stats.done, stats.late]))
"""


@contextlib.contextmanager
def processes(url: str, n: int) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(i)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(n)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.real_redis
def test_four_processes_one_killed_one_stopped_ten_thousand_batches(
    r: redis.Redis, url: str
) -> None:
    n, stream = 10_000, dp._keys("j")[0]

    def holds(name: str) -> bool:
        return bool(r.xpending_range(stream, "workers", "-", "+", 1, consumername=name))

    submit(r, "j", some(n))
    with processes(url, 4) as (dies, pauses, *others):
        for process, name, ending in ((dies, "0", signal.SIGKILL), (pauses, "1", signal.SIGSTOP)):
            while True:  # until it is caught with batches in hand
                servers.wait_until(lambda name=name: holds(name), what="it takes batches")  # type: ignore[misc]
                os.kill(process.pid, signal.SIGSTOP)
                if holds(name):
                    break
                os.kill(process.pid, signal.SIGCONT)
            os.kill(process.pid, ending)
        found = dict(results(r, "j"))
        assert_right(found, n)
        os.kill(pauses.pid, signal.SIGCONT)
        ended = [json.loads(p.communicate(timeout=60)[0]) for p in (pauses, *others)]
        assert dies.wait() == -signal.SIGKILL
    assert ended[0][1] > 0  # what it answered too late
    assert progress(r, "j") == dp.Progress(n, n, 0, 0, 0, True)
    assert_right(dict(results(r, "j")), n)


@pytest.mark.real_redis
def test_a_killed_server_loses_no_acknowledged_batch(server_kind: str) -> None:
    with servers.lone(server_kind, "--appendonly", "yes", "--appendfsync", "always") as server:
        acknowledged = 0

        def submit_until_it_is_gone() -> None:
            nonlocal acknowledged
            with contextlib.suppress(redis.ConnectionError):
                client = server.client(retry=None)
                for i in range(100_000):
                    acknowledged += submit(client, "j", some(1, start=i))

        thread = threading.Thread(target=submit_until_it_is_gone)
        thread.start()
        servers.wait_until(lambda: acknowledged >= 100, what="some are submitted")
        work(server.client(), "j", double, consumer="a", max_batches=30)
        dp._eval(server.client(), "j", dp._TAKE, "lost", 7, 1000)
        server.kill()
        thread.join()
        server.start_again()
        r = server.client()
        state = progress(r, "j")
        assert acknowledged <= state.total <= acknowledged + 1
        assert (state.done, state.running) == (30, 7)
        r.delete(dp._keys("j")[4])  # the submit that was killed with its server
        work(r, "j", double, consumer="a", lease_s=0.1)
        assert_right(dict(results(r, "j")), state.total)


# --- Reading --------------------------------------------------------------------------------------


def test_results_come_while_workers_run(r: redis.Redis) -> None:
    seen = []

    def slow(batch: dict[str, np.ndarray]) -> np.ndarray:
        time.sleep(0.01)  # load: a slow model
        return double(batch)

    with running(r, slow):
        submit(r, "j", some(40))
        for i, _ in results(r, "j"):
            seen.append((i, progress(r, "j").done))
    assert [i for i, _ in seen] == list(range(40))
    assert seen[0][1] < 40  # the first came before the last was done


def test_who_waits_for_nobody_is_told(r: redis.Redis) -> None:
    submit(r, "j", some(5))
    work(r, "j", double, consumer="a", max_batches=2)
    reading = results(r, "j", wait_s=0.1)
    assert [next(reading)[0], next(reading)[0]] == [0, 1]
    with pytest.raises(TimeoutError, match=r"Any workers\?.*waiting=3"):
        next(reading)
    assert [i for i, _ in results(r, "j", wait_s=0)] == [0, 1]


def test_results_may_be_read_before_submit_begins(r: redis.Redis) -> None:
    looks: list[Any] = []
    client = another(r)
    run = client.execute_command
    client.execute_command = lambda *a, **k: (looks.append(a), run(*a, **k))[1]  # type: ignore[method-assign]
    found: list[dict[int, np.ndarray]] = []
    reader = threading.Thread(target=lambda: found.append(dict(results(client, "j", wait_s=60))))
    reader.start()
    servers.wait_until(lambda: len(looks) > 2, what="the reader waits")
    assert reader.is_alive()
    submit(r, "j", some(5))
    work(r, "j", double, consumer="a")
    reader.join()
    assert_right(found[0], 5)


def test_who_reads_a_job_that_is_not_there_is_told(r: redis.Redis) -> None:
    with pytest.raises(TimeoutError, match=r"job 'mistyped'.*Any submit\?"):
        next(results(r, "mistyped", wait_s=0.1))
    assert list(results(r, "mistyped", wait_s=0)) == []
    assert r.dbsize() == 0
    submit(r, "empty", [])
    assert list(results(r, "empty")) == []  # at once


def test_a_job_that_is_deleted_while_it_is_read_does_not_look_finished(r: redis.Redis) -> None:
    submit(r, "j", some(12))
    work(r, "j", double, consumer="a")
    reading = results(r, "j", wait_s=0.1)
    assert [next(reading)[0] for _ in range(8)] == list(range(8))  # one window
    delete(r, "j")
    with pytest.raises(TimeoutError):
        next(reading)


def test_large_results_are_read_a_few_at_a_time(r: redis.Redis) -> None:
    submit(r, "j", some(24))
    work(r, "j", lambda b: np.zeros(1_000_000, np.uint8), consumer="a")
    asked = []
    client = another(r)
    run = client.hmget
    client.hmget = lambda key, ids: (asked.append(len(ids)), run(key, ids))[1]  # type: ignore[method-assign]
    assert sum(y.nbytes for _, y in results(client, "j")) == 24_000_000
    assert asked[0] <= 8
    assert set(asked[1:]) == {4}


def test_a_reply_of_large_batches_has_a_bound(r: redis.Redis) -> None:
    submit(r, "j", ({"x": np.zeros(1_000_000, np.uint8)} for _ in range(12)))
    _, *taken = dp._eval(r, "j", dp._TAKE, "a", 256, 1000)
    assert len(taken) == 5  # the fifth passes 4 MiB


def test_an_answer_of_large_results_has_a_bound(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """63 small ones and then large ones: the worker has taken 64 at once when it meets these."""
    monkeypatch.setattr(dp, "GROUP_S", 10)  # a slow machine makes smaller groups
    sent: list[int] = []
    client = another(r)
    run = client.execute_command

    def counted(*args: Any, **options: Any) -> Any:
        sent.append(sum(len(arg) for arg in args if isinstance(arg, bytes)))
        return run(*args, **options)

    client.execute_command = counted  # type: ignore[method-assign]

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        i = int(batch["id"][0])
        return np.full(1 if i < 63 else 1_000_000, i % 256, np.uint8)

    submit(r, "j", some(63 + 20))
    assert work(client, "j", predict, consumer="a") == Stats(done=83)
    assert 4_000_000 < max(sent) < dp.MAX_BLOB + 1_001_000
    assert [(i, len(y), y[-1]) for i, y in results(r, "j")] == [
        (i, 1 if i < 63 else 1_000_000, i) for i in range(83)
    ]


# --8<-- [start:progress-bar]
def test_a_progress_bar(r: redis.Redis) -> None:
    from tqdm import tqdm

    submit(r, "j", some(50))
    work(r, "j", double, consumer="a")

    screen = io.StringIO()
    total = progress(r, "j").total
    for index, result in tqdm(results(r, "j"), total=total, unit="batch", file=screen):
        assert result[0] == 4 * index
    assert "50/50" in screen.getvalue()


# --8<-- [end:progress-bar]


@pytest.mark.real_redis
def test_two_commands_a_group(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "GROUP_S", 10)  # a slow machine makes smaller groups

    def calls(command: str) -> int:
        return int(r.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

    before = calls("eval")
    submit(r, "j", some(5000))
    assert calls("eval") - before < 5000 / 10
    before = calls("eval")
    work(r, "j", double, consumer="a")
    assert calls("eval") - before < 5000 / 10


@pytest.mark.real_redis
def test_on_a_cluster(cluster: redis.RedisCluster) -> None:
    submit(cluster, "j", some(30))  # type: ignore[arg-type]

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        if batch["id"][0] == 4:
            raise ValueError("four")
        return double(batch)

    assert work(cluster, "j", predict, consumer="a").done == 29
    assert [letter.index for letter in dead_letters(cluster, "j")] == [4]
    assert retry_dead(cluster, "j") == 1
    work(cluster, "j", double, consumer="a")
    assert_right(dict(results(cluster, "j")), 30)
    delete(cluster, "j")
    assert sum(cluster.dbsize(target_nodes=node) for node in cluster.get_primaries()) == 0


def test_a_client_that_decodes_is_refused_and_changes_nothing(r: redis.Redis) -> None:
    submit(r, "j", some(3))
    before, decodes = {key: r.dump(key) for key in r.scan_iter()}, servers.decoding(r)
    for call in (
        lambda: submit(decodes, "j", some(3)),
        lambda: work(decodes, "j", double, consumer="text"),
        lambda: progress(decodes, "j"),
        lambda: list(results(decodes, "j")),
        lambda: dead_letters(decodes, "j"),
        lambda: retry_dead(decodes, "j"),
        lambda: delete(decodes, "j"),
        lambda: dp.demo(decodes),
    ):
        with pytest.raises(TypeError, match="without decode_responses=True"):
            call()
    assert {key: r.dump(key) for key in r.scan_iter()} == before
