"""realtime_training: exactly once through kills, one trainer at a time, honest figures."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, optim
from river.datasets import Bananas, Phishing
from sklearn.metrics import log_loss, roc_auc_score

from recipes import realtime_training as rt
from recipes.realtime_training import FTRL, ModelReader, OnlineTrainer, emit, metrics
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent.parent
EVENTS = list(Phishing())


def weights(r: Any, model: str = "m") -> dict[bytes, bytes]:
    return r.hgetall(f"{{{model}}}:state")


def learned_without_redis(events: list[Any], **options: Any) -> dict[bytes, bytes]:
    learner = FTRL(**options)
    for features, label in events:
        learner.learn_one(features, int(label))
    return learner.state()


# --- learning -----------------------------------------------------------------------------------


def test_each_event_is_learned_once_in_order(r: redis.Redis) -> None:
    assert emit(r, "s", EVENTS) == len(EVENTS)
    stats = OnlineTrainer(r, "m", "s").run(idle_s=0)
    assert (stats.events, stats.dead, stats.commits) == (1250, 0, 5)
    assert weights(r) == learned_without_redis(EVENTS)


def test_max_events_is_kept_and_the_next_run_goes_on(r: redis.Redis) -> None:
    emit(r, "s", EVENTS)
    trainer = OnlineTrainer(r, "m", "s", block=64)
    assert trainer.run(100, idle_s=0).events == 100
    assert weights(r) == learned_without_redis(EVENTS[:100])
    assert OnlineTrainer(r, "m", "s").run(idle_s=0).events == 1150
    assert weights(r) == learned_without_redis(EVENTS)


def test_run_waits_for_events_that_come_later(r: redis.Redis) -> None:
    result: list[rt.Stats] = []
    trainer = OnlineTrainer(r, "m", "s")
    thread = threading.Thread(target=lambda: result.append(trainer.run(20, idle_s=20)))
    thread.start()
    emit(r, "s", EVENTS[:10])
    wait_until(lambda: len(metrics(r, "m")) > 0, what="the first events are learned")
    emit(r, "s", EVENTS[10:20])
    thread.join(20)
    assert result[0].events == 20
    assert weights(r) == learned_without_redis(EVENTS[:20])


def test_predict_is_that_of_the_learned_weights(r: redis.Redis) -> None:
    emit(r, "s", EVENTS)
    OnlineTrainer(r, "m", "s").run(idle_s=0)
    oracle = FTRL()
    for features, label in EVENTS:
        oracle.learn_one(features, int(label))
    assert OnlineTrainer(r, "m", "s").predict(EVENTS[7][0]) == oracle.predict(EVENTS[7][0])


@pytest.mark.parametrize("data", [Phishing, Bananas])
def test_auc_is_that_of_river_or_better(data: type) -> None:
    ours, rivers, labels = FTRL(), [], []
    rival = linear_model.LogisticRegression(optimizer=optim.FTRLProximal())
    predictions = []
    for features, label in data():
        rivers.append(rival.predict_proba_one(features)[True])
        rival.learn_one(features, label)
        predictions.append(ours.learn_one(features, int(label)))
        labels.append(int(label))
    assert roc_auc_score(labels, predictions) >= roc_auc_score(labels, rivers) - 0.005


def test_ftrl_is_the_papers_algorithm_with_l1_and_l2() -> None:
    """An independent transcript of algorithm 1, over dense vectors."""
    rng = np.random.default_rng(0)
    learner = FTRL(alpha=0.2, beta=0.7, l1=0.05, l2=0.3)
    names = ["", "a", "b", "c"]
    z, n = np.zeros(4), np.zeros(4)
    for _ in range(200):
        x = np.array([1.0, *rng.normal(size=3)])
        y = int(x @ [0.1, 1, -1, 0] > 0)
        eta = (0.7 + np.sqrt(n)) / 0.2 + 0.3
        w = np.where(np.abs(z) <= 0.05, 0, -(z - np.sign(z) * 0.05) / eta)
        p = 1 / (1 + np.exp(-w @ x))
        g = (p - y) * x
        sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / 0.2
        z, n = z + g - sigma * w, n + g**2
        features = dict(zip(names[1:], x[1:], strict=True))
        assert learner.learn_one(features, y) == pytest.approx(p, rel=1e-9)


def test_a_mini_batch_of_one_is_an_event_and_larger_ones_stay_close(r: redis.Redis) -> None:
    single, batched = FTRL(), FTRL()
    for features, label in EVENTS[:300]:
        p = single.learn_one(features, int(label))
        assert batched.learn_batch([features], [int(label)]) == pytest.approx([p], rel=1e-9)
    emit(r, "s", EVENTS)
    OnlineTrainer(r, "m", "s", mini_batch=16).run(idle_s=0)
    assert metrics(r, "m")[-1].auc > 0.91


def test_strings_are_categories_and_booleans_are_numbers() -> None:
    learner = FTRL()
    for _ in range(50):
        learner.learn_one({"color": "red", "new": True}, 1)
        learner.learn_one({"color": "blue", "new": False}, 0)
    assert learner.predict({"color": "red"}) > 0.6 > 0.4 > learner.predict({"color": "blue"})


UNCLEAN = {1: 2.0, "c": np.str_("x"), np.str_("n"): np.int64(3), "b": np.bool_(True)}
CLEAN = {"1": 2.0, "c": "x", "n": 3.0, "b": 1.0}


def test_predict_takes_what_emit_takes_and_refuses_the_rest(r: redis.Redis) -> None:
    emit(r, "s", [({**UNCLEAN, "f": np.float64(i % 3)}, i % 2) for i in range(20)])
    trainer, oracle = OnlineTrainer(r, "m", "s"), FTRL()
    trainer.run(idle_s=0)
    for i in range(20):
        oracle.learn_one({**CLEAN, "f": float(i % 3)}, i % 2)
    own = ModelReader(r, "own", learner=Mean())
    for predict in (oracle.predict, trainer.predict, ModelReader(r, "m").predict):
        assert predict(UNCLEAN) == predict(CLEAN) == oracle.predict(CLEAN) != 0.5  # type: ignore[operator]
    for predict in (oracle.predict, trainer.predict, ModelReader(r, "m").predict, own.predict):
        for bad in (float("nan"), float("inf"), np.float32("nan"), 1e101, None, [1]):
            with pytest.raises(ValueError, match=r"feature 'a' is .*wanted is a finite number"):
                predict({"b": 1.0, "a": bad})  # type: ignore[operator]


def test_a_hash_that_is_not_kept_is_the_same_and_the_cache_is_bounded() -> None:
    long, again = FTRL(), FTRL()
    for i in range(200):
        long.learn_one({"url": f"{i % 3}" * 1000, "a": 1.0}, i % 2)
        again._slots.clear()
        again.learn_one({"url": f"{i % 3}" * 1000, "a": 1.0}, i % 2)
    assert long.state() == again.state()
    assert list(long._slots) == ["a"]


class Mean:
    """A learner of the reader's own: predicts the share of ones so far."""

    def __init__(self) -> None:
        self.n = self.ones = 0

    def predict(self, features: rt.Features) -> float:
        return (self.ones + 1) / (self.n + 2)

    def update(self, features: rt.Features, label: int) -> None:
        self.n, self.ones = self.n + 1, self.ones + label

    def state(self) -> dict[bytes, bytes]:
        return {b"counts": struct.pack("<QQ", self.n, self.ones)}

    def restore(self, fields: Any) -> None:
        if fields:
            self.n, self.ones = struct.unpack("<QQ", fields[b"counts"])


