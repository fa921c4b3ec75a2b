"""Compress arrays before Redis stores them, with the codec that your link needs.

Use when: the network or Redis's memory runs out. Redis does not compress values: what you SET is
    what it holds and sends. `best` tells whether compressing pays on your link.
Not when: the link outruns the codec, or JPEG compressed the bytes already. Tables: Parquet.
Keys: none of its own; a blob is a string, field or chunk that lives as long as the caller says.
Guarantees: decode gives the dtype, the shape and, without a lossy part, the bits of the array.
    Lossy codecs refuse NaN, infinity and overflow; int8 errs by half a step per channel at most,
    and by the rounding of the dtype.
    A blob is data: what would outgrow its declared shape or `max_bytes` is refused before it
    expands. The checksum finds accidents; a forged blob may hold wrong numbers but runs no code.
Cost: no round trip; about 45 bytes a blob; the array once more in memory. Chunk first: a few MiB.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy xxhash zstandard; optional: lz4 blosc2
    ml_dtypes
Run: python recipes/tensor_compression.py compresses the words and lines of its own source.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis
import xxhash
from numpy.typing import ArrayLike, NDArray

Client = redis.Redis
Array = NDArray[Any]
Records = Iterable[bytes]
LEVELS = {"zlib": (0, 9, 6), "lz4": (0, 12, 0), "zstd": (-7, 22, 3)}  # lowest, highest, default
LEVELS |= {"blosc2": (0, 9, 1), "blosc2-bitshuffle": (0, 9, 5)}
LOSSY = ("float16", "bfloat16", "int8")
CODECS = {"raw": ("", "")} | {b: ("", b) for b in LEVELS} | {a: (a, "") for a in LOSSY}
CODECS |= {f"{a}+{b}": (a, b) for a in LOSSY for b in LEVELS}
MAX_ARRAY_BYTES = 0x7E000000  # 1.97 GiB: the most that LZ4 and Blosc2 take at once
HEADER = re.compile(rb"(tensor/1 ([a-z0-9+-]{3,40}) (\S{2,32}) ([\d,]{0,1300}) )([\da-f]{16})\n")
ML_DTYPE = re.compile(r">?(bfloat16|float[468]_\w+|u?int[124]|b?complex32)")
PLAIN_DTYPE = r"[<>|][biufcSUMm][1-9]\d{0,8}(\[\d{0,9}[A-Za-z]{1,2}\])?"
DTYPE = re.compile(f"{PLAIN_DTYPE}|{ML_DTYPE.pattern}")


class CodecError(ValueError):
    """This codec cannot be used, or not on this array. The message says what would work."""


class MissingPackage(CodecError, ImportError):
    """A codec's library is not installed. The message says which one to install."""


class BlobError(ValueError):
    """These bytes are not a whole, honest blob within the limit. Nothing was decoded."""


# --8<-- [start:lossless]
# Why so careful: 1 KB of zlib can hold 1 MB, and 1 KB of zstd 30 MB. A decompressor that believes
# its input fills the memory, so each one is told how much to expect, and stops there.
def _library(part: str) -> Any:
    library: Any = zlib
    try:
        if part == "lz4":
            from lz4 import block as library  # type: ignore[import-untyped,no-redef]
        elif part == "zstd":
            import zstandard as library
        elif part == "bfloat16":
            import ml_dtypes as library
        elif part.startswith("blosc2"):
            import blosc2 as library  # type: ignore[no-redef]
    except ImportError as error:
        raise MissingPackage(f"{part!r} needs {error.name}: pip install {error.name}") from error
    return library


