"""Workers average gradients through Redis, exactly, and outlive a killed one.

Use when: a few processes or machines train one small or medium model (up to some 100 MB of
    parameters), workers come and go, and Redis is there already.
Not when: GPUs on a fast network, or large models: torch DDP with NCCL (on CPUs: gloo), or Ray
    Train. Redis then still keeps the data, the parameters, the checkpoints and the rendezvous.
Keys: dt:{JOB}:world stream (the last memberships; an id is a generation), :leases zset, :done
    string; the inboxes of a round, 4 MiB each: dt:{JOB:GENERATION:ROUND:RANK} streams, and
    :PHASE:FROM strings. Readers delete their inboxes, who gives up a round all of it, the last
    worker of a job the rest; the TTL of all is two timeouts.
Guarantees: after each round all workers hold the same parameters to the bit. A killed worker is
    out when its lease ends: one script makes the new world, and the rest do the interrupted round
    again. Who wakes up late writes under an old generation, which nobody reads. Vectors or params
    of another layout (names, shapes, dtype) are refused by name; order is free. The server is
    trusted: a failover that loses writes ends in a timeout that names a worker.
Cost: a step of V bytes and N workers: 2 V (N - 1) / N sent and as much received by each, 2 N + 3
    round trips for each 4 MiB (two workers: 4). `sync_every=H`: once in H steps. `compress=F`:
    F V (N - 1) and 4 bytes more for the place of each number.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy xxhash
Run: python recipes/distributed_training.py trains with 1 and with 4 workers, and loses one.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing as mp
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import redis
import redis.cluster
from xxhash import xxh3_64_intdigest

Client = redis.Redis | redis.cluster.RedisCluster
Vector = np.ndarray[Any, np.dtype[Any]]
ROUND_BYTES = 4 << 20  # what an inbox may hold; longer vectors take several rounds
NEW = 1 << 40  # steps that a newcomer is behind all others: more than a job has
DTYPES = ("<f4", "<f8", "|u1")
# magic, generation, round, phase, from, to, dtype, size, layout, checksum
HEAD = struct.Struct("<4sQQHHHHQQQ")


class TrainingError(Exception):
    """Base of this recipe's errors; by itself: a damaged message, or a failed process."""


class WorkerTimeout(TrainingError):
    """A worker was silent for `timeout_s`; the message names it."""


class BadGradient(TrainingError):
    """A gradient with NaN, or of other names, shapes, dtype; the message names the worker."""


class WorldChanged(TrainingError):
    """The membership changed in mid-round: train() catches it and does the round again."""


