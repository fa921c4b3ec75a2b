"""training_checkpoints: whole or not at all, one writer at a time, resumed equal to the bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import redis
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from redis.crc import key_slot

from recipes import training_checkpoints as tc
from recipes.training_checkpoints import CheckpointError, Checkpoints, LeaseHeld, StaleLease
from tests import servers

ROOT = Path(__file__).parent.parent.parent
SMALL = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = map("run-{}".format, itertools.count())


def arrays_of(step: int, size: int = 50) -> dict[str, np.ndarray]:
    """Arrays that all say of which step they are."""
    return {"w": np.full(size, float(step)), "b": np.full((2, 3), step, np.int16)}


def assert_whole(found: tc.Checkpoint | None) -> int:
    assert found is not None
    assert (found.arrays["w"] == found.step).all()
    assert (found.arrays["b"] == found.step).all()
    assert found.state == {"step": found.step}
    return found.step


def save(checkpoints: Checkpoints, lease: tc.Lease, step: int, size: int = 50) -> None:
    checkpoints.save(lease, step, arrays_of(step, size), {"step": step})


def keys(r: redis.Redis) -> set[str]:
    return {key.decode() for key in r.scan_iter()}


def wanted_keys(checkpoints: Checkpoints, *also: str) -> set[str]:
    """The keys that a run has when nothing is left behind."""
    chunks = {
        f"checkpoints:{checkpoints.run}:{id.decode()}:{i}"
        for id in checkpoints._ids()
        for i in range(int(id.split(b".")[3]))
    }
    return chunks | {f"{{checkpoints:{checkpoints.run}}}:{name}" for name in ("fence", *also)}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tc, "CHUNK", 128)
    monkeypatch.setattr(tc, "AT_ONCE", 2)


@contextlib.contextmanager
def intercepted(r: redis.Redis, act: Callable[[int, Callable[[], Any]], Any]) -> Iterator[None]:
    """Call act(n, send) in place of the n-th round trip of `r`; send() does it."""
    numbers = itertools.count()
    pipeline = type(r.pipeline(transaction=False))
    send_command, send_pipeline = r.execute_command, pipeline.execute
    busy = threading.local()

    def acted(send: Callable[[], Any]) -> Any:
        if getattr(busy, "now", False):  # what `act` itself sends
            return send()
        busy.now = True
        try:
            return act(next(numbers), send)
        finally:
            busy.now = False

    def command(*args: Any, **options: Any) -> Any:
        return acted(lambda: send_command(*args, **options))

    def execute(self: Any, *args: Any) -> Any:
        commands = list(self.command_stack)

        def send() -> Any:
            self.command_stack = list(commands)
            return send_pipeline(self, *args)

        return acted(send)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "execute_command", command)
        patch.setattr(pipeline, "execute", execute)
        yield


class Killed(BaseException):
    """The process is gone: it does nothing more."""


def round_trips_of_a_save(r: redis.Redis) -> int:
    count = 0

    def act(n: int, send: Callable[[], Any]) -> Any:
        nonlocal count
        count = n + 1
        return send()

    checkpoints = Checkpoints(r, "counted", keep=1)
    with checkpoints.acquire("a") as lease:
        save(checkpoints, lease, 1)
        with intercepted(r, act):
            save(checkpoints, lease, 2)
    checkpoints.delete()
    return count


# --- What is saved comes back --------------------------------------------------------------------

DTYPES = [
    *("?", "i1", "<i2", ">i4", "<i8", "u1", "<u2", ">u8", "<f2", "<f4", ">f4", "<f8", ">f8"),
    *("<c8", "<c16"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@SMALL
@given(
    arrays=st.dictionaries(
        st.text(),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
        ),
        max_size=4,
    ),
    state=JSON,
)
def test_it_comes_back_equal_to_the_bit(
    r: redis.Redis, arrays: dict[str, np.ndarray], state: Any
) -> None:
    checkpoints = Checkpoints(r, next(NAMES))
    with checkpoints.acquire("a") as lease:
        checkpoints.save(lease, 3, arrays, state)
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 3
    assert found.state == state
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        back = found.arrays[name]
        assert (back.dtype, back.shape, back.tobytes()) == (
            array.dtype,
            array.shape,
            array.tobytes(),
        )
        assert back.flags.writeable
        assert back.flags.aligned


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_the_small_floats_of_ml_dtypes(r: redis.Redis, dtype: str) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).astype(getattr(ml_dtypes, dtype))
    big = array.astype(array.dtype.newbyteorder(">"))
    checkpoints = Checkpoints(r, "run")
    checkpoints.save(checkpoints.acquire("a"), 1, {"w": array, ">": big, "t": big.T}, None)
    back = checkpoints.load(1).arrays["w"]
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    for name, saved in ((">", big), ("t", big.T)):
        back = checkpoints.load(1).arrays[name]
        assert (back.dtype, back.dtype.str, back.shape) == (big.dtype, big.dtype.str, saved.shape)
        assert back.tobytes() == saved.tobytes()
        assert back.astype("f4").tolist() == saved.astype("f4").tolist()


def test_strided_arrays_lists_and_numpy_numbers_are_welcome(r: redis.Redis) -> None:
    strided = np.arange(24.0).reshape(4, 6)[::2, ::-3]
    generator = np.random.default_rng(5)
    state = {
        "rng": generator.bit_generator.state, "loss": np.float32(0.5), "n": np.int64(7),
        "betas": (0.9, 0.999), "best": math.inf, "bad": math.nan, "ok": np.bool_(True),
    }  # fmt: skip
    checkpoints = Checkpoints(r, "run")
    checkpoints.save(checkpoints.acquire("a"), np.int64(1), {"s": strided, "l": [[1, 2]]}, state)
    found = checkpoints.load(np.int64(1))
    np.testing.assert_array_equal(found.arrays["s"], strided)
    np.testing.assert_array_equal(found.arrays["l"], [[1, 2]])
    assert math.isnan(found.state.pop("bad"))
    assert found.state == {
        "rng": state["rng"], "loss": 0.5, "n": 7,
        "betas": [0.9, 0.999], "best": math.inf, "ok": True,
    }  # fmt: skip
    other = np.random.default_rng()
    other.bit_generator.state = found.state["rng"]
    assert other.random() == generator.random()


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {1: 2}}, r"state\['a'\]"),
        ({"a": [0, np.ones(2)]}, r"state\['a'\]\[1\]"),
        ({"a": {1, 2}}, "set"),
        (b"bytes", "bytes"),
        (np.complex64(1), "complex"),
        ({"f": print}, "builtin"),
    ],
)
def test_state_that_json_would_change_is_refused(r: redis.Redis, state: Any, where: str) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a")
    before = keys(r)
    with pytest.raises(TypeError, match=where):
        checkpoints.save(lease, 1, {}, state)
    assert keys(r) == before


@pytest.mark.parametrize("array", [np.array([print]), np.array(["text"]), None, np.array([b"x"])])
def test_arrays_of_objects_and_text_are_refused(r: redis.Redis, array: Any) -> None:
    checkpoints = Checkpoints(r, "run")
    with pytest.raises(TypeError, match="numbers and bools only"):
        checkpoints.save(checkpoints.acquire("a"), 1, {"x": array}, None)


def test_wrong_arguments_are_refused(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, other = Checkpoints(r, "run"), Checkpoints(r, "other")
    lease = checkpoints.acquire("a")
    for run, keep in (("", 3), ("a{b}", 3), ("a", 0)):
        with pytest.raises(ValueError, match="without braces"):
            Checkpoints(r, run, keep=keep)
    for step in (-1, 1.5, 5.0, "5", None):
        with pytest.raises(ValueError, match="a step is an integer of 0 or more"):
            checkpoints.save(lease, step, {}, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another run"):
        other.save(lease, 1, {}, None)
    for ttl_s in (0, 0.0009, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"ttl_s is 0\.001 seconds"):
            other.acquire("a", ttl_s=ttl_s)
    for owner in (b"a", None, 7):
        with pytest.raises(TypeError, match="owner is a str"):
            other.acquire(owner)  # type: ignore[arg-type]
    assert not r.exists(*other.keys)
    with pytest.raises(CheckpointError, match="no step 4"):
        checkpoints.load(4)
    monkeypatch.setattr(tc, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="above 1000"):
        checkpoints.save(lease, 1, {"x": np.zeros(1000)}, None)
    assert checkpoints.latest() is None


@pytest.mark.usefixtures("small_chunks")
def test_large_arrays_go_in_chunks(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    with checkpoints.acquire("a") as lease:
        save(checkpoints, lease, 1, size=500)
    assert assert_whole(checkpoints.latest()) == 1
    chunks = [key for key in keys(r) if key.startswith("checkpoints:")]
    assert len(chunks) > 30
    assert all(r.strlen(key) <= 128 and r.ttl(key) == -1 for key in chunks)
    assert keys(r) == wanted_keys(checkpoints, "saved")


def test_the_newest_remain_and_old_ones_go(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run", keep=3)
    with checkpoints.acquire("a") as lease:
        for step in range(10):
            save(checkpoints, lease, step)
            assert checkpoints.steps() == list(range(max(0, step - 2), step + 1))
    assert [assert_whole(checkpoints.load(step)) for step in (7, 8, 9)] == [7, 8, 9]
    assert keys(r) == wanted_keys(checkpoints, "saved")
    fewer = Checkpoints(r, "run", keep=1)
    with fewer.acquire("a") as lease:
        save(fewer, lease, 10)
    assert fewer.steps() == [10]
    assert keys(r) == wanted_keys(fewer, "saved")


def test_a_step_saved_again_replaces_the_older_one(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run", keep=3)
    with checkpoints.acquire("a") as lease:
        for step in (10, 20, 30):
            save(checkpoints, lease, step)
    with checkpoints.acquire("b") as lease:
        checkpoints.save(lease, 20, {"again": np.ones(3)}, "second")
        assert checkpoints.steps() == [10, 30, 20]
        assert checkpoints.latest().state == checkpoints.load(20).state == "second"  # type: ignore[union-attr]
        save(checkpoints, lease, 30)
    assert checkpoints.steps() == [10, 20, 30]
    assert keys(r) == wanted_keys(checkpoints, "saved")


def test_delete_leaves_nothing(r: redis.Redis) -> None:
    r.set("other", "mine")
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a")
    for step in range(5):
        save(checkpoints, lease, step)
    checkpoints.delete()
    assert keys(r) == {"other"}
    with pytest.raises(StaleLease):
        save(checkpoints, lease, 6)
    assert keys(r) == {"other"}


def test_a_delete_that_fails_can_be_repeated(r: redis.Redis) -> None:
    for point in range(5):
        checkpoints = Checkpoints(r, "run")
        with checkpoints.acquire("a") as lease:
            save(checkpoints, lease, 1)

        def act(n: int, send: Callable[[], Any], point: int = point) -> Any:
            if n == point:
                raise redis.ConnectionError
            return send()

        with intercepted(r, act), contextlib.suppress(redis.ConnectionError):
            checkpoints.delete()
        checkpoints.delete()
        assert keys(r) == set()


# --- The lease -----------------------------------------------------------------------------------


def test_one_holder_at_a_time(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    with checkpoints.acquire("gpu 1\n", ttl_s=20) as lease:
        for owner in ("gpu-2", "gpu 1\n"):  # the same name is no second key
            with pytest.raises(LeaseHeld, match=r"'gpu 1\\n' for (20\.0|19\.\d+) s"):
                checkpoints.acquire(owner)
        save(checkpoints, lease, 1)
    with checkpoints.acquire("gpu-2") as after:
        assert after.token > lease.token
        with pytest.raises(StaleLease, match="acquire"):
            save(checkpoints, lease, 2)
    assert checkpoints.steps() == [1]


def test_of_many_exactly_one_gets_it(r: redis.Redis) -> None:
    checkpoints, got, held = Checkpoints(r, "run"), [], []
    start = threading.Barrier(8)

    def contend(i: int) -> None:
        start.wait()
        try:
            got.append(checkpoints.acquire(f"gpu-{i}"))
        except LeaseHeld as error:
            held.append(error)

    threads = [threading.Thread(target=contend, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(held)) == (1, 7)


def test_waiting_for_the_lease(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    begin = time.monotonic()
    crashed = checkpoints.acquire("gpu-1", ttl_s=1)
    with pytest.raises(LeaseHeld):
        checkpoints.acquire("gpu-1", wait_s=0.1)
    assert time.monotonic() - begin >= 0.1
    again = checkpoints.acquire("gpu-1", wait_s=20)
    assert time.monotonic() - begin >= 0.99
    assert again.token > crashed.token


def test_an_ended_lease_is_refused_even_if_nobody_came(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a", ttl_s=0.05)
    servers.wait_until(lambda: not r.exists(checkpoints.keys[0]), what="the lease has ended")
    with pytest.raises(StaleLease):
        lease.renew()
    with pytest.raises(StaleLease):
        save(checkpoints, lease, 1)
    assert checkpoints.latest() is None
    assert keys(r) == wanted_keys(checkpoints)


def test_saving_and_renewing_prolong_the_lease(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a", ttl_s=50)
    for prolong in (lease.renew, lambda: save(checkpoints, lease, 1)):
        r.pexpire(checkpoints.keys[0], 2_000)
        prolong()
        assert r.pttl(checkpoints.keys[0]) > 40_000


@pytest.mark.usefixtures("small_chunks")
def test_a_long_upload_renews_the_lease_on_its_way(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a", ttl_s=50)
    shortest = []

    def act(n: int, send: Callable[[], Any]) -> Any:
        shortest.append(r.pttl(checkpoints.keys[0]))
        r.pexpire(checkpoints.keys[0], 3_000)  # as if 47 s had gone by
        return send()

    with intercepted(r, act):
        save(checkpoints, lease, 1, size=500)
    assert sum(left > 40_000 for left in shortest) > 10
    assert checkpoints.steps() == [1]


@pytest.mark.real_redis
def test_the_lease_goes_by_the_servers_clock(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a", ttl_s=30)
    monotonic, wall = time.monotonic, time.time
    for shift in (-1e6, 1e6):  # this machine's clocks are eleven days off
        monkeypatch.setattr(time, "monotonic", lambda shift=shift: monotonic() + shift)
        monkeypatch.setattr(time, "time", lambda shift=shift: wall() + shift)
        with pytest.raises(LeaseHeld, match=r"for (30\.0|2\d\.\d+) s"):
            checkpoints.acquire("b")
        save(checkpoints, lease, 1)
        assert 25_000 < r.pttl(checkpoints.keys[0]) <= 30_000


def test_leaving_the_block_releases_only_ones_own_lease(r: redis.Redis) -> None:
    checkpoints, threads = Checkpoints(r, "run"), threading.active_count()
    with checkpoints.acquire("slow", ttl_s=0.05):
        successor = checkpoints.acquire("successor", wait_s=20)
    save(checkpoints, successor, 1)
    with contextlib.suppress(KeyError), successor:
        raise KeyError
    assert not r.exists(checkpoints.keys[0])
    assert threading.active_count() == threads


def test_a_lower_token_than_the_published_one_is_refused(r: redis.Redis) -> None:
    """A failover to a replica that lags can bring an old lease back to life."""
    checkpoints = Checkpoints(r, "run")
    old = checkpoints.acquire("old")
    revived = r.get(checkpoints.keys[0])
    old.release()
    with checkpoints.acquire("new") as new:
        save(checkpoints, new, 2)
    r.set(checkpoints.keys[0], revived, px=30_000)
    old.renew()
    with pytest.raises(StaleLease):
        save(checkpoints, old, 3)
    assert checkpoints.steps() == [2]


# --- Crashes and pauses, at every round trip -----------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_writer_killed_at_any_round_trip_leaves_a_whole_checkpoint(
    r: redis.Redis, after: bool
) -> None:
    total = round_trips_of_a_save(r)
    assert 5 < total < 20
    outcomes = set()
    for point in range(total):
        checkpoints = Checkpoints(r, f"run-{point}", keep=1)
        lease = checkpoints.acquire("killed")
        save(checkpoints, lease, 1)

        def act(n: int, send: Callable[[], Any], point: int = point) -> Any:
            if n < point:
                return send()
            if after and n == point:
                send()
            raise Killed

        with intercepted(r, act), pytest.raises(Killed):
            save(checkpoints, lease, 2)
        outcomes.add(assert_whole(checkpoints.latest()))
        for key in keys(r) - wanted_keys(checkpoints):
            if key.startswith(f"checkpoints:run-{point}:") and r.ttl(key) == -1:
                id = key.split(":")[2]
                assert r.sismember(checkpoints.keys[2], id), "nobody will ever find this chunk"
        r.delete(checkpoints.keys[0])  # its time is over
        with checkpoints.acquire("successor") as lease:
            assert not r.exists(checkpoints.keys[2])
            save(checkpoints, lease, 3)
        assert assert_whole(checkpoints.latest()) == 3
        mine = {key for key in keys(r) if f"checkpoints:run-{point}" in key}
        assert mine == wanted_keys(checkpoints, "saved")
    assert outcomes == {1, 2}


def test_a_writer_paused_at_any_round_trip_cannot_overwrite_its_successor(r: redis.Redis) -> None:
    total = round_trips_of_a_save(r)
    refused = 0
    for point in range(total):
        checkpoints = Checkpoints(r, f"run-{point}", keep=1)
        late = checkpoints.acquire("late")
        save(checkpoints, late, 1)

        def act(n: int, send: Callable[[], Any], point: int = point, c: Any = checkpoints) -> Any:
            if n == point:  # paused until long after the lease has ended
                r.delete(c.keys[0])
                with c.acquire("successor") as lease:
                    save(c, lease, 3)
            return send()

        with intercepted(r, act):
            try:
                save(checkpoints, late, 2)
            except StaleLease:
                refused += 1
        assert assert_whole(checkpoints.latest()) == 3
        mine = {key for key in keys(r) if f"checkpoints:run-{point}" in key}
        assert mine - {f"{{checkpoints:run-{point}}}:pending"} == wanted_keys(checkpoints, "saved")
    assert refused >= total - 3  # not where it had published already


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_lease_that_ends_at_any_round_trip_is_refused(r: redis.Redis, taken: bool) -> None:
    """Even if the successor has not saved yet, and even if there is none."""
    total, refused = round_trips_of_a_save(r), 0
    for point in range(total):
        checkpoints = Checkpoints(r, f"run-{point}", keep=1)
        late = checkpoints.acquire("late")
        save(checkpoints, late, 1)

        def act(n: int, send: Callable[[], Any], point: int = point, c: Any = checkpoints) -> Any:
            if n == point:
                r.delete(c.keys[0])
                if taken:
                    c.acquire("successor")
            return send()

        expected = 2
        with intercepted(r, act):
            try:
                save(checkpoints, late, 2)
            except StaleLease:
                refused, expected = refused + 1, 1
        assert assert_whole(checkpoints.latest()) == expected
    assert refused == total - 2  # in the last two it had published and was cleaning up


def test_a_lost_reply_and_a_second_try_do_no_harm(r: redis.Redis) -> None:
    for point in range(round_trips_of_a_save(r) + 1):
        checkpoints = Checkpoints(r, f"run-{point}", keep=1)

        def act(n: int, send: Callable[[], Any], point: int = point) -> Any:
            if n == point:
                send()  # done, but the client never hears of it and sends it again
            return send()

        with intercepted(r, act):
            lease = checkpoints.acquire("a")
        assert lease.token == 1
        save(checkpoints, lease, 1)
        with intercepted(r, act):
            save(checkpoints, lease, 2)
        lease.release()
        assert assert_whole(checkpoints.latest()) == 2
        checkpoints.acquire("b").release()  # removes what the lost reply would have named
        mine = {key for key in keys(r) if f"checkpoints:run-{point}" in key}
        assert mine == wanted_keys(checkpoints, "saved")


def test_what_is_being_written_expires(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a")
    seen = []

    def act(n: int, send: Callable[[], Any]) -> Any:
        seen.extend(r.pttl(key) for key in r.scan_iter("checkpoints:run:*"))
        return send()

    with intercepted(r, act):
        save(checkpoints, lease, 1)
    assert 3_500_000 < max(seen) <= tc.STAGING_TTL_MS


def test_a_chunk_evicted_before_the_publish_is_noticed(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a")
    save(checkpoints, lease, 1)

    def act(n: int, send: Callable[[], Any]) -> Any:
        for key in r.scan_iter("checkpoints:run:2.*"):
            r.delete(key)
        return send()

    with intercepted(r, act), pytest.raises(CheckpointError, match="evicted"):
        save(checkpoints, lease, 2)
    assert assert_whole(checkpoints.latest()) == 1
    save(checkpoints, lease, 3)
    assert assert_whole(checkpoints.latest()) == 3


@pytest.mark.usefixtures("small_chunks")
def test_a_refused_or_failed_save_leaves_no_chunk(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    lease = checkpoints.acquire("a")

    def act(n: int, send: Callable[[], Any]) -> Any:
        if n == 5:
            raise redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'")
        return send()

    with intercepted(r, act), pytest.raises(redis.ResponseError, match="OOM"):
        save(checkpoints, lease, 1, size=200)
    assert keys(r) == wanted_keys(checkpoints, "lease")


def test_a_reader_beside_a_writer_sees_whole_checkpoints_only(r: redis.Redis) -> None:
    checkpoints, errors = Checkpoints(r, "run", keep=1), []
    lease = checkpoints.acquire("a")
    save(checkpoints, lease, 0, size=3000)
    done = threading.Event()

    def write() -> None:
        try:
            for step in range(1, 60):
                save(checkpoints, lease, step, size=3000)
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(assert_whole(checkpoints.latest()))
    writer.join()
    assert not errors
    assert seen == sorted(seen)
    assert assert_whole(checkpoints.latest()) == 59


# --- Damaged and hostile bytes -------------------------------------------------------------------


def plant(r: redis.Redis, run: str, data: bytes, step: int = 9) -> Checkpoints:
    """Store bytes as a checkpoint whose checksum is right, as an attacker can."""
    checkpoints = Checkpoints(r, run)
    digest = xxhash.xxh3_128_hexdigest(data)
    id = f"{step}.1.{'0' * 16}.1.{len(data)}.{digest}"
    r.set(f"checkpoints:{run}:{id}:0", data)
    r.rpush(checkpoints.keys[3], id)
    return checkpoints


def test_another_version_of_the_format_is_refused(r: redis.Redis) -> None:
    good = bytes(tc._encode({}, None))
    assert plant(r, "good", good).latest() == (9, {}, None)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        plant(r, "newer", b"CKPT\0\0\0\2" + good[8:]).latest()


def with_head(head: Any, body: bytes = b"\0" * 64) -> bytes:
    text = json.dumps(head).encode()
    text += b" " * (-(16 + len(text)) % 64)
    return tc.MAGIC + len(text).to_bytes(8, "big") + text + body


@pytest.mark.parametrize(
    "head",
    [
        [], {}, None, 7, {"arrays": 3, "state": 0}, {"arrays": []}, {"arrays": [["a"]], "state": 0},
        {"arrays": [["a", "<f8", [9]]], "state": 0},
        {"arrays": [["a", "<f8", [1 << 50]]], "state": 0},
        {"arrays": [["a", "<f8", [1 << 70]]], "state": 0},
        {"arrays": [["a", "<f8", [1 << 70, 0]]], "state": 0},
        {"arrays": [["a", "<f8", [-1]]], "state": 0},
        {"arrays": [["a", "<f8", [True]]], "state": 0},
        {"arrays": [["a", "<f8", "8"]], "state": 0},
        {"arrays": [["a", "<f8", [1] * 100]], "state": 0},
        {"arrays": [["a", "|O", [1]]], "state": 0},
        {"arrays": [["a", "<f8,<f8", [1]]], "state": 0},
        {"arrays": [["a", "<f3", [1]]], "state": 0},
        {"arrays": [["a", "float8_none", [1]]], "state": 0},
        {"arrays": [["a", 8, [1]]], "state": 0},
        {"arrays": [[[], "<f8", [1]]], "state": 0},
    ],
)  # fmt: skip
def test_a_hostile_header_is_refused_without_a_large_allocation(r: redis.Redis, head: Any) -> None:
    checkpoints = plant(r, "run", with_head(head))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.latest()
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_deep_json_and_other_bytes_are_refused(r: redis.Redis) -> None:
    deep = b"[" * 100_000
    for i, data in enumerate(
        [b"", b"x", tc.MAGIC, tc.MAGIC + b"\xff" * 8, b"\x80\x04." + bytes(50),
         tc.MAGIC + len(deep).to_bytes(8, "big") + deep]
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="damaged"):
            plant(r, f"run-{i}", data).latest()


@SMALL
@given(data=st.data())
def test_any_change_of_the_bytes_is_noticed_or_harmless(
    r: redis.Redis, data: st.DataObject
) -> None:
    good = bytes(tc._encode(arrays_of(1), {"step": 1}))
    at = data.draw(st.integers(0, 250))
    bad = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 4)) :]
    with contextlib.suppress(CheckpointError):  # the checksum is that of the changed bytes
        found = plant(r, next(NAMES), bad).latest()
        assert all(isinstance(array, np.ndarray) for array in found.arrays.values())  # type: ignore[union-attr]


def damages() -> dict[str, Callable[[redis.Redis, str, bytes], Any]]:
    return {
        "flipped": lambda r, key, value: r.setrange(key, 200, bytes([value[200] ^ 1])),
        "truncated": lambda r, key, value: r.set(key, value[:-1]),
        "longer": lambda r, key, value: r.append(key, b"\0"),
        "emptied": lambda r, key, value: r.set(key, b""),
        "missing": lambda r, key, value: r.delete(key),
        "swapped": lambda r, key, value: r.set(key, value[::-1]),
    }


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("chunk", [0, 2])
def test_a_damaged_newest_is_an_error_and_an_older_one_loads(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch, damage: str, chunk: int
) -> None:
    monkeypatch.setattr(tc, "CHUNK", 400)
    checkpoints = Checkpoints(r, "run")
    with checkpoints.acquire("a") as lease:
        save(checkpoints, lease, 1, size=200)
        save(checkpoints, lease, 2, size=200)
    key = f"checkpoints:run:{checkpoints._ids()[-1].decode()}:{chunk}"
    damages()[damage](r, key, r.get(key))
    with pytest.raises(CheckpointError, match=r"'2\..*damaged.*steps: \[1, 2\]"):
        checkpoints.latest()
    assert checkpoints.steps() == [1, 2]
    assert assert_whole(checkpoints.load(1)) == 1
    with checkpoints.acquire("a") as lease:
        save(checkpoints, lease, 2)
    assert assert_whole(checkpoints.latest()) == 2


def test_more_than_the_limit_is_refused_before_it_is_sent(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(r, "run")
    save(checkpoints, checkpoints.acquire("a"), 1, size=1000)
    monkeypatch.setattr(tc, "MAX_BYTES", 5000)
    round_trips = []
    with (
        intercepted(r, lambda n, send: round_trips.append(n) or send()),
        pytest.raises(CheckpointError, match="limit 5000"),
    ):
        checkpoints.load(1)
    assert len(round_trips) == 4  # the list, STRLEN, the list twice for the message; no GET


def test_chunks_of_another_checkpoint_are_noticed(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run")
    with checkpoints.acquire("a") as lease:
        save(checkpoints, lease, 1)
        save(checkpoints, lease, 2)
    one, two = (f"checkpoints:run:{id.decode()}:0" for id in checkpoints._ids())
    r.set(two, r.get(one))
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoints.latest()


@pytest.mark.parametrize(
    "id",
    ["9", "9.1", "9.1.a.b.c.d", "9.1.a.999999999999.5.a", f"9.1.a.1.{1 << 60}.a",
     f"9.1.a.{'9' * 5000}.5.a", "9.1.a.-1.0.a"],
)  # fmt: skip
def test_a_hostile_id_is_refused_at_once(r: redis.Redis, id: str) -> None:
    checkpoints = Checkpoints(r, "run")
    r.rpush(checkpoints.keys[3], id)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.latest()


# --- Costs ---------------------------------------------------------------------------------------


def test_round_trips_are_as_the_header_says(r: redis.Redis) -> None:
    checkpoints = Checkpoints(r, "run", keep=1)
    lease = checkpoints.acquire("a")
    counts = []

    def count(run: Callable[[], Any]) -> int:
        seen = []
        with intercepted(r, lambda n, send: seen.append(n) or send()):
            run()
        return len(seen)

    for step, mib in enumerate((1, 25)):
        big = {"w": np.zeros((mib << 20) - 4096, np.uint8)}
        counts.append(count(lambda step=step, big=big: checkpoints.save(lease, step, big, None)))
    assert counts == [4 + 2, 4 + 2 * 4 + 2]  # the second of 4 times 8 MiB, and an old one goes
    assert count(checkpoints.latest) == 3 + 4


# --- Real processes ------------------------------------------------------------------------------

TRAINER = """
import sys, numpy as np, redis
from recipes.training_checkpoints import Checkpoints