def _compress(codec: str, data: Array, level: int, itemsize: int) -> Any:
    library = _library(codec)
    if codec == "zlib":
        return library.compress(data, level)
    if codec == "lz4":
        mode = "high_compression" if level else "default"
        return library.compress(data, mode=mode, compression=level, store_size=False)
    if codec == "zstd":
        return library.ZstdCompressor(level=level).compress(data.data)
    # Zstandard behind a byte shuffle (small), or LZ4 behind a bit shuffle (fast); no threads.
    inner, shuffle = (library.Codec.ZSTD, 1) if codec == "blosc2" else (library.Codec.LZ4, 2)
    how = {"codec": inner, "filters": [library.Filter(shuffle)], "filters_meta": [0]}
    return library.compress2(data, clevel=level, typesize=itemsize, nthreads=1, **how)


def _expand(codec: str, payload: memoryview, limit: int) -> Any:
    library = _library(codec)
    if codec == "zlib":
        stream = library.decompressobj()
        data = stream.decompress(payload, limit)
        return data if stream.eof and not stream.unused_data else b""
    if codec == "lz4":
        limit = min(limit, 255 * len(payload))  # LZ4 cannot expand further: allocate no more
        return library.decompress(payload, uncompressed_size=limit, return_bytearray=True)
    if codec == "zstd":
        fits = library.get_frame_parameters(payload).content_size <= limit  # not so if unknown
        stream = library.ZstdDecompressor()
        return stream.decompress(payload, allow_extra_data=False) if fits else b""
    # A Blosc2 header may also name plug-ins, dictionaries or memory never filled in: accept only
    # what _compress makes (c-blosc2, README_CHUNK_FORMAT.rst: filters, codec, blosc2_flags).
    size, stored, _ = library.get_cbuffer_sizes(payload)
    plain = payload[2] & 5 == 5 and max(payload[16:23]) <= 5 and payload[31] & 0xCF == 0
    out = np.zeros(size if plain and size <= limit and stored == len(payload) else 0, np.uint8)
    library.decompress2(payload, dst=out, nthreads=1)
    return out


# --8<-- [end:lossless]
# --8<-- [start:lossy]
# Why: weights are noise to a lossless codec, which saves a few per cent. Fewer bits a number save
# half or three quarters, if the error is bounded and overflow does not turn into infinity.
def _reduce(codec: str, array: Array) -> Array:
    """Return `array` as float16 or bfloat16; for int8 as minima, steps, and a byte a number.

    int8 is affine (Jacob et al. 2018, arXiv:1712.05877), from the minimum up in steps of
    (max - min) / 255, one for each index of the FIRST axis (out, in, ...); a vector has one step.
    The error is at most step / 2 + ulp / 2 + 4 * eps * abs(channel).max(): an ulp of the dtype at
    that maximum; eps of float32, or of float64 for float64; no step is subnormal. The rounding is
    as much as the half step where a channel is far from zero for its width: subtract an offset.
    """
    if array.dtype.str[1:] not in ("f2", "f4", "f8"):
        raise CodecError(f"{codec} is lossy, for float16 to float64: {array.dtype} takes 'zlib'")
    with np.errstate(all="ignore"):
        if codec == "int8":
            wide = np.result_type(array, np.float32)
            rows = array.reshape(len(array) if array.ndim > 1 else 1, -1).astype(wide, copy=False)
            low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
            step = np.maximum((high - low) / 255, np.finfo(wide).tiny).astype(wide)
            largest = step * 1024  # finite only if decode can add up 255 steps
            levels = np.subtract(rows, low)
            levels = np.rint(np.divide(levels, step, out=levels), out=levels).astype(np.uint8)
            reduced = np.concatenate([_bytes(low), _bytes(step), _bytes(levels)])
        else:
            reduced = largest = array.astype(_dtype("<f2" if codec == "float16" else codec))
    if not np.isfinite(largest).all():
        raise CodecError(f"NaN, infinity or too large for {codec}: scale it, or use 'zlib'")
    return reduced


