"""realtime_language_model against the paper, nltk, concurrent writers, and readers that fail."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes import realtime_language_model as recipe
from recipes.realtime_language_model import (
    START,
    UNKNOWN,
    Client,
    LanguageModel,
    LanguageModelError,
    TokenStreamError,
    cancel_tokens,
    read_tokens,
    stream_tokens,
)
from tests import servers

ROOT = Path(__file__).parents[2]
TRAIN = ("argparse", "json.decoder", "textwrap", "shlex", "heapq", "queue", "csv", "glob")
HELD_OUT = ("bisect", "json.encoder", "sched")

examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
names = (f"model-{i}" for i in range(10**9))


# --- Oracles --------------------------------------------------------------------------------------


class Reference:
    """Interpolated modified Kneser-Ney from the paper, with plain dicts and no thought of speed.

    Chen and Goodman (1999), "An empirical study of smoothing techniques for language modeling",
    section 3, equations 24 to 26; counts of the lower orders are continuation counts.
    """

    def __init__(self, texts: Sequence[Sequence[str]], order: int) -> None:
        self.order = order
        top: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            padded = [START] * (order - 1) + list(text)
            top.update(tuple(padded[i : i + order]) for i in range(len(text)))
        self.count_from(top)
        self.discounts = {n: self.discounts_of(self.grams[n]) for n in self.grams}

    def count_from(self, top: dict[tuple[str, ...], int]) -> None:
        self.grams: dict[int, dict[tuple[str, ...], int]] = {self.order: dict(top)}
        for n in range(self.order - 1, 0, -1):
            left: dict[tuple[str, ...], set[str]] = defaultdict(set)
            for gram in self.grams[n + 1]:
                left[gram[1:]].add(gram[0])
            self.grams[n] = {gram: len(tokens) for gram, tokens in left.items()}
        self.words = {gram[0] for gram in self.grams[1]} | {UNKNOWN}

    @staticmethod
    def discounts_of(grams: dict[tuple[str, ...], int]) -> list[float]:
        n = Counter(grams.values())
        found = [0.0]
        for i in (1, 2, 3):
            d = math.nan
            if n[1] and n[i]:
                y = n[1] / (n[1] + 2 * n[2])
                d = i - (i + 1) * y * n[i + 1] / n[i]
            found.append(d if 0 < d < i else i / 2)
        return found

    def probability(self, token: str, context: Sequence[str] = ()) -> float:
        token = token if token in self.words else UNKNOWN
        known = [t if t in self.words or t == START else UNKNOWN for t in context]
        return self.p(token, tuple(known[max(0, len(known) - self.order + 1) :]))

    def p(self, token: str, context: tuple[str, ...]) -> float:
        n = len(context) + 1
        lower = self.p(token, context[1:]) if context else 1 / len(self.words)
        counts = {g[-1]: c for g, c in self.grams[n].items() if g[:-1] == context}
        if not counts:
            return lower
        discount = [self.discounts[n][min(c, 3)] for c in counts.values()]
        c = counts.get(token, 0)
        kept = c - self.discounts[n][min(c, 3)]
        return (kept + sum(discount) * lower) / sum(counts.values())


def state(r: Client, name: str) -> dict[bytes, Any]:
    """All keys of a model but for its name, with their whole content."""
    found: dict[bytes, Any] = {}
    prefix = f"{{{name}}}:".encode()
    for key in r.scan_iter(count=1000):
        if key.startswith(prefix):
            is_hash = r.type(key) == b"hash"
            content: Any = r.hgetall(key) if is_hash else r.zrange(key, 0, -1, withscores=True)
            found[key[len(prefix) :]] = content if is_hash else dict(content)
    return found


def assert_orders_agree(r: Client, model: LanguageModel) -> None:
    """Recount all lower orders, totals and counts of counts from the n-grams of the full order."""
    stored = state(r, model.name)
    counts: dict[bytes, int] = {k: int(v) for k, v in stored.pop(b"counts").items()}
    stored.pop(b"long", None)
    grams: dict[tuple[bytes, ...], int] = {}
    for key, members in stored.items():
        number, context = key.split(b":", 1)
        if int(number) == model.order:
            before = tuple(context.split(b"\xff")) if model.order > 1 else ()
            grams |= {(*before, t): c for t, c in members.items() if t != b"\xff"}
    expected: dict[bytes, dict[bytes, float]] = defaultdict(dict)
    for n in range(model.order, 0, -1):
        for gram, count in grams.items():
            key = b"%d:%s" % (n, b"\xff".join(gram[:-1]))
            expected[key][gram[-1]] = count
            expected[key][b"\xff"] = expected[key].get(b"\xff", 0) - count
        seen = Counter(grams.values())
        assert [counts[b"%d:%d" % (n, i)] for i in (1, 2, 3, 4)] == [seen[i] for i in (1, 2, 3, 4)]
        grams = Counter(gram[1:] for gram in grams)
    assert stored == expected


def python_tokens(module: str) -> list[str]:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    with tokenize.open(spec.origin) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    return [t.string for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)]


@functools.cache
def code() -> tuple[list[list[str]], list[list[str]]]:
    """Train and held-out texts in which tokens seen once in training are UNKNOWN."""
    from nltk.lm import Vocabulary

    train = [python_tokens(module) for module in TRAIN]
    words = Vocabulary([token for text in train for token in text], unk_cutoff=2)
    held_out = [python_tokens(module)[:150] for module in HELD_OUT]
    return [list(words.lookup(t)) for t in train], [list(words.lookup(t)) for t in held_out]


def texts_of(seed: int, many: int = 12, longest: int = 30, words: int = 12) -> list[list[str]]:
    chance = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(words)] + ["", UNKNOWN, START, "x" * 40, "é" * 30]
    weights = [1 / (i + 1) for i in range(len(vocabulary))]
    return [chance.choices(vocabulary, weights, k=chance.randrange(longest)) for _ in range(many)]


def learned(r: Client, texts: Sequence[Sequence[str]], order: int = 3) -> LanguageModel:
    model = LanguageModel(r, next(names), order)
    for text in texts:
        model.learn(text)
    return model


# --- The model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_agrees_with_the_paper(r: redis.Redis, order: int) -> None:
    texts = texts_of(order)
    model, reference = learned(r, texts, order), Reference(texts, order)
    chance = random.Random(0)
    tokens = [*sorted(reference.words), "never"]
    for length in (0, 1, 2, 3, 5):
        for _ in range(6):
            context = chance.choices([*tokens, START], k=length)
            token = chance.choice(tokens)
            expected = reference.probability(token, context)
            assert model.probability(token, context) == pytest.approx(expected, rel=1e-9)
    text = ["w0", "w1", "never", "w0", "w2", "x" * 40]
    padded = [START] * (order - 1) + text
    surprise = -sum(
        math.log(reference.probability(t, padded[: i + order - 1])) for i, t in enumerate(text)
    )
    assert model.perplexity(iter(text)) == pytest.approx(math.exp(surprise / len(text)), rel=1e-9)


def test_real_text_agrees_with_the_paper(r: redis.Redis) -> None:
    train, held_out = code()
    model, reference = learned(r, train[-3:]), Reference(train[-3:], 3)
    assert all(d != i / 2 for d, i in zip(reference.discounts[3][1:], (1, 2, 3), strict=True))
    for i in range(2, 12):
        token, context = held_out[0][i], held_out[0][:i]
        expected = reference.probability(token, context)
        assert model.probability(token, context) == pytest.approx(expected, rel=1e-9)


tokens_drawn = st.sampled_from(["a", "b", "c", UNKNOWN, START, "", "long" * 9]) | st.text(
    max_size=3
)


@examples
@given(
    texts=st.lists(st.lists(tokens_drawn, max_size=12), max_size=5),
    contexts=st.lists(st.lists(tokens_drawn, max_size=4), min_size=1, max_size=3),
    order=st.integers(1, 4),
    min_count=st.integers(1, 3),
)
def test_probabilities_sum_to_one(
    r: redis.Redis, texts: list[list[str]], contexts: list[list[str]], order: int, min_count: int
) -> None:
    model = learned(r, texts, order)
    for state_is in ("learned", "pruned", "learned again"):
        words = {t for text in texts for t in text} - {UNKNOWN}
        words = {t for t in words if model._known([t])[t] != b"<UNK>"}
        for context in contexts:
            total = sum(model.probability(word, context) for word in words)
            total += model.probability("never seen", context)
            assert total == pytest.approx(1, abs=1e-9)
            ranked = model.next_tokens(context, k=100)
            assert {token for token, _ in ranked} == words | {UNKNOWN}
            assert sum(p for _, p in ranked) == pytest.approx(1, abs=1e-9)
        if state_is == "learned":
            model.prune(min_count)
        else:
            model.learn(texts[0] if texts else [])
    model.delete()
    assert state(r, model.name) == {}


@examples
@given(
    texts=st.lists(st.lists(tokens_drawn, max_size=15), min_size=1, max_size=6),
    order=st.integers(1, 4),
    shuffled=st.randoms(use_true_random=False),
)
def test_any_order_gives_the_same_model(
    r: redis.Redis, texts: list[list[str]], order: int, shuffled: random.Random
) -> None:
    first = learned(r, texts, order)
    assert_orders_agree(r, first) if any(texts) else None
    shuffled.shuffle(texts)
    second = learned(r, texts, order)
    assert state(r, first.name) == state(r, second.name)


def test_small_batches_and_pages_give_the_same_model(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (*_, text), (other, *_) = code()
    whole = learned(r, [text])
    perplexity = whole.perplexity(other)
    for size, value in (("BATCH", 100), ("SLICE", 37), ("READ", 7)):
        monkeypatch.setattr(recipe, size, value)
    parts = learned(r, [text])
    assert state(r, whole.name) == state(r, parts.name)
    assert parts.perplexity(iter(other)) == pytest.approx(perplexity, rel=1e-12)


def clients_of(r: redis.Redis) -> redis.Redis:
    return type(r)(connection_pool=r.connection_pool)


def test_eight_writers_give_the_model_of_one(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SLICE", 40)  # many small scripts, so that they interleave
    texts = texts_of(8, many=64, longest=80)
    one, eight = learned(r, texts), LanguageModel(r, next(names))
    with ThreadPoolExecutor(8) as writers:
        writer = [LanguageModel(clients_of(r), eight.name) for _ in range(8)]
        list(writers.map(lambda i: writer[i % 8].learn(texts[i]), range(len(texts))))
    assert state(r, one.name) == state(r, eight.name)
    assert_orders_agree(r, eight)


WRITER = """
import sys, redis
from recipes import realtime_language_model as recipe
recipe.SLICE = 50
model = recipe.LanguageModel(redis.Redis.from_url(sys.argv[1]), sys.argv[2])
i = 0
while True:
    i += 1
    model.learn(f"t{i % 40} x{i * j % 97}"[: 3 + j % 4] for j in range(400))
