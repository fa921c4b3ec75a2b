"""Asynchronous training: no worker gets more than `staleness` steps ahead.

Use when: workers of uneven speed train one model, and waiting for the slowest at each step costs
    more than gradients that are a few steps old.
Not when: workers are alike or results must be repeatable: the recipe distributed_training.
    Large models or GPUs: torch's DDP and FSDP, which are synchronous for good reasons.
Keys: ps:{JOB}:versions stream (the newest version, its position and clocks), ps:{JOB}:updates
    stream, ps:{JOB}:leases zset, ps:{JOB}:clocks hash; strings ps:JOB:params:VERSION:CHUNK and
    ps:JOB:grads:WORKER:STEP:CHUNK of at most 1 MiB. serve() deletes all at the end;
    until then all have a TTL of `ttl_s`.
Guarantees: a worker that has done c steps sees all live workers' first c - staleness gradients.
    Each gradient is applied once, also if the server process or a worker is killed at any point
    and started again. A worker that lost its lease cannot add an old gradient. serve() ends when
    nobody has a lease and one that is furthest ahead has left; if that one died, it waits for it.
Cost: V bytes up and V down for a step of each worker, whatever their number; 5 round trips.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy xxhash
Run: python recipes/parameter_server.py trains with a server, a fast worker and a slow one.
"""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import redis
import redis.cluster
from xxhash import xxh3_64_intdigest

Client = redis.Redis | redis.cluster.RedisCluster
Vector = np.ndarray[Any, np.dtype[Any]]
CHUNK = 1 << 20
HEAD = struct.Struct("<4sHxxQQ")  # magic, dtype, size of the whole vector, checksum with place
DTYPES = ("<f4", "<f8")


class ServerError(Exception):
    """Base of this recipe's errors; by itself: damaged bytes."""


class WorkerTimeout(ServerError):
    """Somebody was silent for `timeout_s`; the message names who."""


class BadGradient(ServerError):
    """A gradient or parameters with NaN, or of another shape or dtype; names the worker."""