url, run, owner, steps = *sys.argv[1:4], int(sys.argv[4])
r = redis.Redis.from_url(url)
data = np.random.default_rng(0)
x = data.normal(size=(512, 20)).astype(np.float32)
y = np.tanh(x @ data.normal(size=(20, 5)).astype(np.float32))
rng = np.random.default_rng(1)
at = {"w1": rng.normal(size=(20, 32)).astype(np.float32) / 4,
      "w2": rng.normal(size=(32, 5)).astype(np.float32) / 4}
at |= {f"momentum of {name}": np.zeros_like(w) for name, w in at.items()}
at["order"], step, losses = np.arange(512), 0, []
checkpoints = Checkpoints(r, run, keep=2)
with checkpoints.acquire(owner, ttl_s=20, wait_s=30) as lease:
    if saved := checkpoints.latest():
        step, at, losses = saved.step, saved.arrays, saved.state["losses"]
        rng.bit_generator.state = saved.state["rng"]
    while step < steps:
        if step % 16 == 0:
            at["order"] = rng.permutation(512)
        rows = at["order"][step % 16 * 32:][:32]
        hidden = np.tanh(x[rows] @ at["w1"])
        error = hidden @ at["w2"] - y[rows]
        back = error @ at["w2"].T * (1 - hidden**2)
        for name, gradient in (("w2", hidden.T @ error), ("w1", x[rows].T @ back)):
            velocity = at[f"momentum of {name}"] * np.float32(0.9) - np.float32(1e-3) * gradient
            at[f"momentum of {name}"] = velocity
            noise = rng.normal(size=velocity.shape).astype(np.float32)
            at[name] = at[name] + velocity + np.float32(1e-6) * noise
        step += 1
        losses.append(float((error**2).mean()))
        if step % 3 == 0 or step == steps:
            checkpoints.save(lease, step, at, {"rng": rng.bit_generator.state, "losses": losses})
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.real_redis
def test_a_trainer_killed_anywhere_ends_equal_to_the_bit(r: redis.Redis, url: str) -> None:
    steps = 600
    with ended(start(TRAINER, url, "calm", "gpu-0", steps)) as calm:
        assert calm.wait(60) == 0
    checkpoints, killed = Checkpoints(r, "stormy"), 0
    for target in sorted(random.Random(os.getpid()).sample(range(10, steps - 100), 4)):
        with ended(start(TRAINER, url, "stormy", "gpu-1", steps)) as trainer:
            servers.wait_until(
                lambda t=target: [s for s in checkpoints.steps() if s >= t],  # type: ignore[misc]
                timeout_s=60, what="the trainer has come so far",
            )  # fmt: skip
            trainer.send_signal(signal.SIGKILL)
            killed += trainer.wait(60) == -signal.SIGKILL
            r.pexpire(checkpoints.keys[0], 200)  # what is left of its 20 s, in a hurry
            found = checkpoints.latest()
            assert found is not None
            assert len(found.state["losses"]) == found.step
    assert killed >= 3
    with ended(start(TRAINER, url, "stormy", "gpu-1", steps)) as trainer:
        assert trainer.wait(60) == 0
    expected, found = Checkpoints(r, "calm").load(steps), checkpoints.load(steps)
    assert found.state == expected.state
    for name, array in expected.arrays.items():
        assert found.arrays[name].tobytes() == array.tobytes(), name
    assert expected.state["losses"][-1] < 0.3 * expected.state["losses"][0]
    mine = {key for key in keys(r) if "stormy" in key}
    assert mine == wanted_keys(checkpoints, "saved")