"""


@contextlib.contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.real_redis
def test_writers_killed_at_random_leave_a_valid_model(r: redis.Redis, url: str) -> None:
    model = LanguageModel(r, next(names))

    def calls() -> int:
        return int(r.info("commandstats").get("cmdstat_eval", {}).get("calls", 0))

    for _ in range(3):
        before = calls()
        with process(WRITER, url, model.name) as one, process(WRITER, url, model.name) as two:
            servers.wait_until(
                lambda start=before: calls() > start + 20,  # type: ignore[misc]
                what="the writers write",
            )
            os.kill(one.pid, signal.SIGKILL)
            os.kill(two.pid, signal.SIGKILL)
            one.wait()
            two.wait()
    left = list(r.scan_iter(match="*:learning:*", count=1000))
    assert all(0 < r.ttl(key) <= 600 for key in left)
    r.unlink(*left, "nothing")
    assert_orders_agree(r, model)
    assert sum(p for _, p in model.next_tokens(["t1"], k=5000)) == pytest.approx(1)


def test_a_command_sent_twice_counts_once(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "SLICE", 50)
    texts = texts_of(3)
    once, twice = learned(r, texts), LanguageModel(clients_of(r), next(names))
    send = twice.r.eval

    def resend(*args: object) -> object:  # what a client's retry does when the reply is lost
        send(*args)  # type: ignore[arg-type]
        return send(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(twice.r, "eval", resend)
    for text in texts:
        twice.learn(text)
    assert state(r, once.name) == state(r, twice.name)


def test_a_reader_beside_a_writer_sees_whole_updates(r: redis.Redis) -> None:
    texts = texts_of(4, many=8, longest=200)
    model, over = learned(r, texts), threading.Event()

    def write() -> None:
        writer = LanguageModel(clients_of(r), model.name)
        for seed in range(10_000):
            if over.is_set():
                return
            writer.learn(texts_of(seed, many=1, longest=200)[0])

    words = {recipe._id(token) for text in texts for token in text}
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for i in range(150):
                after = (b"w%d" % (i % 3), b"w0")
                snapshot = recipe.Snapshot(model, dict.fromkeys(recipe._suffixes(after), words))
                total = sum(snapshot.probability(after, word) for word in words)
                assert total == pytest.approx(1, abs=1e-9)
        finally:
            over.set()
        writing.result()


def test_nobody_writes_between_two_reads(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between commands that are not in a MULTI others may come: here a writer, each time."""
    texts = texts_of(4, many=8, longest=50)
    model = learned(r, texts)
    writer, fresh = LanguageModel(clients_of(r), model.name), (f"new{i}" for i in range(999))
    plain = redis.client.Pipeline._execute_pipeline

    def overtaken(self: Any, connection: Any, commands: Any, *args: Any) -> list[Any]:
        replies = []
        for command in commands:
            replies += plain(self, connection, [command], *args)
            writer.learn(["w1", "w0", next(fresh)])
        return replies

    monkeypatch.setattr(redis.client.Pipeline, "_execute_pipeline", overtaken)
    words = {recipe._id(token) for text in texts for token in text}
    after = (b"w1", b"w0")
    snapshot = recipe.Snapshot(model, dict.fromkeys(recipe._suffixes(after), words))
    assert sum(snapshot.probability(after, word) for word in words) == pytest.approx(1, abs=1e-9)


