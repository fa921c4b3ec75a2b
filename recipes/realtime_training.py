"""Learn from a Redis stream, event by event, exactly once, through a crash.

Use when: events (clicks, alerts, prices) arrive all the time, labels follow soon, and the model
    must know at noon what happened at eleven.
Not when: yesterday's model is good enough (train in batches, publish with model_params); labels
    come days later (join them first); one process can't keep up (shard the events by model).
Keys: <stream> (stream, one entry an event: x = JSON features, y = 0 or 1; trimmed behind what was
    learned); {<model>}:state (hash, 20 bytes a weight and Redis's overhead), :meta (hash: stream,
    position, commit, sums), :metrics (stream, the last 1,000 commits, 4 KiB each), :dead (stream,
    the last 10,000 refused events, of each 8 fields at most, cut after 64 KiB), :lease (string,
    TTL lease_s). delete() removes all but the stream.
Guarantees: weights, position, metrics and dead letters of a block of events are stored by one
    script, only if the position is still where the block began: each event counts once, also after
    kill -9. One trainer and one stream a model; a second one waits, then is refused. A crash or a
    failover of the server loses of the stream and the state what its disk or its replica lacks. On
    Cluster give the stream the model's hash tag, {<model>}:NAME, or a failover may trim what was
    not learned.
Cost: a block (up to 256 events) is 3 round trips: read, commit, trim; a commit sends the changed
    weights. A reader's refresh is 1 round trip if nothing changed, else 2 and the whole state.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy river
Run: python recipes/realtime_training.py learns river's bundled Phishing stream.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import operator
import struct
import time
import uuid
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import redis

Client = redis.Redis | redis.cluster.RedisCluster
Features = Mapping[str, Any]  # numbers and booleans are values, strings are categories
Entry = tuple[bytes, dict[bytes, bytes]]
MAX_EVENT_BYTES = 1 << 16
KEPT_METRICS, KEPT_DEAD, KEPT_FIELDS = 1_000, 10_000, 8
_WANTED = "wanted is a finite number, a bool or a string"
_decode = json.JSONDecoder().decode  # json.loads would guess the encoding of each event
BINS = 256  # of the histograms of predictions from which the AUC is read


class TrainerBusy(Exception):
    """Another trainer holds this model's lease."""


class LostLease(Exception):
    """Another trainer took over while this one was away; its block was not stored."""


class BadState(Exception):
    """The stored state does not fit the learner, or is damaged."""


# --8<-- [start:events]
# Events are input from elsewhere. Without these checks one NaN ruins every weight that it
# touches, and one malformed event stops the trainer for all that come behind it.
def emit(r: Client, stream: str, events: Iterable[tuple[Features, Any]]) -> int:
    """Append `(features, label)` events to `stream`, 1,000 a round trip; return how many.

    Raises ValueError for an event that a trainer would refuse; none of its thousand is sent then.
    """
    count, pipe = 0, _of_bytes(r).pipeline(transaction=False)
    for count, (features, label) in enumerate(events, 1):
        if label not in (0, 1):
            raise ValueError(f"label {label!r}: wanted is 0 or 1")
        entry = {b"x": _json(features), b"y": b"1" if label else b"0"}
        _parse(entry)
        pipe.xadd(stream, entry)  # type: ignore[arg-type]
        if count % 1_000 == 0:
            pipe.execute()
    pipe.execute()
    return count


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


def _json(features: Features) -> bytes:
    return json.dumps(dict(features), default=float).encode()  # float: numpy's numbers


def _parse(entry: Mapping[bytes, bytes]) -> tuple[dict[str, Any], int]:
    """Return features and label, or raise ValueError with the reason for the dead letter."""
    text, label = entry.get(b"x"), entry.get(b"y")
    if text is None or label not in (b"0", b"1"):
        raise ValueError("an event has a field x (JSON features) and a field y (0 or 1)")
    if len(text) > MAX_EVENT_BYTES:
        raise ValueError(f"features of {len(text)} bytes; at most {MAX_EVENT_BYTES} are read")
    try:
        features = _decode(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"features are not JSON: {error}") from None
    if not isinstance(features, dict):
        raise ValueError("features are not a JSON object")
    for name, value in features.items():
        is_number = isinstance(value, (float, int)) and -1e100 < value < 1e100
        if not is_number and not isinstance(value, str):
            raise ValueError(f"feature {name[:50]!r} is {str(value)[:20]}: {_WANTED}")
    return features, int(label)