LATE_WRITER = """
import sys, numpy as np, redis
from recipes import training_checkpoints as tc

tc.CHUNK, checkpoints = int(sys.argv[2]), tc.Checkpoints(redis.Redis.from_url(sys.argv[1]), "run")
with checkpoints.acquire("late", ttl_s=20) as lease:
    checkpoints.save(lease, 1, {"w": np.full(4, 1.0)}, {})
    print("saved", flush=True)
    sys.stdin.readline()
    try:
        checkpoints.save(lease, 2, {"w": np.full(1 << 20, 2.0)}, {})
    except tc.StaleLease as error:
        print("StaleLease", error, flush=True)
    else:
        print("overwritten", flush=True)
"""


@pytest.mark.real_redis
@pytest.mark.parametrize("in_the_middle", [False, True], ids=["between saves", "while it saves"])
def test_a_stopped_process_cannot_overwrite_its_successor(
    r: redis.Redis, url: str, in_the_middle: bool
) -> None:
    checkpoints = Checkpoints(r, "run")
    with ended(start(LATE_WRITER, url, 1024)) as late:
        assert late.stdin is not None
        assert late.stdout is not None
        assert late.stdout.readline() == "saved\n"
        if in_the_middle:
            late.stdin.write("go\n")
            late.stdin.flush()
            servers.wait_until(lambda: r.dbsize() > 500, what="chunks are being sent")
        late.send_signal(signal.SIGSTOP)
        assert checkpoints.steps() == [1]
        r.pexpire(checkpoints.keys[0], 200)  # what is left of its 20 s, in a hurry
        with checkpoints.acquire("successor", wait_s=30) as lease:
            checkpoints.save(lease, 3, {"w": np.full(4, 3.0)}, {})
            late.send_signal(signal.SIGCONT)
            if not in_the_middle:
                late.stdin.write("go\n")
                late.stdin.flush()
            assert late.stdout.readline().startswith("StaleLease lease 1 of 'late' has ended")
            assert late.wait(60) == 0
            lease.renew()  # the late one's exit did not release it
    assert checkpoints.steps() == [1, 3]
    assert checkpoints.latest().arrays["w"].tolist() == [3.0] * 4  # type: ignore[union-attr]
    assert keys(r) == wanted_keys(checkpoints, "saved")