def test_what_was_just_learned_is_predicted_next(r: redis.Redis) -> None:
    (*_, text), _ = code()
    writer = learned(r, [text])
    reader = LanguageModel(clients_of(r), writer.name)
    before = reader.probability("fresh_name", ["import", "redis"])
    assert before == reader.probability(UNKNOWN, ["import", "redis"])
    writer.learn(["import", "redis", "fresh_name"])
    assert reader.next_tokens(["import", "redis"], k=1)[0][0] == "fresh_name"
    assert reader.probability("fresh_name", ["import", "redis"]) > 5 * before


@pytest.mark.parametrize("k", [1, 5, 100, 150, 400, 5000])
def test_next_tokens_are_the_most_probable(r: redis.Redis, k: int) -> None:
    train, held_out = code()
    model = learned(r, train[-2:])
    words = {token for text in train[-2:] for token in text} | {UNKNOWN}
    for context in ([], ["("], ["self", "."], ["never", "never"], held_out[0][3:9]):
        after = model._context(context)
        asked = {after[i:]: [model._known([w])[w] for w in words] for i in range(len(after) + 1)}
        snapshot = recipe.Snapshot(model, asked)
        every = sorted((snapshot.probability(after, t) for t in asked[()]), reverse=True)
        ranked = model.next_tokens(context, k)
        assert [p for _, p in ranked] == pytest.approx(every[:k], rel=1e-12)
        assert len({token for token, _ in ranked}) == min(k, len(words))
    assert model.next_tokens(["("], 0) == []
    assert model.next_tokens(iter("if"), np.int64(k)) == model.next_tokens(["i", "f"], k)  # type: ignore[arg-type]