# --8<-- [start:vectors]
# A vector of many megabytes in one value stops the server for others while it is copied. So it is
# stored in chunks, and each chunk's checksum covers its place: no chunk passes for another.
def store(r: Client, name: str, vector: Vector, ttl_s: float) -> None:
    """Store `vector` (float32 or float64) in chunks NAME:0, NAME:1, ... with a TTL."""
    r, data = _of_bytes(r), vector.view(np.uint8).data
    for i in range(-(-len(data) // CHUNK)):
        chunk = data[i * CHUNK : (i + 1) * CHUNK]
        r.set(f"{name}:{i}", b"".join((_head(name, i, vector, chunk), chunk)), px=int(1000 * ttl_s))


def load(r: Client, name: str, like: Vector) -> Vector | None:
    """Return the vector, or None if a chunk is gone; raise ServerError if one is damaged."""
    r, vector = _of_bytes(r), np.empty_like(like)
    data = vector.view(np.uint8).data
    for i in range(-(-len(data) // CHUNK)):
        value: Any = r.get(f"{name}:{i}")
        if value is None:
            return None
        place = data[i * CHUNK : (i + 1) * CHUNK]
        chunk = memoryview(value)[HEAD.size :]
        if value[: HEAD.size] != _head(name, i, like, chunk) or len(chunk) != len(place):
            raise ServerError(f"{name}:{i} is damaged, or not a vector of {like.size} {like.dtype}")
        place[:] = chunk
    return vector


def delete(r: Client, name: str, like: Vector) -> None:
    """Delete the chunks of a vector like `like`."""
    r = _of_bytes(r)
    for i in range(-(-like.nbytes // CHUNK)):
        r.unlink(f"{name}:{i}")


def _head(name: str, i: int, vector: Vector, chunk: memoryview) -> bytes:
    digest = xxh3_64_intdigest(chunk, seed=xxh3_64_intdigest(f"{name}:{i}".encode()))
    return HEAD.pack(b"PSV1", DTYPES.index(vector.dtype.str), vector.size, digest)


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


# --8<-- [end:vectors]


# --8<-- [start:clocks]
# A worker that slept would add a gradient of long ago, and a retry would add one twice. So one
# script, by the server's clock, logs an update only of a worker with a lease, and only once.
UPDATE = """
local verb, me, clock = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local held = tonumber(redis.call('ZSCORE', KEYS[1], me) or 0) > now  -- who left has no entry
local done = tonumber(redis.call('HGET', KEYS[2], me) or -1)
if verb == 'leave' then
  redis.call('ZREM', KEYS[1], me)
elseif verb == 'enter' or (held and verb ~= 'look') then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[4]), me)
  if (verb == 'push' and clock > done) or (verb == 'enter' and done < 0) then
    redis.call('HSET', KEYS[2], me, clock)
    redis.call('XADD', KEYS[3], '*', 'verb', verb, 'worker', me, 'clock', clock)
    done = clock
  end
end
for i = 1, 3 do
  redis.call('PEXPIRE', KEYS[i], ARGV[5])
end
local after = string.format('(%.0f', now)
local live = redis.call('ZRANGE', KEYS[1], after, '+inf', 'BYSCORE', 'LIMIT', 0, 65536)
return {held and 1 or 0, done, live}
"""


@dataclass(frozen=True)
class Version:
    """The newest parameters: their number, and of which gradients they are made."""

    number: int
    position: str  # the last entry of the stream of updates that is in them
    clocks: dict[str, int]  # worker -> how many of its steps are in them
    layout: str  # dtype and shape


def newest(r: Client, job: str) -> tuple[str, Version | None]:
    """Return the newest version and the id of its entry; None before serve() has begun."""
    entries: Any = _of_bytes(r).xrevrange(f"ps:{{{job}}}:versions", count=1)
    if not entries:
        return "0-0", None
    return entries[0][0].decode(), Version(**json.loads(entries[0][1][b"version"]))


def update(
    r: Client, job: str, verb: str, worker: str, clock: int, lease_s: float, ttl_s: float
) -> tuple[bool, int, list[str]]:
    """Enter, renew, push or leave; return whether the lease held, the last clock, who is there."""
    keys = [f"ps:{{{job}}}:{name}" for name in ("leases", "clocks", "updates")]
    args = (verb, worker, clock, int(1000 * lease_s), int(1000 * ttl_s))
    held, done, live = _of_bytes(r).eval(UPDATE, 3, *keys, *map(str, args))
    return bool(held), int(done), [name.decode() for name in live]


def wait_for_entry(r: Client, stream: str, after: str, wait_s: float) -> None:
    """Return when `stream` has an entry after `after`, or after `wait_s` (at most a second)."""
    _of_bytes(r).xread({stream: after}, count=1, block=max(1, int(1000 * min(wait_s, 1.0))))


# --8<-- [end:clocks]


# --8<-- [start:serve]
# If parameters and the list of what is in them were written one after the other, a crash between
# the two would lose a gradient or apply it twice. So a version is stored under a new name, and one
# entry then names it, with its position in the updates and each worker's clock.
def serve(
    r: Client, job: str, params: Vector, *, lr: float, timeout_s: float = 30, ttl_s: float = 3600
) -> Vector:
    """Do params -= lr * gradient for each that comes, until all workers have left; return params.

    Who died (its lease ended, and work() neither returned nor raised) is not waited for, unless
    it was ahead of all who left. If it does not come again: WorkerTimeout, which names it; all
    keys stay for `ttl_s`. Start serve() again after an error or a crash: it goes on where it was.
    Raises WorkerTimeout also if nobody comes, BadGradient if the job has another shape or dtype,
    ServerError; TypeError, as all functions here, if `r` decodes responses.
    """
    r, vector = _of_bytes(r), flatten(params, "serve()").copy()
    layout, (_, version) = f"{vector.dtype} {np.shape(params)}", newest(r, job)
    if version is None:
        version = Version(0, "0-0", {}, layout)
        _publish(r, job, vector, version, ttl_s)
    elif version.layout != layout:
        raise BadGradient(f"serve() has {layout}, but job {job!r} trains {version.layout}")
    elif (stored := load(r, f"ps:{job}:params:{version.number}", vector)) is not None:
        vector = stored
    else:
        raise ServerError(f"the parameters of job {job!r} are gone: use another name")
    updates, deadline = f"ps:{{{job}}}:updates", time.monotonic() + timeout_s
    while True:
        entries: Any = r.xrange(updates, min=f"({version.position}", count=16)
        if entries:
            vector, clocks, done = vector.copy(), dict(version.clocks), []
            for _, fields in entries:
                worker, clock = fields[b"worker"].decode(), int(fields[b"clock"])
                clocks[worker] = clock
                if fields[b"verb"] == b"push":
                    done.append(f"ps:{job}:grads:{worker}:{clock}")
                    gradient = load(r, done[-1], vector)
                    if gradient is None:
                        raise ServerError(f"{done[-1]} is gone: make ttl_s longer than a pause")
                    vector -= vector.dtype.type(lr) * gradient
            version = Version(version.number + 1, entries[-1][0].decode(), clocks, layout)
            _publish(r, job, vector, version, ttl_s)
            for name in (*done, f"ps:{job}:params:{version.number - 2}"):  # the last may be in use
                delete(r, name, vector)
            deadline = time.monotonic() + timeout_s
            continue
        _, _, live = update(r, job, "look", "", 0, 1, ttl_s)
        # Who has left is in `leases` no more; who has died still is, with a time that is over.
        names: Any = [] if live else r.zrange(f"ps:{{{job}}}:leases", 0, 65535)
        dead = [name.decode() for name in names]
        left = [clock for name, clock in version.clocks.items() if name not in dead]
        if not live and left and max(left) == max(version.clocks.values()):
            if r.xrange(updates, min=f"({version.position}", count=1):
                continue  # the last update came between the two looks
            break
        if time.monotonic() > deadline:
            who = ", ".join(live or dead) or "all workers"
            raise WorkerTimeout(f"{who}: nothing for {timeout_s} s; start it again, and serve()")
        wait_for_entry(r, updates, version.position, 0.2)
    for number in (version.number - 1, version.number):
        delete(r, f"ps:{job}:params:{number}", vector)
    r.unlink(*(f"ps:{{{job}}}:{name}" for name in ("versions", "updates", "leases", "clocks")))
    return vector.reshape(np.shape(params))


def _publish(r: Client, job: str, vector: Vector, version: Version, ttl_s: float) -> None:
    store(r, f"ps:{job}:params:{version.number}", vector, ttl_s)
    versions, pipe = f"ps:{{{job}}}:versions", r.pipeline(transaction=True)
    pipe.xadd(versions, {"version": json.dumps(asdict(version))}, maxlen=1, approximate=False)
    pipe.pexpire(versions, int(1000 * ttl_s))
    pipe.xtrim(f"ps:{{{job}}}:updates", minid=version.position, approximate=False)
    pipe.execute()


# --8<-- [end:serve]


# --8<-- [start:work]
# With no bound, a slow worker's gradient is of parameters hundreds of steps old, and training
# diverges. So a worker waits until the parameters hold all that the others, and it itself, did up
# to `staleness` steps ago: the stale synchronous parallel model (Ho et al. 2013).
@dataclass(frozen=True)
class Report:
    """What work() returns: the steps it has done, and its widest lead over the slowest."""

    worker: str
    steps: int
    widest_lead: int


def work(
    r: Client, job: str, worker: object, params: Vector, gradient: Callable[[Vector, Any], Vector],
    batches: Callable[[int], Any], *, steps: int, staleness: int = 3, lease_s: float = 10,
    timeout_s: float = 30, ttl_s: float = 3600,
) -> Report:  # fmt: skip
    """From step 0 to `steps`: take the newest parameters, send gradient(params, batches(step)).

    `params` gives shape and dtype, which are serve()'s. A worker started again under its name goes
    on at its step; a newcomer starts where the slowest is. `lease_s` must outlast a step. Raises
    BadGradient (names the worker), WorkerTimeout (names who is behind), ServerError; TypeError if
    `r` decodes responses.
    """
    r = _of_bytes(r)  # here: at the end is a command that would fail again
    me, who, like = str(worker), f"worker {str(worker)!r}", flatten(params, f"worker {worker!r}")
    layout = f"{like.dtype} {np.shape(params)}"
    clock, count, lead, deadline = -1, 0, 0, time.monotonic() + timeout_s
    try:
        while clock < steps:
            entry, version = newest(r, job)
            held, _, live = update(r, job, "renew", me, 0, lease_s, ttl_s)
            clocks = version.clocks if version else {}
            if version is not None and version.layout != layout:
                raise BadGradient(f"{who} has {layout}, but serve() has {version.layout}")
            if not held:  # new, or it slept: what it was about to send is too old
                first = min((clocks.get(name, 0) for name in live), default=0)
                _, clock, _ = update(r, job, "enter", me, first, lease_s, ttl_s)
                continue
            behind = [name for name in live if clocks.get(name, -1) < clock - staleness]
            now = None
            if version is not None and not behind:
                now = load(r, f"ps:{job}:params:{version.number}", like)
            if now is None:
                if time.monotonic() > deadline:
                    silent = ", ".join(behind) or "serve()"
                    raise WorkerTimeout(f"{who}: {silent} did nothing for {timeout_s} s")
                wait_for_entry(r, f"ps:{{{job}}}:versions", entry, 0.2)
                continue
            lead = max(lead, *(clock - clocks.get(name, clock) for name in live))
            grads = np.asarray(gradient(now.reshape(np.shape(params)), batches(clock)))
            name, flat = f"ps:{job}:grads:{me}:{clock + 1}", flatten(grads, f"{who}, step {clock}")
            if (grads.shape, grads.dtype) != (np.shape(params), like.dtype):
                raise BadGradient(
                    f"{who}, step {clock}: {grads.shape} {grads.dtype}, not as params"
                )
            store(r, name, flat, ttl_s)
            held, clock, _ = update(r, job, "push", me, clock + 1, lease_s, ttl_s)
            if not held:
                delete(r, name, like)
            count, deadline = count + held, time.monotonic() + timeout_s
        return Report(me, count, lead)
    finally:
        with contextlib.suppress(redis.RedisError):
            update(r, job, "leave", me, 0, lease_s, ttl_s)


def flatten(array: Vector, who: str) -> Vector:
    """Return `array` as a vector; raise BadGradient unless it is of finite float32 or float64."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.str not in DTYPES:
        raise BadGradient(f"{who} has {flat.dtype}: use float32 or float64")
    if not np.isfinite([flat.min(initial=0), flat.max(initial=0)]).all():
        raise BadGradient(f"{who} has NaN or infinity: is lr too high, is its batch sound?")
    return flat


# --8<-- [end:work]


# --8<-- [start:usage]
# A fast worker and a slow one fit a line. Neither the number of versions nor the order of updates
# is the same in each run; what is bounded is the lead, and where it ends.
def demo(r: redis.Redis) -> None:
    """Train with a server and two workers of uneven speed, with two bounds of staleness."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 4))
    y = x @ np.arange(4.0)

    both = threading.Barrier(2, timeout=30)  # who enters late would do fewer steps

    def rows(step: int) -> Vector:
        if step == 0:
            both.wait()
        return np.random.default_rng(step).integers(0, 1000, 32)

    def gradient(w: Vector, batch: Vector) -> Vector:
        return 2 * x[batch].T @ (x[batch] @ w - y[batch]) / len(batch)

    def slow(w: Vector, batch: Vector) -> Vector:
        time.sleep(0.005)
        return gradient(w, batch)

    for staleness in (0, 4):
        with ThreadPoolExecutor(3) as pool:
            job, start = f"demo-{staleness}", np.zeros(4)
            server = pool.submit(serve, r, job, start, lr=0.05)
            runs = [
                pool.submit(work, r, job, name, start, g, rows, steps=60, staleness=staleness)
                for name, g in {"fast": gradient, "slow": slow}.items()
            ]
            reports = [run.result() for run in runs]
            found = server.result()
        print(f"staleness {staleness}: steps {[report.steps for report in reports]}")
        lead = max(report.widest_lead for report in reports)
        print(f"  lead within the bound: {lead <= staleness}")
        print(f"  finds the line to 0.01: {bool(np.abs(found - np.arange(4.0)).max() < 0.01)}")
    print(f"Keys left in Redis: {len(list(r.scan_iter('ps:*demo-*')))}.")
    print("Workers of uneven speed train one model, none ahead by more than the bound.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
