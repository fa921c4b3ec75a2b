"""Answer predictions within a latency budget, with the newest features and model.

Use when: a request names an entity (a user, a card) and waits for a score: its features change
    all the time, the model now and then, and an answer that is late is worth nothing.
Not when: nobody waits for the answer (recipe distributed_prediction); many teams share features
    with history and point-in-time joins (Feast); the request brings all features itself.
Keys: NAME is the table's name.
    NAME:row:ID  string  28 bytes and the packed features of one entity; TTL as put() was told
    NAME:schema  string  JSON: version and columns; no TTL. delete() removes all of it.
Guarantees: a row is written whole; an older event never replaces a newer one, nor a row of an
    older schema one of a newer. Reads tell missing and stale rows; a damaged row is an error.
    An answer comes within the budget and names its source: the model, the model on the last
    known features, or the default. Server down: at once, by a circuit breaker that recovers.
    Features are as durable as the server makes them; a failover may bring older rows back.
Cost: get and put: one round trip for up to 1,000 rows or 1 MiB; Cluster: a command for each
    slot, pipelined. Predictor: one for each batch; memory for the last 10,000 rows.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy
Run: python recipes/realtime_prediction.py scores 200 requests, reloads a model, loses its server.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import redis
from numpy.typing import NDArray

Client = redis.Redis | redis.RedisCluster
Array = NDArray[Any]
_Request = tuple[str, "asyncio.Future[Prediction]", float]  # id, answer, since

RESIDUE = 0x2144DF1C  # the CRC-32 of anything that ends in its own CRC-32
SLICE_ROWS, SLICE_BYTES = 1000, 1 << 20  # in one command
MAGIC, MAX_ROW = b"FRW1", 64 << 10  # bytes
LAST = 1e11  # seconds since 1970, in the year 5138; milliseconds passed it in March 1973
# What a missing row holds, by the kind of dtype.
FILL: Any = {"f": lambda _: np.nan, "i": lambda d: np.iinfo(d).min, "u": lambda d: np.iinfo(d).max}
FILL |= dict.fromkeys("mM", lambda _: "NaT") | dict.fromkeys("bSU", lambda _: "")
CHANGED = "raise `version` to change a schema, or update this program to the newest"
UNREACHABLE = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)


class SchemaMismatch(ValueError):
    """The table has another schema. The message says whether to raise `version` or to update."""


class BadRow(ValueError):
    """These bytes are no row. The message names the entity and what is wrong with them."""


# --8<-- [start:row]
# A hash field for each feature is copied and decoded one by one, in Python; and what is not there
# easily turns into 0. A packed row is one value: numpy decodes all rows of a batch at once, and a
# header says which schema wrote them and when the event was, a checksum that none is damaged.
class Features(NamedTuple):
    """What get() found, all in the order of the ids.

    Missing rows hold NaN or NaT; the smallest value in signed and the largest in unsigned
    integers; False and empty strings, which only `missing` tells from real ones.
    """

    columns: dict[str, Array]  # (n, *shape) each
    missing: NDArray[np.bool_]  # not there, expired, or of an older schema version
    stale: NDArray[np.bool_]  # there, but its event is more than max_age_s ago
    event_time: NDArray[np.float64]  # seconds since 1970; NaN where missing


class Packing:
    """Turns columns into rows and back. `schema`: name -> dtype, or (dtype, shape) for a vector.

    A row: magic, BLAKE2b-64 of the columns, version, event time, the values little-endian in the
    order of their names, CRC-32. Version and time are big-endian, so that they sort as bytes.
    """

    def __init__(self, schema: Mapping[str, Any], version: int = 1) -> None:
        schema = {n: (d := np.dtype(s)).subdtype or (d, ()) for n, s in schema.items()}
        if any(d.kind not in FILL or not d.itemsize for d, _ in schema.values()) or not schema:
            raise ValueError(f"columns are numbers, dates or strings of fixed size, not {schema}")
        self.columns = sorted([n, d.newbyteorder("<").str, [*s]] for n, (d, s) in schema.items())
        mark = blake2b(json.dumps(self.columns).encode(), digest_size=8).digest()
        self._head = np.frombuffer(MAGIC + mark + version.to_bytes(4, "big"), "<u8")
        row: Any = np.dtype([(name, form, tuple(shape)) for name, form, shape in self.columns])
        self.dtype = np.dtype([("head", "<u8", 2), ("time", ">f8"), ("row", row), ("crc", "<u4")])
        self.schema, self.version, self.size = schema, version, self.dtype.itemsize
        if self.size > MAX_ROW:
            raise ValueError(f"a row of {self.size:,} bytes is too large: store its vectors apart")
        fills = {n: np.full((1, *s), FILL[d.kind](d), d) for n, (d, s) in schema.items()}
        self._blank = self.pack(fills, np.full(1, np.nan))[0]

    def pack(self, columns: Mapping[str, Any], times: Array) -> list[bytes]:
        """Return one row a time. Raises ValueError for columns that do not fit the schema."""
        if odd := set(columns.keys()) ^ set(self.schema):
            raise ValueError(f"columns and schema differ in {sorted(odd)}")
        table = np.zeros(len(times), self.dtype)
        table["head"], table["time"] = self._head, times
        for name, (dtype, shape) in self.schema.items():
            table["row"][name] = _fit(name, columns[name], dtype, (len(times), *shape))
        data, step = table.tobytes(), self.size
        bodies = (data[at : at + step - 4] for at in range(0, len(data), step))
        return [body + crc32(body).to_bytes(4, "little") for body in bodies]

    def unpack(
        self, ids: Sequence[Any], rows: Sequence[bytes | None], max_age_s: float | None = None
    ) -> tuple[Features, dict[int, Exception]]:
        """Return the features, and position -> error of rows that could not be read (missing)."""
        found, errors = [self._blank if row is None else row for row in rows], {}
        if not self._all_good(found):
            bad = {i: row for i, row in enumerate(found) if not self._all_good([row])}
            found = [self._blank if i in bad else row for i, row in enumerate(found)]
            errors = {i: error for i, row in bad.items() if (error := self._wrong(ids[i], row))}
        table = np.frombuffer(b"".join(found), self.dtype)
        times = table["time"].astype(np.float64)
        stale = times < (-np.inf if max_age_s is None else time.time() - max_age_s)
        columns = {name: table["row"][name].astype(d) for name, (d, _) in self.schema.items()}
        return Features(columns, np.isnan(times), stale, times), errors

    def _all_good(self, rows: list[bytes]) -> bool:
        if not {*map(len, rows)} <= {self.size} or not {*map(crc32, rows)} <= {RESIDUE}:
            return False
        return bool((np.frombuffer(b"".join(rows), self.dtype)["head"] == self._head).all())

    def _wrong(self, id: Any, row: bytes) -> Exception | None:
        """Say what is wrong with a row; None if it is a whole one of an older version."""
        if not 28 <= len(row) <= MAX_ROW or row[:4] != MAGIC or crc32(row) != RESIDUE:
            return BadRow(f"{id!r}: {len(row)} bytes that are no whole feature row: put it again")
        version = int.from_bytes(row[12:16], "big")
        error = SchemaMismatch(f"{id!r}: a row of another schema, version {version}: {CHANGED}")
        return None if version < self.version else error


def _fit(name: str, values: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Convert, but let nothing overflow, be cut off or lose its fraction on the way."""
    given = _plain(f"column {name!r}", values)
    with np.errstate(all="ignore"), contextlib.suppress(TypeError, ValueError, OverflowError):
        cast = given.astype(dtype)
        back = cast.astype(given.dtype) if dtype.kind in "SU" else cast
        same = np.isfinite(cast) | ~np.isfinite(given) if dtype.kind == "f" else back == given
        same &= dtype.kind != "f" or given.dtype.kind in "biuf"  # a date's number has any unit
        if given.shape == shape and np.all(same | (cast != cast)):  # NaT is not NaT
            return cast
    raise ValueError(f"column {name!r}: {given.dtype} {given.shape} does not fit {dtype} {shape}")