def _checked(features: Features) -> Features:
    """Return features as a trainer would read them from the stream; raise as emit() does."""
    for name, value in features.items():
        is_number = isinstance(value, (float, int)) and -1e100 < value < 1e100
        if name.__class__ is not str or not (is_number or value.__class__ is str):
            return _parse({b"x": _json(features), b"y": b"0"})[0]
    return features


# --8<-- [end:events]


# --8<-- [start:learner]
# The learner is yours to replace: predict, update, and a state of named byte strings. A commit
# stays small because only what changed since the last one is asked for and stored.
class Learner(Protocol):
    """What OnlineTrainer needs; `learn_one` and `learn_batch`, as FTRL has them, make it fast.

    `kind`, a text that names the settings, lets a reader with other ones be refused. Without
    `restore` a learner learns, but nothing can go on from its stored state.
    """

    def predict(self, features: Features) -> float:
        """Return the probability that the label is 1."""

    def update(self, features: Features, label: int) -> None:
        """Learn one event."""

    def state(self) -> dict[bytes, bytes]:
        """Return the fields that changed since the last call (or all of them)."""

    def restore(self, fields: Mapping[bytes, bytes]) -> None:
        """Take over stored fields; raise BadState if they do not fit."""


class FTRL:
    """FTRL-proximal logistic regression on hashed features (McMahan et al. 2013, algorithm 1).

    There are 2**bits weights; features whose hashes collide share one. `alpha` and `beta` set the
    learning rate of a weight, `l1` drives weights to exactly 0, `l2` shrinks them.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        bits: int = 18,
    ) -> None:
        self.alpha, self.beta, self.l1, self.l2, self.bits = alpha, beta, l1, l2, bits
        settings = zip(("alpha", "beta", "l1", "l2"), (alpha, beta, l1, l2), strict=True)
        self.kind = ", ".join([f"FTRL of {bits} bits", *(f"{k} {float(v)}" for k, v in settings)])
        self._z, self._n = array("d", bytes(8 << bits)), array("d", bytes(8 << bits))
        self._changed: set[int] = set()
        self._slots: dict[str, int] = {}

    def _slot(self, name: str) -> int:
        slot = zlib.crc32(name.encode(errors="replace")) & ((1 << self.bits) - 1)
        if len(name) <= 64:  # a cache: it must not grow with the stream, nor with its names
            if len(self._slots) >= 1 << 18:
                self._slots.clear()
            self._slots[name] = slot
        return slot

    def _hashed(self, features: Features) -> tuple[list[int], list[float]]:
        """Return slots and values; the first is the intercept's."""
        known, slots, values = self._slots, [0], [1.0]
        for name, value in features.items():
            if value.__class__ is str:
                name, value = f"{name}={value}", 1.0
            slots.append(known[name] if name in known else self._slot(name))
            values.append(value)
        return slots, values

    def _weight(self, slot: int) -> float:
        z, l1 = self._z[slot], self.l1
        if -l1 <= z <= l1:
            return 0.0
        rate = (self.beta + math.sqrt(self._n[slot])) / self.alpha + self.l2
        return ((l1 if z > 0 else -l1) - z) / rate

    def predict(self, features: Features) -> float:
        """Return the probability that the label is 1; raise ValueError as emit() does."""
        slots, values = self._hashed(_checked(features))
        return _sigmoid(sum(self._weight(s) * v for s, v in zip(slots, values, strict=True)))

    def update(self, features: Features, label: int) -> None:
        """Learn one event."""
        self.learn_one(features, label)

    def learn_one(self, features: Features, label: int) -> float:
        """Predict, then learn, for the price of one look at the weights."""
        slots, values = self._hashed(features)
        weights = [self._weight(slot) for slot in slots]
        p = _sigmoid(sum(map(operator.mul, weights, values)))
        for slot, value, weight in zip(slots, values, weights, strict=True):
            g, old = (p - label) * value, self._n[slot]
            self._n[slot] = new = old + g * g
            self._z[slot] += g - (math.sqrt(new) - math.sqrt(old)) / self.alpha * weight
        self._changed.update(slots)
        return p

    def learn_batch(self, events: Sequence[Features], labels: Sequence[int]) -> list[float]:
        """Predict all events, then learn them in one step; return the predictions."""
        hashed = [self._hashed(features) for features in events]
        row = np.repeat(np.arange(len(hashed)), [len(slots) for slots, _ in hashed])
        value = np.array([v for _, values in hashed for v in values], np.float64)
        slots, at = np.unique([s for slots, _ in hashed for s in slots], return_inverse=True)
        z_all, n_all = np.frombuffer(self._z), np.frombuffer(self._n)
        z, n = z_all[slots], n_all[slots]
        shrunk = np.sign(z) * np.maximum(np.abs(z) - self.l1, 0)
        weight = -shrunk / ((self.beta + np.sqrt(n)) / self.alpha + self.l2)
        total = np.bincount(row, weight[at] * value, len(hashed))
        p = 1 / (1 + np.exp(-np.clip(total, -35, 35)))
        g = (p - np.asarray(labels))[row] * value
        n_all[slots] = new = n + np.bincount(at, g * g, len(slots))
        z_all[slots] += np.bincount(at, g, len(slots))
        z_all[slots] -= (np.sqrt(new) - np.sqrt(n)) / self.alpha * weight
        self._changed.update(slots.tolist())
        return p.tolist()  # type: ignore[no-any-return]

    def state(self) -> dict[bytes, bytes]:
        """Return slot -> z and n (two float64) of the weights changed since the last call."""
        changed, self._changed = sorted(self._changed), set()
        pack = struct.Struct("<dd").pack
        return {s.to_bytes(4, "little"): pack(self._z[s], self._n[s]) for s in changed}

    def restore(self, fields: Mapping[bytes, bytes]) -> None:
        """Take over fields as state() returns them."""
        for field, value in fields.items():
            if len(field) != 4 or len(value) != 16:
                raise BadState("a weight of the state has not 4 + 16 bytes")
            slot, (z, n) = int.from_bytes(field, "little"), struct.unpack("<dd", value)
            if slot >> self.bits or not math.isfinite(z) or not 0 <= n < math.inf:
                raise BadState(f"weight {slot} does not fit {self.bits} bits, or is not finite")
            self._z[slot], self._n[slot] = z, n


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-35.0, min(35.0, x))))


