"""Store training arrays in Redis and read them as shuffled, resumable batches.

Use when: several workers train from the same arrays, or the data changes while they train.
Not when: one process can hold the data (np.load), or it is many times the servers' memory
    (files: np.memmap, WebDataset, MosaicML Streaming).
Keys: NAME is the data set, say digits/train; GEN is its generation, 16 new hex digits a write:
    td:{NAME}      hash    generation, and manifest: JSON, about 70 bytes a chunk
    td:{NAME}:GEN  string  marks what is not yet published; also a channel: its writer is alive
    td:NAME:GEN:I  string  chunk I, up to chunk_bytes of rows; no hash tag, so that they spread
    No TTL unless ttl= is given; replaced: 1 hour, for readers in mid-epoch; unpublished: a day.
Guarantees: Readers see the old data or the new, never a mix; of two writers one wins whole, two
    appends both count. A killed writer changes nothing; the next write removes what it left. Each
    checksum is verified (xxh3: accidents, not attackers). An epoch has each row once; its order is
    a pure function of the stored chunks, seed and epoch. A failover may lose the newest writes.
Cost: A round trip for each 2 MiB; a write also SCANs all keys once. Together 1, 2, 4 or 8 ranks
    read at most 1.09 times the data in an epoch. rows() reads the whole chunks that it touches.
Needs: Redis 7.0+ or Valkey 7.2+; pip install redis numpy xxhash; optional: scikit-learn
Run: python recipes/training_data.py trains on digits, stops, resumes, replaces, breaks a chunk
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import redis
import xxhash
from numpy.typing import ArrayLike, NDArray

Client = redis.Redis | redis.cluster.RedisCluster
Columns = dict[str, NDArray[Any]]
Blocks = Mapping[str, ArrayLike] | Iterable[Mapping[str, ArrayLike]]
Encode: TypeAlias = Callable[[NDArray[Any]], bytes] | None
Decode: TypeAlias = Callable[[bytes], NDArray[Any]] | None

LANES = 8  # rows come from so many lanes in turn: 1, 2, 4 or 8 ranks share them evenly
WINDOW = 32  # chunks, over all lanes, whose rows are shuffled together
MIN_CHUNKS = 80  # a chunk that the end of a lane cuts is read twice: those 7 must be few
# Bytes, rows, characters, bytes; more is refused.
MAX_CHUNK, MAX_ROWS, MAX_DTYPE, MAX_MANIFEST = 64 << 20, 1 << 16, 1 << 16, 64 << 20
PIPELINE_BYTES, PIPELINE_COMMANDS = 2 << 20, 500  # in a round trip
STAGED_S, RETIRED_S = 86_400, 3600
RESTORE = "Write the data again; if it was evicted, set maxmemory-policy noeviction."
ALIKE = "Give the same columns, order and dtypes; for strings np.asarray(x, 'U12')."


class DataError(ValueError):
    """Data that cannot be stored, or that is missing or damaged. The message says what to do."""


# --8<-- [start:chunks]
# A key a row costs a command a row; one key for all blocks the server while it is sent. Chunks of
# up to 1 MiB, a few in a pipeline, travel at the speed of the wire. A chunk is its columns, one
# after another. What is read is input: claims of huge shapes or of Python objects are refused.
class Manifest(NamedTuple):
    """One generation: `dtype` has a field for each column, chunks are (key, rows, xxh3_64)."""

    name: str
    generation: str
    dtype: np.dtype[Any]
    chunks: list[tuple[str, int, int]]
    encoded: bool

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return sum(rows for _, rows, _ in self.chunks)

    def to_json(self) -> bytes:
        """Return what is stored. Raises DataError if it is too much for load."""
        dtype = repr(np.lib.format.dtype_to_descr(self.dtype))
        body = {"version": 1, "dtype": dtype, "encoded": self.encoded, "chunks": self.chunks}
        checksum = xxhash.xxh3_64_hexdigest(json.dumps(body).encode())
        if len(raw := json.dumps(body | {"checksum": checksum}).encode()) > MAX_MANIFEST:
            raise DataError(f"{len(self.chunks)} are too many chunks: write with more chunk_bytes.")
        return raw

    @classmethod
    def load(cls, r: Client, name: str) -> Manifest:
        """Return the current generation, each claim checked; errors as of Dataset."""
        stored: list[Any] = _of_bytes(r).hmget(_pointer(name), "generation", "manifest")
        generation, raw = (value or b"" for value in stored)
        if not raw:
            raise DataError(f"There is no data set {name!r} (any more). {RESTORE}")
        try:
            if len(raw) > MAX_MANIFEST:
                raise ValueError(f"{len(raw)} bytes, more than {MAX_MANIFEST}")
            body = json.loads(raw)
            if body["version"] != 1:
                raise ValueError(f"unknown version {str(body['version'])[:20]}, update this code")
            dtype, chunks = _dtype(body["dtype"]), [(str(k), n, c) for k, n, c in body["chunks"]]
            most = min(MAX_ROWS, MAX_CHUNK // max(1, dtype.itemsize))
            for key, n, _ in chunks:
                if not key.startswith(f"td:{name}:") or type(n) is not int or not 1 <= n <= most:
                    raise ValueError("a chunk that cannot be its own")
            found = cls(name, generation.decode("latin1"), dtype, chunks, bool(body["encoded"]))
            if not chunks or found.to_json() != raw:
                raise ValueError("its checksum is wrong")
        except Exception as error:  # also SyntaxError, RecursionError, MemoryError of literal_eval
            raise DataError(f"The manifest of {name!r} is damaged: {error}. {RESTORE}") from error
        return found


def _dtype(descr: str) -> np.dtype[Any]:
    if len(descr) > MAX_DTYPE:
        raise ValueError("too many or too long column names: stack them into one 2-d column")
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(descr))
    if dtype.hasobject or not dtype.names or dtype.itemsize > MAX_CHUNK:
        raise ValueError(f"rows of {dtype} have no fixed size, or more than {MAX_CHUNK} bytes")
    return dtype


def _cut(columns: Blocks, chunk_bytes: int, seen: int) -> Iterator[tuple[np.dtype[Any], Columns]]:
    """Yield chunks: of 1/80 of the rows seen so far, but at most chunk_bytes."""
    for block in [columns] if hasattr(columns, "items") or not np.iterable(columns) else columns:
        try:
            arrays = {name: np.asarray(values) for name, values in block.items()}
            lengths = {name: len(array) for name, array in arrays.items()}
            dtype = np.dtype([(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
            if len({*lengths.values()}) > 1:
                raise ValueError(f"columns of unequal lengths, {lengths}")
            if _dtype(repr(np.lib.format.dtype_to_descr(dtype))) != dtype or "" in arrays:
                raise ValueError(f"{dtype} has no name in numpy's format")
        except (AttributeError, TypeError, ValueError, SyntaxError) as error:
            raise DataError(f"Give {{name: array}} of numbers or S/U strings: {error}.") from error
        seen += (count := max(lengths.values()))
        step = min(MAX_ROWS, chunk_bytes // max(1, dtype.itemsize), seen // MIN_CHUNKS) or 1
        for at in range(0, count, step):
            yield dtype, {k: np.ascontiguousarray(a[at : at + step]) for k, a in arrays.items()}


def _pack(chunk: Columns, encode: Encode) -> bytes:
    """Return the columns' bytes; if encoded, behind their lengths."""
    if encode is None:
        return b"".join(column.tobytes() for column in chunk.values())
    encoded = [bytes(encode(column)) for column in chunk.values()]
    return np.array([*map(len, encoded)], "<u8").tobytes() + b"".join(encoded)


