"""Share a prediction job among workers: one result a batch, or a dead letter.

Use when: predictions for many batches keep several processes or machines busy, and workers may
    start late, crash or hang without a batch being lost or counted twice.
Not when: one process keeps up (call the model); an answer is due within a request (recipe
    realtime_prediction); you need schedules or chains of tasks (Celery, Temporal).
Keys: predict:{job}:batches, a stream of what is unanswered or dead (index, packed batch); results,
    a hash of index -> packed result; dead, a hash of index -> JSON; meta, a hash of counters; open,
    a hash of running submits (TTL 60 s). Values up to 4 MiB. A job is on one shard, until delete().
Guarantees: delivered at least once, answered once: one script acknowledges a batch and stores its
    result, so the first answer wins. What a killed or paused worker holds goes to others after
    lease_s; what fails max_deliveries times becomes a dead letter. A server's crash loses what
    its AOF lacks (always: nothing; everysec: about a second), a failover what replicas lack.
Cost: two round trips for 1 to 256 batches (20 ms, or 4 MiB); an idle worker: 60 commands a second.
Needs: Redis 6.2+ or Valkey 7.2+ (noeviction); pip install redis numpy safetensors;
    optional: ml_dtypes
Run: python recipes/distributed_prediction.py shares a job among three workers; one of them dies.
"""

from __future__ import annotations

import json
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

MAX_BLOB = 4 << 20  # bytes of a packed batch or result
MAX_BACKLOG_BYTES = 512 << 20  # of unanswered batches
MAX_GROUP = 256  # batches in one round trip
GROUP_S = 0.02  # a worker takes as many batches at once as it predicts in about this time
POLL_S = 0.03  # a pause before the next look, where there is nothing to do yet

Client = redis.Redis | redis.RedisCluster
Array = np.ndarray[Any, Any]
Batch = Mapping[str, Any]


class BadBatch(ValueError):
    """A batch or result that cannot be stored, or bytes that are not what was stored."""


class BatchesLost(Exception):
    """The server has forgotten batches that it had confirmed: delete() the job, submit it again."""