# --8<-- [end:learner]


# --8<-- [start:reading]
# A server of predictions must get new weights without a restart, and never a mixture of two
# commits: the state and its commit number are read in one transaction.
def _keys(model: str) -> list[str]:
    return [f"{{{model}}}:{part}" for part in ("lease", "meta", "state", "metrics", "dead")]


class ModelReader:
    """Predicts by the stored weights; call refresh() as often as freshness demands."""

    def __init__(self, r: Client, model: str, *, learner: Learner | None = None) -> None:
        self._r, self._model, self._keys = _of_bytes(r), model, _keys(model)
        self._untrained: Any = FTRL() if learner is None else learner
        self.kind = getattr(self._untrained, "kind", type(self._untrained).__name__)
        self.learner: Any = self._untrained
        self.commit, self.stream = -1, ""  # none yet

    def predict(self, features: Features) -> float:
        """Return the probability of label 1 by the weights of the last refresh().

        Raises ValueError for features that emit() would refuse.
        """
        if self.commit < 0:
            self.reload()
        return float(self.learner.predict(_checked(features)))

    def refresh(self) -> bool:
        """Take over what was learned since; return whether there was anything."""
        changed = int(self._r.hget(self._keys[1], "commit") or 0) != self.commit
        if changed:
            self.reload()
        return changed

    def reload(self) -> tuple[bytes | None, bytes | None]:
        """Read the whole state anew; return the stored position and sums.

        Raises BadState if a learner of another kind or settings wrote it, or if it is damaged.
        """
        pipe = self._r.pipeline(transaction=True)
        pipe.hmget(self._keys[1], "commit", "kind", "position", "sums", "stream")
        pipe.hgetall(self._keys[2])  # bounded: FTRL has at most 2**bits fields
        (commit, kind, position, sums, stream), fields = pipe.execute()
        known = self.kind if kind is None else _text(kind)  # older ones lack the settings
        if not f"{self.kind},".startswith(f"{known},"):
            raise BadState(
                f"{self._model!r} was learned by {known}, this learner is {self.kind}: give one of"
                " the same kind and settings"
            )
        learner = copy.deepcopy(self._untrained)
        if hasattr(learner, "restore"):
            learner.restore(fields)
        elif fields:
            raise BadState(f"{self.kind} lacks restore(fields), and {self._model!r} has a state")
        self.learner, self.commit, self.stream = learner, int(commit or 0), _text(stream or b"")
        return position, sums


# --8<-- [end:reading]