@functools.cache
def nltk_perplexity() -> float:
    from nltk.lm import KneserNeyInterpolated
    from nltk.util import everygrams, ngrams

    train, held_out = code()
    peer = KneserNeyInterpolated(3)
    padded = [[START, START, *text] for text in train]
    peer.fit([everygrams(text, max_len=3) for text in padded], [t for text in train for t in text])
    grams = [gram for text in held_out for gram in ngrams([START, START, *text], 3)]
    return float(peer.perplexity(grams))


def test_perplexity_is_no_worse_than_nltks(r: redis.Redis) -> None:
    train, held_out = code()
    model = learned(r, train)
    ours = math.exp(
        sum(len(text) * math.log(model.perplexity(text)) for text in held_out)
        / sum(len(text) for text in held_out)
    )
    assert 1 < ours <= nltk_perplexity()


def test_generated_text_is_deterministic_and_learned(r: redis.Redis) -> None:
    train, _ = code()
    one, two = learned(r, train[-2:]), learned(r, train[-2:][::-1])
    text = one.generate(["import"], 30)
    assert len(text) == 30
    assert text == one.generate(["import"], 30, seed=0) == two.generate(("import",), 30)
    assert text != one.generate(["import"], 30, seed=1)
    assert UNKNOWN not in text
    assert set(text) <= {token for text in train[-2:] for token in text}
    with pytest.raises(LanguageModelError, match="learn a text first"):
        LanguageModel(r, next(names)).generate([], 1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_prune_leaves_the_model_of_the_rest(r: redis.Redis, order: int) -> None:
    long = [f"{'long' * 8}{i}" for i in range(200)]
    texts = [*texts_of(5, many=20, words=30), ["once"], long, long[:150]]
    model, reference = learned(r, texts, order), Reference(texts, order)
    top = reference.grams[order]
    kept = {gram: count for gram, count in top.items() if count >= 2}
    assert 0 < len(kept) < len(top)
    assert model.prune(2) == len(top) - len(kept)
    discounts = reference.discounts[order]  # those of the whole text stay
    reference.count_from(kept)
    reference.discounts = {n: reference.discounts_of(g) for n, g in reference.grams.items()}
    reference.discounts[order] = discounts
    for context in ([], ["w0"], ["w0", "w1"], ["w1", "never"]):
        for token in ("w0", "w29", long[0], long[-1], "never"):
            expected = reference.probability(token, context)
            assert model.probability(token, context) == pytest.approx(expected, rel=1e-9)
    assert model.prune(2) == 0
    assert r.hlen(model.key("long")) == sum(len(t.encode()) > 32 for t in reference.words) >= 150
    model.learn(texts[0])
    model.prune(10**9)
    assert set(state(r, model.name)) <= {b"counts"}


def test_a_long_token_is_stored_once(r: redis.Redis) -> None:
    long = "x" * 1000
    model = learned(r, [[f"w{i}", long, f"v{i}"] for i in range(20)])
    assert r.hvals(model.key("long").decode()) == [long.encode()]
    contexts = list(r.scan_iter(f"{{{model.name}}}:[123]:*"))
    assert max(map(len, contexts)) < 100
    assert max(len(token) for key in contexts for token, _ in r.zscan_iter(key)) <= recipe.LONGEST
    assert model.next_tokens(["w1"], 1)[0][0] == long


@pytest.mark.real_redis
def test_memory_of_a_token_is_bounded(r: redis.Redis) -> None:
    train, _ = code()
    model = learned(r, train)

    def memory() -> int:
        return sum(r.memory_usage(key, samples=0) or 0 for key in r.scan_iter(count=1000))

    before, tokens = memory(), sum(map(len, train))
    assert before / tokens < 80
    model.prune(3)
    assert memory() < before / 3
    assert model.perplexity(train[0]) < 1000


def test_prune_beside_writers_keeps_the_orders_right(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SLICE", 40)
    texts = texts_of(9, many=24, longest=60, words=40)
    model = LanguageModel(r, next(names))
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(LanguageModel(clients_of(r), model.name).learn, t) for t in texts]
        done += [pool.submit(LanguageModel(clients_of(r), model.name).prune, 2) for _ in range(4)]
        assert all(future.result() >= 0 for future in done)
    stored = state(r, model.name)
    counts = stored[b"counts"]
    for n in (b"3", b"2", b"1"):  # those of the full order do not forget; see prune
        seen = Counter(c for k, m in stored.items() if k[:2] == n + b":" for c in m.values())
        found = [int(counts[n + b":%d" % i]) for i in (1, 2, 3, 4)]
        assert found == [seen[i] for i in (1, 2, 3, 4)] or n == b"3"
    for _, p in model.next_tokens(["w0"], k=100):
        assert 0 < p < 1
    assert sum(p for _, p in model.next_tokens(["w0"], k=100)) == pytest.approx(1)


def test_round_trips_do_not_grow_with_tokens(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text, *_), _ = code()
    assert len(text) > 8_000
    trips = Counter[str]()

    def counted(owner: type, method: str) -> None:
        original = getattr(owner, method)

        def wrapper(self: object, *args: object, **kwargs: object) -> object:
            trips["all"] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, method, wrapper)

    counted(type(r), "execute_command")
    counted(redis.client.Pipeline, "execute")
    model = LanguageModel(r, next(names))
    model.learn(text)
    assert trips["all"] <= 2 + len(set(zip(text, text[1:], text[2:], strict=False))) / 2000 + 1
    trips.clear()
    model.perplexity(text)
    assert trips["all"] <= len(text) / 2000 * 6
    trips.clear()
    model.next_tokens(["self", "."], k=10)
    assert trips["all"] <= 5
    trips.clear()
    model.probability("self", ["(", "self"])
    assert trips["all"] == 3