# --8<-- [start:pack]
# What comes from Redis is input: a pickle would run the code of whoever wrote it. Safetensors are
# names, dtypes, shapes and plain bytes; the reader checks them all before it allocates.
# --8<-- [start:shared-safetensors]
# Safetensors has its own names of dtypes, and its reader for numpy lacks some of the small floats.
SAFETENSORS = {f"{k}{8 * n}": f"<{k.lower()}{n}" for k in "FIU" for n in (1, 2, 4, 8)} | {
    "BOOL": "|b1", "C64": "<c8", "BF16": "bfloat16", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
# --8<-- [end:shared-safetensors]


def pack(arrays: Batch) -> bytes:
    """Return named arrays as magic, CRC-32 and safetensors. Raises BadBatch, also if too large."""
    try:  # safetensors stores a transposed view wrongly: make it contiguous
        named = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        if "__metadata__" in named:
            raise ValueError("safetensors keeps the name __metadata__ for itself")
        body = save(named)
    except (AttributeError, TypeError, ValueError, SafetensorError) as error:
        raise BadBatch(f"not a mapping of names to arrays of numbers: {error}") from error
    if len(body) + 8 > MAX_BLOB:
        raise BadBatch(f"{len(body):,} bytes are too many (MAX_BLOB): make batches of fewer rows")
    return b"PBA1" + zlib.crc32(body).to_bytes(4, "big") + body


def unpack(blob: bytes) -> dict[str, Array]:
    """Return the arrays of `pack`, writable and the caller's own. Raises BadBatch.

    bfloat16 and float8 need ml_dtypes, else ImportError.
    """
    try:
        if len(blob) > MAX_BLOB or blob[:8] != b"PBA1" + zlib.crc32(blob[8:]).to_bytes(4, "big"):
            raise ValueError("it was cut short or changed, or is of another version")
        arrays: dict[str, Array] = {}
        read: Any = deserialize  # safetensors.numpy.load() cannot read bfloat16
        for name, tensor in read(blob[8:]):
            dtype = SAFETENSORS[tensor["dtype"]]
            if dtype[0] not in "<|":
                import ml_dtypes  # noqa: F401 (tells numpy what bfloat16 is)
            arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
        return arrays
    except (KeyError, ValueError, SafetensorError) as error:
        raise BadBatch(f"not what pack() wrote: {error}") from error


# --8<-- [end:pack]
# --8<-- [start:submit]
# A producer faster than its workers fills the server's memory: submit waits while too much is
# unanswered. And a client that lost a reply sends its group again: the script adds it only once,
# for it keeps the number of each running submit's last group. Batches that a failover lost between
# two groups would shift the indexes of all that follow: submit notices it by the total.
_SUBMIT = """
local batches, results, dead, meta, open = unpack(KEYS)
local token, group, bytes = ARGV[1], tonumber(ARGV[2]), 0
local total = tonumber(redis.call('HGET', meta, 'total') or 0)
redis.pcall('XGROUP', 'CREATE', batches, 'workers', '0', 'MKSTREAM')  -- an error: it exists
if group > tonumber(redis.call('HGET', open, token) or -1) then
  for i = 3, #ARGV do
    redis.call('XADD', batches, '*', 'i', total, 'd', ARGV[i])
    total, bytes = total + 1, bytes + #ARGV[i]
  end
  redis.call('HSET', meta, 'total', total)
  redis.call('HSET', open, token, group)
end
redis.call('EXPIRE', open, 60)  -- a submit that is silent for so long has crashed
local left = total - redis.call('HLEN', results) - redis.call('HLEN', dead)
return {left, redis.call('HINCRBY', meta, 'bytes', bytes) / math.max(total, 1) * left, total}
"""


def submit(r: Client, job: str, batches: Iterable[Batch], *, max_backlog: int = 16_384) -> int:
    """Add batches (mappings of names to arrays) and return how many; indexes go on counting.

    Waits while `max_backlog` batches, or about MAX_BACKLOG_BYTES of them, are unanswered. If it
    or `batches` raises (BadBatch: one cannot be stored), progress().total says what is in.
    Raises BatchesLost if a failover, or a delete(), forgot batches while it ran; TypeError, as
    all functions here, if `r` decodes responses.
    """
    token, sent, total = secrets.token_hex(8), 0, 0

    def add(number: int, group: list[bytes]) -> tuple[int, int]:
        nonlocal total
        known, (left, size, total) = total, _eval(r, job, _SUBMIT, token, number, *group)
        if total < known + len(group):
            had = f"it has {total} batches, and had {known} before these {len(group)}"
            raise BatchesLost(f"job {job!r}: {had}; delete() it and submit all again")
        return left, size

    left, size = add(0, [])
    try:
        for number, group in enumerate(_groups(batches, min(MAX_GROUP, max_backlog // 4)), 1):
            while left and (left + len(group) > max_backlog or size > MAX_BACKLOG_BYTES):
                time.sleep(POLL_S)
                left, size = add(number - 1, [])
            left, size = add(number, group)
            sent += len(group)
    finally:
        r.hdel(_keys(job)[4], token)
    return sent


def _groups(batches: Iterable[Batch], most: int) -> Iterator[list[bytes]]:
    """Pack and collect for 5 ms, 1 MiB or `most` batches: those of a slow source leave at once."""
    group, since = list[bytes](), time.monotonic()
    for batch in batches:
        group.append(pack(batch))
        is_large = len(group) >= most or len(group) * len(group[-1]) >= 1 << 20
        if is_large or time.monotonic() - since > 0.005:
            yield group
            group, since = [], time.monotonic()
    yield group


def _keys(job: str) -> list[str]:
    if not job or set(job) & set("{}"):
        raise ValueError(f"a job's name is a string without braces, not {job!r}")
    return [f"predict:{{{job}}}:{key}" for key in ("batches", "results", "dead", "meta", "open")]


def _eval(r: Client, job: str, script: str, *args: Any) -> Any:
    return _of_bytes(r).eval(script, 5, *_keys(job), *args)


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


# --8<-- [end:submit]
# --8<-- [start:work]
# A worker may die or hang with batches in hand. So taking one is only a lease: others take over
# what is overdue, one at a time, so that a batch which crashes its worker drags no other along.
# XACK returns 1 only once for a batch: so the first answer counts, and a second one is dropped.
# Batches may be slower, or results larger, than those before: what a worker has not begun when
# half of its lease is over, or when its results pass 4 MiB, it puts back for others.
_TAKE = """
local stream, me, lease = KEYS[1], ARGV[1], ARGV[3]
if redis.call('EXISTS', stream) == 0 then return {0} end
local late = redis.call('XPENDING', stream, 'workers', 'IDLE', lease, '-', '+', 1)[1]
if late then return {late[4] + 1, redis.call('XCLAIM', stream, 'workers', me, 0, late[1])[1]} end
local taken, size = {1}, 0
while #taken <= tonumber(ARGV[2]) and size < 4194304 do  -- one by one, so that there is a bound
  local new = redis.call('XREADGROUP', 'GROUP', 'workers', me, 'COUNT', 1, 'STREAMS', stream, '>')
  if not new or not new[1] then break end
  table.insert(taken, (new[1][2] or new[2])[1])  -- fakeredis: {}, and flat
  size = size + #taken[#taken][2][4]
end
return taken
"""
_ANSWER = """
local stored = 0
for i = 1, #ARGV, 4 do
  local where, id, index, value = unpack(ARGV, i, i + 3)
  if where == '' then  -- put back: next in turn, as if it had been idle for months
    local me, tries, key = index, value, KEYS[1]
    if redis.pcall('XPENDING', key, 'workers', id, id, 1, me)[1] then  -- and nobody took it over
      redis.call('XCLAIM', key, 'workers', '(put back)', 0, id, 'IDLE', 9999999999,
        'RETRYCOUNT', tries, 'JUSTID')
    end
  elseif redis.call('XACK', KEYS[1], 'workers', id) == 1 then
    redis.call('HSET', where, index, value)
    if where == KEYS[2] then stored = stored + redis.call('XDEL', KEYS[1], id) end
  end
end
return stored
"""


@dataclass
class Stats:
    """What a worker did: results stored, failed predictions, answers that came too late."""

    done: int = 0
    failed: int = 0
    late: int = 0


def work(
    r: Client,
    job: str,
    predict: Callable[[dict[str, Array]], Any],
    *,
    consumer: str,
    max_batches: int | None = None,
    lease_s: float = 30,
    max_deliveries: int = 3,
    wait_s: float = 10,
) -> Stats:
    """Answer batches by `predict` (named arrays -> array) until the job is finished.

    Waits `wait_s` for a submit to begin; stops early after `max_batches`. `consumer` is a name of
    its own for each worker. A batch whose predict raises goes back at once, the last of
    `max_deliveries` times to the dead letters. What takes longer than `lease_s` is run twice;
    what takes more than half of it may be.
    """
    _, results, dead, *_ = _keys(job)
    stats, start, group = Stats(), time.monotonic(), 1
    left = 2**63 if max_batches is None else int(max_batches)
    while left > 0:
        begin, count = time.monotonic(), min(group, left) if max_deliveries > 1 else 1
        tries, *taken = _eval(r, job, _TAKE, consumer, count, max(1, round(lease_s * 1000)))
        answers, size, tried = list[Any](), 0, 0
        for id, (_, index, _, blob) in taken:
            if size > MAX_BLOB or (tried and time.monotonic() - begin > lease_s / 2):
                answers += "", id, consumer, tries - 1
                continue
            try:
                if tries > max_deliveries:
                    raise TimeoutError("no answer within the lease: its worker was lost or slow")
                answers += results, id, index, pack({"result": predict(unpack(blob))})
            except Exception as error:
                stats.failed += 1
                text, times = repr(error)[:2000], min(tries, max_deliveries)
                letter = json.dumps([text, times, consumer, id.decode()])
                is_last = tries >= max_deliveries
                answers += (dead, id, index, letter) if is_last else ("", id, consumer, str(tries))
            tried += 1
            size += len(answers[-1])
        if taken:
            stored = _eval(r, job, _ANSWER, *answers)
            stats.done += stored
            stats.late += answers.count(results) - stored
            share = min(GROUP_S / (time.monotonic() - begin), MAX_BLOB / size)
            group = min(2 * group, MAX_GROUP, 1 + int(share * tried))
            left -= tried
        elif progress(r, job).finished and (tries or begin - start > wait_s):
            break
        else:
            time.sleep(POLL_S)
    return stats


# --8<-- [end:work]
# --8<-- [start:results]
# Results come in any order and may not fit into memory: they are waited for and read in windows.
# What always fails must neither be tried for ever nor vanish: it stays, with its error and data.
_PROGRESS = """
local pending = redis.pcall('XPENDING', KEYS[1], 'workers')  -- an error: no submit yet
return {redis.call('HGET', KEYS[4], 'total') or 0, redis.call('HLEN', KEYS[2]), pending[1] or 0,
  redis.call('HLEN', KEYS[3]), redis.call('HLEN', KEYS[5]), redis.call('EXISTS', KEYS[4])}
"""
_RETRY = """
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry or redis.call('HDEL', KEYS[3], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
return redis.call('XDEL', KEYS[1], ARGV[2])
"""


@dataclass(frozen=True)
class Progress:
    """Numbers of batches: running means taken, waiting not yet taken (the lag)."""

    total: int
    done: int
    running: int
    dead: int
    waiting: int
    finished: bool


def progress(r: Client, job: str) -> Progress:
    """Return how far the job is. Finished: all is answered or dead, and no submit is running."""
    return _look(r, job)[0]


def _look(r: Client, job: str) -> tuple[Progress, bool]:
    total, done, running, dead, submits, exists = map(int, _eval(r, job, _PROGRESS))
    waiting, finished = total - done - running - dead, done + dead >= total and not submits
    return Progress(total, done, running, dead, waiting, finished), bool(exists)


def results(r: Client, job: str, *, wait_s: float = 300) -> Iterator[tuple[int, Array]]:
    """Yield (index, result) in the order of the batches, without the dead ones.

    Waits until the job is there and finished; raises TimeoutError if nothing at all is answered
    for `wait_s` seconds. With wait_s=0 it leaves out what is not there.
    """
    _, stored, dead, *_ = _keys(job)
    at, window, seen = 0, 8, -1
    while True:
        state, exists = _look(r, job)
        if at >= state.total and (not wait_s or (exists and state.finished)):
            return
        begin, ids = at, [str(i) for i in range(at, min(at + window, state.total))]
        blobs: list[Any] = r.hmget(stored, ids) if ids else []
        for index, blob in zip(ids, blobs, strict=True):
            if blob is None and wait_s and not r.hexists(dead, index):
                break
            at += 1
            if blob is not None:
                window = max(1, min(MAX_GROUP, MAX_BLOB // len(blob)))
                yield int(index), unpack(blob)["result"]
        if at > begin or state.done + state.dead != seen:
            seen, since = state.done + state.dead, time.monotonic()
        elif time.monotonic() - since > wait_s:
            raise TimeoutError(
                f"job {job!r}: no answer for {wait_s} s. Any submit? Any workers? {state}"
            )
        time.sleep(POLL_S if at == begin else 0)


@dataclass(frozen=True)
class DeadLetter:
    """A batch that was given up; `id` is that of its entry in the stream."""

    index: int
    error: str
    deliveries: int
    consumer: str
    id: str


def dead_letters(r: Client, job: str) -> list[DeadLetter]:
    """Return the batches that were given up, in their order."""
    letters = dict(_of_bytes(r).hscan_iter(_keys(job)[2], count=100))
    return [DeadLetter(int(i), *json.loads(letters[i])) for i in sorted(letters, key=int)]


def retry_dead(r: Client, job: str) -> int:
    """Put the dead letters back, as if never delivered, and return how many."""
    return sum(_eval(r, job, _RETRY, letter.index, letter.id) for letter in dead_letters(r, job))


def delete(r: Client, job: str) -> None:
    """Remove the job: its batches, results and dead letters."""
    _of_bytes(r).unlink(*_keys(job))


# --8<-- [end:results]
# --8<-- [start:usage]
# Three workers share a job; one dies with batches in hand, and one batch is broken.
def demo(r: redis.Redis) -> None:
    """Predict 40 batches by three workers, and compare with one process."""
    rng = np.random.default_rng(0)
    weights, data = rng.normal(size=(8, 3)), rng.normal(size=(40, 16, 8))

    def predict(batch: Batch) -> Any:
        return (batch["x"] @ weights).argmax(axis=1)

    print("submitted", submit(r, "demo", [{"x": x} for x in data] + [{"x": np.zeros(3)}]))
    _eval(r, "demo", _TAKE, "killed", 5, 1000)  # takes five, and is never heard of again
    with ThreadPoolExecutor() as pool:  # in earnest: processes, on any number of machines
        for name in ("second", "third"):
            pool.submit(work, r, "demo", predict, consumer=name, lease_s=0.2)
        found = dict(results(r, "demo"))
    state, (letter,) = progress(r, "demo"), dead_letters(r, "demo")
    print("done", state.done, "dead", state.dead, "of", state.total)
    print("equal to one process:", all((found[i] == predict({"x": data[i]})).all() for i in found))
    number, times = letter.index, letter.deliveries
    print(f"batch {number} is dead after {times} deliveries: {letter.error[:10]}")
    delete(r, "demo")
    print("A worker died and a batch was broken; every other batch has exactly one result.")


# --8<-- [end:usage]

if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