@pytest.mark.real_redis
def test_on_a_cluster_the_data_spreads_and_the_rest_stays_together(
    cluster: redis.RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tc, "CHUNK", 4096)
    checkpoints = Checkpoints(cluster, "run", keep=1)  # type: ignore[arg-type]
    with checkpoints.acquire("a") as lease:
        for step in (1, 2):
            save(checkpoints, lease, step, size=20_000)
        with pytest.raises(LeaseHeld):
            checkpoints.acquire("b")
    with pytest.raises(StaleLease):
        save(checkpoints, lease, 3)
    assert assert_whole(checkpoints.latest()) == 2
    assert len({key_slot(key.encode()) for key in checkpoints.keys}) == 1
    spread = [
        sum(1 for _ in node.redis_connection.scan_iter("checkpoints:run:*"))
        for node in cluster.get_primaries()
    ]
    assert min(spread) > 5
    assert sum(spread) == int(checkpoints._ids()[0].split(b".")[3])
    checkpoints.delete()
    assert sum(node.redis_connection.dbsize() for node in cluster.get_primaries()) == 0


def test_the_demo_cleans_up(r: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    tc.demo(r)
    assert "same weights as without interruption: True" in capsys.readouterr().out
    assert r.dbsize() == 0


def test_a_client_that_decodes_is_refused_and_changes_nothing(r: redis.Redis) -> None:
    run = Checkpoints(r, "text")
    with run.acquire("me") as lease:
        save(run, lease, 4)
    before, decodes = {key: r.dump(key) for key in r.scan_iter()}, servers.decoding(r)
    for call in (lambda: Checkpoints(decodes, "text"), lambda: tc.demo(decodes)):
        with pytest.raises(TypeError, match="without decode_responses=True"):
            call()
    assert {key: r.dump(key) for key in r.scan_iter()} == before