def test_the_learner_can_be_replaced_by_any_object(r: redis.Redis) -> None:
    emit(r, "s", EVENTS)
    OnlineTrainer(r, "m", "s", learner=Mean()).run(500, idle_s=0)
    OnlineTrainer(r, "m", "s", learner=Mean()).run(idle_s=0)
    ones = sum(label for _, label in EVENTS)
    reader = ModelReader(r, "m", learner=Mean())
    assert reader.predict({}) == pytest.approx((ones + 1) / 1252)
    with pytest.raises(rt.BadState, match="learned by Mean"):
        ModelReader(r, "m").predict({})


class Forgetful:
    """Only predict, update and state."""

    def predict(self, features: rt.Features) -> float:
        return 0.25

    def update(self, features: rt.Features, label: int) -> None:
        pass

    def state(self) -> dict[bytes, bytes]:
        return {b"a": b"b"}


def test_a_learner_of_predict_update_and_state_learns_from_an_empty_state(r: redis.Redis) -> None:
    emit(r, "s", EVENTS[:20])
    learner: Any = Forgetful()
    trainer = OnlineTrainer(r, "m", "s", learner=learner, mini_batch=4, block=8)
    assert trainer.run(idle_s=0)[:3] == (20, 0, 3)
    assert trainer.predict({}) == 0.25
    for use in (trainer.run, lambda: ModelReader(r, "m", learner=learner).predict({})):
        with pytest.raises(rt.BadState, match=r"Forgetful lacks restore\(fields\)"):
            use()


