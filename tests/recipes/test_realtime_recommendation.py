"""realtime_recommendation: one state whatever the order, honest quality, bounded memory."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fakeredis
import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes import realtime_recommendation as rr
from recipes.realtime_recommendation import (
    BadLine,
    Scored,
    delete,
    load_movielens,
    recommend,
    record,
    record_many,
    similar,
    trending,
)

ROOT = Path(__file__).parent.parent.parent
NOW = 1_700_000_000.0
DAY = 86_400.0
Event = tuple[Any, ...]


def made_events(count: int, seed: int = 0, *, spread_s: float = 90 * DAY) -> list[Event]:
    rng = random.Random(seed)
    return [
        (f"u{rng.randrange(30)}", f"i{rng.randrange(40)}",
         rng.choice([0.5, 1.0, 3.0]) if spread_s else 1.0, NOW + rng.random() * spread_s)
        for _ in range(count)
    ]  # fmt: skip


def state(r: Any, ns: str = "n") -> dict[bytes, dict[bytes, float]]:
    keys = sorted(r.scan_iter(match=f"{{{ns}}}:*", count=1000))
    return {
        key: dict(r.zrange(key, 0, -1, withscores=True)) for key in keys if r.type(key) == b"zset"
    }


def assert_same(a: dict[bytes, dict[bytes, float]], b: dict[bytes, dict[bytes, float]]) -> None:
    """Equal up to rounding: 100 microseconds are a mass of 1 + 3e-11 (1 + 1e-9 in the trend)."""
    a, b = ({k: v for k, v in x.items() if not k.endswith(b":new")} for x in (a, b))
    assert a.keys() == b.keys()
    for key, scores in a.items():
        assert scores.keys() == b[key].keys()
        for member, score in scores.items():
            assert abs(score - b[key][member]) <= 100, (key, member)


def items(scored: list[Scored]) -> list[str]:
    return [s.item for s in scored]


# --- an independent oracle ----------------------------------------------------------------------


class Oracle:
    """Dense numpy, in float64, in the linear domain, relative to NOW."""

    def __init__(self, events: list[Event]) -> None:
        self.users = sorted({e[0] for e in events})
        self.items = sorted({e[1] for e in events})
        self.m = np.zeros((len(self.users), len(self.items)))
        self.hot: Counter[str] = Counter()
        for user, item, weight, at in events:
            u, i = self.users.index(user), self.items.index(item)
            self.m[u, i] = max(self.m[u, i], weight * 2 ** ((at - NOW) / (60 * DAY)))
            self.hot[item] += weight * 2 ** ((at - NOW) / DAY)
        self.pairs = self.m.T @ self.m
        self.norms = np.diag(self.pairs).copy()
        np.fill_diagonal(self.pairs, 0)

    def cosine(self, item: str) -> dict[str, float]:
        i = self.items.index(item)
        scores = self.pairs[i] / np.sqrt(self.norms[i] * self.norms)
        return {self.items[j]: s for j, s in enumerate(scores) if s > 0}

    def recommend(self, user: str) -> dict[str, float]:
        visits = self.m[self.users.index(user)]
        mine = np.argsort(-visits)[: min(20, int((visits > 0).sum()))]
        weights = visits[mine] / visits.max()
        score = (weights / self.norms[mine]) @ self.pairs[mine] / self.norms**rr.DAMPING
        score[visits > 0] = 0
        hot = np.array([self.hot[item] for item in self.items])
        share = 1 / (1 + (visits > 0).sum()) ** 2
        best = np.maximum(score.max(), 1e-300)
        blended = (1 - share) * score / best + share * hot / hot.max()
        return {i: b for i, b, v in zip(self.items, blended, visits, strict=True) if v == 0}


def test_similar_trending_and_recommend_are_those_of_numpy(r: redis.Redis) -> None:
    events = made_events(500)
    record_many(r, "n", events)
    oracle = Oracle(events)
    for item in oracle.items[:10]:
        expected = oracle.cosine(item)
        found = similar(r, "n", item, 100)
        assert {s.item: s.score for s in found} == pytest.approx(expected, abs=2e-9)
        assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    order = [item for item, _ in oracle.hot.most_common(40)]
    assert items(trending(r, "n", 40)) == order
    for user in oracle.users[:10]:
        ranked = recommend(r, "n", user, 40)
        assert {s.item: s.score for s in ranked} == pytest.approx(oracle.recommend(user), abs=2e-9)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(
    st.sampled_from("abc"), st.sampled_from("vwxyz"), st.floats(0.01, 100),
    st.floats(NOW - 300 * DAY, NOW + 300 * DAY),
), min_size=1, max_size=25), st.randoms())  # fmt: skip
def test_any_order_and_any_repetition_give_the_same_neighbours(
    events: list[Event], rng: random.Random
) -> None:
    r = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    record_many(r, "n", events)
    again = events + events[:5]
    rng.shuffle(again)
    record_many(r, "m", again)
    oracle = Oracle(events)
    for item in oracle.items:
        found = {s.item: s.score for s in similar(r, "n", item, 9)}
        # the root of a tiny difference of two late visits is where rounding is largest
        assert found == pytest.approx(oracle.cosine(item), abs=1e-6)
        assert found == pytest.approx({s.item: s.score for s in similar(r, "m", item, 9)}, abs=1e-6)


# --- events -------------------------------------------------------------------------------------


def test_an_event_changes_the_next_recommendation(r: redis.Redis) -> None:
    for user in ("a", "b", "c"):
        record_many(r, "n", [(user, "tea"), (user, "cup")])
    record_many(r, "n", [(f"x{i}", "beer") for i in range(20)])
    assert items(recommend(r, "n", "me"))[0] == "beer"
    record(r, "n", "me", "tea")
    assert recommend(r, "n", "me")[0][::2] == ("cup", "similar")


def test_late_events_and_any_order_give_one_state(r: redis.Redis) -> None:
    events = made_events(400)
    record_many(r, "n", events)
    first = state(r)
    delete(r, "n")
    record_many(r, "n", sorted(events, key=lambda e: -e[3]))
    assert_same(first, state(r))


def test_an_event_sent_twice_counts_once_as_a_neighbour(r: redis.Redis) -> None:
    events = made_events(200)
    record_many(r, "n", events)
    first = {k: v for k, v in state(r).items() if not k.endswith(b":trend")}
    record_many(r, "n", events)
    assert first == {k: v for k, v in state(r).items() if not k.endswith(b":trend")}
    assert trending(r, "n", 1)[0].item in {e[1] for e in events}


def run_threads(count: int, work: Any) -> None:
    errors: list[BaseException] = []

    def guarded(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors


def test_eight_concurrent_writers_are_one_writer(r: redis.Redis) -> None:
    events = [(u, i, 1.0, NOW) for u, i, _, _ in made_events(400, spread_s=0)]

    def write(n: int) -> None:
        for event in events[n::8]:
            record(r, "n", *event[:2], weight=event[2], at=event[3])

    run_threads(8, write)
    many = state(r)
    delete(r, "n")
    for event in events:
        record(r, "n", *event[:2], weight=event[2], at=event[3])
    assert many == state(r)  # the same time and weight: equal to the bit


WRITE = """
import sys, redis
from recipes.realtime_recommendation import record
from tests.recipes.test_realtime_recommendation import made_events
r = redis.Redis.from_url(sys.argv[1])
sys.stdin.readline()
for user, item, weight, at in made_events(800)[int(sys.argv[2])::8]:
    record(r, "n", user, item, weight=weight, at=at)