def _unpack(raw: bytes, rows: int, dtype: np.dtype[Any], decode: Decode) -> Columns:
    """Return the columns; raises ValueError if they are not what the manifest says."""
    names = dtype.names or ()
    at, lengths = 0, [rows * dtype[name].itemsize for name in names]
    if decode:
        at, lengths = 8 * len(names), np.frombuffer(raw[: 8 * len(names)], "<u8").tolist()
    if at + sum(lengths) != len(raw):
        raise ValueError(f"{len(raw)} bytes, where {at + sum(lengths)} were written")
    columns: Columns = {}
    for name, n in zip(names, lengths, strict=True):
        base, shape = dtype[name].base, (rows, *dtype[name].shape)
        array = np.asarray(decode(raw[at : at + n])) if decode else np.ndarray(shape, base, raw, at)
        if (array.dtype, array.shape) != (base, shape):
            raise ValueError(f"decode did not give {base} {shape} for column {name!r}")
        columns[name], at = array, at + n
    return columns


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


def _pointer(name: str) -> str:
    """Return the key of the hash that names the current generation."""
    if not isinstance(name, str) or not re.fullmatch(r"[^{}*?\[\]\\]{1,200}", name):
        raise DataError(f"{name!r:.60} is no name: str, 1 to 200 characters, none of {{}}[]*?\\")
    return f"td:{{{name}}}"


