"""Publish, roll back and hot-reload versions of a model's parameters.

Use when: services load a model, or some of its tensors, that a trainer publishes again and again,
    and all must move to the new version, or back to the old one, at one moment.
Not when: a model has tens of GB (object storage, only the alias here), you need approvals and a
    UI (MLflow), or a trainer must resume (training_checkpoints).
Keys: NAME is the store's name. All but the chunks share a hash tag; chunks spread over a cluster.
    {params:NAME}:versions       hash    number -> facts, tensors, names of chunks; to 4 MiB each
    {params:NAME}:aliases        hash    alias -> number
    {params:NAME}:history:ALIAS  stream  the last 10,000 moves of an alias, for watch()
    {params:NAME}:counter        string  the last number given
    {params:NAME}:saves          hash    token of a save -> when it began, or its answer
    {params:NAME}:blobs, :trash  hash, set  BLAKE3 hash of a chunk -> token; chunks to unlink
    params:NAME:blob:HASH.TOKEN  string  a chunk, to 1 MiB; stored once for all versions
    prune() removes old versions and the chunks that only they name; delete() the whole store.
Guarantees: A version appears whole or not at all; numbers rise; a lost race is a Conflict; what a
    killed save leaves, a prune() an hour later removes. Hashes find accidents, but who may write
    to Redis can forge a whole version. A failover may lose the newest versions (see WAIT).
Cost: save: 4 round trips, 1 per 8 MiB that is not stored; load: 1, and 1 per 8 MiB; both 1
    more per 1,000 chunks. prune() is a script that takes time in proportion to the chunks stored.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy blake3; optional: ml_dtypes safetensors
Run: python recipes/model_params.py publishes, tunes, races, rolls back, follows and prunes
"""

from __future__ import annotations

import json
import math
import operator
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import redis
from blake3 import blake3
from numpy.typing import ArrayLike, NDArray

Client = redis.Redis | redis.cluster.RedisCluster

CHUNK = 1 << 20  # bytes in a value: a long one makes others wait
PIPE_BYTES, PIPE_COMMANDS = 8 << 20, 1000  # in a round trip
MAX_MANIFEST, MAX_BYTES = 4 << 20, 16 << 30  # of a version: more is refused, by save and by load
HISTORY = 10_000  # moves of an alias that a watcher may be behind
SAVE_S = 3600  # the longest that a save may take
TRIES = 100  # of a save whose chunks each prune() takes
WAIT_S, RETRY_S = 1.0, 0.1  # watch(): of one reply (below any socket time-out); to connect again
UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterDownError)


class ParamStoreError(Exception):
    """The base of the other errors."""


class Conflict(ParamStoreError):
    """The alias does not name `parent` (any more): load what it names, merge, save again."""


class VersionGone(ParamStoreError, LookupError):
    """There is no such version, alias or tensor (any more). What has an alias is never pruned."""


class Corrupt(ParamStoreError, ValueError):
    """What is stored is not what was saved, or claims too much: promote another version."""


# --8<-- [start:manifest]
# What Redis returns is input: unchecked, a damaged manifest loads as another model. None of it
# allocates: load() compares the sizes it claims with what is stored.
class Version(int):
    """A version's number, which is an int; `created` is the server's Unix time."""

    parent: int | None
    metadata: dict[str, Any]
    created: float
    nbytes: int  # of the arrays
    sent_bytes: int  # of the chunks that were not stored


DTYPE = re.compile(r"[<>|][biufc]\d+|>?(bfloat|float[4-8]_|u?int[124]$|b?complex32)\w*")


def dtype_text(dtype: np.dtype[Any]) -> str | None:
    """Return "<f4", ">i8", "bfloat16", ">bfloat16", ...; None for what is not numbers."""
    named = ">" * (dtype.byteorder == ">") + dtype.name  # the name alone drops the byte order
    return next(filter(DTYPE.fullmatch, (named, dtype.str)), None)


def parse_dtype(text: str) -> np.dtype[Any]:
    """Return the dtype of such a text; TypeError for what is not numbers."""
    if not (match := DTYPE.fullmatch(text)):
        raise TypeError(f"{text!r} is no dtype of numbers")
    if match[1]:
        import ml_dtypes  # noqa: F401 (tells numpy what bfloat16 is)
    return np.dtype(text.lstrip(">")).newbyteorder(">" if text[0] == ">" else "|")