@pytest.mark.real_redis
def test_works_on_a_cluster(cluster: redis.RedisCluster) -> None:
    texts = texts_of(1, many=6)
    model, reference = learned(cluster, texts), Reference(texts, 3)
    assert model.probability("w1", ["w0"]) == pytest.approx(reference.probability("w1", ["w0"]))
    assert model.perplexity(texts[1]) > 1
    assert len(model.generate(["w0"], 5)) == 5
    assert stream_tokens(cluster, "reply", ["a", "b"]) == 2
    assert list(read_tokens(cluster, "reply")) == ["a", "b"]
    assert model.prune(2) > 0
    model.delete()
    assert state(cluster, model.name) == {}


def test_refuses_what_it_cannot_do(r: redis.Redis) -> None:
    model = LanguageModel(r, "m*[x]?", order=2)
    other = learned(r, [["a", "b"]])
    assert model.learn(iter(("a", "b", "a"))) == 3
    for action in (
        lambda m: m.learn(["a"]), lambda m: m.probability("a"), lambda m: m.next_tokens(["a"]),
    ):  # fmt: skip
        with pytest.raises(LanguageModelError, match="order"):
            action(LanguageModel(r, "m*[x]?", order=3))
    with pytest.raises(LanguageModelError, match="empty text"):
        model.perplexity([])
    for name, order in (("", 3), ("a{b", 3), ("a", 0)):
        with pytest.raises(ValueError, match="braces"):
            LanguageModel(r, name, order)
    for many in (2.5, 2.0, "2", None, -1, 2**32, 2**33):
        with pytest.raises(ValueError, match="an integer from 0 to"):
            model.prune(many)  # type: ignore[arg-type]
    assert model.prune(0) == model.prune(np.int64(1)) == 0  # type: ignore[arg-type]
    assert model.learn([]) == 0
    model.delete()
    assert state(r, "m*[x]?") == {}
    assert other.next_tokens(["a"], 1)[0][0] == "b"