# --8<-- [start:all-reduce]
# If each worker sent its whole gradient to all others, traffic would grow with their number. So
# each reduces one shard (reduce-scatter) and sends it to all (all-gather). Sums of floats depend
# on their order: a shard has one owner, who adds in rank order, so all get the same bits. Two
# workers swap all that they have instead: that is as many bytes, in one phase.
class AllReduce:
    """The mean of a vector over `world_size` ranks, which all call mean() equally often.

    `job` names the group. After a crash take another name, or wait for 2 * `timeout_s`. Raises
    TypeError if `r` decodes responses, ValueError for another argument. Source:
    Rabenseifner, Optimization of Collective Reduction Operations, 2004.
    """

    def __init__(
        self, r: Client, job: str, rank: int, world_size: int, *, timeout_s: float = 30,
        generation: int = 0, names: Sequence[str] = (), changed: Callable[[], bool] = bool,
        layout: str = "",
    ) -> None:  # fmt: skip
        if not 0 <= rank < world_size or set("{}[]*?\\") & set(job):
            raise ValueError(f"rank {rank} of {world_size}, job {job!r} (no {{}}[]*? in it)")
        self.r, self.job, self.rank, self.world_size = _of_bytes(r), job, int(rank), int(world_size)
        self.timeout_s, self.generation, self.changed = timeout_s, generation, changed
        self.names = names or [f"rank {i} of {world_size}" for i in range(world_size)]
        self.layout = layout  # of what a flat vector holds: who has another one is refused
        self.round = self.bytes_sent = self.bytes_received = 0
        bytearray(1 << 24)  # freed at once: glibc then reuses large buffers, without page faults

    def mean(self, vector: Any) -> Vector:
        """Return the mean of all ranks' vectors, in the shape of `vector`.

        float32 or float64 (whole numbers count as float64). Raises BadGradient (NaN, or shape or
        dtype unlike another rank's; names it), WorkerTimeout (names who is silent), TrainingError.
        """
        array = np.asarray(vector)
        array = array.astype(np.float64) if array.dtype.kind in "iub" else array
        flat = finite(array, self.names[self.rank])
        n, mean, step = self.world_size, np.empty_like(flat), ROUND_BYTES // flat.itemsize
        for start in range(0, max(1, flat.size), step):
            block, out = flat[start : start + step], mean[start : start + step]
            cuts = [slice(block.size * i // n, block.size * (i + 1) // n) for i in range(n)]
            cuts = [slice(None)] * 2 if n == 2 else cuts
            shard = out[cuts[self.rank]]  # reduced in its place
            with self._one_round():
                for i, part in self._swap(0, [block[cut] for cut in cuts], array):
                    np.add(shard if i else 0, part, out=shard)
                shard /= n
                for i, part in self._swap(1, [shard] * n, array) if n != 2 else ():
                    if i != self.rank:
                        out[cuts[i]] = part
        return mean.reshape(array.shape)

    def gather(self, mine: Vector, ranks: Sequence[int], like: Vector) -> list[Vector]:
        """Return what each of `ranks` gives; `mine` is of one size and dtype on all ranks.

        So is `like`, which the messages are about: raises BadGradient if a rank's differs.
        """
        pieces, step = [], max(1, ROUND_BYTES // mine.itemsize // len(ranks))
        for start in range(0, mine.size, step):
            part = mine[start : start + step] if self.rank in ranks else mine[:0]
            with self._one_round():
                pieces.append([got for _, got in self._swap(0, [part] * self.world_size, like)])
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True) if parts[0].size]

    def furthest(self, step: int, vector: Vector, new: bool = False) -> tuple[int, Vector]:
        """Return step and vector of the rank that is ahead of the others (of equals, the first).

        Ranks at one step hold the same vector, but for `new` ones: newcomers, and who comes back.
        They are behind all others. Raises BadGradient if a vector is of another layout.
        """
        mine = np.array([step - NEW * new], "d").view(vector.dtype)
        said = np.concatenate(self.gather(mine, range(self.world_size), vector)).view("d")
        if said.min() < said.max() or said.max() < 0:
            vector = self.gather(vector, [int(said.argmax())], vector)[0]
        return int(said.max()) % NEW, vector

    def sparse_mean(self, values: Vector, places: Vector, size: int) -> Vector:
        """Return the mean of vectors of `size` that are 0 but for `values` at sorted `places`."""
        mean, end = np.zeros(size, values.dtype), 4 * len(places)
        bundle = np.concatenate([places.astype("<u4").view(np.uint8), values.view(np.uint8)])
        for i, other in enumerate(self.gather(bundle, range(self.world_size), bundle)):
            where = other[:end].view("<u4").astype(np.int64)
            if where[-1] >= size or (np.diff(where) <= 0).any():
                raise TrainingError(f"{self.names[i]} sent places that are not in order")
            mean[where] += other[end:].view(values.dtype)
        return mean / self.world_size

    # --8<-- [end:all-reduce]

    # --8<-- [start:messages]
    # A message may be read before it is written, twice, or by a worker that slept for an hour. So
    # an inbox has generation and round in its name, and reading takes nothing away: a read whose
    # reply was lost is done again, and a message that came twice counts once.
    @contextlib.contextmanager
    def _one_round(self) -> Iterator[None]:
        self._heads: dict[tuple[int, int], bytes] = {}
        self._last: Any = "0"
        try:
            yield
        except WorkerTimeout:
            self.abandon()
            raise
        finally:
            self._delete(self.round, self.rank)
        self.round += 1

    def abandon(self) -> None:
        """Delete all inboxes of this round and the last, those of the dead too.

        Everyone who gives up a round does so, each after the last that it has sent.
        """
        for number in (self.round - 1, self.round):
            for rank in range(self.world_size):
                self._delete(number, rank)

    def _inbox(self, number: int, rank: int) -> str:
        return f"dt:{{{self.job}:{self.generation}:{number}:{rank}}}"

    def _delete(self, number: int, rank: int) -> None:
        inbox, senders = self._inbox(number, rank), range(self.world_size)
        self.r.unlink(inbox, *(f"{inbox}:{phase}:{i}" for phase in (0, 1) for i in senders))

    def _swap(self, phase: int, parts: list[Vector], like: Vector) -> Iterator[tuple[int, Vector]]:
        """Send parts[i] to rank i; yield (rank, what it sent to this one) in rank order."""
        ttl_ms, others = int(2000 * self.timeout_s), [*range(self.world_size)]
        others.remove(self.rank)
        for to in others:
            data, inbox = parts[to].tobytes(), self._inbox(self.round, to)
            head = self._head(phase, self.rank, to, self._about(like), data)
            with self.r.pipeline(transaction=True) as pipe:  # never without a TTL
                pipe.set(f"{inbox}:{phase}:{self.rank}", data, px=ttl_ms)
                pipe.xadd(inbox, {"head": head})
                pipe.pexpire(inbox, ttl_ms)
                pipe.execute()
            self.bytes_sent += len(head) + len(data)
        deadline = time.monotonic() + self.timeout_s
        while missing := [i for i in others if (phase, i) not in self._heads]:
            left = deadline - time.monotonic()
            if left <= 0:
                silent = ", ".join(self.names[i] for i in missing)
                raise WorkerTimeout(f"{silent} sent nothing for {self.timeout_s} s: is it stuck?")
            if not self._read(max(1, int(1000 * min(left, 0.1)))) and self.changed():
                raise WorldChanged
        pipe, inbox = self.r.pipeline(transaction=False), self._inbox(self.round, self.rank)
        for i in others:
            pipe.get(f"{inbox}:{phase}:{i}")
        values = dict(zip(others, pipe.execute(), strict=True))
        for i, own in enumerate(parts):
            yield i, own if i == self.rank else self._opened(phase, i, values[i], like)

    def _read(self, block_ms: int) -> bool:
        inbox = self._inbox(self.round, self.rank)
        reply: Any = self.r.xread({inbox: self._last}, count=1000, block=block_ms)
        for found in reply.values() if isinstance(reply, dict) else [pair[1] for pair in reply]:
            for self._last, fields in found[0] if isinstance(found[0], list) else found:
                head = fields.get(b"head", b"")
                if len(head) != HEAD.size or head[:4] != b"DTR2":
                    raise TrainingError(f"{inbox} has an entry that no worker wrote: {head[:50]!r}")
                self._heads.setdefault(HEAD.unpack(head)[3:5], head)
        return bool(reply)

    def _opened(self, phase: int, sender: int, data: bytes | None, like: Vector) -> Vector:
        if data is None and self.generation:  # deleted by a worker that saw a new world
            raise WorldChanged
        head = self._heads[phase, sender]
        *_, code, size, layout, _ = HEAD.unpack(head)
        about, data = (code, size, layout), data or b""
        if head != self._head(phase, sender, self.rank, about, data) or code >= len(DTYPES):
            raise TrainingError(f"a message of {self.names[sender]} is damaged or gone")
        if about != self._about(like):
            here = f"the layout here: {like.size} x {like.dtype.str}, {self.layout or like.shape}"
            raise BadGradient(f"{self.names[sender]} has {size} x {DTYPES[code]}, not {here}")
        self.bytes_received += len(head) + len(data)
        return np.frombuffer(data, like.dtype)

    def _about(self, like: Vector) -> tuple[int, int, int]:
        layout = f"{self.layout} {like.shape}".encode()
        return DTYPES.index(like.dtype.str), like.size, xxh3_64_intdigest(layout)

    def _head(self, phase: int, sender: int, to: int, about: tuple[int, ...], data: bytes) -> bytes:
        place = (self.generation, self.round, phase, sender, to)
        return HEAD.pack(b"DTR2", *place, *about, xxh3_64_intdigest(data))

    # --8<-- [end:messages]


# --8<-- [start:membership]
# Workers that judge by their own clocks who is dead will disagree, and average over different
# worlds. So one script decides, by leases and the server's clock: whenever the live leases differ
# from the last world, there is a new world, with a higher generation. A lease that has ended counts
# until another worker's call removes it: if the server or all workers stop, the first goes on.
# Who comes back must find others, or it would start a job that has ended anew.
WORLD = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1] or {'0-0', {'', ''}}
local generation, world = tonumber(string.match(last[1], '^%d+')), last[2][2]
local verb, me, alive = ARGV[1], ARGV[2], redis.call('ZSCORE', KEYS[2], ARGV[2])
local done = redis.call('GET', KEYS[3])
local others = redis.call('ZRANGE', KEYS[2], string.format('(%.0f', now), '+inf', 'BYSCORE')
if verb == 'finish' and alive and not done and string.format('%.0f', generation) == ARGV[6] then
  redis.call('SET', KEYS[3], ARGV[6], 'PX', ARGV[5])
  done = ARGV[6]
