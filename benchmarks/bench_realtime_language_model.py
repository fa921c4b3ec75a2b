"""Learning, scoring, completing and streaming: beside nltk, the naive way, and the limit.

Wants nltk (the peer). The text is the source of the standard library that runs this, so figures
differ a little between versions of Python.
"""

from __future__ import annotations

import random
import sysconfig
import time
import tokenize
from collections.abc import Callable, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import redis

from benchmarks.harness import Benchmark
from recipes import connect
from recipes import realtime_language_model as recipe
from recipes.realtime_language_model import START, LanguageModel, read_tokens, stream_tokens

NAME = "bench-realtime-language-model"
SCORED, LOOKED_UP = 12_000, 300  # held-out tokens for the fast ways, and for the slow ones


def texts() -> tuple[list[list[str]], list[list[str]]]:
    """Modules to train on and modules held out; tokens seen once in training are unknown."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))
    random.Random(0).shuffle(paths)
    modules = []
    for path in paths[:85]:
        with tokenize.open(path) as file:
            tokens = list(tokenize.generate_tokens(file.readline))
        modules.append([t.string for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)])
    train, held_out = modules[:70], modules[70:]
    seen: set[str] = set()
    twice = {t for text in train for t in text if t in seen or seen.add(t)}  # type: ignore[func-returns-value]
    return [[[t if t in twice else recipe.UNKNOWN for t in text] for text in part]
            for part in (train, held_out)]  # type: ignore[return-value]  # fmt: skip


def main() -> None:
    """Run all comparisons and write the page."""
    r = connect()
    train, held_out = texts()
    tokens = [token for text in train for token in text]
    ahead = [token for text in held_out for token in text][:SCORED]
    bench = Benchmark("realtime_language_model", "A language model in Redis", r)
    learning(bench, r, train, tokens)
    model = LanguageModel(r, NAME)
    model.learn(tokens)
    quality(bench, r, model, tokens, ahead)
    completing(bench, r, model, ahead)
    streaming(bench, r)
    bench.write()


def learning(
    bench: Benchmark, r: redis.Redis, train: Sequence[Sequence[str]], tokens: Sequence[str]
) -> None:
    def ours(pieces: Sequence[Sequence[str]], script: str = recipe.UPDATE) -> Callable[[], float]:
        def run() -> float:
            model, update = LanguageModel(r, NAME), recipe.UPDATE
            recipe.UPDATE = script
            start = time.perf_counter()
            for piece in pieces:
                model.learn(piece)
            seconds = time.perf_counter() - start
            recipe.UPDATE = update
            model.delete()
            return seconds

        return run

    def increments(many: Sequence[str], at_once: int) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            pipe = r.pipeline(transaction=False)
            for i in range(2, len(many)):
                for n in range(3):
                    pipe.hincrby(f"{{{NAME}}}:{n}:{' '.join(many[i - n : i])}", many[i], 1)
                if len(pipe) >= at_once:
                    pipe.execute()
            pipe.execute()
            seconds = time.perf_counter() - start
            LanguageModel(r, NAME).delete()
            return seconds

        return run

    ways: dict[str, object] = {
        "learn, all modules as one text": ours([tokens]),
        "learn, a call for each module": ours(train),
        "HINCRBY, a round trip each": (increments(tokens[:4_000], 1), 4_000),
        "HINCRBY, pipelines of 3,000": (increments(tokens[:40_000], 3_000), 40_000),
        "limit: the same bytes, nothing stored": ours([tokens], "return 1"),
    }
    try:
        from nltk.lm import KneserNeyInterpolated
        from nltk.lm.preprocessing import padded_everygram_pipeline
    except ImportError:
        bench.note("nltk is not installed, so its rows are left out.")
    else:

        def nltk_fit() -> None:
            KneserNeyInterpolated(3).fit(*padded_everygram_pipeline(3, train))

        ways["nltk, in its own memory"] = nltk_fit
    peer = "nltk, in its own memory"
    bench.compare(
        "learn", "Learning trigrams; the HINCRBY ways keep raw counts only, no continuation counts",
        ways,  # type: ignore[arg-type]
        against=peer if peer in ways else "learn, all modules as one text",
        unit="tokens", amount=len(tokens), repeats=5,
    )  # fmt: skip


def quality(
    bench: Benchmark, r: redis.Redis, model: LanguageModel, tokens: list[str], ahead: list[str]
) -> None:
    def one_by_one() -> None:
        for i in range(2, LOOKED_UP):
            model.probability(ahead[i], ahead[i - 2 : i])

    ways: dict[str, object] = {
        "perplexity": lambda: void(model.perplexity(ahead)),
        "probability, token by token": (one_by_one, LOOKED_UP),
    }
    rows = []
    try:
        from nltk.lm import KneserNeyInterpolated
        from nltk.util import everygrams, ngrams
    except ImportError:
        pass
    else:
        peer = KneserNeyInterpolated(3)
        peer.fit([everygrams([START, START, *tokens], max_len=3)], tokens)
        grams = list(ngrams([START, START, *ahead[:LOOKED_UP]], 3))
        ways["nltk, in its own memory"] = (lambda: void(peer.perplexity(grams)), LOOKED_UP)
        rows.append(("nltk KneserNeyInterpolated", f"{peer.perplexity(grams):.2f}", "", ""))
    bench.compare(
        "score", "Scoring held-out text", ways,  # type: ignore[arg-type]
        against="nltk, in its own memory" if rows else "perplexity",
        unit="tokens", amount=len(ahead), repeats=3,
    )  # fmt: skip
    copy = LanguageModel(r, f"{NAME}-pruned")
    copy.learn(tokens)
    for min_count in (1, 2, 3):
        copy.prune(min_count)
        keys = list(r.scan_iter(match=f"{{{copy.name}}}:*", count=10_000))
        memory = sum(r.memory_usage(key, samples=0) or 0 for key in keys)
        name = "this recipe" if min_count == 1 else f"after prune({min_count})"
        rows.append((
            name, f"{copy.perplexity(ahead[:LOOKED_UP]):.2f}", f"{copy.perplexity(ahead):.2f}",
            f"{memory / len(tokens):.1f}",
        ))  # fmt: skip
    copy.delete()
    bench.table(
        "quality",
        f"Held-out perplexity (lower is better) after {len(tokens):,} tokens of "
        f"{len(set(tokens)):,} kinds, and server memory by MEMORY USAGE. "
        "A pruned model has fewer kinds to tell apart.",
        ("model", f"first {LOOKED_UP} tokens", f"{len(ahead):,} tokens", "bytes a token learned"),
        rows,
    )


def completing(bench: Benchmark, r: redis.Redis, model: LanguageModel, ahead: list[str]) -> None:
    starts = range(2, 2 + 2 * 100, 2)

    def ours() -> None:
        for i in starts:
            model.next_tokens(ahead[i - 2 : i])

    def whole_lists() -> None:
        for i in starts:
            after = model._context(ahead[i - 2 : i])
            words: Any = {*r.zrange(model.key_of(()), 0, -1)} - {recipe.TOTAL}
            asked = dict.fromkeys(recipe._suffixes(after), words)
            snapshot = recipe.Snapshot(model, asked)
            sorted(words, key=lambda t, s=snapshot, a=after: -s.probability(a, t))[:5]  # type: ignore[misc]

    def bare() -> None:
        for i in starts:
            after = tuple(token.encode() for token in ahead[i - 2 : i])
            r.zrange(model.key_of(after), 0, 4, desc=True, withscores=True)

    bench.compare(
        "complete", "The five most probable next tokens",
        {
            "next_tokens": ours,
            "naive: score the whole vocabulary": whole_lists,
            "limit: one bare ZRANGE of five": bare,
        },
        against="naive: score the whole vocabulary", unit="answers", amount=len(starts), repeats=3,
    )  # fmt: skip


def streaming(bench: Benchmark, r: redis.Redis) -> None:
    names = (f"{NAME}-{i}" for i in count())
    words = [f"token {i}" for i in range(1_000)]

    def clean(name: str) -> None:
        r.unlink(f"{{{name}}}:tokens")

    def ours() -> float:
        name, start = next(names), time.perf_counter()
        stream_tokens(r, name, words)
        seconds = time.perf_counter() - start
        clean(name)
        return seconds

    def read() -> float:
        name = next(names)
        stream_tokens(r, name, words)
        start = time.perf_counter()
        assert list(islice(read_tokens(r, name), len(words))) == words
        seconds = time.perf_counter() - start
        clean(name)
        return seconds

    def bare() -> float:
        name, start = next(names), time.perf_counter()
        for word in words:
            r.xadd(f"{{{name}}}:tokens", {"token": word})
        seconds = time.perf_counter() - start
        clean(name)
        return seconds

    bench.compare(
        "stream", "Sending tokens one by one, and reading them late",
        {
            "stream_tokens: with TTL, limit and cancel": ours,
            "limit: XADD only": bare,
            "read_tokens, from the start": read,
        },
        against="limit: XADD only", unit="tokens", amount=len(words), repeats=5,
    )  # fmt: skip


def void(_: object) -> None:
    return None


if __name__ == "__main__":
    main()