# --8<-- [start:exactly-once]
# If weights and position were two writes, a crash between them would learn a block twice or never.
# One script stores both, and only if the position is still where this block began: a trainer that
# was frozen and overtaken changes nothing. A commit sent again after a lost reply is recognised, if
# the lease shows that no other trainer stored it. A lease that expired and that nobody took is
# taken again, so that a slow block is not lost. A commit that ends where it began only renews it.
_COMMIT = """
local lease, meta, state, metrics, dead = unpack(KEYS)
local token, lease_ms, before, after = unpack(ARGV, 1, 4)
local holder = redis.call('GET', lease)
if holder and holder ~= token then return -1 end
local position = redis.call('HGET', meta, 'position') or '0-0'
if position ~= before and (position ~= after or not holder) then return -1 end
redis.call('SET', lease, token, 'PX', lease_ms)
if position == after then return tonumber(redis.call('HGET', meta, 'commit') or 0) end
redis.call('HSET', meta, 'position', after, 'kind', ARGV[5], 'sums', ARGV[6], 'stream', ARGV[7])
redis.call('XADD', metrics, 'MAXLEN', ARGV[8], '*', 'sums', ARGV[6])
local letters = 11 + tonumber(ARGV[10])
for i = 11, letters - 1, 1000 do
  redis.call('HSET', state, unpack(ARGV, i, math.min(i + 999, letters - 1)))
end
for i = letters, #ARGV, 3 do
  redis.call('XADD', dead, 'MAXLEN', ARGV[9], '*',
             'id', ARGV[i], 'reason', ARGV[i + 1], 'entry', ARGV[i + 2])
end
return redis.call('HINCRBY', meta, 'commit', 1)
"""
_RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"


class Stats(NamedTuple):
    """What one run did: events read, of these refused as dead letters, commits, and seconds."""

    events: int
    dead: int
    commits: int
    seconds: float