def _plain(what: str, values: Any) -> Array:
    """Return an array; raise ValueError for what numpy would convert by leaving out a part."""
    parts = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(
            f"{what}: a mask is not stored: fill in its values, or leave their ids out"
        )
    given = np.asarray(values)
    if given.dtype.kind == "c":
        raise ValueError(f"{what}: complex numbers are not stored: give two columns")
    return given


# --8<-- [end:row]
# --8<-- [start:table]
# Read, compare and write back lets two writers pass each other, and yesterday's replay overwrites
# today's value. The server compares: version and time are bytes that sort, and the script looks
# at them one by one, since Lua's `<` on strings follows the server's locale.
_PUT = """
local stored = 0
for i, key in ipairs(KEYS) do
  local new, px, old, d = ARGV[2*i-1], ARGV[2*i], redis.call('GETRANGE', key, 0, 23), 0
  for b = 13, old:sub(1, 4) == new:sub(1, 4) and #old or 0 do
    if d == 0 then d = new:byte(b) - old:byte(b) end
  end
  if d >= 0 and redis.call('SET', key, new, unpack(px == '0' and {} or {'PX', px})) then
    stored = stored + 1
  end
end
return stored
"""


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


class FeatureTable:
    """Online features: one packed row an entity. Ids are strings, bytes or integers (5 is "5").

    A schema changes by a higher `version`: rows of an older one are missing until they are
    written again. Rows whose event is more than `max_age_s` seconds ago are stale.
    """

    def __init__(
        self, r: Client, name: str, schema: Mapping[str, Any], *, version: int = 1,
        max_age_s: float | None = None,
    ) -> None:  # fmt: skip
        if not re.fullmatch(r"[\w.:-]+", name, re.ASCII):
            raise ValueError(f"name {name!r}: letters, digits and _ . : - only")
        self.r, self.name, self.max_age_s, self._agreed = _of_bytes(r), name, max_age_s, False
        self.packing = Packing(schema, version)
        self._slice = min(SLICE_ROWS, SLICE_BYTES // self.packing.size)

    def put(
        self, ids: Iterable[Any], columns: Mapping[str, Any], *, event_time: Any = None,
        ttl: Any = None,
    ) -> int:  # fmt: skip
        """Write one row an id and return how many were not older than what was there.

        Of equal times the later write wins, so a repeated put changes nothing. `event_time`
        (default: now) and `ttl` are in seconds, one for all or one an id; each write sets the
        TTL anew. An event time may also be a datetime64 (of any unit, in UTC as numpy has it), or
        a datetime with a tzinfo; a naive one is refused, and so are milliseconds. Raises
        ValueError for these and for columns that do not fit, SchemaMismatch.
        """
        keys, n = self._keys(ids), self._slice
        # + 0.0 turns -0.0, whose bytes would sort last, into 0.0.
        times = _seconds(time.time() if event_time is None else event_time) + 0.0
        lives = _plain("ttl", np.inf if ttl is None else ttl)
        lives = lives / np.timedelta64(1, "s") if lives.dtype.kind in "mM" else lives.astype(float)
        if not ((times >= 0) & (times < LAST)).all() or not (lives > 0).all():
            seconds = "seconds since 1970 (not milliseconds, and no NaT)"
            raise ValueError(f"event_time is in {seconds}, and ttl in seconds above 0")
        times, lives = np.broadcast_to(times, len(keys)), np.broadcast_to(lives, len(keys))
        rows = self.packing.pack(columns, times)
        self._agree()
        px = [0 if life == np.inf else round(life * 1e3) or 1 for life in lives.tolist()]
        pairs = [*zip(rows, px, strict=True)]
        return sum(self._write(keys[i : i + n], pairs[i : i + n]) for i in range(0, len(keys), n))

    def get(self, ids: Iterable[Any]) -> Features:
        """Read rows; raises BadRow for damaged ones, SchemaMismatch for those of another schema."""
        ids = _texts(ids)
        found, errors = self.packing.unpack(ids, self.fetch(self.r, ids), self.max_age_s)
        for error in errors.values():
            raise error
        return found

    def fetch(self, r: Client, ids: Iterable[str]) -> list[bytes | None]:
        """Return the packed rows, read by `r`; None where there is none."""
        keys, n = [f"{self.name}:row:{id}" for id in ids], self._slice
        r = _of_bytes(r)
        mget: Any = r.mget_nonatomic if isinstance(r, redis.RedisCluster) else r.mget
        return [row for i in range(0, len(keys), n) for row in mget(keys[i : i + n])]

    def delete(self, ids: Iterable[Any] | None = None) -> int:
        """Remove rows, or the whole table (by SCAN); returns the number of keys removed."""
        self._agreed = False
        rows = self.r.scan_iter(match=f"{self.name}:row:*", count=1000)
        keys = [*rows, f"{self.name}:schema"] if ids is None else self._keys(ids)
        return sum(int(self.r.unlink(*keys[i : i + 1000])) for i in range(0, len(keys), 1000))

    def _keys(self, ids: Iterable[Any]) -> list[str]:
        return [f"{self.name}:row:{id}" for id in _texts(ids)]

    def _agree(self) -> None:
        """Refuse to write if the table has another schema; a higher version takes over."""
        key, version = f"{self.name}:schema", self.packing.version
        mine = {"version": version, "columns": self.packing.columns}
        if not self._agreed and not self.r.set(key, json.dumps(mine), nx=True):
            held: dict[str, Any] = json.loads(self.r.get(key) or json.dumps(mine))
            if held != mine and held["version"] >= version:
                raise SchemaMismatch(f"{self.name!r} holds {held}, not {mine}: {CHANGED}")
            self.r.set(key, json.dumps(mine))
        self._agreed = True

    def _write(self, keys: list[str], pairs: list[Any]) -> int:
        if not isinstance(self.r, redis.RedisCluster):
            return int(self.r.eval(_PUT, len(keys), *keys, *(x for pair in pairs for x in pair)))
        pipe: Any = self.r.pipeline()  # type: ignore[no-untyped-call]
        for key, pair in zip(keys, pairs, strict=True):  # a script may touch only one slot
            pipe.execute_command("EVAL", _PUT, 1, key, *pair)
        return sum(pipe.execute())


def _seconds(given: Any) -> Array:
    """Return seconds since 1970 of numbers, datetime64 or datetimes."""
    if isinstance(given, datetime):
        if given.utcoffset() is None:
            raise ValueError(f"event_time: {given!r} may be of any time zone: give it a tzinfo")
        given = given.timestamp()
    times = _plain("event_time", given)
    if times.dtype.kind == "O" and times.ndim:
        return np.array([_seconds(each) for each in times.ravel()]).reshape(times.shape)
    if times.dtype.kind in "mM":  # its number alone may be nanoseconds, or days
        return np.asarray((times - np.datetime64(0, "s")) / np.timedelta64(1, "s"))
    return times.astype(float)


def _texts(ids: Iterable[Any]) -> list[str]:
    listed: list[Any] = [ids] if isinstance(ids, str | bytes) else [*ids]
    if not {*map(type, listed)} <= {str}:
        if not all(isinstance(id, str | bytes | int | np.integer) for id in listed):
            raise TypeError(f"ids are strings, UTF-8 bytes or integers, not {listed!r:.80}")
        return [id.decode() if isinstance(id, bytes) else str(id) for id in listed]
    return listed


# --8<-- [end:table]
# --8<-- [start:predictor]
# A round trip and a model call for every request spend their time on overhead; requests that come
# at the same time can share them. Each has a timer of its own: whatever else hangs, it answers.
class Prediction(NamedTuple):
    """The answer for one entity, and where it comes from."""

    score: Any  # what predict returned for its row: a number, or an array
    version: Any  # of the model; None if the default answered
    source: str  # "model", "cached features" or "default"
    missing: bool  # no features were found
    stale: bool  # their event is more than the table's max_age_s ago
    latency_ms: float
    reason: str = ""  # why it was not the model on fresh features


class Predictor:
    """`await predictor(id)` answers with the newest model, in batches, within the budget.

    Use it as `async with Predictor(...) as predictor`, in one event loop; or end it by aclose().
    Half of the budget is for reading features, by a client like `r` with time-outs as short as
    that and no retries (a cluster's or Sentinel's client should have such itself).

    load_model(version) -> (version, model), or None if that of the argument is still the newest.
        Called in a thread, first with None, then every `reload_s` seconds. If it raises, the first
        call fails and nothing starts; later the model at hand goes on, and a warning is logged.
    predict(model, columns) -> one score a row (or one row of an array). Called in a thread, with
        arrays as get() returns them, never with missing rows. If it raises, all requests of the
        batch raise that error: a fallback would hide the bug.

    Fallbacks, named in `source` and `reason`. "cached features": Redis fails or is late, or the row
    is damaged: the current model on the last row that was read (an LRU of `cached_rows`).
    "default": the score `default`, if nothing is cached either, the entity has no row, or the
    budget is over. After `failures` failed reads Redis is left alone for `open_s` at a time.
    """

    def __init__(
        self, r: Client, features: FeatureTable, load_model: Callable[..., Any],
        predict: Callable[[Any, dict[str, Array]], Any], *, max_batch: int = 64,
        max_wait_ms: float = 2, budget_ms: float = 50, default: Any = float("nan"),
        reload_s: float = 1.0, failures: int = 3, open_s: float = 0.5, cached_rows: int = 10_000,
    ) -> None:  # fmt: skip
        if max_batch < 1 or not 0 <= max_wait_ms < budget_ms:
            raise ValueError("max_batch is 1 or more, and max_wait_ms less than budget_ms")
        self.features, self.default, self.max_batch = features, default, max_batch
        self.failures, self.open_s, self.cached_rows = failures, open_s, cached_rows
        self.model: tuple[Any, Any] | None = None  # (version, model)
        self.batches = self.failed = 0  # batches answered; reads failed in a row
        self._load_model, self._predict = load_model, predict
        self._wait_s, self._budget_s, self._reload_s = max_wait_ms / 1e3, budget_ms / 1e3, reload_s
        self._r, self._reader, self.retry_at = _of_bytes(r), _impatient(r, budget_ms / 2e3), 0.0
        self._known, self._queue = OrderedDict[str, bytes](), list[_Request]()
        self._arrived, self._full, self._closed = asyncio.Event(), asyncio.Event(), False
        self._pool = ThreadPoolExecutor(4, "predictor")
        self._start: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, id: Any) -> Prediction:
        """Return the prediction for one entity; raises what predict raised."""
        (id,), loop = _texts([id]), asyncio.get_running_loop()
        if self._closed or not self._tasks:
            await self.__aenter__()
        begin = loop.time()
        future: asyncio.Future[Prediction] = loop.create_future()
        late = Prediction(self.default, None, "default", False, False, 0, "over budget")
        timer = loop.call_later(self._budget_s, _settle, future, late)
        self._queue.append((id, future, begin))
        self._arrived.set()
        if len(self._queue) >= self.max_batch:
            self._full.set()
        try:
            answer = await future
        finally:
            timer.cancel()
        return answer._replace(latency_ms=(loop.time() - begin) * 1e3)

    async def _serve(self) -> None:
        while await self._arrived.wait() and self._queue:
            if len(self._queue) < self.max_batch:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._queue[0][2] + self._wait_s):
                        await self._full.wait()
            batch, self._queue = self._queue[: self.max_batch], self._queue[self.max_batch :]
            if not self._queue and not self._closed:
                self._arrived.clear()
            waiting = {future: id for id, future, _ in batch if not future.done()}
            try:
                answers = await self._answer([*dict.fromkeys(waiting.values())])
                for future, id in waiting.items():
                    _settle(future, answers[id])
            except Exception as error:
                for future in waiting:
                    _settle(future, error)

    async def _answer(self, ids: list[str]) -> dict[str, Prediction]:
        """Return the answers, in one round trip and one model call."""
        self.batches += bool(ids)
        found, reasons = await self._look_up(ids)
        version, model = self.model or (None, None)  # one for the whole batch
        here, scores = np.flatnonzero(~found.missing), np.empty(0)
        if here.size:
            columns = {name: column[here] for name, column in found.columns.items()}
            call = self._in_thread(self._predict, model, columns)
            # If it takes too long, the timers have answered; the thread ends when it can.
            scores = np.asarray(await asyncio.wait_for(call, self._budget_s))
            if scores.shape[:1] != here.shape:
                raise ValueError(f"predict: {scores.shape} scores for {here.size} rows")
        none = Prediction(self.default, None, "default", True, False, 0, "no features")
        answers = {id: none._replace(reason=reasons.get(id, none.reason)) for id in ids}
        for i, score in zip(here, scores.tolist() if scores.ndim == 1 else scores, strict=True):
            stale, why = bool(found.stale[i]), reasons.get(ids[i], "")
            source = "cached features" if why else "model"
            answers[ids[i]] = Prediction(score, version, source, False, stale, 0, why)
        return answers

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    # --8<-- [start:fallback]
    # A server that is gone or frozen would make every request late. So after a few failures nobody
    # asks it for a while; then one batch is the probe (circuit breaker: Nygard, Release It!, 2007).
    async def _look_up(self, ids: list[str]) -> tuple[Features, dict[str, str]]:
        """Return features, and id -> why they are not fresh."""
        unpack, age, now = self.features.packing.unpack, self.features.max_age_s, time.monotonic
        rows = [self._known.get(id) for id in ids]
        if self.failed >= self.failures and now() < self.retry_at:
            return unpack(ids, rows, age)[0], dict.fromkeys(ids, "circuit open")
        try:
            call = self._in_thread(self.features.fetch, self._reader, ids)
            fresh = await asyncio.wait_for(call, self._budget_s / 2)
        except UNREACHABLE as error:
            self.failed, self.retry_at = self.failed + 1, now() + self.open_s
            return unpack(ids, rows, age)[0], dict.fromkeys(ids, f"Redis: {error!r}")
        self.failed = 0
        found, errors = unpack(ids, fresh, age)
        fresh = [rows[i] if i in errors else row for i, row in enumerate(fresh)]
        for id, row in zip(ids, fresh, strict=True):
            self._known.pop(id, None)
            self._known |= {} if row is None else {id: row}
        while len(self._known) > self.cached_rows:
            self._known.popitem(last=False)
        found = unpack(ids, fresh, age)[0] if errors else found
        return found, {ids[i]: str(error) for i, error in errors.items()}

    # --8<-- [end:fallback]
    # --8<-- [start:reload]
    # A restart for each new model drops requests, and a model replaced in the middle of a batch
    # mixes two. A thread loads the next one meanwhile; batches take it up between each other.
    async def _load(self) -> None:
        current = self.model[0] if self.model else None
        args = [current] if inspect.signature(self._load_model).parameters else []
        loaded = await self._in_thread(self._load_model, *args)
        if loaded is not None or self.model is None:
            _, _ = self.model = loaded

    async def _keep_loading(self) -> None:
        while True:
            await asyncio.sleep(self._reload_s)
            try:
                await self._load()
            except Exception:
                logging.getLogger(__name__).warning("the old model goes on", exc_info=True)

    async def _open(self) -> None:
        await self._load()
        with contextlib.suppress(*UNREACHABLE):  # connect now: TLS alone can take half a budget
            await self._in_thread(self._reader.ping)
        self._tasks = [*map(asyncio.create_task, (self._serve(), self._keep_loading()))]

    async def __aenter__(self) -> Predictor:
        if self._closed:
            raise RuntimeError("this Predictor is closed: make a new one")
        if self._start is None or (self._start.done() and not self._tasks):
            self._start = asyncio.create_task(self._open())
        await asyncio.shield(self._start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Answer what waits, then end the tasks and threads; a running predict or load may end."""
        self._closed = True
        self._arrived.set()
        await asyncio.gather(*filter(None, [self._start]), return_exceptions=True)
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        if self._reader is not self._r:
            self._reader.connection_pool.disconnect()

    # --8<-- [end:reload]


def _impatient(r: Client, timeout_s: float) -> Any:
    """Return a client of the same server with short time-outs; Cluster and Sentinel: r itself."""
    pool: Any = getattr(r, "connection_pool", None)
    if type(pool) not in (redis.ConnectionPool, redis.BlockingConnectionPool):
        return r
    own = "maint_|orig_|himport_|event_dispatcher|socket_.*timeout|retry"
    kwargs = {k: v for k, v in pool.connection_kwargs.items() if not re.match(own, k)}
    kwargs |= {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    return redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, **kwargs))


def _settle(future: asyncio.Future[Prediction], answer: Prediction | Exception) -> None:
    if not future.done():
        setter: Any = future.set_exception if isinstance(answer, Exception) else future.set_result
        setter(answer)


# --8<-- [end:predictor]
# --8<-- [start:usage]
# The smallest honest use: features change, a model is replaced, and then Redis is gone.
def demo(r: redis.Redis) -> None:
    """Score 200 requests in a few batches, reload a model, and answer without features."""
    table = FeatureTable(r, "demo:users", {"visits": "i4", "taste": ("f4", 3)})
    rows = {"visits": np.arange(200) % 9, "taste": np.ones((200, 3))}
    print("rows written:", table.put(range(200), rows, ttl=60))
    two = {"visits": [70, 1], "taste": np.ones((2, 3))}
    print("taken of a new and an old event:", table.put([7, 7], two, event_time=[4e9, 1e9]))
    found, models = table.get([7, 999]), {1: 0.5}
    seven, nobody = found.missing
    print(f"visits of 7: {found.columns['visits'][0]}; missing: 7 {seven}, 999 {nobody}")

    async def serve() -> None:
        async with Predictor(
            r, table, lambda _: max(models.items()), lambda weight, x: weight * x["visits"],
            max_wait_ms=20, budget_ms=2000, reload_s=0.01, default=0.0,
        ) as predict:  # fmt: skip
            answers = await asyncio.gather(*map(predict, range(200)))
            print(f"{len(answers)} answers, {predict.batches} batches; 7: score {answers[7].score}")
            models[2] = 2.0
            while (await predict(7)).version == 1:
                await asyncio.sleep(0.005)
            print("after a reload, 7: score", (await predict(7)).score)
            predict.failed, predict.retry_at = 3, np.inf  # as if three reads had failed
            for id in 7, 999:
                score, version, source, *_ = await predict(id)
                print(f"without Redis, {id}: score {score}, model {version}, source: {source}")

    asyncio.run(serve())
    table.delete()
    print("Every request was answered, by a named source, through a new model and an outage.")


# --8<-- [end:usage]

if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
