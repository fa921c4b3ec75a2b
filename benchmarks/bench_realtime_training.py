"""realtime_training beside river on the same stream. Wants: river, scikit-learn."""

from __future__ import annotations

import json
from typing import Any

from river import linear_model, optim
from river.datasets import Bananas, Phishing
from sklearn.metrics import roc_auc_score

from benchmarks.harness import Benchmark
from recipes import connect
from recipes.realtime_training import FTRL, OnlineTrainer, delete, emit, metrics

BATCH = 64
EVENTS = list(Phishing()) * 8


def main() -> None:
    r = connect()
    bench = Benchmark("realtime_training", "Real-time training, measured", r)
    speed(bench, r)
    quality(bench, r)
    bench.write()


def speed(bench: Benchmark, r: Any) -> None:
    emit(r, "events", EVENTS)

    def river_alone() -> None:
        model = linear_model.LogisticRegression(optimizer=optim.FTRLProximal())
        for features, label in EVENTS:
            model.predict_proba_one(features)
            model.learn_one(features, label)

    def river_with_redis_one_by_one() -> None:
        model = linear_model.LogisticRegression(optimizer=optim.FTRLProximal())
        position = "0-0"
        for _ in range(1_000):
            ((_, ((position, entry),)),) = r.xread({"events": position}, count=1)
            features = json.loads(entry[b"x"])
            model.predict_proba_one(features)
            model.learn_one(features, entry[b"y"] == b"1")
            r.hset("naive", mapping={"position": position, "weights": json.dumps(model.weights)})

    def recipe(**options: Any) -> None:
        OnlineTrainer(r, "bench", "events", trim=False, **options).run(idle_s=0)
        delete(r, "bench")

    def only_read() -> None:
        position = b"0-0"
        while reply := r.xread({"events": position}, count=256):
            position = reply[0][1][-1][0]

    bench.compare(
        "speed",
        "Predict, then learn: river's Phishing stream, eight times",
        {
            "naive: river, a read and a write of the model an event": (
                river_with_redis_one_by_one, 1_000,
            ),
            "river alone, no Redis": river_alone,
            "recipe, one event at a time": recipe,
            f"recipe, mini-batches of {BATCH}": lambda: recipe(mini_batch=BATCH, block=1_024),
            "limit: only reading the stream": only_read,
        },
        against="river alone, no Redis", unit="events", amount=len(EVENTS),
    )  # fmt: skip
    r.unlink("events", "naive")


def quality(bench: Benchmark, r: Any) -> None:
    rows = []
    for data in (Phishing, Bananas):
        events = list(data())
        labels = [int(label) for _, label in events]
        model = linear_model.LogisticRegression(optimizer=optim.FTRLProximal())
        rivers = []
        for features, label in events:
            rivers.append(model.predict_proba_one(features)[True])
            model.learn_one(features, label)
        learner = FTRL()
        single = [learner.learn_one(x, y) for (x, _), y in zip(events, labels, strict=True)]
        emit(r, "events", events)
        OnlineTrainer(r, "bench", "events", mini_batch=BATCH).run(idle_s=0)
        batched = metrics(r, "bench")[-1].auc
        delete(r, "bench")
        aucs = (roc_auc_score(labels, rivers), roc_auc_score(labels, single), batched)
        rows.append((data.__name__, len(events), *(f"{auc:.3f}" for auc in aucs)))
    header = ("stream", "events", "river, FTRL", "recipe, one at a time", f"recipe, by {BATCH}")
    bench.table("quality", "Prequential AUC over the whole stream.", header, rows)
    bench.bars(
        "quality",
        "AUC on Phishing",
        dict(zip(header[2:], map(float, rows[0][2:]), strict=True)),
        header[2],
    )
    r.unlink("events")


if __name__ == "__main__":
    main()