def test_a_learner_without_learn_batch_learns_mini_batches_one_by_one(r: redis.Redis) -> None:
    emit(r, "s", EVENTS[:20])
    OnlineTrainer(r, "m", "s", learner=Mean(), mini_batch=4, block=8).run(idle_s=0)
    emit(r, "t", EVENTS[:20])
    OnlineTrainer(r, "n", "t", learner=Mean(), block=8).run(idle_s=0)
    assert weights(r, "m") == weights(r, "n") != {}
    assert metrics(r, "m") == metrics(r, "n")


@pytest.mark.parametrize("method", ["predict", "update", "state"])
def test_a_learner_that_lacks_a_method_is_refused(r: redis.Redis, method: str) -> None:
    learner: Any = type("Half", (Mean,), {method: None})()
    with pytest.raises(TypeError, match=rf"Half is no Learner: it lacks {method}\(\)"):
        OnlineTrainer(r, "m", "s", learner=learner)


def test_a_learner_of_other_settings_is_refused(r: redis.Redis) -> None:
    emit(r, "s", EVENTS[:20])
    trainer = OnlineTrainer(r, "m", "s", learner=FTRL(alpha=1))
    trainer.run(idle_s=0)
    for other in (FTRL(), FTRL(1.0, 2.0), FTRL(1.0, l1=1), FTRL(1.0, l2=1), FTRL(1.0, bits=19)):
        with pytest.raises(
            rt.BadState, match=rf"alpha 1.0, beta 1.0, .* learner is {other.kind}: give"
        ):
            ModelReader(r, "m", learner=other).predict({})
        with pytest.raises(rt.BadState, match="learned by"):
            OnlineTrainer(r, "m", "s", learner=other).run(idle_s=0)
    same = ModelReader(r, "m", learner=FTRL(np.float64(1.0)))
    assert same.predict(EVENTS[0][0]) == trainer.predict(EVENTS[0][0])


def test_a_state_of_before_settings_and_stream_were_stored_is_taken(r: redis.Redis) -> None:
    emit(r, "s", EVENTS[:40])
    OnlineTrainer(r, "m", "s").run(20, idle_s=0)
    assert r.hdel("{m}:meta", "stream") == 1
    r.hset("{m}:meta", "kind", "FTRL of 18 bits")
    with pytest.raises(rt.BadState):
        ModelReader(r, "m", learner=FTRL(bits=8)).reload()
    assert OnlineTrainer(r, "m", "s").run(idle_s=0).events == 20
    assert r.hmget("{m}:meta", "stream", "kind") == [b"s", FTRL().kind.encode()]
    assert weights(r) == learned_without_redis(EVENTS[:40])


def test_a_block_may_change_many_weights(r: redis.Redis) -> None:
    wide = [({f"{i} {j}": 1.0 for j in range(1_000)}, i % 2) for i in range(10)]
    emit(r, "s", wide)
    assert OnlineTrainer(r, "m", "s").run(idle_s=0).commits == 1
    assert weights(r) == learned_without_redis(wide)


# --- exactly once -------------------------------------------------------------------------------

TRAIN = """
import sys, redis
from recipes.realtime_training import OnlineTrainer
r = redis.Redis.from_url(sys.argv[1])
print("started", flush=True)
OnlineTrainer(r, "m", "s", block=8, lease_s=float(sys.argv[2])).run(idle_s=0, wait_s=30)
"""