end
if verb == 'leave' or (verb == 'finish' and done == ARGV[6]) then
  redis.call('ZREM', KEYS[2], me)
  alive = false
elseif alive or (not done and (verb == 'enter' or (verb == 'return' and #others > 0))) then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[3] * 1000), me)
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
local live = redis.call('ZRANGE', KEYS[2], 0, 65535)
table.sort(live)
local enough = #live >= tonumber(ARGV[4])
for _, name in ipairs(live) do
  enough = enough or string.find(world, name, 1, true)
end
if #live == 0 then
  redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
elseif enough and not done and table.concat(live, '\\n') ~= world then
  world, generation = table.concat(live, '\\n'), math.max(now, generation + 1)
  redis.call('XADD', KEYS[1], 'MAXLEN', 2, string.format('%.0f-0', generation), 'world', world)
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {string.format('%.0f', generation), world, #live, alive and 1 or 0}
"""


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


class Lease:
    """A worker's membership; a thread renews it until the `with` block ends.

    Raises TypeError if `r` decodes responses.
    """

    def __init__(
        self, r: Client, job: str, worker: str, world_size: int, lease_s: float, timeout_s: float
    ) -> None:
        self.r, self.job, self.worker, self.world_size = _of_bytes(r), job, worker, world_size
        self.lease_s, self.timeout_s, self.generation, self.name = lease_s, timeout_s, 0, ""
        self.worlds = 0  # that this worker was part of
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def _call(self, verb: str, ours: int = 0) -> tuple[int, list[str], int, bool]:
        keys = [f"dt:{{{self.job}}}:{name}" for name in ("world", "leases", "done")]
        ttl_ms = int(1000 * (2 * self.timeout_s + self.lease_s))
        args = (verb, self.name, int(1000 * self.lease_s), self.world_size, ttl_ms, ours)
        reply: Any = self.r.eval(WORLD, 3, *keys, *map(str, args))
        return int(reply[0]), reply[1].decode().split("\n"), reply[2], bool(reply[3])

    def _renew(self) -> None:
        while not self._stop.wait(self.lease_s / 5):
            with self._lock, contextlib.suppress(redis.RedisError):  # if it lasts, the lease ends
                generation, _, _, alive = self._call("renew")
                self.generation = generation if alive else -1

    def is_over(self, generation: int) -> bool:
        """Say, as of the last renewal, whether there is another world than that of `generation`."""
        return self.generation != generation

    def world(self, after: int) -> tuple[int, list[str]]:
        """Wait for a world newer than `after` with this worker; return generation and members.

        Each stay has a name of its own: who was thought dead comes back as a newcomer.
        """
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            with self._lock:
                generation, members, live, alive = self._call("renew")
                if alive and self.name in members and generation > after:
                    self.generation, self.worlds = generation, self.worlds + 1
                    return generation, members
                if not alive:
                    if self.worlds and not live:
                        raise TrainingError(f"the job ended while worker {self.worker!r} slept")
                    self.name = f"{self.worker}#{secrets.token_hex(4)}"
                    self._call("return" if self.worlds else "enter")
            self._stop.wait(min(0.02, self.lease_s / 5))
        there: Any = self.r.zrange(f"dt:{{{self.job}}}:leases", 0, 65535)
        came, n = sorted(name.decode()[:-9] for name in there), self.world_size
        raise WorkerTimeout(f"{live} of {n} workers came in {self.timeout_s} s: {came}")

    def finish(self, generation: int) -> bool:
        """Leave, and close the job to newcomers; False if the world has changed before that."""
        return not self._call("finish", generation)[3]

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(redis.RedisError):
            self._call("leave")


# --8<-- [end:membership]


# --8<-- [start:train]
# One worker may have applied a round in which another was interrupted. So nothing changes before
# a round is complete, each generation starts from the worker that is furthest ahead, and the
# interrupted round is done again, with the shares of the new world.
@dataclass(frozen=True)
class Result:
    """What train() returns. `worlds` counts the memberships that the worker was part of."""

    worker: str
    params: Any
    steps: int
    worlds: int
    bytes_sent: int
    bytes_received: int


def train(
    r: Client, job: str, worker: object, params: Any, gradient: Callable[[Any, Any], Any],
    batches: Callable[[int, int, int], Any], *, lr: float, steps: int, sync_every: int = 1,
    compress: float | None = None, world_size: int = 1, lease_s: float = 5, timeout_s: float = 30,
    on_round: Callable[[int, Any], None] | None = None,
) -> Result:  # fmt: skip
    """Do params -= lr * (mean of the workers' gradients), `steps` times, with whoever is there.

    `params`: an array, or a mapping name -> array (in any order), float32 or float64, of the same
    names, shapes and dtype in all workers; those of rank 0 are everyone's at the start.
    `gradient(params, batch)` returns what is like `params`.
    `batches(step, rank, world_size)` returns a rank's share of the global batch of that step (and
    again, if a round is done again). Ranks, in the order of names, count alike: cut equal shares,
    or scale gradients by len(share) * world_size / len(batch). The first round waits for
    `world_size` workers; others join when they come. `on_round(step, params)`: to log.

    `sync_every=H` averages after H steps of one's own (Stich 2019; McMahan et al. 2017);
    `compress=F` sends the largest fraction F and keeps the rest for the next round (Lin et al.
    2018; Karimireddy et al. 2019). Raises BadGradient, WorkerTimeout, TrainingError; TypeError
    if `r` decodes responses, ValueError for another argument.
    """
    name, shapes = str(worker), {str(k): np.shape(v) for k, v in by_name(params).items()}
    sound = sync_every >= 1 and (compress is None or 0 < compress <= 1) and "\n" not in name
    if not sound or all(0 in shape for shape in shapes.values()):
        raise ValueError(f"{sync_every=} (1 or more), {compress=} (0 to 1), {name=}, {shapes=}")
    vector = flatten(params, params, f"worker {name!r}")
    kept = after_round = np.zeros_like(vector)  # by compress: now, and after the round under way
    step, generation, sent, received, stay = 0, 0, 0, 0, ""
    with Lease(r, job, name, world_size, lease_s, timeout_s) as lease:
        while True:
            generation, members = lease.world(after=generation)
            rank, n = members.index(lease.name), len(members)
            names = [f"worker {m[:-9]!r} (rank {i} of {n})" for i, m in enumerate(members)]
            link = AllReduce(
                r, job, rank, n, timeout_s=timeout_s, generation=generation, names=names,
                changed=functools.partial(lease.is_over, generation), layout=str(shapes),
            )  # fmt: skip
            try:
                was, new = step, lease.name != stay
                step, vector = link.furthest(step, vector, new)
                if new or step != was:  # else the others have not counted what it has sent
                    kept = np.zeros_like(vector) if new else after_round
                stay = lease.name  # from here on it holds a state that the others know
                while step < steps:
                    if link.changed():
                        raise WorldChanged
                    change, end = np.zeros_like(vector), min(step + sync_every, steps)
                    for t in range(step, end):
                        grads = gradient(unflatten(vector - change, params), batches(t, rank, n))
                        change += lr * flatten(grads, params, f"{names[rank]}, step {t}")
                    if compress is None:
                        mean = link.mean(change)
                    else:
                        places = largest(change + kept, compress)
                        after_round = change + kept
                        values, after_round[places] = after_round[places], 0
                        mean = link.sparse_mean(values, places, change.size)
                    step, vector, kept = end, vector - mean, after_round
                    if on_round:
                        on_round(step, unflatten(vector, params))
                link.furthest(step, vector)  # nobody leaves while another may need its state
                if not lease.finish(generation):
                    raise WorldChanged
                total = (lease.worlds, sent + link.bytes_sent, received + link.bytes_received)
                return Result(name, unflatten(vector, params), step, *total)
            except WorldChanged:
                link.abandon()
                sent, received = sent + link.bytes_sent, received + link.bytes_received


def largest(vector: Vector, fraction: float) -> Vector:
    """Return the places, in order, of the `fraction` of numbers that are largest (at least one)."""
    k = min(vector.size, max(1, round(fraction * vector.size)))
    return np.sort(np.argpartition(np.abs(vector), -k)[-k:])


def by_name(arrays: Any) -> dict[Any, Any]:
    """Return `arrays` in the order of their names, which is the same in all workers."""
    named = arrays if isinstance(arrays, Mapping) else {"it": arrays}
    return {name: named[name] for name in sorted(named, key=str)}


def flatten(arrays: Any, like: Any, who: str) -> Vector:
    """Return the numbers of `arrays` as one vector; raise BadGradient if they are unlike `like`."""
    arrays, like = by_name(arrays), by_name(like)
    kind = np.asarray(next(iter(like.values()))).dtype
    if arrays.keys() != like.keys():
        raise BadGradient(f"{who}: the gradient lacks names or has others than {list(like)}")
    for name, array in arrays.items():
        if (np.shape(array), np.asarray(array).dtype) != (np.shape(like[name]), kind):
            found = f"{np.shape(array)} {np.asarray(array).dtype}"
            raise BadGradient(f"{who}: {name} is {found}, not {np.shape(like[name])} {kind}")
    return finite(np.concatenate([np.ravel(array) for array in arrays.values()]), who)


def unflatten(vector: Vector, like: Any) -> Any:
    """Return a copy of `vector` in the shapes and under the names of `like`, in its order."""
    if not isinstance(like, Mapping):
        return vector.reshape(np.shape(like)).copy()
    cuts = np.cumsum([np.size(array) for array in by_name(like).values()])[:-1]
    parts = dict(zip(by_name(like), np.split(vector, cuts), strict=True))
    return {name: parts[name].reshape(np.shape(like[name])).copy() for name in like}


def finite(array: Vector, who: str) -> Vector:
    """Return `array` as a vector; raise BadGradient unless it is of finite float32 or float64."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.str not in DTYPES[:2]:
        raise BadGradient(f"{who} has {flat.dtype}: use float32 or float64")
    if not np.isfinite([flat.min(initial=0), flat.max(initial=0)]).all():
        raise BadGradient(f"{who} has NaN or infinity: is lr too high, is its batch sound?")
    return flat


# --8<-- [end:train]


# --8<-- [start:launch]
# Who waits for all results waits for ever if one process was killed. So the parent waits for
# results or the end of each process, and leaves none behind, whatever happens.
def launch(url: str, target: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Run target(url, rank, world_size, *args) in `world_size` new processes on this machine.

    Returns their results in rank order; a killed process has none, nor one that ends by
    sys.exit(0). `target` is a top-level function of a module. Raises TrainingError if a target
    raised (with its text; sys.exit("text") too) or none lived.
    On several machines: call the same function there, with the same URL, by any means.
    """
    context = mp.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    arguments = [(end, target, url, i, world_size, *args) for i, (_, end) in enumerate(pipes)]
    children = [context.Process(target=_child, args=one) for one in arguments]
    replies: list[tuple[bool, Any]] = []
    try:
        for child, (_, end) in zip(children, pipes, strict=True):
            child.start()
            end.close()  # the child alone has it now: if it dies, reading ends
        for reader, _ in pipes:
            with contextlib.suppress(EOFError):
                replies.append(reader.recv())
    finally:
        for child in (child for child in children if child.pid):
            child.join(1)
            child.kill()
            child.join()
    if failed := [reply for done, reply in replies if not done] or [] if replies else ["all died"]:
        raise TrainingError(f"of {world_size} processes: {'; '.join(failed)}")
    return [reply for _, reply in replies]


def _child(end: Connection, target: Callable[..., Any], url: str, rank: int, *args: Any) -> None:
    try:
        end.send((True, target(url, rank, *args)))
    except (Exception, SystemExit) as error:
        if not isinstance(error, SystemExit) or error.code:
            end.send((False, f"rank {rank} raised {type(error).__name__}: {error}"))


# --8<-- [end:launch]


# --8<-- [start:usage]
# Four workers fit a line through 1,000 points, 60 a step, and end where one worker ends.
def demo(r: redis.Redis) -> None:
    """Train with one worker, with four, and with four of which one leaves in mid-run."""
    x = np.random.default_rng(0).normal(size=(1000, 8))
    y = x @ np.arange(8.0)

    def share(step: int, rank: int, world_size: int) -> Vector:
        return np.random.default_rng(step).permutation(1000)[:60][rank::world_size]

    def gradient(w: Vector, rows: Vector) -> Vector:
        return 2 * x[rows].T @ (x[rows] @ w - y[rows]) / len(rows)

    def run(job: str, world_size: int, last: int = 0, **options: Any) -> list[Result]:
        def work(worker: int) -> list[Result]:
            def leave(step: int, _: Any) -> None:
                if worker == 3 and step == last:
                    raise InterruptedError

            with contextlib.suppress(InterruptedError):
                return [train(
                    r, job, worker, np.zeros(8), gradient, share,
                    lr=0.1, steps=60, world_size=world_size, on_round=leave, **options,
                )]  # fmt: skip
            return []

        with ThreadPoolExecutor(world_size) as pool:
            return [one for result in pool.map(work, range(world_size)) for one in result]

    alone = run("demo-1", 1)[0].params
    for title, results in {
        "4 workers": run("demo-4", 4),
        "4 workers, then 3": run("demo-3", 4, last=30),
        "4 workers, sync_every=10": run("demo-h", 4, sync_every=10),
        "4 workers, compress=0.25": run("demo-c", 4, compress=0.25),
    }.items():
        equal = len({result.params.tobytes() for result in results}) == 1
        error = np.abs(results[0].params - alone).max()
        print(f"{title}: {len(results)} results, equal to the bit: {equal}")
        print(f"  like one worker's: {'to 1e-9' if error < 1e-9 else 'to 0.01'}")
        assert error < 0.01
    print(f"Keys left in Redis: {len(list(r.scan_iter('dt:{demo-*')))}.")
    print("Four workers, and three after a loss, end with the parameters of one worker.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
