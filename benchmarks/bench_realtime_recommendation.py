"""realtime_recommendation beside a round trip a pair, and implicit. Wants: implicit, scipy."""

from __future__ import annotations

import random
import time
import warnings
from typing import Any

import numpy as np

from benchmarks.harness import Benchmark
from recipes import connect
from recipes.realtime_recommendation import (
    delete,
    import_lines,
    recommend,
    record,
    record_many,
    similar,
    trending,
)

USERS, ITEMS, EACH, SAMPLE = 100, 1_682, 100, 25
SPLITS = 5


def main() -> None:
    r = connect()
    bench = Benchmark("realtime_recommendation", "Real-time recommendation, measured", r)
    events = made_events()
    recording(bench, r, events)
    reading(bench, r, events)
    quality(bench, r)
    bench.write()


def made_events() -> list[tuple[int, int]]:
    """Return events of the size of MovieLens 100K: 100 items a user, popularity falls slowly."""
    rng = np.random.default_rng(0)
    p = 1 / (np.arange(ITEMS) + 20.0) ** 0.9
    p /= p.sum()
    rows = [(u, int(i)) for u in range(USERS) for i in rng.choice(ITEMS, EACH, False, p)]
    return [rows[n] for n in rng.permutation(len(rows))]


def recording(bench: Benchmark, r: Any, events: list[tuple[int, int]]) -> None:
    """The last events of users who have some 100 items already, into a filled namespace."""
    last = events[-SAMPLE:]
    many = events[-2_000:]
    before: dict[int, list[int]] = {}
    for user, item in events[:-SAMPLE]:
        before.setdefault(user, []).append(item)
    record_many(r, "bench", events[: -len(many)])
    rest = [(f"again{user}", item) for user, item in events]
    record_many(r, "bench", rest[: -len(many)])

    def a_round_trip_a_pair(kept: int) -> None:
        for user, item in last:
            for other in before[user][-kept:]:
                r.zincrby(f"naive:{item}", 1, other)
                r.zincrby(f"naive:{other}", 1, item)

    def both_sides_in_one() -> None:
        for user, item in last:
            for other in before[user][-50:]:
                pipe = r.pipeline(transaction=False)
                pipe.zincrby(f"naive:{item}", 1, other)
                pipe.zincrby(f"naive:{other}", 1, item)
                pipe.execute()

    def only_round_trips() -> None:
        for _ in many[:500]:
            r.ping()

    state = {"n": 0}

    def fresh(rows: list[tuple[int, int]]) -> list[tuple[str, int]]:
        """The same events of other users with the same history, so that each run is new work."""
        state["n"] += 1
        name = f"run{state['n']}-"
        users = {user for user, _ in rows}
        record_many(r, "bench", ((f"{name}{u}", i) for u in users for i in before[u][-60:]))
        return [(f"{name}{user}", item) for user, item in rows]

    def one_by_one() -> float:
        rows = fresh(many[:300])
        start = time.perf_counter()
        for user, item in rows:
            record(r, "bench", user, item)
        return time.perf_counter() - start

    def by_hundred() -> float:
        rows = fresh(many[:1_000])
        start = time.perf_counter()
        record_many(r, "bench", rows)
        return time.perf_counter() - start

    bench.compare(
        "events",
        "Events of users with about 100 items",
        {
            "naive: a round trip a pair and side, all of the history": (
                lambda: a_round_trip_a_pair(1_000), SAMPLE,
            ),
            "naive: a round trip a pair and side, the last 50": (
                lambda: a_round_trip_a_pair(50), SAMPLE,
            ),
            "naive: both sides in one round trip, the last 50": (both_sides_in_one, SAMPLE),
            "recipe: record": (one_by_one, 300),
            "recipe: record_many": (by_hundred, 1_000),
            "limit: a PING an event": (only_round_trips, 500),
        },
        against="naive: a round trip a pair and side, all of the history",
        unit="events", amount=SAMPLE,
    )  # fmt: skip
    delete(r, "bench")
    keys = list(r.scan_iter("naive:*", count=1_000))
    r.unlink(*keys)


