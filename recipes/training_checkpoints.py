"""Resume a killed training run equal to the bit; late writers overwrite nothing.

Use when: training outlives machines (spot instances, preempted jobs), and the next one goes on.
Not when: checkpoints are tens of GB (object storage), or you publish models (model_params).
Keys: RUN names the run, ID is STEP.TOKEN.NONCE.CHUNKS.BYTES.CHECKSUM.
    {checkpoints:RUN}:lease       string  `TOKEN NONCE OWNER`; expires by the server's clock
    {checkpoints:RUN}:fence       hash    the last token given, the highest that has published
    {checkpoints:RUN}:saved       list    IDs in the order of saving; its end is the latest
    {checkpoints:RUN}:pending     set     IDs being written or being removed
    checkpoints:RUN:ID:0, 1, ...  string  1 MiB each, spread over a cluster; with a TTL of an hour
        until all are there, then until `keep` newer ones are saved. delete() removes everything.
Guarantees: A reader gets a whole checkpoint or the one before. A trainer whose lease has ended
    cannot publish, however long it was paused. What a killed one leaves, the next acquire() or
    the TTL removes. xxh3 finds accidents, not attackers. A failover may lose the newest save.
Cost: save: 4 round trips, 2 per 8 MiB, 2 to remove an old one; load: 3, and 1 per 8 MiB. Memory:
    `keep` + 1 checkpoints on the server, one copy in the client.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy xxhash; optional: ml_dtypes
Run: python recipes/training_checkpoints.py trains, stops, resumes, and fences off a late writer
"""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import redis
import xxhash
from numpy.typing import ArrayLike, NDArray

Client = redis.Redis  # or a RedisCluster, which has the same commands

CHUNK, AT_ONCE = 1 << 20, 8  # bytes in a value (a long one makes others wait), values in a reply
MAX_BYTES = 16 << 30  # of a checkpoint: a larger one is refused, by save and by load
STAGING_TTL_MS = 3_600_000  # longer than any upload takes


class CheckpointError(Exception):
    """There is no such checkpoint, or it is damaged. The base of the other errors."""


class LeaseHeld(CheckpointError):
    """Another trainer holds the lease; the message says who, and for how long."""


class StaleLease(CheckpointError):
    """The lease has ended and nothing was saved: stop, or acquire() and go on from latest()."""