"""


@pytest.mark.real_redis
def test_eight_processes_are_one_writer(r: redis.Redis, url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, url, str(n)], cwd=ROOT, stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(8)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in processes:
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    many = state(r)
    delete(r, "n")
    record_many(r, "n", made_events(800))
    assert_same(many, state(r))


# --- decay, damping, blend ----------------------------------------------------------------------


def test_what_is_old_weighs_less(r: redis.Redis) -> None:
    now = time.time()
    for user in range(6):
        record_many(r, "n", [(user, x, 1, now - 300 * DAY) for x in ("phone", "old case")])
    for user in range(10, 12):
        record_many(r, "n", [(user, x, 1, now) for x in ("phone", "new case")])
    assert items(similar(r, "n", "phone", 2)) == ["new case", "old case"]
    assert items(trending(r, "n", 3))[-1] == "old case"


def test_trending_counts_visits_and_halves_them_a_day(r: redis.Redis) -> None:
    now = time.time()
    record_many(r, "n", [("u", "a", 1, now)] * 5 + [("u", "b", 2, now - DAY)] * 4)
    found = trending(r, "n", 2)
    assert found == [Scored("a", pytest.approx(5, rel=1e-2), "trending"),
                     Scored("b", pytest.approx(4, rel=1e-2), "trending")]  # fmt: skip


def test_times_far_apart_neither_overflow_nor_vanish(r: redis.Redis) -> None:
    record_many(r, "n", [("u", "a", 1, -4e9), ("u", "b", 1e-300, NOW), ("v", "a", 1e6, -8e9)])
    record_many(r, "n", [("v", "c", 1, NOW), ("w", "c", 1, -4e9), ("w", "a", 1, 1 - 8e9)])
    for item in "abc":
        assert all(0 <= s.score <= 1 + 1e-9 for s in similar(r, "n", item, 9))
    for user in "uvwx":
        assert all(0 <= s.score <= 1 for s in recommend(r, "n", user))
        assert len(recommend(r, "n", user, exclude_seen=False)) == 3


def test_what_everybody_has_is_damped(r: redis.Redis) -> None:
    record_many(r, "n", [(u, "bag", 1, NOW) for u in range(100)])
    for user in range(5):
        record_many(r, "n", [(user, "lens", 1, NOW), (user, "tripod", 1, NOW)])
    assert items(similar(r, "n", "lens", 2)) == ["tripod", "bag"]
    record(r, "n", "me", "lens", at=NOW)
    assert items(recommend(r, "n", "me"))[0] == "tripod"


def test_a_new_user_gets_the_trend_and_its_share_falls(r: redis.Redis) -> None:
    record_many(r, "n", made_events(300))
    hot = trending(r, "n", 10)
    new = recommend(r, "n", "nobody")
    assert items(new) == items(hot)
    assert {s.reason for s in new} == {"trending"}
    reasons = []
    for n in range(1, 9):
        record(r, "n", "me", f"i{n}", at=NOW + 90 * DAY)
        reasons.append(sum(s.reason == "trending" for s in recommend(r, "n", "me", 20)))
    assert reasons[-1] < reasons[0]


def test_seen_items_are_left_out_unless_wanted(r: redis.Redis) -> None:
    record_many(r, "n", [(u, i) for u in "abc" for i in "wxyz"])
    record_many(r, "n", [("me", "w"), ("me", "x")])
    assert sorted(items(recommend(r, "n", "me"))) == ["y", "z"]
    assert sorted(items(recommend(r, "n", "me", exclude_seen=False))) == ["w", "x", "y", "z"]
    assert recommend(r, "n", "me", 1) == recommend(r, "n", "me", 9)[:1]
    assert recommend(r, "n", "me", 0) == similar(r, "n", "w", 0) == trending(r, "n", 0) == []


def test_an_empty_namespace_has_nothing(r: redis.Redis) -> None:
    assert recommend(r, "n", "u") == similar(r, "n", "i", 3) == trending(r, "n", 3) == []
    assert recommend(r, "n", "u", explore=1.0) == []
    assert delete(r, "n") == 0


# --- exploration --------------------------------------------------------------------------------


def test_exploration_learns_from_clicks(r: redis.Redis) -> None:
    """Of 12 new items one is liked: with each click it is shown more."""
    record_many(r, "n", [("seed", f"new{n}", 1, NOW + n) for n in range(12)])
    shown = []
    for n in range(150):
        (offer,) = recommend(r, "n", f"u{n}", 1, explore=1.0, seed=n)
        assert offer.reason == "explore"
        shown.append(offer.item)
        if offer.item == "new7":
            record(r, "n", f"u{n}", "new7", at=NOW)
    counts = {k.decode(): int(v) for k, v in r.hgetall("{n}:shown").items()}
    assert counts == Counter(shown)
    assert r.hgetall("{n}:clicked") == {b"new7": str(counts["new7"]).encode()}
    assert shown[-50:].count("new7") > 35 and shown[:15].count("new7") < 8


def test_only_what_was_offered_is_a_click_and_only_once(r: redis.Redis) -> None:
    record_many(r, "n", [("seed", "a"), ("seed", "b")])
    assert len(recommend(r, "n", "u", 2, explore=1.0, seed=1)) == 2
    record(r, "n", "somebody else", "a")
    assert r.hgetall("{n}:clicked") == {}
    record(r, "n", "u", "a")
    record(r, "n", "u", "a")
    assert r.hgetall("{n}:clicked") == {b"a": b"1"}
    assert 0 < r.ttl("{n}:offered:u") <= 86_400


def test_the_share_of_exploration_is_kept_and_repeatable(r: redis.Redis) -> None:
    record_many(r, "n", made_events(300))
    for share, expected in ((0.0, 0), (0.2, 2), (0.5, 5), (1.0, 10)):
        picks = recommend(r, "n", "nobody", 10, explore=share, seed=3)
        assert len(picks) == len(set(items(picks))) == 10
        assert sum(s.reason == "explore" for s in picks) == expected
        if share == 0.0:
            assert r.exists("{n}:shown") == 0  # no exploration, nothing is written
    r.unlink("{n}:shown")
    first = recommend(r, "n", "nobody", explore=0.5, seed=4)
    r.unlink("{n}:shown")
    assert recommend(r, "n", "nobody", explore=0.5, seed=4) == first


# --- costs and bounds ---------------------------------------------------------------------------


def counted(r: Any, work: Any) -> list[str]:
    sent: list[str] = []
    execute = r.execute_command

    def counting(*arguments: Any, **options: Any) -> Any:
        sent.append(arguments[0])
        return execute(*arguments, **options)

    r.execute_command = counting
    try:
        work()
    finally:
        del r.execute_command
    return sent


@pytest.mark.parametrize("size", [40, 400])
def test_round_trips_are_constant(r: redis.Redis, size: int) -> None:
    record_many(r, "n", made_events(size))
    recommend(r, "n", "u1", explore=1.0), similar(r, "n", "i1", 5), trending(r, "n", 5)
    for work, trips in (
        (lambda: record(r, "n", "u1", "i1"), 1),
        (lambda: recommend(r, "n", "u1"), 1),
        (lambda: recommend(r, "n", "u1", explore=0.5, seed=0), 2),
        (lambda: similar(r, "n", "i1", 5), 1),
        (lambda: trending(r, "n", 5), 1),
        (lambda: record_many(r, "n", made_events(250)), 3),
    ):
        assert counted(r, work) == ["EVALSHA"] * trips


def test_a_server_that_forgot_the_scripts_is_told_again(r: redis.Redis) -> None:
    record(r, "n", "u", "i")
    r.script_flush()
    assert counted(r, lambda: record(r, "n", "u", "j")) == ["EVALSHA", "EVAL"]
    assert sorted(items(trending(r, "n", 2))) == ["i", "j"]


def test_memory_is_bounded_and_temporary(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {"HISTORY": 8, "PAIRED": 5, "NEIGHBOURS": 6, "ITEMS": 30, "TREND": 9, "NEW": 7}
    for name, bound in bounds.items():
        monkeypatch.setattr(rr, name, bound)
    for n in range(5):
        record_many(r, "n", made_events(200, n))
        recommend(r, "n", "u1", explore=1.0)
    for n in range(40):  # what is new does not stay so, and one reader is offered all of it
        record(r, "n", "u2", f"next {n}", at=NOW + 100 * DAY + n)
        recommend(r, "n", "reader", 2, explore=1.0, seed=n)
        assert r.smembers("{n}:offered:reader") <= {*r.zrange("{n}:new", 0, -1)}
    assert 1 < r.scard("{n}:offered:reader") <= 7
    for key, scores in state(r).items():
        part = key.decode().split(":")[1]
        bound = bounds[{"user": "HISTORY", "item": "NEIGHBOURS"}.get(part, part.upper())]
        assert len(scores) <= bound
        if part in ("user", "item"):
            assert 0 < r.ttl(key) <= rr.TTL_S
    assert 0 < r.hlen("{n}:shown") <= 7


def test_the_last_items_are_kept(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rr, "HISTORY", 4)
    record_many(r, "n", [("u", n, 1, NOW + n) for n in range(10)])
    assert r.zrange("{n}:user:u", 0, -1) == [b"6", b"7", b"8", b"9"]


def test_delete_leaves_nothing_of_the_namespace_and_all_of_others(r: redis.Redis) -> None:
    for ns in ("n", "n*", "n[a]?\\"):
        record_many(r, ns, [("u", "a"), ("u", "b")])
        recommend(r, ns, "x", explore=1.0)
    kept = len(list(r.scan_iter("{n}:*", count=100)))
    for ns in ("n*", "n[a]?\\"):
        assert delete(r, ns) == kept
    assert r.dbsize() == kept == delete(r, "n")


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["two words", "Żółw 🐢", "a:b{c}d", "*", "nul\0", "0" * 512, "-1"])
def test_users_and_items_are_any_text(r: redis.Redis, text: str) -> None:
    record_many(r, "n", [(text, text), (text, "x"), ("u", text)])
    assert items(similar(r, "n", "x", 5)) == [text]
    assert items(recommend(r, "n", "u", 5)) == ["x"]
    assert text in items(trending(r, "n", 2))


def test_numbers_are_names(r: redis.Redis) -> None:
    record_many(r, "n", [(1, np.int64(5)), ("1", 6), (2, 5)])
    assert items(similar(r, "n", 5, np.int8(3))) == ["6"]
    record(r, "n", 2, 7, weight=np.float32(2), at=np.float64(NOW))
    assert "6" in items(recommend(r, "n", "2", 3))


@pytest.mark.parametrize("event", [
    ("", "i"), ("u", ""), ("u" * 513, "i"), (b"u", "i"), ("u", None), ("u", 1.5), (True, "i"),
    ("u", "\ud800"), ("u", "i", 0), ("u", "i", -1), ("u", "i", float("nan")),
    ("u", "i", float("inf")), ("u", "i", 1, float("nan")), ("u", "i", 1, NOW * 1000),
    ("u", "i", 1, float("-inf")), ("u", "i", 1, -1e10), ("u", "i", NOW), ("u", "i", NOW, 1),
    ("u", "i", 1e6 + 1),
])  # fmt: skip
def test_bad_events_are_refused_before_anything_is_sent(r: redis.Redis, event: Event) -> None:
    with pytest.raises((ValueError, TypeError)):
        record_many(r, "n", [("u", "good"), event])
    names = dict(zip(("weight", "at"), event[2:], strict=False))
    with pytest.raises((ValueError, TypeError)):
        record(r, "n", *event[:2], **names)
    assert r.dbsize() == 0


@pytest.mark.parametrize("row", [
    {"user": "u", "item": "i"}, "ui", "u", b"ui", {"u", "i"}, ("u",), (), ["u"], None, 7,
    ("u", "i", 1, NOW, "more"), np.array(["u", "i"]),
])  # fmt: skip
def test_a_row_of_another_form_is_refused_before_anything_is_sent(r: redis.Redis, row: Any) -> None:
    with pytest.raises(TypeError, match=r"wanted is \(user, item\[, weight\[, at\]\]\)"):
        record_many(r, "n", [("u", "good")] * 150 + [row])
    assert r.dbsize() == 0


def test_a_bad_event_refuses_the_whole_list_and_of_an_iterator_its_hundred(r: redis.Redis) -> None:
    events = [*made_events(250), ("u", "i", 0)]
    with pytest.raises(ValueError, match="above 0"):
        record_many(r, "n", events)
    assert r.dbsize() == 0
    with pytest.raises(ValueError, match="above 0"):
        record_many(r, "n", iter(events))
    record_many(r, "m", events[:200])
    first, again = ({k[4:]: v for k, v in state(r, ns).items()} for ns in "nm")
    assert_same(first, again)


def test_a_time_given_as_the_weight_is_told(r: redis.Redis) -> None:
    for event in (("u", "i", NOW), ("u", "i", time.time(), 1)):
        with pytest.raises(ValueError, match="it comes fourth"):
            record_many(r, "n", [event])
    record(r, "n", "u", "i", weight=1e6)
    assert items(trending(r, "n")) == ["i"]


def test_what_is_yet_to_come_is_refused_and_cannot_lead_the_trend(r: redis.Redis) -> None:
    now = time.time()
    for ahead in (2 * DAY, 365 * DAY, 1e30):
        with pytest.raises(ValueError, match="at most a day ahead"):
            record(r, "n", "u", "i", at=now + ahead)
        with pytest.raises(ValueError, match="at most a day ahead"):
            record_many(r, "n", [("u", "good"), ("u", "i", 1, now + ahead)])
    assert r.dbsize() == 0
    record_many(r, "n", [("u", "clocks differ", 1, now + DAY / 2), ("u", "long ago", 1, 1000.0)])
    assert [s.score < 2 for s in trending(r, "n")] == [True, True]


@pytest.mark.parametrize("call", [
    lambda r: record(r, "n", "u", "i"), lambda r: record_many(r, "n", [("u", "i")]),
    lambda r: recommend(r, "n", "u"), lambda r: similar(r, "n", "i"), lambda r: trending(r, "n"),
    lambda r: delete(r, "n"),
])  # fmt: skip
def test_a_client_that_decodes_is_refused_before_anything_is_sent(call: Any) -> None:
    nobody = redis.Redis.from_url("redis://127.0.0.1:1?decode_responses=1")  # would not connect
    with pytest.raises(TypeError, match="without decode_responses=True"):
        call(nobody)


def test_bad_arguments_are_refused(r: redis.Redis) -> None:
    for ns in ("", "a}b", "{a", b"n", None):
        with pytest.raises(ValueError, match="without braces"):
            record(r, ns, "u", "i")  # type: ignore[arg-type]
    for k in (-1, 1_001):
        with pytest.raises(ValueError, match="1,000"):
            recommend(r, "n", "u", k)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            recommend(r, "n", "u", explore=share)
    with pytest.raises(TypeError):
        trending(r, "n", 1.5)  # type: ignore[arg-type]


# --- real data ----------------------------------------------------------------------------------


@functools.cache
def split(seed: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Baskets of three modules or more, and the one that is held out of each."""
    found = rr.import_lines(pattern="**/*.py")
    rng = random.Random(seed)
    held = {user: rng.choice(names) for user, names in found.items() if len(names) >= 3}
    return {user: [i for i in found[user] if i != held[user]] for user in held}, held