def seal(facts: Mapping[str, Any], is_encoded: bool, tensors: Iterable[Any]) -> bytes:
    """Return `HASH JSON`; the script that publishes it puts `NUMBER TIME ` in front.

    A line break comes before each chunk. JSON escapes those of names and metadata, so that the
    scripts take no text of users for a chunk, whatever it looks like.
    """
    head = json.dumps({"facts": facts, "encoded": is_encoded}, allow_nan=False)
    rows = (
        json.dumps(about)[:-1] + ", [" + ",".join(f'\n"{chunk}"' for chunk in chunks) + "]]"
        for *about, chunks in tensors
    )
    text = f'{head[:-1]}, "tensors": [{", ".join(rows)}]}}'.encode()
    return blake3(text).hexdigest().encode() + b" " + text


def unseal(record: bytes, number: bytes) -> tuple[Version, dict[str, Any], bool]:
    """Return a version, (dtype, shape, chunks) by name, and if they are encoded; or Corrupt."""
    try:
        own_number, created, checksum, text = record.split(b" ", 3)
        if own_number != number or blake3(text).hexdigest().encode() != checksum:
            raise ValueError("wrong number or hash")
        manifest, version = json.loads(text), Version(number)
        tensors = {name: rest for name, *rest in manifest["tensors"]}
        if len(tensors) < len(manifest["tensors"]):
            raise ValueError("two tensors of one name")
        version.__dict__.update(manifest["facts"], created=float(created))
        return version, tensors, bool(manifest["encoded"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Corrupt(f"version {number!r} is damaged, or over MAX_MANIFEST: {error!r}") from error


# --8<-- [end:manifest]
# --8<-- [start:publish]
# Without one script that checks and flips, readers meet half a model, and of two trainers that
# publish at once one is overwritten unseen. Chunks travel first, each named by its hash and the
# token of the save that registered it. The script makes them a version only if all are still
# registered: a prune() ends that before it unlinks, and such a name is never used again.
KEYS = "local versions, aliases, counter, saves, blobs, trash, history = unpack(KEYS)\n"
REGISTER = """
local tokens = {}
for i = 2, #ARGV do
  redis.call('HSETNX', blobs, ARGV[i], ARGV[1])
  tokens[i - 1] = redis.call('HGET', blobs, ARGV[i])
end
return tokens"""
PUBLISH = """
local alias, length, token, parent, manifest = unpack(ARGV)
local state, current = redis.call('HGET', saves, token), redis.call('HGET', aliases, alias) or '0'
if state and string.find(state, ' ') then return {'done', state} end  -- the reply was lost
local is_stale = parent ~= '' and parent ~= current
if is_stale then redis.call('HDEL', saves, token) return {'conflict', current} end
if not state then return {'late'} end
local lost = {'pruned'}
for hash, by in string.gmatch(manifest, '\\n"(%x+)%.(%x+)"') do
  local is_lost = redis.call('HGET', blobs, hash) ~= by
  if is_lost then lost[#lost + 1] = hash .. '.' .. by end
end
if #lost > 1 then return lost end
local time, number = redis.call('TIME'), string.format('%d', redis.call('INCR', counter))
local stamp = string.format('%s %s.%06d', number, time[1], time[2])
redis.call('HSET', versions, number, stamp .. ' ' .. manifest)
redis.call('HSET', saves, token, stamp)
redis.call('HSET', aliases, alias, number)
redis.call('XADD', history, 'MAXLEN', length, '*', 'version', number)
return {'done', stamp}"""
PROMOTE = """
local number = redis.call('HGET', aliases, ARGV[3]) or ARGV[3]
if redis.call('HEXISTS', versions, number) == 0 then return 0 end
if redis.call('HGET', aliases, ARGV[1]) == number then return 1 end
redis.call('XADD', history, 'MAXLEN', ARGV[2], '*', 'version', number)
return redis.call('HSET', aliases, ARGV[1], number) + 1"""


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


class ParamStore:
    """Versions of named arrays, on a server or a cluster.

    `encode(array) -> bytes` and `decode(bytes) -> array` replace the raw bytes of each tensor.
    Raises TypeError if `r` decodes responses or `name` is no str, ValueError if it has braces.
    """

    def __init__(
        self, r: Client, name: str, *,
        encode: Callable[[NDArray[Any]], bytes] | None = None,
        decode: Callable[[bytes], NDArray[Any]] | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(name, str):
            raise TypeError(
                f"ParamStore(client, name): the name is a str, not a {type(name).__name__}"
            )
        if not name or set("{}") & set(name):
            raise ValueError(f"a store's name is a string without braces, not {name!r}")
        self._r: Any = _of_bytes(r)
        self._name, self._encode, self._decode = name, encode, decode
        parts = ("versions", "aliases", "counter", "saves", "blobs", "trash", "history:")
        self._keys = [f"{{params:{name}}}:{part}" for part in parts]

    def save(
        self, params: Mapping[str, ArrayLike], *, parent: int | None = None,
        metadata: Mapping[str, Any] | None = None, alias: str = "latest",
    ) -> Version:  # fmt: skip
        """Store arrays as a new version and let `alias` name it; leave them unchanged meanwhile.

        With `parent` only if the alias names that version (0: none yet), else raises Conflict.
        Raises ValueError if `params` is empty.
        """
        if not isinstance(params, Mapping):
            raise TypeError(f"params: a mapping of name -> array, not {type(params).__name__}")
        if not params:
            raise ValueError("params is empty: there is nothing to publish")
        base = "" if parent is None else operator.index(parent)
        tensors, pieces, nbytes = list[Any](), list[Any](), 0
        for name, value in dict(params).items():
            array = np.asarray(value, order="C")
            dtype = dtype_text(array.dtype)
            if dtype is None or not isinstance(name, str):
                raise TypeError(f"params[{name!r}] is {array.dtype}: str names and numbers only")
            raw: Any = self._encode(array) if self._encode else array.reshape(-1).view(np.uint8)
            chunks = [memoryview(raw)[at : at + CHUNK] for at in range(0, len(raw), CHUNK)]
            tensors.append((name, dtype, array.shape, len(chunks)))
            pieces += chunks
            nbytes += array.nbytes
        facts: dict[str, Any] = {"parent": base or None, "nbytes": nbytes, "sent_bytes": 0}
        facts["metadata"] = dict(metadata or {})
        if nbytes > MAX_BYTES:
            raise ValueError(f"{nbytes} bytes are more than MAX_BYTES: split the model")
        hashes = [blake3(piece).hexdigest() for piece in pieces]
        token = secrets.token_hex(8)
        self._r.hset(self._keys[3], token, self._r.time()[0])
        for _ in range(TRIES):
            by = self._run(REGISTER, alias, token, *hashes)
            names = [f"{h}.{t.decode()}" for h, t in zip(hashes, by, strict=True)]
            facts["sent_bytes"] += self._send(dict(zip(names, pieces, strict=True)))
            rest = iter(names)
            entries = [(*tensor, list(islice(rest, n))) for *tensor, n in tensors]
            manifest = seal(facts, bool(self._encode), entries)
            if len(manifest) > MAX_MANIFEST:
                raise ValueError("more metadata, tensors and chunks than MAX_MANIFEST allows")
            status, *answer = self._run(PUBLISH, alias, alias, HISTORY, token, base, manifest)
            if status != b"pruned":
                break
            # Chunks of others that were stored when we looked: send them as our own. If we sent
            # such a chunk after it was unlinked, nobody else knows of it.
            if foreign := {name.decode() for name in answer} - set(names):
                raise ParamStoreError(f"nothing is published: {foreign} are no chunks of this save")
            list(self._pipe((0, "UNLINK", name.decode()) for name in answer))
        if status == b"conflict":
            raise Conflict(f"{alias!r} names version {int(answer[0])}, not {base}")
        if status == b"pruned":
            raise ParamStoreError(
                f"nothing is published: {TRIES} times prune() took chunks that were stored; save "
                "again, and prune less often"
            )
        if status == b"late":
            raise ParamStoreError(
                f"nothing is published: the save took longer than {SAVE_S} s, or a failover forgot "
                "that it had begun; save again"
            )
        return unseal(answer[0] + b" " + manifest, answer[0].split()[0])[0]

    def promote(self, version: int | str, alias: str = "production") -> None:
        """Let `alias` name a version, or what another alias names: release or roll back."""
        if not self._run(PROMOTE, alias, alias, HISTORY, str(version)):
            raise VersionGone(f"there is no version {version!r} (any more)")

    def _send(self, chunks: Mapping[str, Any]) -> int:
        lengths = self._pipe((0, "STRLEN", name) for name in chunks)
        new = [name for name, n in zip(chunks, lengths, strict=True) if n != len(chunks[name])]
        list(self._pipe((len(chunks[name]), "SET", name, chunks[name]) for name in new))
        return sum(len(chunks[name]) for name in new)

    def _pipe(self, commands: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the replies to (bytes, word, chunk, ...), sent some MiB at a time."""
        pipe, filled = self._r.pipeline(transaction=False), 0
        for size, word, chunk, *value in commands:
            if len(pipe) == PIPE_COMMANDS or (filled and filled + size > PIPE_BYTES):
                yield from pipe.execute()
                filled = 0
            pipe.execute_command(word, f"params:{self._name}:blob:{chunk}", *value)
            filled += size
        yield from pipe.execute()

    def _run(self, script: str, alias: str, *args: Any) -> Any:
        keys = [*self._keys[:-1], self._history(alias)]
        return self._r.eval(KEYS + script, len(keys), *keys, *args)

    def _history(self, alias: str) -> str:
        if not isinstance(alias, str):
            raise TypeError(f"an alias is a str, not {alias!r}")
        if re.fullmatch(r"\d*", alias):
            raise ValueError(f"an alias is a string that is not a number, not {alias!r}")
        return self._keys[-1] + alias

    # --8<-- [end:publish]
    # --8<-- [start:read]
    # A reader that trusts what it gets serves what a truncated, swapped or evicted chunk leaves:
    # so lengths are compared before memory is taken, and hashes before numbers are used. And a
    # reader that waits for messages misses those sent while it was cut off: watch() reads on in
    # the alias's history instead.
    FETCH = """
    local number = redis.call('HGET', aliases, ARGV[1]) or ARGV[1]
    if redis.call('HSTRLEN', versions, number) > tonumber(ARGV[2]) then return {number, ''} end
    return {number, redis.call('HGET', versions, number)}"""

    def resolve(self, alias: str) -> int:
        """Return the number that an alias names; VersionGone if it names none."""
        return int(self._fetch(alias)[0])

    def versions(self) -> list[Version]:
        """Return all versions, oldest first."""
        records = self._r.hscan_iter(self._keys[0], count=10)
        return sorted({unseal(record, number)[0] for number, record in records})

    def load(
        self, version: int | str = "latest", *, names: Iterable[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return a version's arrays, or those of `names`, equal to the bit.

        Raises VersionGone, also when a prune() comes between, or Corrupt.
        """
        found, tensors, is_encoded = self._fetch(version)
        wanted = tensors if names is None else [names] if isinstance(names, str) else list(names)
        if unknown := [name for name in wanted if name not in tensors]:
            has = f"{[*tensors][:5]}" + " and more" * (len(tensors) > 5)
            raise VersionGone(f"version {found} has no tensors {unknown}; it has {has}")
        if is_encoded and self._decode is None:
            raise ParamStoreError(f"version {found} was saved with encode=: pass decode=")
        try:
            return dict(self._arrays([(name, *tensors[name]) for name in wanted], is_encoded))
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            if not self._r.hexists(self._keys[0], int(found)):
                raise VersionGone(f"version {found} was pruned while it was read") from None
            raise Corrupt(f"version {found}: {error}") from error

    def _arrays(self, tensors: list[Any], is_encoded: bool) -> Iterator[tuple[str, NDArray[Any]]]:
        chunks = [chunk for *_, some in tensors for chunk in some]
        lengths = list(self._pipe((0, "STRLEN", chunk) for chunk in chunks))
        if 0 in lengths or sum(lengths) > MAX_BYTES:
            raise Corrupt("chunks are lost, or longer than MAX_BYTES in all")
        decode, sizes = self._decode or bytes, iter(lengths)
        blobs = self._pipe((n, "GET", chunk) for n, chunk in zip(lengths, chunks, strict=True))
        for name, text, shape, some in tensors:
            dtype, stored = parse_dtype(text), sum(islice(sizes, len(some)))
            if not is_encoded and math.prod(shape) * dtype.itemsize != stored:
                raise Corrupt(f"{name!r} has {stored} bytes, not those of its shape {shape}")
            data, at = np.empty(stored, np.uint8), 0
            for chunk, blob in zip(some, blobs, strict=False):
                if blob is None or blake3(blob).hexdigest() != chunk[:64]:
                    raise Corrupt(f"chunk {chunk} is lost, or not what was saved")
                data[at : at + len(blob)] = np.frombuffer(blob, np.uint8)
                at += len(blob)
            array: Any = decode(data.tobytes()) if is_encoded else data.view(dtype).reshape(shape)
            is_like = array.dtype.newbyteorder("=") == dtype.newbyteorder("=")
            if not is_like or array.shape != tuple(shape):
                raise Corrupt(f"{name!r} is decoded to {array.dtype} {array.shape}")
            yield name, array.astype(dtype, copy=False)  # decode() may give another byte order

    def watch(self, alias: str, *, timeout_s: float | None = None) -> Iterator[Version]:
        """Yield the version that the alias names now, then each that it comes to name, in order.

        Rides through lost connections; ends when `timeout_s` pass without a move. Passes over a
        version that is pruned before it is looked at.
        """
        key = self._history(alias)
        now = self._r.xrevrange(key, count=1)  # not when the caller first iterates
        return self._follow(key, now, timeout_s)

    def _follow(self, key: str, moves: Any, timeout_s: float | None) -> Iterator[Version]:
        last, since = b"0-0", time.monotonic()
        while True:
            left = math.inf if timeout_s is None else since + timeout_s - time.monotonic()
            try:
                if not moves:
                    wait_ms = max(1, int(1000 * min(left, WAIT_S)))
                    self._r.xread({key: last}, count=1, block=wait_ms)  # wakes us up, no more
                    moves = self._r.xrange(key, b"(" + last, count=1)
                version = self._fetch(moves[0][1][b"version"].decode())[0] if moves else None
            except VersionGone:
                version = None
            except UNREACHABLE as error:
                if left <= 0 or isinstance(error, redis.AuthenticationError):
                    raise
                time.sleep(RETRY_S)
                continue
            if not moves and left <= 0:
                return
            if version:
                yield version
            if moves:
                last, moves, since = moves[0][0], [], time.monotonic()

    def _fetch(self, version: int | str) -> tuple[Version, dict[str, Any], bool]:
        number, record = self._run(self.FETCH, "-", str(version), MAX_MANIFEST)
        if record is None:
            raise VersionGone(f"there is no version or alias {version!r} (any more)")
        return unseal(record, number)

    # --8<-- [end:read]
    # --8<-- [start:prune]
    # Without care, this takes chunks that a newer version shares, or that a save in flight has
    # found stored. One script picks what goes; PUBLISH refuses a save that counted on it, which
    # then sends it again. Unlinking comes last; if it is cut short, the next prune() goes on.
    # bounded: the script reads about 100 bytes for each chunk that is stored, and replies nothing
    RETIRE = """
    local used, states, oldest = {}, redis.call('HGETALL', saves), redis.call('TIME')[1] - ARGV[2]
    for _, number in ipairs(redis.call('HVALS', aliases)) do used[number] = true end
    local numbers, chunks = redis.call('HKEYS', versions), redis.call('HGETALL', blobs)
    table.sort(numbers, function(a, b) return tonumber(a) > tonumber(b) end)
    for i, number in ipairs(numbers) do
      local record = redis.call('HGET', versions, number)
      if i > tonumber(ARGV[1]) and not used[number] then redis.call('HDEL', versions, number)
      else
        local line = string.find(record, '\\n') and '\\n' or ''  -- older manifests have no lines
        for hash in string.gmatch(record, line .. '"(%x+)%.%x+"') do used[hash] = true end
      end
    end
    for i = 1, #states, 2 do
      local begun, answer = string.match(states[i + 1], '%S+$'), string.find(states[i + 1], ' ')
      if tonumber(begun) < oldest then redis.call('HDEL', saves, states[i])
      elseif not answer then used[states[i]] = true end
    end
    for i = 1, #chunks, 2 do
      if not used[chunks[i]] and not used[chunks[i + 1]] then
        redis.call('HDEL', blobs, chunks[i])
        redis.call('SADD', trash, chunks[i] .. '.' .. chunks[i + 1])
      end
    end"""

    def prune(self, keep: int = 5) -> int:
        """Remove all but the `keep` newest versions and those with an alias; return bytes freed."""
        if operator.index(keep) < 0:
            raise ValueError("keep is 0 or more")
        self._run(self.RETIRE, "-", int(keep), SAVE_S)
        freed, trash = 0, self._keys[5]
        while names := [name.decode() for name in self._r.srandmember(trash, PIPE_COMMANDS)]:
            lengths = list(self._pipe((0, "STRLEN", name) for name in names))
            unlinked = self._pipe((0, "UNLINK", name) for name in names)
            freed += sum(n for n, done in zip(lengths, unlinked, strict=True) if done)
            self._r.srem(trash, *names)
        return freed

    def delete(self) -> None:
        """Remove the whole store."""
        for alias, _ in self._r.hscan_iter(self._keys[1]):
            self._r.unlink(self._keys[-1] + alias.decode())
        self._r.unlink(*self._keys[:4])  # all but blobs and trash, which tell what to unlink
        self.prune()

    # --8<-- [end:prune]


# --8<-- [start:interchange]
# PyTorch, JAX and Hugging Face models come as safetensors files, which run no code when read.
def to_safetensors(params: Mapping[str, ArrayLike], path: str | Path) -> None:
    """Write arrays to a file, such as `to_safetensors(store.load("production"), path)`.

    Raises ValueError for a tensor named `__metadata__`: the format keeps that name for itself.
    """
    from safetensors.numpy import save_file  # looks at no strides: give it C order

    if "__metadata__" in params:
        raise ValueError("safetensors files have no tensor named '__metadata__': rename it")
    save_file({name: np.asarray(value, order="C") for name, value in params.items()}, path)


# --8<-- [start:shared-safetensors]
# Safetensors has its own names of dtypes, and its reader for numpy lacks some of the small floats.
SAFETENSORS = {f"{k}{8 * n}": f"<{k.lower()}{n}" for k in "FIU" for n in (1, 2, 4, 8)} | {
    "BOOL": "|b1", "C64": "<c8", "BF16": "bfloat16", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
# --8<-- [end:shared-safetensors]


def from_safetensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, bfloat16 and float8 too; takes twice the file's memory."""
    import safetensors  # safetensors.numpy.load_file() cannot read float8

    read: Any = safetensors.deserialize
    return {
        name: np.frombuffer(t["data"], parse_dtype(SAFETENSORS[t["dtype"]])).reshape(t["shape"])
        for name, t in read(Path(path).read_bytes())
    }


# --8<-- [end:interchange]
# --8<-- [start:usage]
# Without versions, what the trainer wrote last is the only model there is, good or bad.
def demo(r: redis.Redis) -> None:
    """Publish a model, tune one layer, lose a race, roll back, follow, load in part, prune."""
    store, rng = ParamStore(r, "model-params-demo"), np.random.default_rng(0)
    params = {f"layer{i}": rng.random((256, 256), np.float32) for i in range(10)}
    first = store.save(params, metadata={"accuracy": 0.93})
    print(f"version {first}: {len(params)} layers, {first.sent_bytes:,} bytes sent")
    params["layer9"] += 0.01
    tuned = store.save(params, parent=first, metadata={"accuracy": 0.91})
    print(f"version {tuned}: one layer tuned, {tuned.sent_bytes:,} bytes sent")
    try:
        store.save(params, parent=first)
    except Conflict as error:
        print(f"a late trainer gets a Conflict: {error}")
    following = store.watch("production", timeout_s=0)
    for version in (first, tuned, first):
        store.promote(version)
    print(f"production went from version to version: {', '.join(map(str, following))}")
    head = store.load("latest", names=["layer9"])
    print(f"{', '.join(head)} alone, equal: {np.array_equal(head['layer9'], params['layer9'])}")
    store.promote(tuned)
    print(f"prune frees {store.prune(keep=1):,} bytes and leaves version {store.versions()[0]}")
    store.delete()
    print("A version costs what changed, appears whole, and an alias goes back in one step.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
