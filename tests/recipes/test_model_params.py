"""Tests of recipes/model_params.py: versions, races, crashes, hostile bytes, interchange."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import ml_dtypes
import numpy as np
import pytest
import redis
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recipes import model_params
from recipes.model_params import (
    Conflict,
    Corrupt,
    ParamStore,
    ParamStoreError,
    Version,
    VersionGone,
    from_safetensors,
    to_safetensors,
)
from tests import servers

ROOT = Path(__file__).parents[2]
EXTRA = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "int4")
DTYPES = (
    "?",
    "i1",
    "u1",
    "<i2",
    "<u4",
    "<i8",
    "<f2",
    "<f4",
    "<f8",
    ">f4",
    ">i8",
    ">u2",
    "<c8",
    ">c16",
)


def model(layers: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"layer{i}.weight": rng.normal(size=(16, 8)).astype("f4") for i in range(layers)}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Equal to the bit: names and their order, dtypes with byte order, shapes, bytes (NaN too)."""
    return list(a) == list(b) and all(
        (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes())
        and a[k].dtype.str == b[k].dtype.str
        for k in a
    )


def blob_keys(r: Any, store: str = "m") -> list[bytes]:
    return sorted(r.scan_iter(match=f"params:{store}:blob:*", count=1000))


def every_key(r: Any) -> list[bytes]:
    return sorted(r.scan_iter(count=1000))


# --- Round trips ---------------------------------------------------------------------------------


def test_round_trip_to_the_bit(r: redis.Redis) -> None:
    rng = np.random.default_rng(0)
    params = {name: rng.integers(0, 2, (3, 5)).astype(name) for name in DTYPES}
    for name in EXTRA:
        dtype = np.dtype(getattr(ml_dtypes, name))
        bits = np.arange(256 if dtype.itemsize == 1 else 65536).astype(f"u{dtype.itemsize}")
        if name == "int4":
            bits = bits[:8]
        params[name] = bits.view(dtype)
        params[f"{name} big"] = params[name].astype(dtype.newbyteorder(">"))
    params["nan"] = np.array([0x7FC00001, 0xFFFFFFFF, 0x80000000], "u4").view("f4")
    params["0-d"] = np.array(3.5)
    params["empty"] = np.zeros((3, 0, 2), "i4")
    params["none"] = np.zeros(0, ml_dtypes.bfloat16)
    params["odd \x00 'name' \" {} \ud800 é \\"] = np.arange(3)
    params[""] = np.arange(2)
    params["deep"] = np.zeros((1,) * 32)
    store = ParamStore(r, "m")
    assert same(store.load(store.save(params)), params)
    assert all(array.flags.writeable for array in store.load().values())
    big = store.load(names=["bfloat16 big"])["bfloat16 big"]
    assert big.astype("f4").tobytes() == params["bfloat16"].astype("f4").tobytes()


def test_strided_and_other_input(r: redis.Redis) -> None:
    base = np.arange(60, dtype=">f4").reshape(3, 4, 5)
    strided = {
        "t": base.T, "step": base[:, ::2], "back": base[::-1], "one": base[1, :, 1],
        "fortran": np.asfortranarray(base), "wide": np.broadcast_to(base[0, 0], (7, 5)),
    }  # fmt: skip
    other = {"list": [1, 2, 3], "float": 1.5, "scalar": np.float32(2), "bool": True}
    store = ParamStore(r, "m")
    store.save(strided | other)
    loaded = store.load()
    assert same(
        loaded,
        {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in (strided | other).items()},
    )


NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(array=hnp.arrays(NUMBERS, SHAPES), name=st.text(max_size=20), chunk=st.integers(1, 64))
def test_any_array_any_chunk_size(r: redis.Redis, array: np.ndarray, name: str, chunk: int) -> None:
    store = ParamStore(r, "any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_params, "CHUNK", chunk)
        version = store.save({name: array, "other": array})
    assert same(
        store.load(version), {name: array, "other": array} if name != "other" else {name: array}
    )


NUMBERED = itertools.count()
CHUNK_LIKE = st.builds(
    "{}{}.{}{}".format,
    st.sampled_from(["", '"', '\\"', '\\\\"', "\n", '\n"', '\\n"', '", \n"', '"]]}\n"']),
    st.sampled_from(["ab" * 32, "0" * 64, "ab", "theirs", "mine"]),
    st.sampled_from(["cafe", "0" * 16, "theirs", "mine"]),
    st.sampled_from(["", '"', '\\"', '"\n', '", "', '"]]']),
)
HOSTILE = (
    CHUNK_LIKE | st.text(max_size=9) | st.sampled_from(["tensors", "facts", "\ud800\n", "\x7f"])
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(HOSTILE, min_size=1, max_size=3, unique=True),
    metadata=st.dictionaries(HOSTILE, st.recursive(HOSTILE, st.lists, max_leaves=3), max_size=3),
)
def test_text_that_looks_like_a_chunk_is_text(
    r: redis.Redis, names: list[str], metadata: dict[str, Any]
) -> None:
    """Names and metadata may hold any text, also names of chunks that are stored."""
    store = ParamStore(r, f"text-{next(NUMBERED)}")
    theirs, mine = np.arange(9), np.arange(7)
    store.save({"t": theirs})
    [key] = blob_keys(r, store._name)
    chunk = key.decode().rpartition(":")[2]
    own = blake3(mine.tobytes()).hexdigest()

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        by, token = chunk.split(".")
        for mark, text in (("theirs.theirs", chunk), ("theirs", by), ("mine.", own + "."),
                           (".mine", f".{token}")):  # fmt: skip
            value = value.replace(mark, text)
        return value

    params = {filled(name): mine for name in names}
    metadata = {filled(key): filled(value) for key, value in metadata.items()}
    version = store.save(params, metadata=metadata)
    assert same(store.load(version), params) and same(store.load(1), {"t": theirs})
    assert store.versions()[1].metadata == version.metadata == metadata
    assert store.prune(keep=1) == theirs.nbytes and len(blob_keys(r, store._name)) == 1
    assert same(store.load(version), params)


@pytest.mark.parametrize("where", ["metadata", "name"])
def test_a_content_hash_as_a_file_name_is_welcome(r: redis.Redis, where: str) -> None:
    file = "ab" * 32 + ".cafe"
    store = ParamStore(r, "m")
    r.set(f"params:m:blob:{file}", "theirs")
    params = {file if where == "name" else "w": np.arange(3)}
    version = store.save(params, metadata={"data": file, file: [file]} if where != "name" else {})
    assert version == 1 and same(store.load(), params)
    assert r.get(f"params:m:blob:{file}") == b"theirs"


def test_a_save_ends_whatever_the_script_answers(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    chunk = blob_keys(r)[0].decode().rpartition(":")[2]
    with monkeypatch.context() as patch:
        patch.setattr(model_params, "PUBLISH", f"return {{'pruned', '{chunk}'}}")
        with pytest.raises(ParamStoreError, match="no chunks of this save"):
            store.save(model(seed=2))
        lost = "local h, by = string.match(ARGV[5], '\\n\"(%x+)%.(%x+)\"')\n"
        patch.setattr(model_params, "PUBLISH", lost + "return {'pruned', h .. '.' .. by}")
        patch.setattr(model_params, "TRIES", 3)
        with pytest.raises(ParamStoreError, match="3 times prune"):
            store.save(model(seed=2))
    assert store.versions() == [1] and same(store.load(), model(seed=1))
    assert same(store.load(store.save(model(seed=2))), model(seed=2))


def test_manifests_of_one_line_are_read_and_kept(r: redis.Redis) -> None:
    """Before chunks had lines of their own, a manifest was one line of JSON."""
    store = ParamStore(r, "m")
    store.save(model(seed=1), metadata={"n": [1.5]})
    record = r.hget("{params:m}:versions", "1")
    text = json.dumps(json.loads(record.split(b" ", 3)[3])).encode()
    stamp = b" ".join(record.split(b" ", 2)[:2])
    assert b"\n" in record and b"\n" not in text
    r.hset("{params:m}:versions", "1", b" ".join([stamp, blake3(text).hexdigest().encode(), text]))
    store.save(model(seed=2))
    assert store.prune(keep=2) == 0 and same(store.load(1), model(seed=1))
    assert store.save(model(seed=1)).sent_bytes == 0 and store.versions()[0].metadata["n"] == [1.5]


def test_chunks_at_their_boundaries(r: redis.Redis) -> None:
    size = model_params.CHUNK
    rng = np.random.default_rng(0)
    params = {
        str(n): rng.integers(0, 256, n, "u1")
        for n in (size - 1, size, size + 1, 2 * size, 9 * size + 7)
    }
    store = ParamStore(r, "m")
    store.save(params)
    assert same(store.load(), params)
    assert max(r.strlen(key) for key in blob_keys(r)) == size
    assert len(blob_keys(r)) == 1 + 1 + 2 + 2 + 10


def test_what_is_no_number_is_refused(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    for bad in (np.array([object()]), np.array(["text"]), np.array([b"x"]), np.zeros(2, "i4,f4"),
                np.array(["2020"], "M8[D]"), np.array([None])):  # fmt: skip
        with pytest.raises(TypeError, match="numbers only"):
            store.save({"good": np.zeros(3), "bad": bad})
    with pytest.raises(TypeError, match="names"):
        store.save({1: np.zeros(3)})  # type: ignore[dict-item]
    for metadata in ({"x": object()}, {"x": np.float32(1)}, {"x": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            store.save(model(), metadata=metadata)
    assert store.versions() == [] and not r.exists("{params:m}:versions")


def test_arguments_are_checked(r: redis.Redis) -> None:
    for name in ("", "a{b", "}"):
        with pytest.raises(ValueError, match="braces"):
            ParamStore(r, name)
    for wrong in ((r, 7), (r, None), (r, b"m"), ("m", r)):
        with pytest.raises(TypeError, match="the name is a str, not a"):
            ParamStore(*wrong)  # type: ignore[arg-type]
    store = ParamStore(r, "m")
    for alias in ("", "17"):
        with pytest.raises(ValueError, match="alias"):
            store.save(model(), alias=alias)
        with pytest.raises(ValueError, match="alias"):
            store.watch(alias)
    with pytest.raises(TypeError, match="an alias is a str, not 3"):
        store.watch(3)  # type: ignore[arg-type]
    for bad in (np.zeros(3), [("a", np.zeros(3))], None):
        with pytest.raises(TypeError, match="params: a mapping of name -> array"):
            store.save(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to publish"):
        store.save({})
    assert not store.versions()
    store.save(model())
    with pytest.raises(VersionGone, match=r"has no tensors \['x'\]; it has \['layer0.*'\]$"):
        store.load(1, names=["x"])
    store.save(model(6))
    with pytest.raises(VersionGone, match=r"'layer4.weight'\] and more$"):
        store.load(2, names=["x"])
    with pytest.raises(ValueError, match="alias"):
        store.promote(1, "2")
    with pytest.raises(ValueError, match="keep"):
        store.prune(-1)


def test_a_client_that_decodes_is_refused_and_changes_nothing(r: redis.Redis) -> None:
    ParamStore(r, "m").save(model())
    before = {key: r.dump(key) for key in r.scan_iter()}
    for call in (
        lambda: ParamStore(servers.decoding(r), "m"),
        lambda: model_params.demo(servers.decoding(r)),
    ):
        with pytest.raises(TypeError, match="without decode_responses=True"):
            call()
    assert {key: r.dump(key) for key in r.scan_iter()} == before


# --- Versions, aliases, races --------------------------------------------------------------------


def test_versions_and_metadata(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    with pytest.raises(VersionGone):
        store.load()
    before = time.time()
    first = store.save(model(), metadata={"accuracy": 0.9, "tags": ["a", None], "é": {"n": 1}})
    second = store.save(model(3, 1), parent=first)
    assert isinstance(first, Version) and (first, second) == (1, 2)
    assert store.versions() == [1, 2] and store.resolve("latest") == 2
    found = store.versions()[0]
    assert found.metadata == {"accuracy": 0.9, "tags": ["a", None], "é": {"n": 1}}
    assert (found.parent, second.parent, found.nbytes) == (None, 1, 4 * 16 * 8 * 4)
    assert abs(found.created - before) < 60 and found.created == first.created
    for name in (first, 1, np.int64(1), "1"):
        assert same(store.load(name), model())
    with pytest.raises(VersionGone, match="7"):
        store.load(7)
    with pytest.raises(VersionGone, match="staging"):
        store.resolve("staging")


def test_load_some_names_reads_only_those(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    params = model()
    store.save(params)
    wanted = ["layer3.weight", "layer0.weight"]
    assert same(store.load(names=iter(wanted)), {k: params[k] for k in wanted})
    assert same(store.load(names="layer1.weight"), {"layer1.weight": params["layer1.weight"]})
    assert store.load(names=[]) == {}
    with pytest.raises(VersionGone, match="nope"):
        store.load(names=["layer1.weight", "nope"])
    lost = blake3(params["layer2.weight"].tobytes()).hexdigest()
    r.delete(*(key for key in blob_keys(r) if lost.encode() in key))
    assert same(store.load(names=wanted), {k: params[k] for k in wanted})


def test_promote_and_roll_back(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    old, new = store.save(model(seed=1)), store.save(model(seed=2), alias="candidate")
    assert (store.resolve("latest"), store.resolve("candidate")) == (old, new)
    for version, expected in ((new, new), (old, old), ("candidate", new), (np.int64(1), old)):
        store.promote(version)
        assert store.resolve("production") == expected
        assert same(store.load("production"), model(seed=int(expected)))
    for missing in (99, "nope"):
        with pytest.raises(VersionGone):
            store.promote(missing)
    assert store.resolve("production") == old


def test_lost_race_is_a_conflict(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    first = store.save(model(), parent=0)
    with pytest.raises(Conflict, match="names version 1, not 0"):
        store.save(model(seed=1), parent=0)
    second = store.save(model(seed=2), parent=first)
    with pytest.raises(Conflict, match="names version 2, not 1"):
        store.save(model(seed=3), parent=first)
    assert store.prune() == 2 * 4 * 512  # what the losers have sent
    assert same(store.load(), model(seed=2)) and store.versions() == [first, second]


def test_one_of_many_children_wins(r: redis.Redis) -> None:
    """Eight writers extend the same parent at once, again and again: no update is lost."""
    store = ParamStore(r, "m")
    store.save({"sum": np.zeros((), "i8")})

    def add(n: int) -> None:
        mine = ParamStore(r, "m")
        for _ in range(6):
            while True:
                parent = mine.resolve("latest")
                try:
                    mine.save({"sum": mine.load(parent)["sum"] + n}, parent=parent)
                    break
                except Conflict:
                    continue

    in_threads(add, range(1, 9))
    assert store.load()["sum"] == 6 * sum(range(1, 9))
    assert store.versions() == list(range(1, 50))


WRITER = """
import sys, numpy as np, redis
sys.path.insert(0, sys.argv[1])
from recipes.model_params import ParamStore
store = ParamStore(redis.Redis.from_url(sys.argv[2]), "m")
seed, count = int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    value = seed * 1000 + i
    params = {f"t{j}": np.full(2000, value + j, "i4") for j in range(5)}
    print(int(store.save(params, metadata={"value": value})), value, flush=True)
"""


@pytest.mark.real_redis
def test_numbers_rise_under_8_writers(r: redis.Redis, url: str) -> None:
    writers = [child(WRITER, url, seed, 8) for seed in range(8)]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        store, seen = ParamStore(r, "m"), []
        while any(writer.poll() is None for writer in writers):
            time.sleep(0.01)  # load: a reader that looks now and then
            if store.versions():
                seen.append(store.resolve("latest"))
                arrays = list(store.load().values())
                assert (
                    len({int(a[0]) - j for j, a in enumerate(arrays)}) == 1
                )  # whole, one writer's
        saved: dict[int, int] = {}
        for writer in writers:
            numbers = [tuple(map(int, line.split())) for line in writer.stdout]
            assert sorted(numbers) == numbers and len(numbers) == 8
            saved |= dict(numbers)
        assert sorted(saved) == list(range(1, 65)) and seen == sorted(seen)
        assert {int(v): v.metadata["value"] for v in store.versions()} == saved
    finally:
        for writer in writers:
            end(writer)


def test_readers_meet_whole_versions_only(r: redis.Redis) -> None:
    """While one writer publishes and another rolls back, each load is one of the two models."""
    store = ParamStore(r, "m")
    models = [{f"t{j}": np.full(500, v, "i4") for j in range(20)} for v in range(2)]
    numbers = [store.save(m) for m in models]
    store.promote(numbers[0])
    done = threading.Event()

    def flip(_: int) -> None:
        mine = ParamStore(r, "m")
        for i in range(60):
            mine.promote(numbers[i % 2])
            mine.save(models[i % 2])
        done.set()

    def read(_: int) -> None:
        mine = ParamStore(r, "m")
        while not done.is_set():
            for alias in ("production", "latest"):
                values = {int(x) for array in mine.load(alias).values() for x in array}
                assert len(values) == 1

    in_threads(lambda i: flip(i) if i == 0 else read(i), range(4))


# --- What travels --------------------------------------------------------------------------------


def test_only_what_changed_travels(r: redis.Redis) -> None:
    store, sent = ParamStore(r, "m"), Counting(r)
    params = {f"t{i}": np.full(10_000, i, "f4") for i in range(100)}
    counted = ParamStore(sent.client, "m")
    assert counted.save(params).sent_bytes == 4_000_000
    assert sent.take() > 4_000_000
    params["t7"] = params["t7"] + 0.5
    tuned = counted.save(params)
    assert tuned.sent_bytes == 40_000 and sent.take() < 0.02 * 4_000_000
    assert counted.save({k: v + 0 for k, v in params.items()}).sent_bytes == 0
    assert sent.take() < 40_000
    for old in (1, 2):  # also an old version's tensors
        assert store.save(store.load(old)).sent_bytes == 0
    assert len(blob_keys(r)) == 101


def test_equal_tensors_are_stored_once(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    zeros = {
        "a": np.zeros(500_000, "f8"),
        "b": np.zeros(500_000, "f8"),
        "c": np.zeros((1000, 1000), "i4"),
    }
    version = store.save(zeros)
    assert same(store.load(), zeros) and version.sent_bytes < 3 * model_params.CHUNK


def test_tensors_of_equal_bytes_keep_their_dtypes(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    base = np.arange(16, dtype="f4")
    views = {t: base.view(t) for t in ("<f4", "<i4", ">i4", "<u2", "<c8", "u1")} | {
        "2d": base.reshape(4, 4)
    }
    store.save(views)
    assert same(store.load(), views) and len(blob_keys(r)) == 1


@pytest.mark.real_redis
def test_round_trips_are_few(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    params = {f"t{i}": np.full(1000, i, "f4") for i in range(500)}
    r.config_resetstat()
    store.save(params)
    store.load()
    calls = {name: stat["calls"] for name, stat in r.info("commandstats").items()}
    assert calls["cmdstat_set"] == calls["cmdstat_get"] == 500 and calls["cmdstat_eval"] == 3


def test_pipelines_are_bounded(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_params, "PIPE_BYTES", 10_000)
    monkeypatch.setattr(model_params, "PIPE_COMMANDS", 20)
    make, sent = r.pipeline, []

    def pipeline(**kwargs: Any) -> Any:
        pipe = make(**kwargs)
        execute = pipe.execute

        def counting() -> Any:
            values = [args[2] for args, _ in pipe.command_stack if args[0] == "SET"]
            sent.append((len(pipe), sum(map(len, values))))
            return execute()

        pipe.execute = counting
        return pipe

    monkeypatch.setattr(r, "pipeline", pipeline)
    params = {str(i): np.full(1000 if i < 20 else 1, i, "f4") for i in range(100)}
    ParamStore(r, "m").save(params)
    assert max(commands for commands, _ in sent) == 20
    assert 8000 <= max(size for _, size in sent) <= 10_000
    assert same(ParamStore(r, "m").load(), params)


# --- Encoding ------------------------------------------------------------------------------------


def pack(array: np.ndarray) -> bytes:
    head = json.dumps([array.dtype.str, array.shape]).encode()
    return zlib.compress(len(head).to_bytes(4, "big") + head + array.tobytes())


def unpack(blob: bytes) -> np.ndarray:
    data = zlib.decompress(blob)
    n = 4 + int.from_bytes(data[:4], "big")
    dtype, shape = json.loads(data[4:n])
    return np.frombuffer(data[n:], dtype).reshape(shape)


def test_encode_and_decode(r: redis.Redis) -> None:
    store = ParamStore(r, "m", encode=pack, decode=unpack)
    params = model() | {
        "zeros": np.zeros(1_000_000),
        "0-d": np.array(2.0),
        "empty": np.zeros((0, 3)),
    }
    version = store.save(params)
    assert same(store.load(), params) and version.sent_bytes < 100_000
    assert store.save(params).sent_bytes == 0
    with pytest.raises(ParamStoreError, match="decode="):
        ParamStore(r, "m").load()
    plain = ParamStore(r, "m").save(model())
    assert same(store.load(plain), model())  # a version knows how it was saved


def test_decoder_may_give_another_byte_order(r: redis.Redis) -> None:
    kinds = (np.dtype("f8"), np.dtype(ml_dtypes.bfloat16))
    big = {str(kind): np.arange(6).astype(kind.newbyteorder(">")) for kind in kinds}
    for kind in kinds:
        store = ParamStore(
            r, "m", encode=lambda array, kind=kind: array.astype(kind).tobytes(),
            decode=lambda blob, kind=kind: np.frombuffer(blob, kind),
        )  # fmt: skip
        store.save({"a": big[str(kind)]})
        assert same(store.load(), {"a": big[str(kind)]})


def test_decoder_never_sees_what_has_another_hash(r: redis.Redis) -> None:
    asked = []
    store = ParamStore(r, "m", encode=pack, decode=lambda blob: asked.append(blob) or unpack(blob))
    store.save({"a": np.arange(100)})
    [key] = blob_keys(r)
    blob = r.get(key)
    r.set(key, blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(Corrupt, match="not what was saved"):
        store.load()
    assert asked == []


def test_decoder_of_another_shape_or_dtype_is_corrupt(r: redis.Redis) -> None:
    ParamStore(r, "m", encode=pack, decode=unpack).save({"a": np.arange(6.0)})
    for wrong in (np.zeros(5), np.zeros((2, 3)), np.zeros(6, "f4")):
        with pytest.raises(Corrupt, match="decoded to"):
            ParamStore(r, "m", decode=lambda _, wrong=wrong: wrong).load()


# --- Pruning -------------------------------------------------------------------------------------


def test_prune_keeps_newest_and_named(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    for i in range(8):
        store.save({"own": np.full(1000, i, "f8"), "shared": np.full(1000, 0.5)})
    store.promote(2)
    assert store.prune(keep=3) == 4 * 8000
    assert store.versions() == [2, 6, 7, 8]
    for number in store.versions():
        assert same(
            store.load(number),
            {"own": np.full(1000, number - 1, "f8"), "shared": np.full(1000, 0.5)},
        )
    with pytest.raises(VersionGone):
        store.load(3)
    with pytest.raises(VersionGone):
        store.promote(3)
    assert store.prune() == 0 and store.prune(keep=0) == 2 * 8000
    assert store.versions() == [2, 8] and len(blob_keys(r)) == 3  # latest and production


def test_pruned_chunks_are_sent_again(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    store.prune(keep=1)
    assert store.save(model(seed=1)).sent_bytes == 4 * 512
    assert same(store.load(), model(seed=1)) and same(store.load(2), model(seed=2))


def test_prune_between_upload_and_publish(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save has found its chunks stored; their only version is pruned before it publishes."""
    store, other = ParamStore(r, "m"), ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    send, freed = ParamStore._send, []

    def send_then_prune(self: ParamStore, chunks: Any) -> int:
        sent = send(self, chunks)
        if len(freed) < 2:
            freed.append(other.prune(keep=1))
        return sent

    monkeypatch.setattr(ParamStore, "_send", send_then_prune)
    version = store.save(model(seed=1))
    assert freed == [4 * 512, 0] and version == 3 and same(store.load(), model(seed=1))


def test_late_unlink_harms_nothing(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune stops after its script; a save stores the same chunks; then the prune goes on."""
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    with monkeypatch.context() as patch:
        patch.setattr(ParamStore, "_pipe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            store.prune(keep=1)
    assert len(blob_keys(r)) == 8
    assert store.save(model(seed=1)).sent_bytes == 4 * 512
    assert store.prune(keep=2) == 4 * 512
    assert same(store.load(), model(seed=1)) and same(store.load(2), model(seed=2))
    assert len(blob_keys(r)) == 8


def test_chunks_that_another_save_brought_back(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save has found its chunks stored; they are pruned, and stored again by another save."""
    store, other = ParamStore(r, "m"), ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    send, theirs = ParamStore._send, []

    def send_then_others(self: ParamStore, chunks: Any) -> int:
        sent = send(self, chunks)
        if self is store and not theirs:
            other.prune(keep=1)
            theirs.append(other.save(model(seed=1)))
        return sent

    monkeypatch.setattr(ParamStore, "_send", send_then_others)
    mine = store.save(model(seed=1))
    assert [*theirs, mine] == [3, 4]
    assert same(store.load(3), model(seed=1)) and same(store.load(4), model(seed=1))


def test_save_that_takes_too_long_is_refused(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saver is paused for over an hour, and prune() takes what it has registered."""
    store, other = ParamStore(r, "m"), ParamStore(r, "m")
    send = ParamStore._send

    def paused(self: ParamStore, chunks: Any) -> int:
        age_saves(r)
        other.prune()
        return send(self, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(ParamStore, "_send", paused)
        with pytest.raises(ParamStoreError, match="longer than"):
            store.save(model())
    assert store.versions() == [] and same(store.load(store.save(model())), model())


def test_prune_beside_saves_and_loads(r: redis.Redis) -> None:
    """Writers share tensors, pruners keep one version: what is visible can always be loaded."""
    stop = threading.Event()
    store = ParamStore(r, "m")
    base = [np.full(300, i, "i4") for i in range(6)]
    store.save({"t": base[0]})
    loaded = []

    def write(seed: int) -> None:
        rng, mine = np.random.default_rng(seed), ParamStore(r, "m")
        for _ in range(40):
            mine.save({str(i): base[i] for i in rng.choice(6, 3, replace=False)})

    def prune(_: int) -> None:
        while not stop.is_set():
            ParamStore(r, "m").prune(keep=1)

    def read(_: int) -> None:
        mine = ParamStore(r, "m")
        while not stop.is_set():
            try:
                for name, array in mine.load().items():
                    assert name == "t" or np.array_equal(array, base[int(name)])
                loaded.append(1)
            except VersionGone:
                continue  # pruned while it was read, and says so

    def work(i: int) -> None:
        if i < 3:
            write(i)
        else:
            (prune if i < 5 else read)(i)

    writers_left = threading.Semaphore(0)

    def run(i: int) -> None:
        try:
            work(i)
        finally:
            if i < 3:
                writers_left.release()

    threading.Thread(
        target=lambda: ([writers_left.acquire() for _ in range(3)], stop.set()), daemon=True
    ).start()
    in_threads(run, range(7), also=stop.set)
    store.prune(keep=1)
    assert loaded and store.versions() == [121]
    assert len(store.load()) == 3 and len(blob_keys(r)) == 3


def test_pruned_while_it_is_read(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    fetch = ParamStore._fetch

    def fetch_then_prune(self: ParamStore, version: Any) -> Any:
        found = fetch(self, version)
        ParamStore(r, "m").prune(keep=1)
        return found

    monkeypatch.setattr(ParamStore, "_fetch", fetch_then_prune)
    with pytest.raises(VersionGone, match="while it was read"):
        store.load(1)


SAVER = """
import sys, numpy as np, redis
sys.path.insert(0, sys.argv[1])
from recipes.model_params import ParamStore
store = ParamStore(redis.Redis.from_url(sys.argv[2]), "m")
params = {f"t{i}": np.random.default_rng(i).integers(0, 255, 1 << 20, "u1") for i in range(60)}
print("ready", flush=True)
store.save(params, metadata={"by": "child"})
print("saved", flush=True)
"""


@pytest.mark.real_redis
@pytest.mark.parametrize("stored", [1, 17, 40])
def test_killed_save_leaves_nothing(r: redis.Redis, url: str, stored: int) -> None:
    store = ParamStore(r, "m")
    before = store.save(model())
    saver = child(SAVER, url)
    try:
        assert saver.stdout.readline() == "ready\n"
        servers.wait_until(lambda: r.dbsize() > stored + 9, what="some chunks are stored")
        saver.kill()
        saver.wait()
    finally:
        end(saver)
    assert [v for v in store.versions() if v.metadata] == []
    assert same(store.load(), model())
    left = len(blob_keys(r)) - 4
    assert left > 0
    assert store.prune() == 0  # it may still be at work
    age_saves(r)
    assert store.prune() >= left << 19 and len(blob_keys(r)) == 4
    assert same(store.load(before), model())


def test_delete_removes_every_key(r: redis.Redis) -> None:
    r.set("other", 1)
    ParamStore(r, "m:blob:x").save(model())
    others = every_key(r)
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2), alias="candidate")
    store.promote(1)
    store.delete()
    assert every_key(r) == others and store.versions() == []
    assert store.save(model()) == 1


# --- Lost replies --------------------------------------------------------------------------------


def test_lost_reply_publishes_once(r: redis.Redis) -> None:
    """The server publishes, the reply gets lost, redis-py asks again: still one version."""
    flaky = losing_replies(r, b"manifest")
    store = ParamStore(flaky, "m")
    first = store.save(model(), parent=0, metadata={"n": 1})
    assert flaky.lost == ["EVAL"] and first == 1  # type: ignore[attr-defined]
    flaky.lost.clear()  # type: ignore[attr-defined]
    assert store.save(model(seed=2), parent=first) == 2
    assert flaky.lost == ["EVAL"]  # type: ignore[attr-defined]
    assert store.versions() == [1, 2]


# --- Watching ------------------------------------------------------------------------------------


def test_watch_yields_current_then_each_new_one(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    assert list(store.watch("latest", timeout_s=0)) == []
    early = store.watch("latest", timeout_s=0.05)
    for seed in range(3):
        store.save(model(seed=seed), metadata={"seed": seed})
    assert list(early) == [1, 2, 3]  # none is missed between watch() and the first next()
    watching = store.watch("latest", timeout_s=0.05)
    assert next(watching) == 3
    store.save(model(seed=3), metadata={"seed": 3})
    store.save(model(seed=4), alias="other")
    fourth = next(watching)
    assert fourth == 4 and fourth.metadata == {"seed": 3}
    assert list(watching) == []


def test_watch_follows_roll_backs(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    store.promote(1)
    watching = store.watch("production", timeout_s=0.05)
    for version in (2, 2, 1):  # promoting what is named already moves nothing
        store.promote(version)
    assert list(watching) == [1, 2, 1]


def test_watch_waits_and_misses_nothing_under_load(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    seen: list[list[int]] = [[], []]
    watching = [ParamStore(r, "m").watch("latest", timeout_s=20) for _ in seen]

    def publish() -> None:
        for n in range(50):
            ParamStore(r, "m").save({"n": np.array(n)})

    in_threads(
        lambda i: seen[i].extend(itertools.islice(watching[i], 100)) if i < 2 else publish(),
        range(4),
    )
    assert seen[0] == seen[1] == list(range(1, 101))
    assert store.resolve("latest") == 100


@pytest.mark.real_redis
def test_watch_rides_through_lost_connections(r: redis.Redis) -> None:
    """Its connections are killed while versions are published: it sees every one, in order."""
    store, seen = ParamStore(r, "m"), []
    port = r.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port, client_name="watcher", retry=None) as own:
        watching = ParamStore(own, "m").watch("latest", timeout_s=30)

        def publish_and_kill() -> None:
            for n in range(30):
                store.save({"n": np.array(n)})
                if n % 3 == 0:
                    for connection in r.client_list():
                        if connection["name"] == "watcher":
                            r.client_kill_filter(_id=connection["id"])

        in_threads(
            lambda i: publish_and_kill() if i else seen.extend(itertools.islice(watching, 30)),
            range(2),
        )
    assert seen == list(range(1, 31))


@pytest.mark.real_redis
def test_watch_rides_through_a_restart(server_kind: str) -> None:
    with servers.lone(server_kind, "--appendonly", "yes", "--appendfsync", "always") as server:
        store = ParamStore(server.client(), "m")
        store.save(model(seed=1))
        watching = store.watch("latest")
        assert next(watching) == 1
        found: list[Version] = []
        thread = threading.Thread(target=lambda: found.append(next(watching)))
        thread.start()
        server.kill()
        server.start_again()
        ParamStore(server.client(), "m").save(model(seed=2))
        thread.join(20)
        assert found == [2] and same(store.load(), model(seed=2))


def test_watch_reports_a_server_that_stays_away() -> None:
    server = fakeredis.FakeServer()
    store = ParamStore(fakeredis.FakeRedis(server=server), "m")
    store.save(model())
    watching = store.watch("latest", timeout_s=0.3)
    assert next(watching) == 1
    server.connected = False
    with pytest.raises(redis.ConnectionError):
        next(watching)


def test_watch_passes_over_what_was_pruned(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    store.save(model())
    watching = store.watch("latest", timeout_s=0.05)
    for seed in range(4):
        store.save(model(seed=seed))
    store.prune(keep=2)
    assert list(watching) == [4, 5]


def test_history_is_bounded(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_params, "HISTORY", 10)
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    for i in range(30):
        store.promote(1 + i % 2)
    assert r.xlen("{params:m}:history:production") == 10
    for _ in range(12):
        store.save(model(seed=1))
    assert r.xlen("{params:m}:history:latest") == 10


# --- Corrupt and hostile bytes -------------------------------------------------------------------


def test_damaged_chunks_are_found(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    params = {"a": np.arange(500), "b": np.arange(500) + 1, "big": np.arange(300_000)}
    store.save(params)
    keys = blob_keys(r)
    good = {key: r.get(key) for key in keys}
    damages: list[Callable[[bytes, bytes], Any]] = [
        lambda key, b: r.set(key, b[:-1]), lambda key, b: r.set(key, b + b"x"),
        lambda key, b: r.set(key, b""),
        lambda key, b: r.delete(key), lambda key, b: r.set(key, bytes(len(b))),
        lambda key, b: r.setbit(key, 77, not r.getbit(key, 77)),
        lambda key, b: r.set(key, good[keys[keys.index(key) - 1]]),
    ]  # fmt: skip
    for key, damage in itertools.product(keys, damages):
        damage(key, good[key])
        with pytest.raises(Corrupt):
            store.load()
        r.set(key, good[key])
    assert same(store.load(), params)


def test_saving_again_restores_a_lost_chunk(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    store.save(model())
    lost, cut = blob_keys(r)[:2]
    r.delete(lost)
    r.setrange(cut, 0, b"x")
    r.append(cut, b"x")
    with pytest.raises(Corrupt):
        store.load(1)
    assert store.save(model()).sent_bytes == 2 * 512
    assert same(store.load(1), model())


def test_damaged_manifests_are_found(r: redis.Redis) -> None:
    store = ParamStore(r, "m")
    store.save(model(seed=1))
    store.save(model(seed=2))
    key = "{params:m}:versions"
    good = {field: r.hget(key, field) for field in (b"1", b"2")}
    r.hset(key, "1", good[b"2"])  # swapped
    with pytest.raises(Corrupt, match="number"):
        store.load(1)
    rng = np.random.default_rng(0)
    for _ in range(60):
        record = bytearray(good[b"1"])
        match rng.integers(3):
            case 0:
                record[rng.integers(len(record))] ^= 1 << int(rng.integers(8))
            case 1:
                del record[rng.integers(len(record)) :]
            case 2:
                record[rng.integers(len(record)) :] = rng.bytes(20)
        r.hset(key, "1", bytes(record))
        if bytes(record).split(b" ", 2)[2:] == good[b"1"].split(b" ", 2)[2:]:
            continue  # only the time stamp changed, which no hash covers
        with pytest.raises(Corrupt):
            store.load(1)
    forge(r, {"facts": {"metadata": "x" * (5 << 20)}, "encoded": False, "tensors": []})
    with pytest.raises(Corrupt, match="over MAX_MANIFEST"):
        store.load(9)
    with pytest.raises(ValueError, match="MAX_MANIFEST"):
        store.save(model(), metadata={"x": "x" * (5 << 20)})
    assert same(store.load(2), model(seed=2))


def forge(r: Any, content: object, *, raw: bytes | None = None) -> None:
    """Store a manifest as version 9, with the right hash: by someone who may write to Redis."""
    text = json.dumps(content).encode() if raw is None else raw
    record = b"9 1.0 " + blake3(text).hexdigest().encode() + b" " + text
    r.hset("{params:m}:versions", 9, record)


def hostile(good: str) -> Iterator[object]:
    """Manifests that no save() writes; `good` is a chunk of 512 bytes that is there."""
    facts: dict[str, Any] = {"parent": None, "metadata": {}, "nbytes": 1, "sent_bytes": 1}
    base = {"facts": facts, "encoded": False}
    shapes = (
        [2**62], [-128], [-16, -8], [-1, -1, 128], [1.0, 128.0], "128", [10**4000], [0, 10**30],
        [1] * 100 + [128], None, [[128]], [True, 128.5], [127], [128, 0], [], ["128"],
    )  # fmt: skip
    dtypes = (
        "O",
        "|O",
        "<U4",
        "V512",
        "<f3",
        "float8_nope",
        5,
        "f4,f4",
        "datetime64",
        "<M8[s]",
        "",
    )
    chunks = (
        [good] * 2, [], good, ["x"], [["x"]], [None], 7, ["../../{params:m}:versions"],
        ["0" * 64 + ".0"], [good[:64]], [good + "0"],
    )  # fmt: skip
    rows = (
        *(["a", "<f4", shape, [good]] for shape in shapes),
        *(["a", dtype, [128], [good]] for dtype in dtypes),
        *(["a", "<f4", [128], some] for some in chunks),
        ["a", "<f4", [128]], ["a"], [], [["a"], "<f4", [128], [good]], {}, None, 5,
    )  # fmt: skip
    for row in rows:
        yield {**base, "tensors": [row]}
    twice = [["a", "<f4", [128], [good]]] * 2
    for tensors in (twice, None, 5, {"a": 1}, "a"):
        yield {**base, "tensors": tensors}
    yield from (None, 5, [], {}, "x", {"tensors": []}, base, {**base, "facts": 3, "tensors": []})
    yield {"facts": facts, "tensors": []}


def test_forged_manifests_are_refused(r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ParamStore(r, "m")
    store.save({"good": np.arange(128, dtype="f4")})
    good = blob_keys(r)[0].decode().removeprefix("params:m:blob:")
    real, largest = np.empty, [0]

    def counting(n: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        largest[0] = max(largest[0], int(n))
        return real(n, *args, **kwargs)

    monkeypatch.setattr(np, "empty", counting)
    forge(r, {"facts": {}, "encoded": False, "tensors": [["a", "<f4", [128], [good]]]})
    assert np.array_equal(store.load(9)["a"], np.arange(128))  # the forger's format is right
    for content in hostile(good):
        forge(r, content)
        with pytest.raises(Corrupt):
            store.load(9)
    for raw in (b"[" * 100_000, b"{", b"\xff\xfe", b"NaN", b"1" * 5000, b""):
        forge(r, None, raw=raw)
        with pytest.raises(Corrupt):
            store.load(9)
    assert largest[0] <= 1024


def test_many_references_to_one_chunk_are_bounded(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged manifest may name a chunk that is there many times: the sum has a limit."""
    monkeypatch.setattr(model_params, "MAX_BYTES", 1 << 20)
    store = ParamStore(r, "m")
    store.save({"good": np.arange(128, dtype="f4")})
    good = blob_keys(r)[0].decode().removeprefix("params:m:blob:")
    tensors = [["a", "<f4", [128 * 4000], [good] * 4000]]
    forge(r, {"facts": {}, "encoded": False, "tensors": tensors})
    with pytest.raises(Corrupt, match="MAX_BYTES"):
        store.load(9)
    with pytest.raises(ValueError, match="MAX_BYTES"):
        store.save({"a": np.zeros(1 << 18)})


LOADER = """
import sys, redis
sys.path.insert(0, sys.argv[1])
from recipes.model_params import ParamStore
array = ParamStore(redis.Redis.from_url(sys.argv[2]), "m").load()["a"]
print(array.dtype, array.tobytes().hex())
"""


@pytest.mark.real_redis
def test_another_process_loads_bfloat16(r: redis.Redis, url: str) -> None:
    """A process that has not imported ml_dtypes itself."""
    array = np.arange(6).astype(ml_dtypes.bfloat16)
    ParamStore(r, "m").save({"a": array})
    loader = child(LOADER, url)
    try:
        assert loader.stdout.read().split() == ["bfloat16", array.tobytes().hex()]
    finally:
        end(loader)


# --- Cluster -------------------------------------------------------------------------------------


@pytest.mark.real_redis
def test_works_on_a_cluster(cluster: redis.RedisCluster) -> None:
    store = ParamStore(cluster, "m")
    params = {f"t{i}": np.full(2000, i, "f4") for i in range(30)} | {"big": np.arange(600_000)}
    first = store.save(params)
    assert same(store.load(), params)
    keys = blob_keys(cluster)
    assert len({cluster.get_node_from_key(key.decode()).name for key in keys}) == 3
    params["t3"] = params["t3"] + 0.5
    watching = store.watch("latest", timeout_s=0.05)
    second = store.save(params, parent=first)
    assert second.sent_bytes == 8000 and list(watching) == [1, 2]
    with pytest.raises(Conflict):
        store.save(params, parent=first)
    store.promote(second)
    assert store.prune(keep=1) == 8000 and store.versions() == [2] and same(store.load(), params)
    store.delete()
    assert every_key(cluster) == []


# --- Interchange ---------------------------------------------------------------------------------


def test_safetensors_round_trip(r: redis.Redis, tmp_path: Path) -> None:
    names = (
        "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
        "float16", "float32", "float64", "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2",
        "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz",
    )  # fmt: skip
    params = {n: np.arange(1, 7).astype(getattr(ml_dtypes, n, n)).reshape(2, 3) for n in names}
    params |= {
        "0-d": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "transposed": np.arange(6.0).reshape(2, 3).T,
    }
    store = ParamStore(r, "m")
    store.save(params)
    to_safetensors(store.load(), tmp_path / "model.safetensors")
    back = from_safetensors(tmp_path / "model.safetensors")
    assert set(back) == set(params)
    assert all(same({"": back[k]}, {"": np.array(params[k], order="C")}) for k in params)
    to_safetensors(
        {"t": params["transposed"], "list": [1.0, 2.0], ">": np.arange(3, dtype=">i4")},
        str(tmp_path / "x"),
    )
    back = from_safetensors(str(tmp_path / "x"))
    assert np.array_equal(back["t"], params["transposed"]) and back["list"].tolist() == [1, 2]
    assert back[">"].tolist() == [0, 1, 2] and back[">"].dtype == "<i4"
    for name in ("bfloat16", "float8_e5m2"):
        small = np.arange(4).astype(getattr(ml_dtypes, name))
        to_safetensors({"t": small.astype(small.dtype.newbyteorder(">"))}, tmp_path / "x")
        assert same(from_safetensors(tmp_path / "x"), {"t": small})
    (tmp_path / "x").unlink()
    with pytest.raises(ValueError, match="no tensor named '__metadata__'"):
        to_safetensors({"__metadata__": np.zeros(2), "t": np.zeros(2)}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_pytorch_state_dict(tmp_path: Path) -> None:
    torch, r = pytest.importorskip("torch"), fakeredis.FakeRedis()
    net, copy = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    publish_torch(r, net.bfloat16(), tmp_path / "out.safetensors")
    load_torch(r, copy.bfloat16(), tmp_path / "in.safetensors")
    for a, b in zip(net.state_dict().values(), copy.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# --8<-- [start:torch]
def publish_torch(r: redis.Redis, net: Any, file: Path) -> Version:
    from safetensors.torch import save_file

    save_file(net.state_dict(), file)  # bfloat16 too, which NumPy alone does not know
    return ParamStore(r, "torch-model").save(from_safetensors(file))


def load_torch(r: redis.Redis, net: Any, file: Path) -> None:
    from safetensors.torch import load_file

    to_safetensors(ParamStore(r, "torch-model").load(), file)
    net.load_state_dict(load_file(file))


# --8<-- [end:torch]


def test_scikit_learn_linear_model(r: redis.Redis) -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    trained = LogisticRegression(max_iter=20, tol=1.0).fit(x[:500], y[:500])
    publish_sklearn(r, trained)
    assert np.array_equal(load_sklearn(r).predict_proba(x), trained.predict_proba(x))


# --8<-- [start:sklearn]
def publish_sklearn(r: redis.Redis, trained: Any) -> Version:
    params = {
        "coef_": trained.coef_,
        "intercept_": trained.intercept_,
        "classes_": trained.classes_,
    }
    return ParamStore(r, "digits").save(params, metadata={"features": trained.n_features_in_})


def load_sklearn(r: redis.Redis) -> Any:
    from sklearn.linear_model import LogisticRegression

    served = LogisticRegression()
    for name, array in ParamStore(r, "digits").load().items():
        setattr(served, name, array)
    return served


# --8<-- [end:sklearn]


# --- Helpers -------------------------------------------------------------------------------------


def in_threads(
    work: Callable[[int], None], items: Any, also: Callable[[], Any] | None = None
) -> None:
    """Run in threads; raise the first error."""
    errors: list[BaseException] = []

    def run(item: int) -> None:
        try:
            work(item)
        except BaseException as error:
            errors.append(error)
            if also is not None:
                also()

    threads = [threading.Thread(target=run, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)


def child(program: str, url: str, *args: object) -> Any:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT), url, *map(str, args)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: Any) -> None:
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


def age_saves(r: Any) -> None:
    """Let every save have begun two hours ago."""
    for token, state in r.hgetall("{params:m}:saves").items():
        *number, seconds = state.decode().split(" ")
        r.hset("{params:m}:saves", token, " ".join([*number, str(float(seconds) - 7200)]))


class Counting:
    """A client of the same server that counts the bytes of what it sends."""

    def __init__(self, r: redis.Redis) -> None:
        pool, self.sent = r.connection_pool, 0
        outer = self

        class Connection(pool.connection_class):  # type: ignore[name-defined,misc]
            def send_packed_command(self, command: Any, *args: Any, **kwargs: Any) -> Any:
                parts = [command] if isinstance(command, bytes | str) else command
                outer.sent += sum(map(len, parts))
                return super().send_packed_command(command, *args, **kwargs)

        self.client = redis.Redis(
            connection_pool=redis.ConnectionPool(
                connection_class=Connection, **pool.connection_kwargs
            )
        )

    def take(self) -> int:
        sent, self.sent = self.sent, 0
        return sent


def losing_replies(r: redis.Redis, marker: bytes) -> redis.Redis:
    """A client that loses, once each, the first reply to a script that has `marker` in its text."""
    pool, lost = r.connection_pool, []

    class Connection(pool.connection_class):  # type: ignore[name-defined,misc]
        is_armed = False

        def send_command(self, *args: Any, **kwargs: Any) -> Any:
            text = args[1] if len(args) > 1 else b""
            self.is_armed = args[0] == "EVAL" and marker in (
                text if isinstance(text, bytes) else text.encode()
            )
            return super().send_command(*args, **kwargs)

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            reply = super().read_response(*args, **kwargs)
            if self.is_armed and not lost:
                lost.append("EVAL")
                self.disconnect()
                raise redis.ConnectionError("the reply got lost")
            return reply

    kwargs = dict(pool.connection_kwargs)
    kwargs["retry"] = redis.retry.Retry(redis.backoff.NoBackoff(), 3)
    client = redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=Connection, **kwargs)
    )
    client.lost = lost  # type: ignore[attr-defined]
    return client