def _restore(codec: str, data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    with np.errstate(all="ignore"):  # a forged step gives forged numbers, not warnings
        if codec == "int8":
            wide, start = np.result_type(dtype, np.float32), len(data) - math.prod(shape)
            low, step = np.frombuffer(data[:start], wide).reshape(2, -1, 1)
            rows: Array = np.frombuffer(data[start:], np.uint8).reshape(len(low), -1) * step
            rows += low
        else:
            half = _dtype("<f2" if codec == "float16" else codec) if codec else dtype
            rows = np.frombuffer(data, half)
        return rows.astype(dtype, copy=not rows.flags.writeable).reshape(shape)  # or ValueError


# --8<-- [end:lossy]
# --8<-- [start:blob]
# Why: bytes without codec, dtype and shape are noise to the next reader, and pickle runs what it
# reads. One line says it all, "tensor/1 int8+zstd <f4 64,128 CHECKSUM", then comes the payload.
def codecs() -> tuple[str, ...]:
    """Return the names of the codecs whose libraries are installed."""
    names = []
    for codec in CODECS:
        with contextlib.suppress(MissingPackage):
            _parts(codec)
            names.append(codec)
    return tuple(names)


def _parts(codec: str) -> tuple[str, str]:
    if codec not in CODECS:
        raise CodecError(f"unknown codec {codec!r}: choose one of {', '.join(CODECS)}")
    for part in CODECS[codec]:
        _library(part)
    return CODECS[codec]


def encode(array: ArrayLike, codec: str = "zstd", *, level: int | None = None) -> bytes:
    """Return `array` (any shape; numbers, bool, bytes, text, dates, ml_dtypes) as a blob.

    Its byte order is kept. A higher `level` is slower and smaller. Raises CodecError, or
    MissingPackage (pip install ...).
    """
    array = np.asarray(array)
    lossy, lossless = _parts(codec)
    dtype = array.dtype.str  # of ml_dtypes "<V2": their name says more, but not the byte order
    if array.dtype.type.__module__ == "ml_dtypes":
        dtype = dtype[0].strip("<|") + array.dtype.name
    if not DTYPE.fullmatch(dtype) or array.nbytes > MAX_ARRAY_BYTES:
        raise CodecError(f"{array.nbytes} bytes of {array.dtype}: encode fields or chunks of it")
    stored = _reduce(lossy, array) if lossy and array.size else array
    payload: Any = _bytes(stored)
    if lossless and payload.size:
        lowest, highest, default = LEVELS[lossless]
        level = default if level is None else min(max(level, lowest), highest)
        payload = _compress(lossless, payload, level, stored.itemsize)
    head = f"tensor/1 {codec} {dtype} {','.join(map(str, array.shape))} ".encode()
    checksum = xxhash.xxh3_64_hexdigest(payload, seed=zlib.crc32(head)).encode()
    return b"".join((head, checksum, b"\n", payload))


def decode(blob: bytes | bytearray | memoryview, *, max_bytes: int = 1 << 30) -> Array:
    """Return the array in `blob`. Raises BlobError if that is not whole, or above `max_bytes`."""
    try:
        if (header := HEADER.match(blob)) is None:
            raise BlobError("not a blob of this recipe, or of a version that it does not know")
        head, codec, name, dims, checksum = header.groups()
        payload = memoryview(blob).cast("B")[header.end() :].toreadonly()
        if xxhash.xxh3_64_hexdigest(payload, seed=zlib.crc32(head)).encode() != checksum:
            raise BlobError("the checksum differs: the blob was cut or changed")
        lossy, lossless = _parts(codec.decode())
        dtype, shape = _dtype(name.decode()), tuple(int(n) for n in dims.split(b",") if dims)
        if (nbytes := max(math.prod(shape) * dtype.itemsize, *shape, 0)) > max_bytes:
            raise BlobError(f"{nbytes} bytes are more than max_bytes={max_bytes}")
        if 0 in shape:
            return np.empty(shape, dtype)
        limit = nbytes + 16 * (shape[0] if len(shape) > 1 else 1)  # int8 adds minima and steps
        data = _expand(lossless, payload, limit) if lossless else payload
        return _restore(lossy, data, dtype, shape)
    except (BlobError, MissingPackage, MemoryError):
        raise
    except Exception as error:  # each library has an exception of its own for bad bytes
        raise BlobError(f"this does not decode (None: no such key): {error}") from error


def _dtype(name: str) -> np.dtype[Any]:
    if not DTYPE.fullmatch(name):  # np.dtype alone would also take structs and objects
        raise BlobError(f"{name!r} is no dtype that this recipe writes")
    if not (ml := ML_DTYPE.fullmatch(name)):
        return np.dtype(name)
    _library("bfloat16")  # once ml_dtypes is imported, numpy knows its names
    dtype, is_big = np.dtype(ml[1]), name[0] == ">"
    return dtype if (dtype.str[0] == ">") is is_big else dtype.newbyteorder("S")


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


# --8<-- [end:blob]
# --8<-- [start:choose]
# Why: the codec that wins depends on the data and the link. What speeds up a link of 1 Gbit/s can
# slow down one of 100 Gbit/s several times. So measure, with a few MB of your own data.
class Report(NamedTuple):
    """What a codec did to a sample; speeds in 1,000,000 array (not blob) bytes a second."""

    codec: str
    ratio: float  # array bytes / blob bytes
    encode_mb_s: float
    decode_mb_s: float
    max_abs_error: float
    rmse: float

    def seconds_per_mb(self, link_mb_s: float) -> float:
        """Return the time to encode, send over a link of `link_mb_s`, and decode a megabyte."""
        return 1 / self.encode_mb_s + 1 / (self.ratio * link_mb_s) + 1 / self.decode_mb_s


def measure(sample: ArrayLike, codecs: Iterable[str] | None = None) -> list[Report]:
    """Run `codecs` (None: all that take `sample`) up to nine times in turn; the fastest counts.

    One name is enough. Raises CodecError.
    """
    codecs = [codecs] if isinstance(codecs, str) else codecs
    if not (sample := np.asarray(sample)).size:
        raise CodecError("the sample is empty: nothing to measure")
    names, unsuitable = (codecs, ()) if codecs is not None else (CODECS, (CodecError,))
    runs: dict[str, list[tuple[float, float]]] = {}
    for codec in (x for x in [*names] * 9 if np.sum(runs.get(x, [])[1:]) < 0.2):  # first is cold
        with contextlib.suppress(*unsuitable):
            started = time.perf_counter()
            blob = encode(sample, codec)
            encoded = time.perf_counter()
            decode(blob, max_bytes=sample.nbytes)
            runs.setdefault(codec, []).append((encoded - started, time.perf_counter() - encoded))
    return [_report(sample, codec, *map(min, zip(*runs[codec], strict=True))) for codec in runs]


def _report(sample: Array, codec: str, encode_s: float, decode_s: float) -> Report:
    blob, error, mb = encode(sample, codec), np.zeros(1), sample.nbytes / 1e6
    if CODECS[codec][0]:
        error = np.abs(decode(blob, max_bytes=sample.nbytes) - sample.astype(np.float64))
    errors = float(error.max()), math.sqrt(np.mean(error**2))
    return Report(codec, sample.nbytes / len(blob), mb / encode_s, mb / decode_s, *errors)


def best(sample: ArrayLike, *, link_mb_s: float, max_rmse: float = 0.0) -> Report:
    """Return which codec with an RMSE <= `max_rmse` is first over `link_mb_s` (10**6 bytes/s)."""
    if not (link_mb_s > 0 and max_rmse >= 0):
        raise CodecError(f"{link_mb_s=}, {max_rmse=}; wanted: link_mb_s > 0, max_rmse >= 0")
    reports = [report for report in measure(sample) if report.rmse <= max_rmse]
    return min(reports, key=lambda report: report.seconds_per_mb(link_mb_s))


# --8<-- [end:choose]
# --8<-- [start:records]
# Why: a record of 100 bytes is too short to compress alone. A dictionary trained on its like holds
# what all share, and each record stays a zstd frame of its own, to be read without the others.
def train_dictionary(samples: Records, *, size: int = 1 << 14) -> bytes:
    """Return a zstd dictionary of up to `size` bytes. Keep it: no record opens without it."""
    zstandard = _library("zstd")
    try:
        return bytes(zstandard.train_dictionary(size, list(samples)).as_bytes())
    except zstandard.ZstdError as error:
        raise CodecError(f"give more or longer samples, or a smaller size: {error}") from error


def encode_records(records: Records, dictionary: bytes, *, level: int = 3) -> list[bytes]:
    """Return each record as a zstd frame with its size, a checksum and the dictionary's id.

    Raises CodecError if train_dictionary did not make the dictionary.
    """
    zstandard = _library("zstd")
    try:
        shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
        zstandard.ZstdDecompressor(dict_data=shared)  # the compressor would take an empty one
        compressor = zstandard.ZstdCompressor(level=level, dict_data=shared, write_checksum=True)
        return [compressor.compress(record) for record in records]
    except zstandard.ZstdError as error:
        raise CodecError(f"give a dictionary that train_dictionary made: {error}") from error


def decode_records(blobs: Records, dictionary: bytes, *, max_bytes: int = 1 << 30) -> list[bytes]:
    """Return the records. Raises BlobError if one is not whole, or all exceed `max_bytes`."""
    zstandard, blobs = _library("zstd"), list(blobs)
    try:
        shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
        decompressor = zstandard.ZstdDecompressor(dict_data=shared)
        frames = [zstandard.get_frame_parameters(blob) for blob in blobs]
        if {(f.dict_id, f.has_checksum) for f in frames} - {(shared.dict_id(), True)}:
            raise BlobError("not all records were encoded with this dictionary")
        if sum(frame.content_size for frame in frames) > max_bytes:
            raise BlobError(f"the records are more than max_bytes={max_bytes}")
        return [decompressor.decompress(blob, allow_extra_data=False) for blob in blobs]
    except (zstandard.ZstdError, TypeError) as error:
        raise BlobError(f"not whole zstd frames and their dictionary: {error}") from error


# --8<-- [end:records]
# --8<-- [start:usage]
# Why three kinds: ids shrink without loss, vectors only with some, short records only together.
def demo(r: redis.Redis) -> None:
    """Compress the word ids, word vectors and lines of this file."""
    r = _of_bytes(r)
    lines = Path(__file__).read_bytes().splitlines()
    words, ids = np.unique(re.findall(rb"\w+|[^\w\s]", b" ".join(lines)), return_inverse=True)
    follows = np.zeros((len(words), len(words)), np.float32)
    np.add.at(follows, (ids[:-1], ids[1:]), 1)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (len(words), 64))
    vectors = follows @ (follows.T @ signs)  # words followed alike (random indexing, Kanerva 2000)
    vectors /= np.abs(vectors).max(axis=1, keepdims=True) + 1
    for array, codec in (ids.astype("<i4"), "zstd"), (vectors, "zstd"), (vectors, "int8+zstd"):
        r.set("demo:tensor", encode(array, codec))
        error = np.abs(decode(r.get("demo:tensor")) - array).max()  # type: ignore[arg-type]
        share = r.strlen("demo:tensor") / array.nbytes
        print(f"{array.dtype} as {codec}: {share:.1f} of the bytes, largest error {error:.0e}")
    r.delete("demo:tensor")
    blobs = encode_records(lines, train_dictionary(lines, size=4096))
    share = sum(map(len, blobs)) / sum(map(len, lines))
    print(f"each line by itself, with a dictionary: {share:.1f} of the bytes")
    print("Redis stores what it is sent: the codec decides how much, and what is lost.")


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