# --8<-- [end:chunks]


# --8<-- [start:publish]
# Chunks overwritten in place show readers half of each. Here a generation is written beside the old
# one and one key flips. A writer subscribes to its mark: the server drops the subscription as soon
# as the writer is killed, so the next one knows whose chunks are nobody's.
FLIP = """
local current = redis.call('HGET', KEYS[1], 'generation') or ''
if current == ARGV[1] then return 1 end
if ARGV[4] ~= '' and current ~= ARGV[4] then return 0 end
if redis.call('DEL', KEYS[2]) == 0 then return -1 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'manifest', ARGV[2])
if ARGV[3] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
STATE = "return {redis.call('EXISTS', KEYS[1]), redis.call('PUBSUB', 'NUMSUB', KEYS[1])[2]}"


def write(
    r: Client, name: str, columns: Blocks, *, chunk_bytes: int = 1 << 20,
    encode: Encode = None, ttl: float | None = None,
) -> Manifest:  # fmt: skip
    """Store or replace a data set. Raises DataError; TypeError if `r` decodes responses.

    columns: name -> array of shape (rows, ...), or an iterable of such mappings, of some MiB each.
    encode: array -> bytes, for each column of a chunk. ttl: seconds until all of it expires.
    """
    if not 1 <= chunk_bytes <= MAX_CHUNK or (ttl is not None and ttl <= 0):
        raise DataError(f"chunk_bytes is 1 to {MAX_CHUNK}; ttl is None or more than 0.")
    return _store(r, name, columns, chunk_bytes, encode, math.ceil((ttl or 0) * 1000), None)


def append(r: Client, name: str, columns: Blocks, *, encode: Encode = None) -> Manifest:
    """Add rows (arguments and errors as for write): readers see all or none. A TTL goes on."""
    return _store(r, name, columns, 1 << 20, encode, 0, Manifest.load(r, name))


def delete(r: Client, name: str) -> int:
    """Remove a data set, old generations too; return the number of keys. Errors as for write."""
    return int(_of_bytes(r).unlink(_pointer(name))) + _sweep(r, name, everything=True)


def _store(
    r: Client, name: str, columns: Blocks, chunk_bytes: int, encode: Encode, ttl: int,
    old: Manifest | None,
) -> Manifest:  # fmt: skip
    new = Manifest(name, secrets.token_hex(8), np.dtype([]), [], encode is not None)
    pointer, mark = _pointer(name), f"{_pointer(name)}:{new.generation}"
    form = "{0.dtype}, encoded={0.encoded}".format

    def staged() -> Iterator[tuple[int, tuple[Any, ...]]]:
        nonlocal new
        for dtype, chunk in _cut(columns, chunk_bytes, old.rows if old else 0):
            if new.chunks and new.dtype != dtype:
                raise DataError(f"The blocks differ: {new.dtype}, then {dtype}. {ALIKE}")
            new, raw = new._replace(dtype=dtype), _pack(chunk, encode)
            key = f"td:{name}:{new.generation}:{len(new.chunks)}"
            rows = len(next(iter(chunk.values())))
            new.chunks.append((key, rows, xxhash.xxh3_64_intdigest(raw)))
            yield len(raw), ("SET", key, raw, "EX", STAGED_S)

    def final(whole: Manifest, ttl: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        for key, _, _ in whole.chunks:  # old ones too: a failover may have undone a replacement
            yield 0, (("PEXPIRE", key, ttl) if ttl else ("PERSIST", key))
            yield 0, ("EXISTS", key)

    with _of_bytes(r).pubsub() as alive:  # type: ignore[no-untyped-call]
        alive.subscribe(mark)
        alive.get_message(timeout=10)  # the answer: from now on the server knows this writer
        try:
            r.set(mark, "", ex=STAGED_S)
            deque(_sent(r, staged()), maxlen=0)
            if not new.chunks:
                raise DataError("There are no rows to store.")
            while True:
                if old and (old.dtype, old.encoded) != (new.dtype, new.encoded):
                    raise DataError(f"Stored is {form(old)}; given is {form(new)}. {ALIKE}")
                ttl = max(0, int(r.pttl(pointer))) if old else ttl
                whole = new._replace(chunks=[*(old.chunks if old else []), *new.chunks])
                args = new.generation, whole.to_json(), ttl, old.generation if old else ""
                kept = all([*_sent(r, final(whole, ttl))][1::2])
                flipped: Any = r.eval(FLIP, 2, pointer, mark, *args) if kept else -1
                if flipped == 1:
                    return whole
                if flipped == -1:
                    raise DataError(f"Chunks of {name!r} are gone. {RESTORE}")
                old = Manifest.load(r, name)  # another writer was faster: append to that
        finally:
            _sweep(r, name, mine=new.generation)


def _sent(r: Client, commands: Iterable[tuple[int, tuple[Any, ...]]]) -> Iterator[Any]:
    """Yield the replies to (bytes, command) pairs, sent in pipelines of bounded size."""
    size = 0
    with r.pipeline(transaction=False) as pipe:
        for weight, command in commands:
            pipe.execute_command(*command)
            size += weight
            if size >= PIPELINE_BYTES or len(pipe) >= PIPELINE_COMMANDS:
                yield from pipe.execute()
                size = 0
        yield from pipe.execute()


def _sweep(r: Client, name: str, mine: str = "", everything: bool = False) -> int:
    """Let what was replaced expire, remove what is nobody's; or all that no writer stages."""
    form = re.compile(rf"td:(?:{{{re.escape(name)}}}|{re.escape(name)}):([0-9a-f]{{16}})(?::\d+)?")
    keys = (key.decode(errors="replace") for key in r.scan_iter(f"td:*{name}*", count=1000))
    found = {key: match[1] for key in keys if (match := form.fullmatch(key))}
    states = {g: r.eval(STATE, 1, f"td:{{{name}}}:{g}") for g in {*found.values()}}
    needed: set[str] = set()
    if r.exists(_pointer(name)):  # read last: what was published since the scan is needed
        try:
            needed = {key for key, _, _ in Manifest.load(r, name).chunks}
        except DataError:  # damaged, or a newer version's: touch nothing of it
            found = {key: g for key, g in found.items() if g == mine}
    commands: list[tuple[Any, ...]] = [
        ("UNLINK", key) if everything or states[g][0] else ("EXPIRE", key, RETIRED_S, "LT")
        for key, g in found.items()
        if key not in needed and (g == mine or not all(states[g]))
    ]
    return sum(_sent(r, ((0, command) for command in commands)))