@pytest.mark.parametrize("call", [
    lambda r: LanguageModel(r, "m"), lambda r: stream_tokens(r, "q", untouched()),
    lambda r: recipe.cancel_tokens(r, "q"), lambda r: list(read_tokens(r, "q")),
])  # fmt: skip
def test_a_client_that_decodes_is_refused_before_anything_is_sent(call: Any) -> None:
    nobody = redis.Redis.from_url("redis://127.0.0.1:1?decode_responses=1")  # would not connect
    with pytest.raises(TypeError, match="without decode_responses=True"):
        call(nobody)


def untouched() -> Iterator[str]:
    raise AssertionError("a token was made")
    yield ""


# --- Token streams --------------------------------------------------------------------------------


def test_a_late_reader_gets_all_tokens(r: redis.Redis) -> None:
    tokens = ["", "\n", "é", "x" * 1000, *map(str, range(1200))]
    assert stream_tokens(r, "q", iter(tokens)) == len(tokens)
    assert list(read_tokens(r, "q")) == tokens == list(read_tokens(r, "q"))
    assert list(read_tokens(r, "q", timeout_s=0)) == tokens  # what is there needs no waiting
    assert list(read_tokens(r, "q", after=1200)) == tokens[1200:]
    assert list(read_tokens(r, "q", after=len(tokens))) == []
    assert 0 < r.ttl("{q}:tokens") <= 600