def start_trainer(url: str, lease_s: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, url, str(lease_s)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.real_redis
def test_killed_at_random_points_the_weights_are_equal_to_the_bit(r: redis.Redis, url: str) -> None:
    events = EVENTS * 4
    emit(r, "s", events)
    rng = random.Random(7)
    for kill in range(3):
        process = start_trainer(url, lease_s=1)
        try:
            target = (kill + 1) * 1000 + rng.randrange(500)
            wait_until(lambda t=target: r.xlen("s") <= len(events) - t, what="some are learned")  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
        finally:
            end(process)
    assert 0 < r.xlen("s") < len(events)
    process = start_trainer(url, lease_s=10)  # a slow machine must not cost it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert r.xlen("s") == 0
    assert weights(r) == learned_without_redis(events)
    assert metrics(r, "m")[-1].events == len(events)


@pytest.mark.real_redis
def test_a_trainer_frozen_past_its_lease_changes_nothing(r: redis.Redis, url: str) -> None:
    events = EVENTS * 20
    emit(r, "s", events)
    frozen = start_trainer(url, lease_s=0.3)
    try:
        wait_until(lambda: r.xlen("s") < len(events), what="it learns")
        os.kill(frozen.pid, signal.SIGSTOP)
        OnlineTrainer(r, "m", "s", lease_s=2).run(2_000, idle_s=0, wait_s=30)
        os.kill(frozen.pid, signal.SIGCONT)
        _, errors = frozen.communicate(timeout=60)
    finally:
        os.kill(frozen.pid, signal.SIGCONT) if frozen.poll() is None else None
        end(frozen)
    assert b"LostLease" in errors
    done = metrics(r, "m")[-1].events
    assert weights(r) == learned_without_redis(events[:done])


def test_of_two_trainers_one_works_and_the_other_is_refused(r: redis.Redis) -> None:
    first, second = OnlineTrainer(r, "m", "s"), OnlineTrainer(r, "m", "s")
    thread = threading.Thread(target=lambda: first.run(10, idle_s=20))
    thread.start()
    try:
        wait_until(lambda: r.exists("{m}:lease"), what="the first one has the lease")
        with pytest.raises(rt.TrainerBusy, match="has a trainer"):
            second.run(idle_s=0, wait_s=0)
    finally:
        emit(r, "s", EVENTS[:10])
        thread.join(20)
    assert second.run(idle_s=0, wait_s=5).events == 0
    assert r.exists("{m}:lease") == 0


def test_a_trainer_killed_before_its_first_commit_holds_the_lease_no_longer(r: redis.Redis) -> None:
    with OnlineTrainer(r, "m", "s", lease_s=5)._leased(0):
        assert 0 < r.pttl("{m}:lease") <= 5000


@pytest.mark.parametrize("done", [300, 256])  # 256: the very block that this one would store
def test_a_trainer_that_lost_its_lease_can_run_again(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    emit(r, "s", EVENTS)
    trainer, other = OnlineTrainer(r, "m", "s"), OnlineTrainer(r, "m", "s")
    store = trainer._store

    def overtaken(*arguments: Any) -> None:
        r.delete("{m}:lease")
        other.run(done, idle_s=0)
        store(*arguments)

    monkeypatch.setattr(trainer, "_store", overtaken)
    with pytest.raises(rt.LostLease, match="must stop"):
        trainer.run(idle_s=0)
    monkeypatch.undo()
    assert trainer.run(idle_s=0).events == 1250 - done
    assert weights(r) == learned_without_redis(EVENTS)


def test_the_lease_guards_before_the_other_has_committed(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit(r, "s", EVENTS)
    trainer = OnlineTrainer(r, "m", "s")
    store = trainer._store

    def overtaken(*arguments: Any) -> None:
        r.set("{m}:lease", "another trainer", px=60_000)
        store(*arguments)

    monkeypatch.setattr(trainer, "_store", overtaken)
    with pytest.raises(rt.LostLease, match="must stop"):
        trainer.run(idle_s=0)
    assert weights(r) == {}
    assert r.get("{m}:lease") == b"another trainer", "the other's lease was released"


def test_a_trainer_that_waits_for_events_notices_that_it_lost_its_lease(r: redis.Redis) -> None:
    trainer, caught = OnlineTrainer(r, "m", "s"), []

    def wait() -> None:
        try:
            trainer.run(idle_s=60)
        except rt.LostLease as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: r.exists("{m}:lease"), what="it has the lease")
    r.set("{m}:lease", "another trainer", px=60_000)
    thread.join(20)
    assert len(caught) == 1


def test_a_trainer_overtaken_while_it_waited_does_not_wait_on(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is free again, and there is nothing to read: only the position tells."""
    trainer, read = OnlineTrainer(r, "m", "s"), OnlineTrainer._read

    def overtaken(self: OnlineTrainer, *arguments: Any) -> Any:
        monkeypatch.undo()
        r.delete("{m}:lease")
        emit(r, "s", EVENTS[:10])
        assert OnlineTrainer(r, "m", "s").run(idle_s=0).events == 10
        return read(self, *arguments)

    monkeypatch.setattr(OnlineTrainer, "_read", overtaken)
    with pytest.raises(rt.LostLease, match="must stop"):
        trainer.run(idle_s=60)


def test_a_block_that_outlasts_the_lease_is_committed(r: redis.Redis) -> None:
    class Slow(Mean):
        def update(self, features: rt.Features, label: int) -> None:
            wait_until(lambda: not r.exists("{m}:lease"), what="the lease expires")
            super().update(features, label)

    emit(r, "s", EVENTS[:4])
    trainer = OnlineTrainer(r, "m", "s", learner=Slow(), lease_s=0.05, block=2)
    assert trainer.run(idle_s=0)[:3] == (4, 0, 2)
    assert weights(r) == {b"counts": struct.pack("<QQ", 4, sum(y for _, y in EVENTS[:4]))}
    assert r.exists("{m}:lease") == 0


def test_a_slow_block_renews_the_lease_between_its_events(r: redis.Redis) -> None:
    left, learned = [], []

    class Slow(Mean):
        def update(self, features: rt.Features, label: int) -> None:
            learned.append(label)
            left.append(r.pttl("{m}:lease"))
            r.pexpire("{m}:lease", 5_000)
            trainer._renew_at = 0.0  # as if so much had passed
            if len(learned) == 4:
                r.set("{m}:lease", "another trainer", px=60_000)

    emit(r, "s", EVENTS[:10])
    trainer = OnlineTrainer(r, "m", "s", learner=Slow(), lease_s=60)
    with pytest.raises(rt.LostLease, match="must stop"):
        trainer.run(idle_s=0)
    assert len(learned) == 4, "it learned on although it had lost the lease"
    assert min(left) > 5_000, "the lease was not renewed"
    assert weights(r) == {}


def test_a_model_learns_one_stream(r: redis.Redis) -> None:
    """The position is one of that stream: in another it would skip events, and trim them."""
    emit(r, "s", EVENTS[:10])
    emit(r, "t", EVENTS[10:20])
    OnlineTrainer(r, "m", "s").run(idle_s=0)
    with pytest.raises(rt.BadState, match=r"'m' learns the stream 's'.* learn 't' as another"):
        OnlineTrainer(r, "m", "t").run(idle_s=0)
    assert (r.xlen("t"), r.exists("{m}:lease")) == (10, 0)
    assert OnlineTrainer(r, "m", "s").run(idle_s=0).events == 0


def test_a_trainer_starts_from_what_is_stored_and_from_nothing_else(r: redis.Redis) -> None:
    emit(r, "s", EVENTS)
    trainer = OnlineTrainer(r, "m", "s")
    trainer.run(idle_s=0)
    assert trainer.predict(EVENTS[0][0]) != 0.5
    rt.delete(r, "m")
    trainer.run(idle_s=0)
    assert trainer.predict(EVENTS[0][0]) == 0.5


def test_the_position_guards_even_if_the_lease_does_not(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same token at both: the script must refuse the block by its position."""
    emit(r, "s", EVENTS)
    trainer, other = OnlineTrainer(r, "m", "s"), OnlineTrainer(r, "m", "s")
    other._token = trainer._token
    store = trainer._store

    def overtaken(*arguments: Any) -> None:
        r.delete("{m}:lease")
        other.run(300, idle_s=0)
        r.set("{m}:lease", trainer._token)
        store(*arguments)

    monkeypatch.setattr(trainer, "_store", overtaken)
    with pytest.raises(rt.LostLease):
        trainer.run(idle_s=0)
    assert weights(r) == learned_without_redis(EVENTS[:300])


def test_a_commit_whose_reply_was_lost_counts_once(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit(r, "s", EVENTS)
    trainer = OnlineTrainer(r, "m", "s")
    commit = trainer._commit

    def twice(**arguments: Any) -> Any:
        assert commit(**arguments) > 0
        return commit(**arguments)

    monkeypatch.setattr(trainer, "_commit", twice)
    trainer.run(idle_s=0)
    assert weights(r) == learned_without_redis(EVENTS)
    assert [row.events for row in metrics(r, "m")] == [256, 512, 768, 1024, 1250]


def test_the_stream_is_trimmed_only_behind_what_was_learned(r: redis.Redis) -> None:
    emit(r, "s", EVENTS)
    ids = [i for i, _ in r.xrange("s")]
    OnlineTrainer(r, "m", "s").run(300, idle_s=0)
    assert [i for i, _ in r.xrange("s")] == ids[300:]
    OnlineTrainer(r, "m", "s", trim=False).run(300, idle_s=0)
    assert [i for i, _ in r.xrange("s")] == ids[300:]
    assert OnlineTrainer(r, "m", "s").run(idle_s=0).events == 650


def test_a_full_block_takes_three_round_trips(r: redis.Redis) -> None:
    emit(r, "s", EVENTS[:256] * 4)
    trainer = OnlineTrainer(r, "m", "s")
    sent: list[str] = []
    execute = r.execute_command

    def counted(*arguments: Any, **options: Any) -> Any:
        sent.append(arguments[0])
        return execute(*arguments, **options)

    r.execute_command = counted  # type: ignore[method-assign]
    try:
        trainer.run(1024, idle_s=0)
    finally:
        del r.execute_command
    assert sent[-4:] == ["XREAD", "EVALSHA", "XTRIM", "EVAL"]  # the last one releases the lease
    assert (sent.count("XREAD"), sent.count("EVALSHA"), sent.count("XTRIM")) <= (4, 5, 4)


# --- malformed events ---------------------------------------------------------------------------

MALFORMED: list[tuple[dict[Any, Any], str]] = [
    ({"x": "{", "y": "1"}, "not JSON"),
    ({"x": "[" * 60_000, "y": "1"}, "not JSON"),
    ({"x": "[1]", "y": "1"}, "not a JSON object"),
    ({"x": '{"a": NaN}', "y": "1"}, "'a' is nan"),
    ({"x": '{"a": 1e999}', "y": "1"}, "'a' is inf"),
    ({"x": '{"a": [1]}', "y": "1"}, "wanted is a finite number"),
    ({"x": '{"a": 1' + "0" * 400 + "}", "y": "1"}, "wanted is"),
    ({"x": "{}", "y": "2"}, "field y"),
    ({"x": "{}"}, "field y"),
    ({b"\xff": b"\xfe"}, "field x"),
    ({"x": '{"a": "' + "b" * 70_000 + '"}', "y": "1"}, "at most 65536"),
    ({"x": b"\xff" * (8 << 20), "y": "1"}, "at most 65536"),
]


def test_malformed_events_go_to_the_dead_letters_and_stop_nothing(r: redis.Redis) -> None:
    ids = []
    for i, (entry, _) in enumerate(MALFORMED):
        ids.append(r.xadd("s", entry).decode())
        emit(r, "s", EVENTS[i : i + 1])
    stats = OnlineTrainer(r, "m", "s").run(idle_s=0)
    assert (stats.events, stats.dead) == (2 * len(MALFORMED), len(MALFORMED))
    assert weights(r) == learned_without_redis(EVENTS[: len(MALFORMED)])
    letters = rt.dead_letters(r, "m")[::-1]
    assert [letter["id"] for letter in letters] == ids
    for letter, (entry, reason) in zip(letters, MALFORMED, strict=True):
        assert reason in letter["reason"]
        assert len(json.loads(letter["entry"])) == len(entry)
        assert len(letter["entry"]) < 400_000
    assert metrics(r, "m")[-1].dead == len(MALFORMED)


def test_dead_letters_are_bounded(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rt, "KEPT_DEAD", 10)
    for _ in range(30):
        r.xadd("s", {"x": "no JSON", "y": "1"})
    r.xadd("s", {f"{i} {'n' * 100_000}": "v" * 100_000 for i in range(20)})  # type: ignore[misc]
    assert OnlineTrainer(r, "m", "s").run(idle_s=0).dead == 31
    assert r.xlen("{m}:dead") == 10
    kept = json.loads(rt.dead_letters(r, "m")[0]["entry"])
    assert [name[:2] for name in kept] == [f"{i} " for i in range(8)]
    assert {(len(name), len(value)) for name, value in kept.items()} == {(65536, 65536)}


@pytest.mark.parametrize(
    "event",
    [({"a": float("nan")}, 1), ({"a": None}, 1), ({"a": [1]}, 0), ({"a": 1.0}, 2),
     ({"a": 1.0}, 0.7), ({"a": 1.0}, -0.9), ({"a": 1.0}, float("nan")), ({"a": 1.0}, "1")],
)  # fmt: skip
def test_emit_refuses_what_a_trainer_would_refuse(r: redis.Redis, event: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        emit(r, "s", [EVENTS[0], event])
    assert r.xlen("s") == 0


def test_emit_takes_numpy_values_and_any_iterable(r: redis.Redis) -> None:
    rows: Iterator[Any] = (
        ({"a": np.float32(i), "b": np.int64(i), "c": np.bool_(True)}, np.int8(i % 2))
        for i in range(2_500)
    )
    assert emit(r, "s", rows) == 2_500 == r.xlen("s")
    assert OnlineTrainer(r, "m", "s").run(idle_s=0)[:2] == (2_500, 0)
    assert emit(r, "s", []) == 0
    assert emit(r, "labels", [({}, y) for y in (True, 1.0, np.float64(1), np.bool_(True))]) == 4
    assert {entry[b"y"] for _, entry in r.xrange("labels")} == {b"1"}


VALUES = st.one_of(st.floats(-1e99, 1e99), st.integers(-(2**60), 2**60), st.booleans(), st.text())


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.dictionaries(st.text(), VALUES), st.booleans()), max_size=20))
def test_what_is_emitted_is_what_is_learned(events: list[Any]) -> None:
    r = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    emit(r, "s", events)
    OnlineTrainer(r, "m", "s", learner=FTRL(bits=10)).run(idle_s=0)
    stored = [(json.loads(e[b"x"]), int(e[b"y"])) for _, e in r.xrange("s")]
    assert stored == []
    assert weights(r) == learned_without_redis(events, bits=10)


# --- readers and metrics ------------------------------------------------------------------------


def test_a_reader_gets_new_weights_without_a_restart(r: redis.Redis) -> None:
    reader = ModelReader(r, "m")
    assert reader.predict(EVENTS[0][0]) == 0.5
    emit(r, "s", EVENTS)
    trainer = OnlineTrainer(r, "m", "s")
    trainer.run(600, idle_s=0)
    assert reader.predict(EVENTS[0][0]) == 0.5
    assert reader.refresh()
    assert reader.predict(EVENTS[0][0]) == trainer.predict(EVENTS[0][0]) != 0.5
    assert not reader.refresh()


def test_a_reader_never_sees_a_mixture_of_two_commits(r: redis.Redis) -> None:
    events = EVENTS[:640]
    emit(r, "s", events)
    snapshots = [learned_without_redis(events[: 64 * i]) for i in range(11)]
    thread = threading.Thread(target=lambda: OnlineTrainer(r, "m", "s", block=64).run(idle_s=0))
    thread.start()
    reader = ModelReader(r, "m")
    seen = 0
    while thread.is_alive() or seen == 0:
        reader.reload()
        learner: FTRL = reader.learner
        learner._changed = {int.from_bytes(k, "little") for k in snapshots[reader.commit]}
        assert learner.state() == snapshots[reader.commit]
        seen += 1
    thread.join()


def test_nobody_commits_between_two_reads(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between commands that are not in a MULTI others may come: here a commit."""
    emit(r, "s", EVENTS[:128])
    trainer = OnlineTrainer(r, "m", "s", block=64)
    trainer.run(64, idle_s=0)
    plain = redis.client.Pipeline._execute_pipeline

    def overtaken(self: Any, connection: Any, commands: Any, *args: Any) -> list[Any]:
        monkeypatch.undo()
        first = plain(self, connection, commands[:1], *args)
        trainer.run(64, idle_s=0)
        return [*first, *plain(self, connection, commands[1:], *args)]

    monkeypatch.setattr(redis.client.Pipeline, "_execute_pipeline", overtaken)
    reader = ModelReader(r, "m")
    reader.reload()
    expected = learned_without_redis(EVENTS[: 64 * reader.commit])
    reader.learner._changed = {int.from_bytes(k, "little") for k in expected}
    assert reader.learner.state() == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [(b"abc", b"0" * 16), (b"abcd", b"0"), (b"\0\0\0\0", struct.pack("<dd", float("nan"), 1)),
     (b"\0\0\0\0", struct.pack("<dd", 1, -1)), (b"\xff\xff\xff\xff", bytes(16))],
)  # fmt: skip
def test_a_damaged_state_is_refused(r: redis.Redis, field: bytes, value: bytes) -> None:
    r.hset("{m}:state", field, value)
    with pytest.raises(rt.BadState):
        ModelReader(r, "m").predict({})


def test_damaged_sums_are_refused(r: redis.Redis) -> None:
    emit(r, "s", EVENTS[:5])
    OnlineTrainer(r, "m", "s").run(idle_s=0)
    r.hset("{m}:meta", "sums", b"short")
    r.xadd("{m}:metrics", {"sums": b"short"})
    with pytest.raises(rt.BadState, match="5 bytes"):
        OnlineTrainer(r, "m", "s").run(idle_s=0)
    with pytest.raises(rt.BadState, match="5 bytes"):
        metrics(r, "m")


def test_metrics_are_those_of_scikit_learn(r: redis.Redis) -> None:
    emit(r, "s", EVENTS)
    OnlineTrainer(r, "m", "s", block=125).run(idle_s=0)
    learner = FTRL()
    p = np.array([learner.learn_one(x, int(y)) for x, y in EVENTS])
    y = np.array([int(label) for _, label in EVENTS])
    rows = metrics(r, "m", window=250)
    assert [row.events for row in rows] == list(range(125, 1251, 125))
    for row in rows:
        done, recent = slice(0, row.events), slice(max(0, row.events - 250), row.events)
        assert row.auc == pytest.approx(roc_auc_score(y[done], p[done]), abs=0.005)
        assert row.log_loss == pytest.approx(log_loss(y[done], p[done]), rel=1e-9)
        assert row.recent_auc == pytest.approx(roc_auc_score(y[recent], p[recent]), abs=0.005)
        assert row.recent_log_loss == pytest.approx(log_loss(y[recent], p[recent]), rel=1e-9)
        assert row.recent_error == pytest.approx(np.mean((p[recent] >= 0.5) != y[recent]))


def test_metrics_without_both_labels_have_no_auc_and_are_bounded(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rt, "KEPT_METRICS", 4)
    assert metrics(r, "m") == []
    emit(r, "s", [({"a": 1.0}, 1)] * 20)
    OnlineTrainer(r, "m", "s", block=2).run(idle_s=0)
    rows = metrics(r, "m", window=2)
    assert [row.events for row in rows] == [16, 18, 20]
    assert all(np.isnan(row.auc) for row in rows)


def test_bad_arguments_are_refused(r: redis.Redis) -> None:
    for options in ({"block": 0}, {"mini_batch": 0}, {"block": 8, "mini_batch": 9}):
        with pytest.raises(ValueError, match="mini_batch <= block"):
            OnlineTrainer(r, "m", "s", **options)  # type: ignore[arg-type]
    emit(r, "s", EVENTS[:10])
    OnlineTrainer(r, "m", "s").run(idle_s=0)
    for window in (0, -1):
        with pytest.raises(ValueError, match="window >= 1"):
            metrics(r, "m", window=window)
    assert metrics(r, "m", window=1)[-1].events == 10


@pytest.mark.parametrize("call", [
    lambda r: emit(r, "s", EVENTS[:1]), lambda r: OnlineTrainer(r, "m", "s"),
    lambda r: ModelReader(r, "m"), lambda r: metrics(r, "m"), lambda r: rt.dead_letters(r, "m"),
    lambda r: rt.delete(r, "m"),
])  # fmt: skip
def test_a_client_that_decodes_is_refused_before_anything_is_sent(call: Any) -> None:
    nobody = redis.Redis.from_url("redis://127.0.0.1:1?decode_responses=1")  # would not connect
    with pytest.raises(TypeError, match="without decode_responses=True"):
        call(nobody)


def test_delete_leaves_nothing_of_the_model(r: redis.Redis) -> None:
    emit(r, "s", EVENTS[:5])
    OnlineTrainer(r, "m", "s").run(idle_s=0)
    assert rt.delete(r, "m") == 3
    assert list(r.scan_iter("*m*")) == []


@pytest.mark.real_redis
def test_it_works_on_a_cluster(cluster: redis.RedisCluster) -> None:
    emit(cluster, "s", EVENTS)
    OnlineTrainer(cluster, "m", "s").run(idle_s=0)
    assert weights(cluster) == learned_without_redis(EVENTS)
    assert ModelReader(cluster, "m").refresh()
    assert metrics(cluster, "m")[-1].events == 1250
    assert rt.delete(cluster, "m") == 3