# --8<-- [end:publish]


# --8<-- [start:epoch]
# A shuffle of whole rows reads a chunk for each row, and an order per worker breaks when their
# number changes. Here windows of chunks from all over the data are shuffled one after another, and
# rows come from 8 lanes in turn, each with its own chunks: a rank reads its lanes, no more.
class Window(NamedTuple):
    """Rows that are shuffled together: pieces of a few chunks of each lane."""

    first: int  # row of the epoch
    pieces: list[tuple[int, int, int]]  # chunk, from its row, to its row
    lanes: list[tuple[int, Any]]  # rows, and the key of their order, if not the stored one
    mine: slice = slice(None)  # which of all these rows are the rank's

    def order(self) -> NDArray[np.intp]:
        """Return where in the pieces, one after another, each of the rank's rows is."""
        order, at = np.empty(sum(rows for rows, _ in self.lanes), np.intp), 0
        for lane, (rows, key) in enumerate(self.lanes):
            mixed = np.argsort(hashed(rows, *key)) if key else np.arange(rows)
            order[lane :: len(self.lanes)] = at + mixed
            at += rows
        return order[self.mine]


def hashed(n: int, *key: object) -> NDArray[np.uint64]:
    """Return n random numbers that depend on the key alone (SplitMix64: Steele et al., 2014)."""
    z = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(xxhash.xxh3_64_intdigest(repr(key).encode()))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _windows(
    sizes: NDArray[Any], shuffle: bool, seed: int, epoch: int, rank: int, world_size: int, row: int
) -> Iterator[Window]:
    """Yield the windows of an epoch from that of `row` on."""
    count, lanes = len(sizes), LANES if shuffle else 1
    turns, tape = max(1, count // WINDOW), np.arange(count)
    if shuffle:  # each turn takes a chunk from every stretch of the data, and deals it to a lane
        stretches = np.array_split(hashed(count, seed, epoch), -(-count // turns))
        turn = [(np.argsort(np.argsort(z)) + z / 2.0**64) / len(z) for z in stretches]
        mixed = np.argsort(np.concatenate(turn))
        tape = np.concatenate([mixed[lane::lanes] for lane in range(lanes)])
    ends, total, step = np.cumsum(sizes[tape]), int(sizes.sum()), math.gcd(lanes, world_size)
    depth = -(-total // (lanes * turns))  # rows of a lane in a window
    for low in range(row // (lanes * depth) * depth, -(-total // lanes), depth):
        window = Window(low * lanes, [], [])
        for lane in range(rank % step, lanes, step):
            begin, end = (j * (total // lanes) + min(j, total % lanes) for j in (lane, lane + 1))
            begin, end = min(begin + low, end), min(begin + low + depth, end)
            window.lanes.append((end - begin, shuffle and (seed, epoch, low, lane)))
            while begin < end:
                n = int(np.searchsorted(ends, begin, "right"))
                start, upto = int(ends[n] - sizes[tape[n]]), min(end, int(ends[n]))
                window.pieces.append((int(tape[n]), begin - start, upto - start))
                begin = upto
        # Of these rows, which are in steps of `step`, a rank has every (world_size // step)-th.
        skip = (rank - rank % step - low * lanes) // step % (world_size // step)
        yield window._replace(mine=slice(skip, None, world_size // step))


class Dataset:
    """The generation of a data set that is current when this is made; `len(ds)` is its rows.

    Raises DataError; TypeError if `r` decodes responses.
    """

    def __init__(self, r: Client, name: str, *, decode: Decode = None) -> None:
        self.manifest = Manifest.load(r, name)
        if self.manifest.encoded and decode is None:
            raise DataError(f"{name!r} was written with encode=: give the decode= for it.")
        self._r, self._decode = r, decode if self.manifest.encoded else None
        self._sizes = np.array([rows for _, rows, _ in self.manifest.chunks])
        self._empty = _unpack(b"", 0, self.manifest.dtype, None)
        self._spare: list[Columns] = []  # buffers for windows, kept from epoch to epoch

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def rows(self, indices: Iterable[int] | NDArray[Any]) -> Columns:
        """Return the rows of these indices (0 to len - 1), in their order, repeats included.

        Raises IndexError for any other index, and DataError.
        """
        is_lazy = isinstance(indices, Iterable) and not isinstance(indices, np.ndarray)
        wanted = np.asarray(list(indices) if is_lazy else indices)
        if wanted.size and (wanted.ndim != 1 or wanted.dtype.kind not in "iu"):
            raise IndexError("Give a list of whole numbers (for a mask: np.flatnonzero(mask)).")
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"{wanted.min()} to {wanted.max()} are not all 0 to {len(self) - 1}.")
        order, ends = np.argsort(wanted, kind="stable"), np.cumsum(self._sizes)
        ordered = wanted[order].astype(np.intp)
        chunk = np.searchsorted(ends, ordered, "right")
        needed, first = np.unique(chunk, return_index=True)
        local = np.split(ordered - (ends - self._sizes)[chunk], first[1:])
        places = dict(zip(needed.tolist(), local, strict=False))
        parts = [{k: a[places[i]] for k, a in chunk.items()} for i, chunk in self._fetched(places)]
        back = np.argsort(order)
        return {name: column[back] for name, column in _joined([self._empty, *parts]).items()}

    def batches(
        self, batch_size: int, *, shuffle: bool = True, seed: int = 0, epoch: int = 0,
        rank: int = 0, world_size: int = 1, start: int = 0, prefetch: int = 2,
    ) -> Iterator[Columns]:  # fmt: skip
        """Return an iterator over this rank's share of each batch of an epoch. Raises DataError.

        batch_size: rows over all ranks; the shares differ by a row at most. start: batches already
        done. prefetch: windows (of 32 to 40 chunks over all ranks) in memory at once; one thread
        reads those not yet in use. Ranks share chunks, so read more than the data in all, where
        world_size does not divide 8 (world_size / gcd(world_size, 8) times) and with
        shuffle=False, which is the stored order (world_size times).
        """
        if min(batch_size, world_size, start + 1, prefetch + 1) < 1 or not 0 <= rank < world_size:
            rule = "wanted: batch_size 1 or more, start, prefetch 0 or more, 0 <= rank < world_size"
            raise DataError(f"{batch_size=}, {rank=}, {world_size=}, {start=}, {prefetch=}; {rule}")
        order = shuffle, int(seed), int(epoch), rank, world_size, start * batch_size

        def share(row: int) -> int:  # ours are the rows y of the epoch with y % world_size == rank
            return (row + world_size - 1 - rank) // world_size

        def iterate() -> Iterator[Columns]:
            base, places, rows, total = 0, np.empty(0, np.intp), self._empty, len(self)
            buffers = [self._spare.pop() if self._spare else {**rows} for _ in range(prefetch or 1)]
            windows = _ahead(self._loaded(_windows(self._sizes, *order), buffers), len(buffers))
            try:
                for row in range(start * batch_size, total, batch_size):
                    low, high = share(row), share(min(row + batch_size, total))
                    parts: list[Columns] = []
                    while low < high or not parts:
                        if base + len(places) <= low < high:
                            window, rows = next(windows)
                            base, places = share(window.first), window.order()
                        picked = places[low - base : high - base]
                        parts.append({k: a.take(picked, axis=0) for k, a in rows.items()})
                        low += len(picked)
                    yield _joined(parts)
            finally:
                windows.close()
                self._spare = buffers  # fresh memory costs more time than the copying

        return iterate()

    def _loaded(
        self, plan: Iterator[Window], buffers: list[Columns]
    ) -> Iterator[tuple[Window, Columns]]:
        """Read windows into the buffers in turn; a chunk that two of them share is read once."""
        held: dict[int, Columns] = {}
        turns = itertools.pairwise(itertools.chain(plan, [Window(0, [], [])]))
        for buffer, (window, following) in zip(itertools.cycle(buffers), turns, strict=False):
            chunks = [chunk for chunk, _, _ in window.pieces]
            uses = Counter([*chunks, *(chunk for chunk, _, _ in following.pieces)])
            arriving = self._fetched([i for i in dict.fromkeys(chunks) if i not in held])
            at, total = 0, sum(stop - start for _, start, stop in window.pieces)
            for i, start, stop in window.pieces:
                held |= [next(arriving)] if i not in held else []
                for name, column in held[i].items():
                    buffer[name] = _put(buffer[name], column[start:stop], at, total)
                at, uses[i] = at + stop - start, uses[i] - 1
                if not uses[i]:
                    del held[i]  # at once: memory that is used again soon costs no page faults
            yield window, buffer

    def _fetched(self, chunks: Iterable[int]) -> Iterator[tuple[int, Columns]]:
        """Yield the number and columns of each chunk, verified."""
        wanted, dtype = [(i, *self.manifest.chunks[i]) for i in chunks], self.manifest.dtype
        gets = ((rows * dtype.itemsize, ("GET", key)) for _, key, rows, _ in wanted)
        for (i, key, rows, checksum), raw in zip(wanted, _sent(self._r, gets), strict=True):
            if raw is None:
                raise DataError(f"Chunk {key} is missing, probably evicted or expired. {RESTORE}")
            if xxhash.xxh3_64_intdigest(raw) != checksum:
                raise DataError(f"Chunk {key} fails its checksum. {RESTORE}")
            try:
                yield i, _unpack(raw, rows, dtype, self._decode)
            except Exception as error:  # decode= may raise what it likes
                raise DataError(f"Chunk {key} cannot be decoded: {error}") from error


def _put(buffer: NDArray[Any], part: NDArray[Any], at: int, total: int) -> NDArray[Any]:
    """Copy a part into the buffer. It grows, but to 8 times what has arrived: claims are free."""
    if at + len(part) > len(buffer):
        size = min(total, 8 * (at + len(part)))
        old, buffer = buffer, np.empty((size, *part.shape[1:]), part.dtype)
        buffer[:at] = old[:at]
    buffer[at : at + len(part)] = part
    return buffer


def _joined(parts: list[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    # without dtype= the byte order would become the machine's
    return {k: np.concatenate([p[k] for p in parts], dtype=a.dtype) for k, a in parts[0].items()}


def _ahead(items: Iterator[Any], count: int) -> Generator[Any, None, None]:
    """Let one thread make the next items, with the one in use `count` of them."""
    pool = ThreadPoolExecutor(1)
    try:  # the thread ends with this iterator
        made = deque(pool.submit(next, items, None) for _ in range(count))
        while (item := made.popleft().result()) is not None:
            yield item
            made.append(pool.submit(next, items, None))
    finally:
        pool.shutdown(cancel_futures=True)


# --8<-- [end:epoch]


# --8<-- [start:usage]
# Without this: a round trip a row, an epoch lost at each restart, readers that see half a write.
def demo(r: redis.Redis) -> None:
    """Store scikit-learn's digits, train on them, stop, resume, replace, and break a chunk."""
    try:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
    except ImportError:  # a stand-in of the same shape
        images, labels = 16 * np.eye(64)[np.arange(1797) % 10], np.arange(1797) % 10
    row = np.arange(len(labels))
    test = hashed(len(row), "split") < 0.2 * 2**64  # a row stays in its split when rows are added
    for split, mask in {"train": ~test, "test": test}.items():
        data = {"x": images[mask].astype(np.float32) / 16, "y": labels[mask], "row": row[mask]}
        print(f"demo/{split}: {write(r, f'demo/{split}', data).rows} rows")

    train, weights = Dataset(r, "demo/train"), np.zeros((64, 10), np.float32)
    for epoch in range(10):
        for batch in train.batches(64, seed=7, epoch=epoch):
            scores = np.exp(batch["x"] @ weights)
            error = scores / scores.sum(1, keepdims=True) - np.eye(10)[batch["y"]]
            weights -= 0.01 * batch["x"].T @ error
    unseen = Dataset(r, "demo/test").rows(range(int(test.sum())))
    accuracy = np.mean((unseen["x"] @ weights).argmax(1) == unseen["y"])
    print(f"softmax regression, 10 epochs: over 90 % of demo/test are right: {accuracy > 0.9}")

    done = [[*itertools.islice(train.batches(100, rank=k, world_size=4), 5)] for k in range(4)]
    done += [[*train.batches(100, rank=k, world_size=2, start=5)] for k in range(2)]
    seen = np.sort(np.concatenate([batch["row"] for share in done for batch in share]))
    print("5 batches on 4 workers, the rest on 2: each row once:", [*seen] == [*row[~test]])

    reader = train.batches(100)
    batches = itertools.chain([next(reader)], reader)  # it has begun
    write(r, "demo/train", {"x": np.zeros((8, 64), np.float32)})
    print("replaced in mid-epoch, which ends with its old rows:", sum(len(b["x"]) for b in batches))
    r.setrange(Dataset(r, "demo/test").manifest.chunks[0][0], 9, b"oops")
    try:
        Dataset(r, "demo/test").rows([0])
    except DataError as problem:
        print("4 bytes changed on the server, a checksum refuses them:", "checksum" in str(problem))
    print("deleted, old generations too:", delete(r, "demo/train") + delete(r, "demo/test") > 150)
    print("Shuffled batches from Redis trained a model, and resumed on other workers.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