def reading(bench: Benchmark, r: Any, events: list[tuple[int, int]]) -> None:
    record_many(r, "bench", events)
    users = list(range(USERS))
    ways = {
        "recommend": lambda n: recommend(r, "bench", users[n % USERS]),
        "recommend, a new user": lambda n: recommend(r, "bench", "nobody"),
        "recommend, explore=0.2": lambda n: recommend(r, "bench", users[n % USERS], explore=0.2),
        "similar": lambda n: similar(r, "bench", n % 300, 10),
        "trending": lambda n: trending(r, "bench", 10),
        "limit: PING": lambda n: r.ping(),
    }
    seconds: dict[str, list[float]] = {label: [] for label in ways}
    for n in range(1_000):
        for label, run in ways.items():
            start = time.perf_counter()
            run(n)
            seconds[label].append(time.perf_counter() - start)
    rows = []
    for label, times in seconds.items():
        p50, p99 = np.percentile(times, [50, 99]) * 1e3
        rows.append((label, f"{len(times) / sum(times):,.0f}", f"{p50:.2f} ms", f"{p99:.2f} ms"))
    caption = "One client, 1,000 calls of each in turn; users have 100 items."
    bench.table("reads", caption, ("call", "calls a second", "p50", "p99"), rows)
    used = sum(r.memory_usage(key) or 0 for key in r.scan_iter("{bench}:item:*", count=1_000))
    lists = sum(1 for _ in r.scan_iter("{bench}:item:*", count=1_000))
    rows = [("neighbours of an item", f"{lists:,}", f"{used / lists:,.0f} bytes")]
    histories = [r.memory_usage(f"{{bench}}:user:{user}") for user in users]
    rows.append(("history of a user", f"{USERS}", f"{np.mean(histories):,.0f} bytes"))
    bench.table("memory", "Memory, by MEMORY USAGE.", ("keys", "how many", "each"), rows)
    delete(r, "bench")


def quality(bench: Benchmark, r: Any) -> None:
    found = import_lines(pattern="**/*.py")
    baskets = {user: names for user, names in found.items() if len(names) >= 3}
    rates: dict[str, list[float]] = {}
    for seed in range(SPLITS):
        rng = random.Random(seed)
        held = {user: rng.choice(names) for user, names in baskets.items()}
        train = {user: [i for i in names if i != held[user]] for user, names in baskets.items()}
        for label, lists in ranked(r, train).items():
            hits = float(np.mean([held[user] in lists[user] for user in train]))
            rates.setdefault(label, []).append(hits)
    popular = np.mean(rates["popularity"])
    rows = [
        (label, f"{np.mean(v):.3f}", f"{min(v):.3f} to {max(v):.3f}", f"{np.mean(v) / popular:.2f}")
        for label, v in rates.items()
    ]
    caption = (
        f"Leave one out: hit rate at 10 over {len(baskets)} modules of the standard library, "
        f"mean of {SPLITS} splits; 1 is popularity."
    )
    bench.table("quality", caption, ("way", "hit rate", "of the splits", "ratio"), rows)
    if "implicit: cosine" not in rates:
        bench.note("Without implicit, which is not installed.")
    bench.bars(
        "quality", "hit rate at 10", {k: float(np.mean(v)) for k, v in rates.items()}, "recipe"
    )


def ranked(r: Any, train: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Return way -> user -> its ten items."""
    record_many(r, "bench", [(user, item) for user, names in train.items() for item in names])
    hot = [scored.item for scored in trending(r, "bench", 1_000)]
    result = {
        "popularity": {u: [i for i in hot if i not in seen][:10] for u, seen in train.items()},
        "recipe": {u: [s.item for s in recommend(r, "bench", u, 10)] for u in train},
    }
    delete(r, "bench")
    return result | implicit_ranked(train)


def implicit_ranked(train: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    try:
        from implicit.nearest_neighbours import CosineRecommender, TFIDFRecommender
        from scipy.sparse import csr_matrix
    except ImportError:
        return {}
    items = sorted({item for names in train.values() for item in names})
    index = {item: i for i, item in enumerate(items)}
    rows = [u for u, names in enumerate(train.values()) for _ in names]
    columns = [index[item] for names in train.values() for item in names]
    matrix = csr_matrix((np.ones(len(rows)), (rows, columns)), (len(train), len(items)))
    result = {}
    for label, kind in (
        ("implicit: cosine", CosineRecommender),
        ("implicit: TF-IDF", TFIDFRecommender),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind()
            model.fit(matrix, show_progress=False)
            result[label] = {
                user: [items[i] for i in model.recommend(u, matrix[u], N=10)[0]]
                for u, user in enumerate(train)
            }
    return result


if __name__ == "__main__":
    main()