def test_a_reader_gets_each_token_as_it_comes(r: redis.Redis) -> None:
    taken = threading.Semaphore(0)

    def tokens() -> Iterator[str]:
        for i in range(5):
            yield str(i)
            assert taken.acquire(timeout=10)  # the next only after the reader had this one

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(stream_tokens, clients_of(r), "q", tokens())
        for i, token in enumerate(read_tokens(r, "q")):
            assert token == str(i)
            taken.release()
        assert sent.result() == 5


def test_a_reader_comes_back_after_a_lost_connection(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_tokens(r, "q", map(str, range(20)))
    reader = clients_of(r)
    read, losses = reader.xread, iter([redis.ConnectionError, None, redis.TimeoutError])

    def xread(*args: object, **kwargs: object) -> object:
        if error := next(losses, None):
            raise error
        return read(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(reader, "xread", xread)
    monkeypatch.setattr(recipe, "READ", 3)  # entries in a reply
    assert list(read_tokens(reader, "q")) == [str(i) for i in range(20)]
    first = read_tokens(r, "q")
    head = [next(first) for _ in range(7)]
    del first
    assert head + list(read_tokens(r, "q", after=len(head))) == [str(i) for i in range(20)]


def test_cancel_stops_the_producer(r: redis.Redis) -> None:
    made = 0

    def endless() -> Iterator[str]:
        nonlocal made
        while True:
            made += 1
            if made == 5:
                cancel_tokens(r, "q")
            yield str(made)

    assert stream_tokens(r, "q", endless()) == made == 5
    with pytest.raises(TokenStreamError, match="cancelled") as caught:
        list(read_tokens(r, "q"))
    assert (caught.value.reason, caught.value.position) == ("cancelled", 5)
    assert 0 < r.ttl("{q}:cancel") <= 600


@pytest.mark.parametrize("sent", [0, 1, 6, 10])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_an_answer_that_is_sent_again_can_be_cancelled_or_fail(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch, how: str, sent: int
) -> None:
    monkeypatch.setattr(recipe, "READ", 4)  # entries in a reply

    def until(last: int, error: BaseException) -> Iterator[str]:
        yield from "abcdefghij"[:last]
        raise error

    with pytest.raises(KeyboardInterrupt):  # not even an end is sent: a crash
        stream_tokens(r, "q", until(sent, KeyboardInterrupt()))
    assert r.xlen("{q}:tokens") == sent
    there = max(sent, 1)
    for _ in range(2):  # and once more, after a crash behind the end
        if how == "cancelled":
            cancel_tokens(r, "q")
            assert stream_tokens(r, "q", "abcdefghij") == there
        else:
            with pytest.raises(ZeroDivisionError):
                stream_tokens(r, "q", until(1, ZeroDivisionError()))
        reader = read_tokens(r, "q", timeout_s=0)
        assert [next(reader) for _ in range(there)] == [*"abcdefghij"[:there]]
        with pytest.raises(TokenStreamError, match=f"{how} after token {there}"):
            next(reader)
    assert r.xlen("{q}:tokens") == there + 1


def test_a_failed_producer_tells_its_readers(r: redis.Redis) -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream_tokens(r, "q", failing())
    reader = read_tokens(r, "q")
    assert next(reader) == "a"
    with pytest.raises(TokenStreamError, match="failed after token 1"):
        next(reader)


def test_a_reader_does_not_wait_for_ever(r: redis.Redis) -> None:
    start = time.monotonic()
    with pytest.raises(TokenStreamError, match="silent after token 0: the producer died"):
        list(read_tokens(r, "nobody", timeout_s=0.2))
    assert 0.2 <= time.monotonic() - start < 5
    r.xadd("{q}:tokens", {"token": "a"}, id="1-0")
    for timeout_s in (0, -1):
        reader = read_tokens(r, "q", timeout_s=timeout_s)
        assert next(reader) == "a"
        with pytest.raises(TokenStreamError, match="silent after token 1"):
            next(reader)


PRODUCER = """
import sys, time, redis
from recipes.realtime_language_model import stream_tokens
def tokens():
    for i in range(10):
        yield str(i)
        if i == 6 and sys.argv[2] == "hang":
            time.sleep(60)
stream_tokens(redis.Redis.from_url(sys.argv[1]), "q", tokens())
"""


@pytest.mark.real_redis
def test_a_killed_producer_is_noticed_and_another_goes_on(r: redis.Redis, url: str) -> None:
    with process(PRODUCER, url, "hang") as producer:
        servers.wait_until(lambda: r.xlen("{q}:tokens") == 7, what="seven tokens are sent")
        os.kill(producer.pid, signal.SIGKILL)
        reader = read_tokens(r, "q", timeout_s=0.3)
        got = [next(reader) for _ in range(7)]
        with pytest.raises(TokenStreamError, match="silent after token 7"):
            next(reader)
    assert got == [str(i) for i in range(7)]
    with process(PRODUCER, url, "go on") as second:
        assert got + list(read_tokens(r, "q", after=7)) == [str(i) for i in range(10)]
        assert second.wait(20) == 0


def test_two_different_answers_do_not_mix(r: redis.Redis) -> None:
    stream_tokens(r, "q", ["a", "b"])
    assert stream_tokens(r, "q", ["a", "b"]) == 2  # the same again adds nothing
    assert r.xlen("{q}:tokens") == 3
    with pytest.raises(TokenStreamError, match="taken after token 1"):
        stream_tokens(r, "q", ["a", "c"])
    assert list(read_tokens(r, "q")) == ["a", "b"]


def test_a_long_stream_is_bounded_and_gaps_are_seen(r: redis.Redis) -> None:
    assert stream_tokens(r, "q", map(str, range(1000)), maxlen=100) == 1000
    assert 100 <= r.xlen("{q}:tokens") <= 300
    with pytest.raises(TokenStreamError, match="trimmed after token 0"):
        list(read_tokens(r, "q"))
    assert list(read_tokens(r, "q", after=950)) == [str(i) for i in range(950, 1000)]


# --8<-- [start:completer]
def completions(model: LanguageModel, line: str, k: int = 5) -> list[str]:
    """Complete the last, unfinished word of a line of words."""
    *context, typed = line.split(" ")
    ranked = model.next_tokens(context, k=1_000)
    return [word for word, _ in ranked if word.startswith(typed)][:k]


# --8<-- [end:completer]


def test_completes_an_unfinished_word(r: redis.Redis) -> None:
    model = learned(r, [["for", "item", "in", "items"], ["for", "index", "in", "range"]])
    assert set(completions(model, "for i")) >= {"item", "index"}
    assert completions(model, "for item in i")[0] == "items"
