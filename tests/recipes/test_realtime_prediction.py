"""Real-time prediction: packed features, event times, batches, budget, reload, faults."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes import realtime_prediction as rp
from tests import servers

SCHEMA = {"a": "f4", "n": "i8", "v": ("f8", (2,)), "tag": "S4", "on": "?"}
names = itertools.count()


def columns(n: int, value: float = 1.0) -> dict[str, Any]:
    return {
        "a": np.full(n, value), "n": np.arange(n), "v": np.full((n, 2), value),
        "tag": [b"ab"] * n, "on": [True] * n,
    }  # fmt: skip


def simple(r: rp.Client, n: int = 1000, **options: Any) -> rp.FeatureTable:
    table = rp.FeatureTable(r, f"t{next(names)}", {"x": "f8"}, **options)
    if n:
        table.put(range(n), {"x": np.arange(n)})
    return table


def double(model: float, x: dict[str, Any]) -> Any:
    return model * x["x"]


def fixed(version: int | None) -> tuple[int, float] | None:
    return None if version == 1 else (1, 2.0)


PATIENT: dict[str, Any] = {"budget_ms": 20_000}


# --- Rows -----------------------------------------------------------------------------------------


def test_what_was_put_is_read_in_the_order_of_the_ids(r: redis.Redis) -> None:
    table = rp.FeatureTable(r, "t", SCHEMA)
    assert table.put((f"u{i}" for i in range(5)), columns(5, 0.1), event_time=7.5) == 5
    found = table.get(["u3", "nobody", "u1", "u3"])
    assert found.columns["n"].tolist() == [3, np.iinfo("i8").min, 1, 3]
    assert found.missing.tolist() == [False, True, False, False]
    assert found.columns["a"].dtype == np.float32
    assert found.columns["a"][0] == np.float32(0.1)
    assert found.columns["v"].shape == (4, 2)
    assert found.columns["tag"][0] == b"ab"
    assert found.columns["on"].tolist() == [True, False, True, True]
    np.testing.assert_equal(found.event_time, [7.5, np.nan, 7.5, 7.5])


def test_missing_is_never_silently_zero(r: redis.Redis) -> None:
    kinds = {"f": "f8", "i": "i2", "u": "u1", "d": "M8[s]", "v": ("f4", 3)}
    found = rp.FeatureTable(r, "t", kinds).get([1, 2])
    assert found.missing.all()
    assert not found.stale.any()
    assert np.isnan(found.columns["f"]).all()
    assert np.isnan(found.columns["v"]).all()
    assert np.isnat(found.columns["d"]).all()
    assert found.columns["i"].tolist() == [-32768] * 2
    assert found.columns["u"].tolist() == [255] * 2
    assert len(rp.FeatureTable(r, "t", kinds).get([]).missing) == 0


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_pack_and_unpack_are_inverse(data: st.DataObject) -> None:
    kinds = ["f4", "f8", "i1", "i8", "u2", "u8", "?", "S5", "U3", ("f4", (2, 2)), ("i2", 3)]
    schema = data.draw(st.dictionaries(st.text(min_size=1), st.sampled_from(kinds), min_size=1))
    n = data.draw(st.integers(0, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    given_columns = {}
    for name, spec in schema.items():
        base, shape = np.dtype(spec).subdtype or (np.dtype(spec), ())
        raw = rng.integers(0, 256, (n, *shape, base.itemsize), dtype=np.uint8)
        if base.kind in "?bSU":
            raw = rng.integers(0, 2, raw.shape, dtype=np.uint8)
        values = np.frombuffer(raw.tobytes(), base).reshape(n, *shape)
        given_columns[name] = values
        if base.kind == "U":
            given_columns[name] = np.array(["añ", "", "z"])[rng.integers(0, 3, (n, *shape))]
    packing = rp.Packing(schema)
    times = np.arange(n) + 0.25
    rows = packing.pack(given_columns, times)
    found, errors = packing.unpack(range(n), rows)
    assert not errors
    assert not found.missing.any()
    for name in schema:
        np.testing.assert_array_equal(found.columns[name], given_columns[name])
    np.testing.assert_array_equal(found.event_time, times)


def test_columns_that_do_not_fit_are_refused(r: redis.Redis) -> None:
    table = rp.FeatureTable(r, "t", {"small": "i1", "tag": "S2", "x": "f4", "big": "u8"})
    good = {
        "small": [1, 2],
        "tag": ["a", "b"],
        "x": [1, np.nan],
        "big": np.array([0, 2**64 - 1], "u8"),
    }
    for bad in (
        {"small": [1, 300]}, {"small": [1, 1.5]}, {"small": [1, None]}, {"small": [1, np.nan]},
        {"tag": [b"abc", b"b"]}, {"tag": ["a", "\xf1"]}, {"big": [1, -1]}, {"big": [1, 2**64]},
        {"x": [1e300, 1]}, {"x": [1]}, {"x": [[1], [2]]}, {"x": ["one", "two"]}, {"more": [1, 2]},
        {"x": [1 + 2j, 1]}, {"x": np.array([1, 2], "M8[s]")}, {"x": np.array([1, 2], "m8[ms]")},
        {"x": np.ma.array([1, 2], mask=[1, 0])}, {"small": [np.ma.masked, 1]},
        {"x": [np.ma.array(1.0, mask=True), 1.0]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(bad))):
            table.put([1, 2], good | bad)
    with pytest.raises(ValueError, match="differ"):
        table.put([1, 2], {"x": [1, 2]})
    for bad_time in (np.nan, np.inf, -1, [1, 2, 3], 1j, np.ma.array([1, 2], mask=[1, 0])):
        with pytest.raises(ValueError):
            table.put([1, 2], good, event_time=bad_time)
    for bad_ttl in (0, -1, np.nan, [1, 2, 3], 1j, np.timedelta64("NaT")):
        with pytest.raises(ValueError):
            table.put([1, 2], good, ttl=bad_ttl)
    for bad_id in (None, 1.5, ["a"]):
        with pytest.raises(TypeError):
            table.get([bad_id])
    for bad_schema in ({}, {"o": "O"}, {"s": "S"}, {"big": ("f8", 10_000)}):
        with pytest.raises(ValueError):
            rp.FeatureTable(r, "t", bad_schema)
    with pytest.raises(ValueError, match="name"):
        rp.FeatureTable(r, "{tag}*", {"x": "f4"})
    assert r.dbsize() == 0
    good["x"] = np.ma.array(good["x"], mask=[0, 0])  # nothing is masked
    assert table.put(np.array([1, 2]), good) == 2
    found = table.get(["1", b"2"])
    assert not found.missing.any()
    assert found.columns["tag"].tolist() == [b"a", b"b"]
    assert found.columns["big"].tolist() == [0, 2**64 - 1]
    days = rp.FeatureTable(r, "d", {"day": "M8[D]", "name": "U2"})
    days.put([1, 2], {"day": np.array(["2026-01-31", "NaT"], "M8[D]"), "name": ["\xe9", ""]})
    assert str(days.get([1, 2]).columns["day"].tolist()) == "[datetime.date(2026, 1, 31), None]"
    with pytest.raises(ValueError, match="day"):
        days.put([1], {"day": np.array(["2026-01-31T12"], "M8[h]"), "name": [""]})


def test_a_hostile_row_is_an_error_that_names_its_id(r: redis.Redis) -> None:
    table = simple(r, 3)
    key = f"{table.name}:row:1"
    row = r.get(key)
    assert isinstance(row, bytes)
    flipped = bytearray(row)
    flipped[-6] ^= 1
    for bad in (b"", b"x", row[:-1], row + b"\0", row + row, b"\0" * len(row), bytes(flipped),
                b"FRW1" * 50_000):  # fmt: skip
        r.set(key, bad)
        with pytest.raises(rp.BadRow, match="'1'"):
            table.get([0, 1, 2])
    r.set(key, b"x" * 50)
    assert table.put([1], {"x": [5]}, event_time=0) == 1  # whatever it was, it was no row
    assert table.get([1]).columns["x"].tolist() == [5]


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=60), st.integers(0, 60), st.integers(1, 255))
def test_damaged_rows_never_pass(junk: bytes, at: int, flip: int) -> None:
    packing = rp.Packing({"x": "f8", "y": "i4"})
    good = packing.pack({"x": [1.5], "y": [2]}, np.array([3.0]))[0]
    bad = bytearray(good)
    bad[at % len(good)] ^= flip
    found, errors = packing.unpack("abc", [good, junk, bytes(bad)])
    assert found.missing.tolist() == [False, True, True]
    assert set(errors) == {1, 2}


# --- Tables ---------------------------------------------------------------------------------------


def test_an_older_event_never_replaces_a_newer_one(r: redis.Redis) -> None:
    table = simple(r, 0)
    assert table.put(["u"], {"x": [1]}, event_time=100.0) == 1
    assert table.put(["u"], {"x": [2]}, event_time=99.999) == 0
    assert table.get(["u"]).columns["x"].tolist() == [1]
    assert table.put(["u"], {"x": [3]}, event_time=100.0) == 1  # of equal ones the later write
    assert table.get(["u"]).columns["x"].tolist() == [3]
    assert table.put(["u"], {"x": [4]}) == 1
    assert table.get(["u"]).columns["x"].tolist() == [4]
    now = 1.7e9  # the last of 53 bits counts, on either side of a carry
    for later in (np.nextafter(now, np.inf), now + 1e-3, now + 2.0**12):
        assert table.put(["w"], {"x": [later]}, event_time=later) == 1
        assert table.put(["w"], {"x": [0]}, event_time=np.nextafter(later, 0)) == 0


@pytest.mark.parametrize("given_time", [
    1704067200, np.float32(1704067200), np.array(["2024-01-01"], "M8[ns]"),
    np.array(["2024-01-01"], "M8[D]"), np.datetime64("2024-01-01T00:00:00.000"),
    [np.datetime64("2024-01-01", "h")], np.array([np.datetime64("2024-01", "ns")], object),
    datetime(2024, 1, 1, tzinfo=UTC),
    [datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))],
])  # fmt: skip
def test_the_time_of_an_event_has_any_unit_that_it_names(r: redis.Redis, given_time: Any) -> None:
    table = simple(r, 0)
    assert table.put(["u"], {"x": [1]}, event_time=given_time) == 1
    assert table.get(["u"]).event_time.tolist() == [1704067200]
    assert table.put(["u"], {"x": [2]}) == 1  # an event of now is newer, so it is stored


@pytest.mark.parametrize(("bad", "why"), [
    (1.7e12, "not milliseconds"), ([1_700_000_000_000_000_000], "not milliseconds"),
    (np.datetime64("NaT"), "NaT"), (np.array(["2024-01-01", "NaT"], "M8[ns]"), "NaT"),
    (datetime(2024, 1, 1), "tzinfo"), ([5.0, datetime(2024, 1, 1)], "tzinfo"),
    (["2024-01-01"], "2024"), (date(2024, 1, 1), "date"), (np.timedelta64(5, "s"), "m8"),
])  # fmt: skip
def test_a_time_that_would_freeze_its_row_is_refused(r: redis.Redis, bad: Any, why: str) -> None:
    table = simple(r, 0)
    with pytest.raises((ValueError, TypeError), match=why):
        table.put(["u", "w"], {"x": [1, 2]}, event_time=bad)
    assert r.dbsize() == 0


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.one_of(st.integers(0, 3), st.floats(0, 9e10), st.sampled_from([0.0, -0.0, 1e-300])),
        ),
        max_size=30,
    ),
    cuts=st.integers(1, 7),
)
def test_the_newest_event_wins_in_any_order_and_batch(
    r: redis.Redis, events: list[tuple[int, float]], cuts: int
) -> None:
    table = simple(r, 0)
    newest: dict[int, tuple[float, int]] = {}
    for value, (id, at) in enumerate(events):
        if id not in newest or at >= newest[id][0]:
            newest[id] = (at, value)
    for start in range(0, len(events), cuts):
        part = events[start : start + cuts]
        values = np.arange(start, start + len(part))
        table.put([id for id, _ in part], {"x": values}, event_time=[at for _, at in part])
    found = table.get(newest)
    assert found.columns["x"].tolist() == [value for _, value in newest.values()]
    assert found.event_time.tolist() == [at for at, _ in newest.values()]


def test_writers_at_once_leave_the_newest(r: redis.Redis) -> None:
    table = simple(r, 0)
    table.put(["u"], {"x": [-1]}, event_time=0)

    def write(offset: int) -> None:
        for at in range(offset, 200, 4):
            table.put(["u", "w"], {"x": [at, at]}, event_time=[at, at])

    threads = [threading.Thread(target=write, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.get(["u", "w"]).columns["x"].tolist() == [199, 199]


def test_each_entity_has_its_own_ttl(r: redis.Redis) -> None:
    table = simple(r, 0)
    table.put(["short", "long"], {"x": [1, 2]}, ttl=[0.05, 100])
    table.put(["ever"], {"x": [3]})
    table.put(["unit"], {"x": [3]}, ttl=np.timedelta64(90_000, "ms"))
    assert 0 < r.pttl(f"{table.name}:row:unit") <= 90_000
    assert 0 < r.pttl(f"{table.name}:row:long") <= 100_000
    assert r.pttl(f"{table.name}:row:ever") == -1
    servers.wait_until(lambda: table.get(["short"]).missing[0], what="the row has expired")
    assert table.get(["short", "long", "ever"]).missing.tolist() == [True, False, False]
    table.put(["long"], {"x": [0]}, event_time=1, ttl=1)  # refused, so its TTL is as well
    assert r.pttl(f"{table.name}:row:long") > 50_000


def test_stale_rows_are_told(r: redis.Redis) -> None:
    table = simple(r, 0, max_age_s=60)
    table.put(["old", "new"], {"x": [1, 2]}, event_time=[time.time() - 100, time.time()])
    found = table.get(["old", "new", "none"])
    assert found.stale.tolist() == [True, False, False]
    assert found.missing.tolist() == [False, False, True]


def test_a_schema_changes_only_by_a_higher_version(r: redis.Redis) -> None:
    first = rp.FeatureTable(r, "t", {"x": "f8"})
    first.put(["u", "w"], {"x": [1, 2]}, event_time=1000)
    other = rp.FeatureTable(r, "t", {"x": "f8", "y": "f4"})
    with pytest.raises(rp.SchemaMismatch, match="raise `version`"):
        other.put(["u"], {"x": [1], "y": [1]})
    with pytest.raises(rp.SchemaMismatch, match="'u'"):
        other.get(["u"])
    with pytest.raises(rp.SchemaMismatch, match="'u'"):  # a row of the same size
        rp.FeatureTable(r, "t", {"z": "i8"}).get(["u"])
    assert rp.FeatureTable(r, "t", {"x": "f8"}, version=2).get(["u"]).missing.all()
    second = rp.FeatureTable(r, "t", {"y": "f4", "x": "f8"}, version=2)
    assert second.get(["u"]).missing.all()
    assert second.put(["u"], {"x": [5], "y": [6]}, event_time=1) == 1  # a newer version wins
    assert second.get(["u", "w"]).missing.tolist() == [False, True]
    assert first.put(["u"], {"x": [9]}, event_time=2000) == 0
    assert second.get(["u"]).columns["x"].tolist() == [5]
    with pytest.raises(rp.SchemaMismatch, match="update"):
        first.get(["u"])
    with pytest.raises(rp.SchemaMismatch, match="update"):
        rp.FeatureTable(r, "t", {"x": "f8"}).put(["w"], {"x": [1]})
    same = rp.FeatureTable(r, "t", {"x": np.float64, "y": np.dtype("f4")}, version=2)
    assert same.get(["u"]).columns["y"].tolist() == [6]


def test_a_hundred_entities_are_one_round_trip(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = simple(r, 100)
    sent: list[Any] = []
    execute = r.execute_command
    monkeypatch.setattr(
        r, "execute_command", lambda *args, **kw: (sent.append(args[0]), execute(*args, **kw))[1]
    )
    assert not table.get(range(100)).missing.any()
    assert sent == ["MGET"]
    sent.clear()
    table.put(range(100), {"x": np.zeros(100)})
    assert sent == ["EVAL"]
    sent.clear()
    table.get(range(2500))
    assert sent == ["MGET"] * 3


@pytest.mark.parametrize("call", [
    lambda r, table: rp.FeatureTable(r, "t", SCHEMA), lambda r, table: table.fetch(r, ["1"]),
    lambda r, table: rp.Predictor(r, table, fixed, double),
])  # fmt: skip
def test_a_client_that_decodes_is_refused_before_anything_is_sent(call: Any) -> None:
    nobody = redis.Redis.from_url("redis://127.0.0.1:1?decode_responses=1")  # would not connect
    table = rp.FeatureTable(redis.Redis(), "t", SCHEMA)
    with pytest.raises(TypeError, match="without decode_responses=True"):
        call(nobody, table)


def test_delete_removes_rows_or_all(r: redis.Redis) -> None:
    table = simple(r, 1500)
    r.set("other", 1)
    assert table.delete([3, 4, "nobody"]) == 2
    assert table.get([2, 3]).missing.tolist() == [False, True]
    assert table.delete() == 1499
    assert r.dbsize() == 1
    assert table.put([1], {"x": [1]}) == 1
    assert r.exists(f"{table.name}:schema")


@pytest.mark.real_redis
def test_it_works_on_a_cluster(cluster: redis.RedisCluster) -> None:
    table = simple(cluster, 300)
    ids = [*range(299, -1, -1), "nobody"]
    found = table.get(ids)
    assert found.columns["x"][:-1].tolist() == [*range(299, -1, -1)]
    assert found.missing.nonzero()[0].tolist() == [300]
    assert table.put([1, 1, 2], {"x": [7, 8, 9]}, event_time=[5e9, 4e9, 1]) == 1
    assert table.get([1, 2]).columns["x"].tolist() == [7, 2]
    sizes = [cluster.get_redis_connection(n).dbsize() for n in cluster.get_primaries()]
    assert min(sizes) > 50

    async def run() -> None:
        async with rp.Predictor(cluster, table, fixed, double, **PATIENT) as predict:
            answers = await asyncio.gather(*map(predict, range(100, 200)))
        assert [a.score for a in answers] == [2.0 * i for i in range(100, 200)]

    asyncio.run(run())
    assert table.delete() == 301


# --- Predictor ------------------------------------------------------------------------------------


def test_many_requests_become_few_batches(r: redis.Redis) -> None:
    table, sizes = simple(r), list[int]()

    def predict(model: float, x: dict[str, Any]) -> Any:
        sizes.append(len(x["x"]))
        return model * x["x"]

    async def run() -> None:
        async with rp.Predictor(r, table, fixed, predict, **PATIENT) as predictor:
            answers = await asyncio.gather(*map(predictor, range(1000)))
            assert predictor.batches == len(sizes) == 16
            assert max(sizes) == 64
            assert [a.score for a in answers] == [2.0 * i for i in range(1000)]
            assert {a[1:5] for a in answers} == {(1, "model", False, False)}
            assert all(a.latency_ms > 0 and not a.reason for a in answers)
            same = await asyncio.gather(*(predictor("5") for _ in range(30)))
            assert {a.score for a in same} == {10.0}
            assert sizes[16:] == [1]
            assert (await predictor(7)).score == 14.0  # alone: after max_wait_ms

    asyncio.run(run())


def test_a_batch_waits_until_it_is_full_or_time_is_up(r: redis.Redis) -> None:
    table = simple(r, 10)

    async def run() -> None:
        options: dict[str, Any] = {"max_batch": 3, "max_wait_ms": 5000, **PATIENT}
        async with rp.Predictor(r, table, fixed, double, **options) as predictor:
            requests = []
            for i in range(3):
                requests.append(asyncio.ensure_future(predictor(i)))
                await asyncio.sleep(0.01)  # load: requests that come one by one
            answers = await asyncio.gather(*requests)
            assert predictor.batches == 1
            assert answers[0].latency_ms < 4000  # full, so it did not wait
        async with rp.Predictor(r, table, fixed, double, max_wait_ms=50, **PATIENT) as predictor:
            assert (await predictor(1)).latency_ms > 45

    asyncio.run(run())


def test_missing_and_stale_features_are_told(r: redis.Redis) -> None:
    table = simple(r, 3, max_age_s=1000)
    table.put(["old"], {"x": [4]}, event_time=1)

    async def run() -> None:
        async with rp.Predictor(r, table, fixed, double, default=0.5, **PATIENT) as predictor:
            fresh, gone, old = await asyncio.gather(*map(predictor, (1, "nobody", "old")))
        assert fresh[:5] == (2.0, 1, "model", False, False)
        assert gone[:5] == (0.5, None, "default", True, False)
        assert gone.reason == "no features"
        assert old[:5] == (8.0, 1, "model", False, True)

    asyncio.run(run())


def test_a_new_model_is_taken_up_without_a_failed_request(r: redis.Redis) -> None:
    table, newest = simple(r), [1]

    def load(current: int | None) -> tuple[int, int] | None:
        return None if current == newest[0] else (newest[0], newest[0])

    def predict(model: int, x: dict[str, Any]) -> Any:
        return np.column_stack([np.full(len(x["x"]), model), x["x"]])

    async def run() -> None:
        async with rp.Predictor(r, table, load, predict, reload_s=0.01, **PATIENT) as predictor:
            seen: list[int] = []
            deadline = time.monotonic() + 20
            while seen[-1:] != [5] and time.monotonic() < deadline:
                answers = await asyncio.gather(*map(predictor, range(200)))
                assert {a.source for a in answers} == {"model"}
                assert all(a.score.tolist() == [a.version, i] for i, a in enumerate(answers))
                seen += [a.version for a in answers]
                newest[0] = min(seen[-1] + 1, 5)
        assert seen == sorted(seen)
        assert set(seen) == {1, 2, 3, 4, 5}

    asyncio.run(run())


def test_a_failed_reload_keeps_the_model(r: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    table, calls = simple(r, 3), itertools.count()

    def load() -> tuple[int, float]:  # without a parameter will do
        if next(calls) > 0:
            raise OSError("no model today")
        return 1, 3.0

    async def run() -> None:
        async with rp.Predictor(r, table, load, double, reload_s=0.01, **PATIENT) as predictor:
            await asyncio.to_thread(servers.wait_until, lambda: "no model today" in caplog.text)
            assert (await predictor(2)).score == 6.0

    asyncio.run(run())


def test_a_first_load_that_fails_is_raised(r: redis.Redis) -> None:
    def load(_: object) -> Any:
        raise OSError("no model")

    async def run() -> None:
        predictor = rp.Predictor(r, simple(r, 1), load, double)
        for _ in range(2):
            with pytest.raises(OSError, match="no model"):
                await predictor(0)
        await predictor.aclose()

    asyncio.run(run())


def test_an_error_of_predict_reaches_its_requests(r: redis.Redis) -> None:
    def predict(model: float, x: dict[str, Any]) -> Any:
        if (x["x"] == 13).any():
            raise ArithmeticError("unlucky")
        return x["x"][:-1] if (x["x"] == 14).any() else x["x"]

    async def run() -> None:
        async with rp.Predictor(r, simple(r, 20), fixed, predict, **PATIENT) as predictor:
            for error in await asyncio.gather(*map(predictor, (12, 13)), return_exceptions=True):
                assert isinstance(error, ArithmeticError)
            with pytest.raises(ValueError, match="0"):
                await predictor(14)
            assert (await predictor(12)).score == 12

    asyncio.run(run())


def test_a_slow_model_does_not_break_the_budget(r: redis.Redis) -> None:
    release = threading.Event()

    def predict(model: float, x: dict[str, Any]) -> Any:
        if (x["x"] == 13).any():
            release.wait(20)
        return x["x"]

    async def run() -> None:
        predictor = rp.Predictor(r, simple(r, 20), fixed, predict, default=-1.0, budget_ms=500)
        async with predictor:
            begin = time.monotonic()
            late = await predictor(13)
            assert time.monotonic() - begin < 5
            assert late.latency_ms >= 499
            assert late[:3] == (-1.0, None, "default")
            assert late.reason == "over budget"
            assert (await predictor(12)).score == 12  # another thread answers
            release.set()

    asyncio.run(run())


def test_a_damaged_row_hurts_nobody_else(r: redis.Redis) -> None:
    table = simple(r, 10)

    async def run() -> None:
        async with rp.Predictor(r, table, fixed, double, default=-1.0, **PATIENT) as predictor:
            await predictor(3)
            r.mset({f"{table.name}:row:3": b"junk", f"{table.name}:row:4": b"junk"})
            answers = await asyncio.gather(*map(predictor, range(10)))
            sources = [a.source for a in answers]
            assert sources == ["model"] * 3 + ["cached features", "default"] + ["model"] * 5
            assert answers[3].score == 6.0
            assert "whole" in answers[3].reason
            assert answers[4].score == -1.0

    asyncio.run(run())


def test_the_cache_is_bounded_and_forgets_what_is_deleted(r: redis.Redis) -> None:
    table = simple(r, 100)

    async def run() -> None:
        options: dict[str, Any] = {"cached_rows": 10, "default": -1.0, **PATIENT}
        async with rp.Predictor(r, table, fixed, double, **options) as predictor:
            for i in range(100):
                await asyncio.gather(predictor(i), predictor(95))
            assert len(predictor._known) == 10
            table.delete([95, 98])
            gone = await asyncio.gather(predictor(95), predictor(98))
            assert {a.source for a in gone} == {"default"}
            predictor.failed, predictor.retry_at = 3, float("inf")
            answers = await asyncio.gather(*map(predictor, (1, 95, 98, 99)))
            assert [a.source for a in answers] == ["default"] * 3 + ["cached features"]

    asyncio.run(run())


def test_nothing_is_left_behind(r: redis.Redis) -> None:
    before = set(threading.enumerate())

    async def run() -> None:
        predictor = rp.Predictor(r, simple(r, 10), fixed, double, **PATIENT)
        requests = [asyncio.ensure_future(predictor(i)) for i in range(10)]  # starts by itself
        await requests[0]
        more = [asyncio.ensure_future(predictor(i)) for i in range(10)]
        await asyncio.sleep(0)
        await predictor.aclose()
        await predictor.aclose()
        assert [(await request).score for request in more] == [2.0 * i for i in range(10)]
        with pytest.raises(RuntimeError, match="closed"):
            await predictor(1)
        assert len(asyncio.all_tasks()) <= 1 + sum(not x.done() for x in requests)

    asyncio.run(run())
    servers.wait_until(lambda: set(threading.enumerate()) <= before, what="no thread is left")


async def answer_until(
    predictor: rp.Predictor, condition: Callable[[list[rp.Prediction]], bool], timeout_s: float = 20
) -> list[rp.Prediction]:
    deadline = time.monotonic() + timeout_s
    while True:
        answers = await asyncio.gather(*map(predictor, (1, 2, "nobody")))
        if condition(answers):
            return answers
        assert time.monotonic() < deadline, answers
        await asyncio.sleep(0.01)  # load: requests that keep coming


@pytest.mark.real_redis
def test_a_killed_server_is_answered_for_at_once_and_recovers(server_kind: str) -> None:
    with servers.lone(server_kind) as server, server.client() as client:
        table = simple(client, 10)

        async def run() -> None:
            options: dict[str, Any] = {"default": -1.0, "budget_ms": 1000, "open_s": 0.2}
            async with rp.Predictor(table.r, table, fixed, double, **options) as predictor:
                await answer_until(predictor, lambda a: a[0].source == "model")
                server.kill()
                for _ in range(5):
                    one, two, nobody = await asyncio.gather(*map(predictor, (1, 2, "nobody")))
                    assert one[:3] == (2.0, 1, "cached features")
                    assert two.source == "cached features"
                    assert nobody[:3] == (-1.0, None, "default")
                    assert one.latency_ms < 500  # no waiting for back-off and retries
                assert predictor.failed >= 3
                down = await answer_until(predictor, lambda a: a[0].reason == "circuit open")
                assert down[0].latency_ms < 250
                server.start_again()
                await asyncio.to_thread(table.put, [1], {"x": [50]})
                await answer_until(
                    predictor, lambda a: a[0].source == "model" and a[0].score == 100.0
                )
                assert predictor.failed == 0  # one failure more does not open the circuit

        asyncio.run(run())


@pytest.mark.real_redis
def test_a_frozen_server_does_not_break_the_budget(server_kind: str) -> None:
    with servers.lone(server_kind) as server, server.client() as client:
        table = simple(client, 10)

        async def run() -> None:
            options: dict[str, Any] = {"budget_ms": 200, "open_s": 0.3}
            async with rp.Predictor(table.r, table, fixed, double, **options) as predictor:
                await answer_until(predictor, lambda a: a[0].source == "model")
                server.freeze()
                begin = time.monotonic()
                answers = await asyncio.gather(*map(predictor, (1, 2)))
                assert time.monotonic() - begin < 2  # redis-py's own time-out is 5 s, times 4
                assert {a.source for a in answers} <= {"cached features", "default"}
                down = await answer_until(predictor, lambda a: a[0].reason == "circuit open")
                assert down[0].score == 2.0
                begin, late = time.monotonic(), set()
                while (now := time.monotonic()) < begin + 2:
                    source = (await predictor(1)).source
                    late |= {source} if now > begin + 1 else set()
                    await asyncio.sleep(0.01)  # load: requests that keep coming
                assert "cached features" in late  # probes do not pile up until no thread is left
                server.wake()
                await answer_until(predictor, lambda a: a[0].source == "model")

        asyncio.run(run())


@pytest.mark.real_redis
def test_it_starts_while_redis_is_down(server_kind: str) -> None:
    with servers.lone(server_kind) as server, server.client() as client:
        table = simple(client, 10)
        server.kill()

        async def run() -> None:
            options: dict[str, Any] = {"default": 0.25, "open_s": 0.1, "budget_ms": 500}
            async with rp.Predictor(table.r, table, fixed, double, **options) as predictor:
                first = await predictor(1)
                assert first[:4] == (0.25, None, "default", True)
                assert "Redis" in first.reason
                server.start_again()
                await asyncio.to_thread(table.put, [1, 2], {"x": [1, 2]})
                await answer_until(predictor, lambda a: a[0].source == "model")

        asyncio.run(run())