class OnlineTrainer:
    """Learns `stream` into `model`; `learner` may be any object as in Learner.

    `block`: events of a commit, at the most. `mini_batch`: events of one step of the learner, if
    it has learn_batch (1: one at a time; otherwise the steps depend on how many events were there
    when it read). `lease_s`: so long after a crash the next trainer can start; give more than one
    step takes, else another may take over. `trim=False` keeps what was learned in the stream, for
    its other readers.
    """

    def __init__(
        self, r: Client, model: str, stream: str, *, learner: Learner | None = None,
        block: int = 256, mini_batch: int = 1, lease_s: float = 10.0, trim: bool = True,
    ) -> None:  # fmt: skip
        if not 1 <= mini_batch <= block <= 10_000:
            raise ValueError("needed: 1 <= mini_batch <= block <= 10,000")
        for method in ("predict", "update", "state"):
            if learner is not None and not callable(getattr(learner, method, None)):
                raise TypeError(f"{type(learner).__name__} is no Learner: it lacks {method}()")
        self._r, self._model, self._stream, self._keys = r, model, stream, _keys(model)
        self._reader = ModelReader(r, model, learner=learner)
        self._block, self._mini_batch, self._trim = block, mini_batch, trim
        self._lease_ms, self._token = int(lease_s * 1000), uuid.uuid4().hex
        self._commit = r.register_script(_COMMIT)

    def predict(self, features: Features) -> float:
        """Return the probability of label 1 by the weights of now."""
        return self._reader.predict(features)

    def run(
        self, max_events: int | None = None, *, idle_s: float = 1.0, wait_s: float | None = None
    ) -> Stats:
        """Learn until `max_events` are done or none has come for `idle_s` seconds (inf: for ever).

        Waits `wait_s` (default: a lease and a second) for the lease, then raises TrainerBusy.
        Raises LostLease if another trainer took over meanwhile: the block that was under way is
        not stored, and run() may be called again. Raises BadState if the model learned another
        stream, or by another learner. Malformed events become dead letters.
        """
        start = last = time.monotonic()
        events = dead = commits = 0
        with self._leased(self._lease_ms / 1000 + 1 if wait_s is None else wait_s):
            position, sums = self._reader.reload()
            if self._reader.stream not in ("", self._stream):
                raise BadState(
                    f"{self._model!r} learns the stream {self._reader.stream!r}, and its position"
                    f" is one of that: emit there, or learn {self._stream!r} as another model"
                )
            self._position = _text(position or b"0-0")
            self._sums = _unpack(sums) if sums else np.zeros(2 * BINS + 4)
            while max_events is None or events < max_events:
                left = self._block if max_events is None else max_events - events
                patience = last + idle_s - time.monotonic()
                entries = self._read(min(left, self._block), patience)
                if entries:
                    dead += self._learn(entries)
                    events, commits, last = events + len(entries), commits + 1, time.monotonic()
                elif patience <= 0:
                    break
        return Stats(events, dead, commits, time.monotonic() - start)

    def _read(self, count: int, patience_s: float) -> list[Entry]:
        wait_ms = int(min(patience_s * 1000, self._lease_ms / 3, 1000))
        reply: Any = self._r.xread(
            {self._stream: self._position}, count=count, block=wait_ms if wait_ms > 0 else None
        )
        if not reply:
            self._send(self._position)
        return reply[0][1] if reply else []

    def _learn(self, entries: list[Entry]) -> int:
        """Learn a block and commit it; return how many events were refused."""
        events, labels, dead = [], [], []
        for entry_id, entry in entries:
            try:
                features, label = _parse(entry)
            except ValueError as error:
                kept = list(entry.items())[:KEPT_FIELDS]  # an event of any size is to be kept
                fields = {_text(k[:MAX_EVENT_BYTES]): _text(v[:MAX_EVENT_BYTES]) for k, v in kept}
                dead += [entry_id, str(error), json.dumps(fields)]
            else:
                events.append(features)
                labels.append(label)
        predictions: list[float] = []
        for predicted in self._steps(self._reader.learner, events, labels):
            predictions += predicted
            if time.monotonic() > self._renew_at:  # or another takes over while this one learns
                self._send(self._position)
        self._sums = self._sums + _sums_of(labels, predictions, len(dead) // 3)
        self._store(entries[-1][0].decode(), self._reader.learner.state(), dead)
        return len(dead) // 3

    def _steps(
        self, learner: Any, events: Sequence[Features], labels: Sequence[int]
    ) -> Iterator[list[float]]:
        """Predict and learn, a mini-batch or an event a step; yield the predictions of each."""
        if self._mini_batch > 1 and hasattr(learner, "learn_batch"):
            for i in range(0, len(events), self._mini_batch):
                part = slice(i, i + self._mini_batch)
                yield learner.learn_batch(events[part], labels[part])
        else:
            learn = getattr(learner, "learn_one", lambda x, y: _learn_one(learner, x, y))
            for event, label in zip(events, labels, strict=True):
                yield [learn(event, label)]

    def _store(self, position: str, fields: dict[bytes, bytes], dead: list[Any]) -> None:
        weights = [part for field in fields.items() for part in field]
        commit = self._send(
            position, self._reader.kind, self._sums.tobytes(), self._stream,
            KEPT_METRICS, KEPT_DEAD, len(weights), *weights, *dead,
        )  # fmt: skip
        self._position, self._reader.commit = position, commit
        if self._trim:
            milliseconds, _, sequence = position.partition("-")
            unread = f"{milliseconds}-{int(sequence) + 1}"
            self._r.xtrim(self._stream, minid=unread, approximate=False)

    def _send(self, position: str, *block: Any) -> int:
        """Commit a block, or renew the lease if the position stays; return the commit's number."""
        arguments = [self._token, self._lease_ms, self._position, position, *block]
        commit = int(self._commit(keys=self._keys, args=arguments))
        if commit < 0:
            raise LostLease(
                f"this trainer of {self._model!r} must stop: another one learns it or went on with"
                " it, or the server lost commits; run() goes on from what is stored"
            )
        self._renew_at = time.monotonic() + self._lease_ms / 3000
        return commit

    @contextlib.contextmanager
    def _leased(self, wait_s: float) -> Iterator[None]:
        deadline = time.monotonic() + wait_s
        while not self._r.set(self._keys[0], self._token, nx=True, px=self._lease_ms):
            if time.monotonic() > deadline:
                raise TrainerBusy(f"{self._model!r} has a trainer: end that first, or wait longer")
            time.sleep(0.02)
        self._renew_at = time.monotonic() + self._lease_ms / 3000
        try:
            yield
        finally:
            self._r.eval(_RELEASE, 1, self._keys[0], self._token)


def _learn_one(learner: Learner, features: Features, label: int) -> float:
    p = learner.predict(features)
    learner.update(features, label)
    return p


# --8<-- [end:exactly-once]


# --8<-- [start:metrics]
# A model that learns while it serves can go wrong while nobody looks. Each event is predicted
# before it is learned (prequential evaluation, Dawid 1984), so these are honest test figures. All
# are read from sums, so that those of the last events are a difference of two commits' sums.
def _sums_of(labels: list[int], predictions: list[float], dead: int) -> np.ndarray[Any, Any]:
    """Return counts of predictions by label and bin of log odds, events, dead, errors, log loss."""
    y, p = np.array(labels, np.int64), np.clip(np.array(predictions), 1e-15, 1 - 1e-15)
    bins = np.clip((np.log(p / (1 - p)) + 8) * BINS / 16, 0, BINS - 1).astype(np.int64)
    loss = -np.log(np.where(y == 1, p, 1 - p)).sum()
    figures = [len(y), dead, np.sum((p >= 0.5) != y), loss]
    return np.concatenate([np.bincount(y * BINS + bins, minlength=2 * BINS), figures])


def _unpack(sums: bytes) -> np.ndarray[Any, Any]:
    if len(sums) != 8 * (2 * BINS + 4):
        raise BadState(f"sums of {len(sums)} bytes: damaged, or of another version")
    return np.frombuffer(sums)


class Metric(NamedTuple):
    """Prequential figures after a commit: of all events so far, and of the recent ones."""

    events: int
    dead: int
    auc: float
    log_loss: float
    recent_auc: float
    recent_log_loss: float
    recent_error: float


def metrics(r: Client, model: str, *, window: int = 500) -> list[Metric]:
    """Return a Metric a commit, of the last 1,000; "recent" is `window` events or a few more.

    The AUC counts pairs within a bin (1/16 of log odds) as ties; nan without both labels.
    """
    if window < 1:
        raise ValueError(f"window is {window}: needed is window >= 1")
    stored: Any = _of_bytes(r).xrange(_keys(model)[3], count=KEPT_METRICS)
    rows = [_unpack(entry[b"sums"]) for _, entry in stored]
    if len(rows) < KEPT_METRICS:
        rows.insert(0, np.zeros(2 * BINS + 4))  # nothing was trimmed: they began at zero
    found, back = [], 0
    for now in rows[1:]:
        while rows[back + 1][-4] <= now[-4] - window:
            back += 1
        (events, dead, _, loss), (n, _, errors, lately) = now[-4:], (now - rows[back])[-4:]
        recent = _auc(now - rows[back]), lately / max(n, 1), errors / max(n, 1)
        found.append(Metric(int(events), int(dead), _auc(now), loss / max(events, 1), *recent))
    return found


def _auc(sums: np.ndarray[Any, Any]) -> float:
    negatives, positives = sums[:-4].reshape(2, BINS)
    pairs = negatives.sum() * positives.sum()
    below = np.cumsum(negatives) - negatives / 2
    return float(below @ positives / pairs) if pairs else math.nan


def dead_letters(r: Client, model: str, *, count: int = 100) -> list[dict[str, str]]:
    """Return the last `count` refused events, the newest first: id, reason, entry (JSON)."""
    letters: Any = _of_bytes(r).xrevrange(_keys(model)[4], count=count)
    return [{_text(k): _text(v) for k, v in letter.items()} for _, letter in letters]


def delete(r: Client, model: str) -> int:
    """Remove a model's keys; return how many there were. The stream stays."""
    return int(_of_bytes(r).unlink(*_keys(model)))


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


# --8<-- [end:metrics]


# --8<-- [start:usage]
# The smallest honest use, on river's Phishing stream: 1,250 web sites, nine features each, label 1
# for a phishing site. Half is learned by one trainer, the rest by another, as after a crash.
def demo(r: redis.Redis) -> None:
    """Learn a stream with two trainers in turn, and predict by what they stored."""
    from river.datasets import Phishing

    events = list(Phishing())
    print(f"emitted {emit(r, 'sites', events)} events, and one that is malformed")
    r.xadd("sites", {"x": '{"age": NaN}', "y": "1"})
    first = OnlineTrainer(r, "phishing", "sites").run(625)
    print(f"a trainer learned {first.events} events in {first.commits} commits, and ended")
    second = OnlineTrainer(r, "phishing", "sites").run(idle_s=0)
    print(f"another went on: {second.events} more events, {second.dead} of them refused")
    print(f"  because: {dead_letters(r, 'phishing')[0]['reason']}")
    print(f"left in the stream: {r.xlen('sites')}")
    for row in metrics(r, "phishing")[1::2]:
        print(f"after {row.events:5} events: AUC {row.auc:.2f}, log loss {row.log_loss:.2f}")
    print(f"p(phishing) of the last site: {ModelReader(r, 'phishing').predict(events[-1][0]):.2f}")
    delete(r, "phishing")
    r.unlink("sites")
    print("Two trainers that know nothing of each other learned each event exactly once.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