def test_hit_rate_beats_popularity_and_the_cosine(r: redis.Redis) -> None:
    train, held = split(0)
    record_many(r, "n", [(user, item) for user, names in train.items() for item in names])
    hits = np.mean([held[user] in items(recommend(r, "n", user, 10)) for user in train])
    names = sorted({item for basket in train.values() for item in basket})
    seen = np.array([[item in basket for item in names] for basket in train.values()], float)
    count = seen.sum(0)
    cosine = seen.T @ seen / np.sqrt(np.outer(count, count))
    np.fill_diagonal(cosine, 0)

    def rate(scores: Any) -> float:
        top = np.argsort(-np.where(seen > 0, -1, scores), axis=1, kind="stable")[:, :10]
        return float(np.mean([held[u] in {names[i] for i in t} for u, t in zip(train, top)]))  # noqa: B905

    assert len(train) > 200
    assert hits >= 1.25 * rate(count)
    assert hits >= rate(seen @ cosine)


U_DATA = "196\t242\t3\t881250949\n186\t302\t3.0\t891717742\n"
CSV = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,1029,3.0,1260759179\n"


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [("u.data", U_DATA, ("196", "242", 3.0, 881250949.0)),
     ("ratings.csv", CSV, ("1", "31", 2.5, 1260759144.0)),
     ("ratings.csv", "\ufeff" + CSV.replace("\n", "\r\n"), ("1", "31", 2.5, 1260759144.0))],
)  # fmt: skip
def test_movielens_is_loaded(
    r: redis.Redis, tmp_path: Path, name: str, text: str, first: Event
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    events = list(load_movielens(tmp_path))
    assert events[0] == first == next(load_movielens(str(tmp_path / name)))
    assert record_many(r, "n", load_movielens(tmp_path)) == len(events) == 2
    assert len(trending(r, "n", 5)) == 2


@pytest.mark.parametrize("line", [
    "1\t2\t3", "1\t2\t3\t4\t5", "a\t2\t3\t4", "1\t2\tnan\t4", "1\t2\t0\t4", "1\t2\t3\tx",
    "1\t2\t3\t1e99", "1,2,3,4",
])  # fmt: skip
def test_a_line_that_is_no_rating_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "u.data").write_text(U_DATA + line + "\n")
    with pytest.raises(BadLine, match=r"u\.data, line 3: "):
        list(load_movielens(tmp_path))


def test_a_folder_without_ratings_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ratings\.csv nor u\.data"):
        load_movielens(tmp_path)


@pytest.mark.real_redis
def test_it_works_on_a_cluster(cluster: redis.RedisCluster) -> None:
    events = made_events(300)
    for ns in ("n", "another", "third"):
        record_many(cluster, ns, events)
        record(cluster, ns, "u1", "i1", at=NOW)
    fake = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    record_many(fake, "n", [*events, ("u1", "i1", 1, NOW)])
    assert recommend(cluster, "n", "u1") == recommend(fake, "n", "u1")
    assert similar(cluster, "third", "i1", 9) == similar(fake, "n", "i1", 9)
    assert items(trending(cluster, "n", 9)) == items(trending(fake, "n", 9))
    assert len(recommend(cluster, "n", "u1", explore=1.0)) > 0
    assert all(delete(cluster, ns) > 0 for ns in ("n", "another", "third"))