# --8<-- [start:lease]
# A paused trainer does not know that its time is over: it wakes up and overwrites its successor's
# work. So the server's clock ends a lease, each has a higher token than the last, and the server
# compares it in the script that publishes (M. Kleppmann, "How to do distributed locking", 2016).
ACQUIRE = """
local held = redis.call('GET', KEYS[1])
local token, nonce, owner = string.match(held or '', '^(%d+) (%x+) (.*)')
if held and nonce ~= ARGV[1] then return {0, owner or held, redis.call('PTTL', KEYS[1]), {}} end
if not held then  -- else it is ours already: the reply was lost
    token = redis.call('HINCRBY', KEYS[2], 'token', 1)
    redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
end
return {tonumber(token), '', 0, redis.call('SMEMBERS', KEYS[3])}  -- bounded: one a killed writer"""
RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] then redis.call('SADD', KEYS[2], ARGV[3]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])"""
RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"


class Lease(NamedTuple):
    """The right to save for `ttl_s` seconds after the last save() or renew(). No thread renews it:
    that would go on for a trainer that hangs. So `ttl_s` must exceed the time between two saves.
    """

    owner: str
    token: int
    ttl_s: float
    value: str
    checkpoints: Checkpoints

    def renew(self, *_pending: bytes) -> None:
        """Start the time anew; StaleLease if it has run out, even if nobody else came."""
        r, (lease, _, pending, _) = self.checkpoints.r, self.checkpoints.keys
        if not r.eval(RENEW, 2, lease, pending, self.value, int(self.ttl_s * 1000), *_pending):
            raise StaleLease(f"lease {self.token} of {self.owner!r} has ended: acquire() again")

    def release(self) -> None:
        """Let the next one in."""
        with contextlib.suppress(redis.RedisError):  # out of reach: it ends by itself
            self.checkpoints.r.eval(RELEASE, 1, self.checkpoints.keys[0], self.value)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


# --8<-- [end:lease]
# --8<-- [start:storage]
# pickle runs what it reads, so a checkpoint is JSON (state; names, dtypes, shapes) and raw bytes.
# All that the JSON says is checked against the bytes that are there before an array is made.
MAGIC, ALIGN = b"CKPT\0\0\0\1", 64
DTYPE = re.compile(r"[<>|][biufc]\d{1,2}|>?(bfloat16|float8_[a-z0-9]+)")


def _encode(arrays: Mapping[str, ArrayLike], state: Any) -> memoryview:
    specs, parts = [], []
    for name, value in arrays.items():
        array = np.asarray(value, order="C")
        named = ">" * (array.dtype.byteorder == ">") + array.dtype.name  # a name has no byte order
        dtype = next(filter(DTYPE.fullmatch, (named, array.dtype.str)), None)
        if dtype is None or not isinstance(name, str):
            raise TypeError(f"arrays[{name!r}] is {array.dtype}: str names, numbers and bools only")
        specs.append((name, dtype, array.shape))
        parts += [array.reshape(-1).view(np.uint8), np.zeros(-array.nbytes % ALIGN, np.uint8)]
    head = json.dumps({"arrays": specs, "state": _plain(state, "state")}).encode()
    head += b" " * (-(16 + len(head)) % ALIGN)
    start = np.frombuffer(MAGIC + len(head).to_bytes(8) + head, np.uint8)
    return np.concatenate([start, *parts]).data


def _plain(value: Any, at: str) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item, f"{at}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{at}[{key!r}]") for key, item in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool | int | float | str | None):
        return value
    raise TypeError(f"{at} is a {type(value).__name__}: JSON only, str keys, no arrays")


def _decode(data: bytearray) -> tuple[dict[str, NDArray[Any]], Any]:
    at = 16 + int.from_bytes(data[8:16])
    if data[:8] != MAGIC or at > len(data):
        raise ValueError("not a checkpoint of this version")
    head, arrays = json.loads(data[16:at]), {}
    for name, text, shape in head["arrays"]:
        match = DTYPE.fullmatch(text)
        if not match or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"array {name!r} is {text!r} of shape {shape}")
        if match[1]:
            import ml_dtypes  # noqa: F401 (tells numpy what bfloat16 is)
        dtype = np.dtype(text.lstrip(">")).newbyteorder(">" if text[0] == ">" else "|")
        count = int(np.prod(shape, dtype=object))
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += -(-arrays[name].nbytes // ALIGN) * ALIGN
    return arrays, head["state"]


# One value of 100 MB would block the server for everyone while it is sent. Chunks of 1 MiB go 8 at
# a time under an ID that no reader knows, with a TTL until all are there, in case we are killed.
def _each(run: Checkpoints, id: bytes, command: str, at_once: int = 1000) -> Iterator[Any]:
    keys = (f"checkpoints:{run.run}:{id.decode()}:{i}" for i in range(int(id.split(b".")[3])))
    while batch := list(itertools.islice(keys, at_once)):
        with run.r.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.execute_command(command, key)  # type: ignore[no-untyped-call]
            replies = pipe.execute()
        yield from replies


def _upload(run: Checkpoints, id: bytes, data: memoryview, lease: Lease) -> None:
    with run.r.pipeline(transaction=False) as pipe:
        for at in range(0, len(data), CHUNK):
            key = f"checkpoints:{run.run}:{id.decode()}:{at // CHUNK}"
            pipe.set(key, data[at : at + CHUNK], px=STAGING_TTL_MS)
            if len(pipe) == AT_ONCE or at + CHUNK >= len(data):
                lease.renew(id)  # a long upload must not lose the lease
                pipe.execute()
    lease.renew(id)  # if we are killed from now on, not the TTL but `pending` frees the chunks
    list(_each(run, id, "PERSIST"))
    if sum(_each(run, id, "STRLEN")) != len(data):
        lease.renew(id)
        raise CheckpointError("chunks expired or were evicted before the last one was sent")


def _download(run: Checkpoints, id: bytes) -> bytearray:
    size, checksum = id.decode().split(".")[4:]
    there = sum(itertools.takewhile(bool, _each(run, id, "STRLEN")))
    if there != int(size) or there > MAX_BYTES:
        raise ValueError(f"{there} bytes are there, not {size} (limit {MAX_BYTES})")
    data = bytearray()
    for value in _each(run, id, "GET", AT_ONCE):
        data += value
    if xxhash.xxh3_128_hexdigest(data) != checksum:
        raise ValueError("the bytes do not match their checksum")
    return data


# --8<-- [end:storage]
# --8<-- [start:publish]
# "Is the lease still mine?" and "write" are two steps, and a pause fits in between. One script
# asks and appends to the list whose end is the latest; until then no reader sees the new chunks.
PUBLISH = """
local lease, fence, pending, saved = unpack(KEYS)
local gone, value, token, id, keep = {}, unpack(ARGV)
if redis.call('LPOS', saved, id) then return {} end  -- done before: the reply was lost
if redis.call('GET', lease) ~= value then return false end
if tonumber(token) < tonumber(redis.call('HGET', fence, 'published') or 0) then return false end
redis.call('HSET', fence, 'published', token)
redis.call('SREM', pending, id)
for _, old in ipairs(redis.call('LRANGE', saved, 0, -1)) do  -- this step, as it was saved before
    if string.match(old, '^%d+') == string.match(id, '^%d+') then
        gone[#gone + 1] = redis.call('LREM', saved, 0, old) and old
    end
end
while redis.call('LLEN', saved) >= tonumber(keep) do gone[#gone + 1] = redis.call('LPOP', saved) end
redis.call('RPUSH', saved, id)
for _, old in ipairs(gone) do redis.call('SADD', pending, old) end
return gone"""


class Checkpoint(NamedTuple):
    """`step`, `arrays` (name -> writable array) and `state`, as they were saved."""

    step: int
    arrays: dict[str, NDArray[Any]]
    state: Any


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


class Checkpoints:
    """The checkpoints of one training run; the `keep` saved last remain (at least 1).

    Raises TypeError if `r` decodes responses, ValueError for a run with braces, or keep < 1.
    """

    def __init__(self, r: Client, run: str, *, keep: int = 3) -> None:
        if not run or set(run) & set("{}") or keep < 1:
            raise ValueError(f"run must be a name without braces, keep 1 or more: {run!r}, {keep}")
        self.r, self.run, self.keep = _of_bytes(r), run, int(keep)
        self.keys = [f"{{checkpoints:{run}}}:{k}" for k in ("lease", "fence", "pending", "saved")]

    def acquire(self, owner: str, *, ttl_s: float = 30, wait_s: float = 0) -> Lease:
        """Return the lease; LeaseHeld after `wait_s` seconds, also for an `owner` who crashed.

        Raises TypeError if `owner` is no str, ValueError if `ttl_s` is under a millisecond.
        """
        if not isinstance(owner, str):
            raise TypeError(f"owner is a str, a label for people, not a {type(owner).__name__}")
        if not 0.001 <= ttl_s <= 1e9:
            raise ValueError(f"ttl_s is 0.001 seconds to 1e9, not {ttl_s}: see Lease")
        deadline, nonce = time.monotonic() + wait_s, secrets.token_hex(8)
        while True:
            keys, ttl_ms = self.keys[:3], int(ttl_s * 1000)
            token, other, left_ms, old = self.r.eval(ACQUIRE, 3, *keys, nonce, owner, ttl_ms)
            if token:
                self._remove(old)
                return Lease(owner, token, ttl_s, f"{token} {nonce} {owner}", self)
            if (wait := deadline - time.monotonic()) <= 0:
                raise LeaseHeld(f"leased to {other.decode()!r} for {left_ms / 1000} s: see wait_s")
            time.sleep(min(wait, 0.25, max(left_ms, 1) / 1000))

    def save(self, lease: Lease, step: int, arrays: Mapping[str, ArrayLike], state: Any) -> None:
        """Publish what is the latest from now on, and renew the lease; or StaleLease.

        `arrays`: name -> numbers or bools of any shape. `state`: JSON with str keys; NaN and
        infinity are kept, tuples come back as lists. A step that is saved already is replaced.
        Raises ValueError unless `step` is an integer of 0 or more.
        """
        if not hasattr(step, "__index__") or (step := operator.index(step)) < 0:
            raise ValueError(f"a step is an integer of 0 or more, not {step!r}: count them")
        data, nonce = _encode(arrays, state), secrets.token_hex(8)
        if lease.checkpoints.keys != self.keys or len(data) > MAX_BYTES:
            raise ValueError(f"the lease is of another run, or the arrays above {MAX_BYTES} bytes")
        chunks, checksum = -(-len(data) // CHUNK), xxhash.xxh3_128_hexdigest(data)
        id = f"{step}.{lease.token}.{nonce}.{chunks}.{len(data)}.{checksum}".encode()
        try:
            _upload(self, id, data, lease)
        except BaseException:
            self._remove([id])
            raise
        dropped = self.r.eval(PUBLISH, 4, *self.keys, lease.value, lease.token, id, self.keep)
        self._remove([id] if dropped is None else dropped)
        if dropped is None:
            raise StaleLease(f"lease {lease.token} of {lease.owner!r} has ended: acquire() again")

    def steps(self) -> list[int]:
        """Return the steps that load() reads, in the order of saving."""
        return [int(id.split(b".")[0]) for id in self._ids()]

    def latest(self) -> Checkpoint | None:
        """Return the checkpoint saved last, or None; CheckpointError if it is damaged."""
        return self.load(None) if self._ids() else None

    def load(self, step: int | None) -> Checkpoint:
        """Return the one of this step (None: the latest); CheckpointError if there is none."""
        found = (i for i in reversed(self._ids()) if step in (None, int(i.split(b".")[0])))
        if (id := next(found, None)) is None:
            raise CheckpointError(f"run {self.run!r} has no step {step}, only {self.steps()}")
        try:
            return Checkpoint(int(id.split(b".")[0]), *_decode(_download(self, id)))
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            if id not in self._ids():  # removed while we read
                return self.load(step)
            raise CheckpointError(f"{id!r} is damaged: {error}; steps: {self.steps()}") from error

    def delete(self) -> None:
        """Remove all that is stored of the run. A trainer at work gets StaleLease."""
        self.r.unlink(self.keys[0])
        for id in [*self._ids(), *self.r.sscan_iter(self.keys[2])]:
            list(_each(self, id, "UNLINK"))  # on an error the keys that name the chunks remain
        self.r.unlink(*self.keys)

    def _ids(self) -> list[Any]:
        return self.r.lrange(self.keys[3], 0, -1)  # bounded: `keep`

    def _remove(self, ids: Iterable[bytes]) -> None:
        with contextlib.suppress(redis.RedisError):  # out of reach: `pending` or the TTL does it
            for id in ids:
                list(_each(self, id, "UNLINK"))
                self.r.srem(self.keys[2], id)


# --8<-- [end:publish]
# --8<-- [start:usage]
# Parameters alone do not resume a run: without the momentum and the generator's state the next
# step is another one. All that the next step depends on goes into one checkpoint.
def train(checkpoints: Checkpoints, owner: str, *, until: int = 60) -> NDArray[Any]:
    """Train from wherever the run is; return the weights."""
    step, at, rng = 0, {"w": np.zeros(8), "velocity": np.zeros(8)}, np.random.default_rng(0)
    with checkpoints.acquire(owner) as lease:
        if saved := checkpoints.latest():
            step, at, rng.bit_generator.state = saved.step, saved.arrays, saved.state["rng"]
        while step < until:
            x = rng.normal(size=(20, 8))
            gradient = x.T @ (x @ at["w"] - x @ np.arange(8.0)) / 20
            at["velocity"] = 0.9 * at["velocity"] - 0.02 * gradient
            at["w"], step = at["w"] + at["velocity"], step + 1
            if step % 4 == 0:
                checkpoints.save(lease, step, at, {"rng": rng.bit_generator.state})
    return at["w"]


def demo(r: redis.Redis) -> None:
    """Train with and without an interruption, compare, and let a late writer try."""
    calm, cut = Checkpoints(r, "demo-calm"), Checkpoints(r, "demo-cut")
    train(cut, "gpu-1", until=39)
    print("gpu-1 is gone after step 39; saved:", cut.steps())
    resumed, expected = train(cut, "gpu-2"), train(calm, "gpu-0")
    print("gpu-2 went on from there; saved:", cut.steps())
    print("same weights as without interruption:", resumed.tobytes() == expected.tobytes())
    late = cut.acquire("gpu-1", ttl_s=0.05)
    with cut.acquire("gpu-2", wait_s=5):
        try:
            cut.save(late, 64, {"w": np.zeros(8)}, {})
        except StaleLease as error:
            print("gpu-1 wakes up and saves:", error)
    calm.delete()
    cut.delete()
    print("An interrupted run ended in the same weights to the bit; a late writer was refused.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
