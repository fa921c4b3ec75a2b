"""training_data: each row once, at any number of workers; whole data or none; honest bytes only."""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes import training_data
from recipes.training_data import DataError, Dataset, append, delete, hashed, write
from tests import servers

PROPERTY = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def keys_of(r: Any, name: str) -> set[bytes]:
    """All keys of a data set, whatever they are for."""
    return {
        k
        for k in r.scan_iter(f"td:*{name}*")
        if k.startswith((b"td:{%b}" % name.encode(), b"td:%b:" % name.encode()))
    }


def numbers(rows: int, width: int = 3) -> dict[str, np.ndarray]:
    x = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    return {"x": x, "row": np.arange(rows)}


def epoch(
    ds: Dataset, batch_size: int, world_size: int = 1, **kwargs: Any
) -> list[list[list[int]]]:
    """The row numbers of an epoch: for each rank, for each batch."""
    ranks = (
        ds.batches(batch_size, rank=k, world_size=world_size, **kwargs) for k in range(world_size)
    )
    return [[batch["row"].tolist() for batch in share] for share in ranks]


def batches_of(ranks: list[list[list[int]]]) -> list[list[int]]:
    """The rows of each global batch, sorted."""
    return [sorted(row for share in shares for row in share) for shares in zip(*ranks, strict=True)]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


class Traffic:
    """Counts the pipelines and the bytes of their replies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trips = self.bytes = 0
        send = redis.client.Pipeline.execute

        def execute(pipe: redis.client.Pipeline, *args: Any) -> list[Any]:
            replies: list[Any] = send(pipe, *args)
            self.trips += bool(replies)
            self.bytes += sum(len(reply) for reply in replies if isinstance(reply, bytes))
            return replies

        monkeypatch.setattr(redis.client.Pipeline, "execute", execute)


# --- What is stored comes back --------------------------------------------------------------------

POINT = np.dtype([("name", "S4"), ("at", ">f4", (2,)), ("n", "<u2")])
DTYPES = ["?", "u1", ">i4", "f2", "f8", "c16", "M8[ns]", "m8[s]", "S10", "U5", "V3", POINT,
          np.dtype([("a", "i1"), ("b", "f8")], align=True)]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (0, 5)], ids=str)
def test_any_dtype_and_shape_comes_back(r: redis.Redis, dtype: Any, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(dtype)
    count = 9 * int(np.prod(shape))
    raw = np.random.default_rng(0).integers(
        0, 2 if dtype.kind == "b" else 50, count * dtype.itemsize
    )
    x = np.frombuffer(raw.astype(np.uint8).tobytes(), dtype, count).reshape(9, *shape)
    write(r, "odd", {"x": x, "row": np.arange(9)})
    ds = Dataset(r, "odd")
    stored = ds.rows(range(9))["x"]
    assert (stored.dtype, stored.shape) == (x.dtype, x.shape)
    assert np.array_equal(stored, x)
    for batch in ds.batches(4):
        assert batch["x"].dtype == dtype
        assert np.array_equal(batch["x"], x[batch["row"]])
        assert batch["x"].flags.writeable and batch["x"].flags.aligned


def test_columns_may_be_lists_and_views(r: redis.Redis) -> None:
    x = np.arange(240).reshape(2, 4, 30).transpose(2, 0, 1)
    write(r, "views", {"x": x, "y": list(range(30)), "z": np.broadcast_to(np.float32(7), (30, 2))})
    rows = Dataset(r, "views").rows(range(30))
    assert np.array_equal(rows["x"], x) and rows["y"].tolist() == list(range(30))
    assert (rows["z"] == 7).all() and list(rows) == ["x", "y", "z"]


def test_the_stored_order_is_kept_without_shuffle(r: redis.Redis) -> None:
    write(r, "plain", numbers(1000), chunk_bytes=100)
    ds = Dataset(r, "plain")
    assert len(ds) == ds.manifest.rows == 1000
    assert flat(epoch(ds, 37, shuffle=False)[0]) == list(range(1000))
    assert flat(epoch(ds, 37, shuffle=False, start=20)[0]) == list(range(740, 1000))
    assert batches_of(epoch(ds, 37, 4, shuffle=False)) == epoch(ds, 37, shuffle=False)[0]


def test_an_iterable_is_stored_block_by_block(r: redis.Redis) -> None:
    whole, alive = numbers(5000), []

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        for at in range(0, 5000, 123):
            alive.append(len(keys_of(r, "blocks")))
            yield {name: column[at : at + 123] for name, column in whole.items()}

    manifest = write(r, "blocks", blocks(), chunk_bytes=300)
    assert manifest.rows == 5000 and alive[-1] > 10  # chunks left while it was still reading
    assert np.array_equal(Dataset(r, "blocks").rows(range(5000))["x"], whole["x"])
    assert max(r.strlen(key) for key, _, _ in manifest.chunks) <= 300


def test_encode_and_decode_are_called_for_each_column(r: redis.Redis) -> None:
    data = numbers(500)

    def encode(array: np.ndarray) -> bytes:
        return zlib.compress(
            str(array.shape).encode() + b"|" + array.dtype.str.encode() + b"|" + array.tobytes()
        )

    def decode(blob: bytes) -> np.ndarray:
        shape, dtype, raw = zlib.decompress(blob).split(b"|", 2)
        return np.frombuffer(raw, dtype.decode()).reshape(
            json.loads(shape.decode().replace("(", "[").replace(",)", "]").replace(")", "]"))
        )

    write(r, "packed", data, encode=encode)
    append(r, "packed", data, encode=encode)
    ds = Dataset(r, "packed", decode=decode)
    assert np.array_equal(ds.rows(range(500))["x"], data["x"])
    assert sorted(flat(epoch(ds, 64)[0])) == sorted([*range(500)] * 2)
    with pytest.raises(DataError, match="decode="):
        Dataset(r, "packed")
    with pytest.raises(DataError, match="encoded=True"):
        append(r, "packed", data)
    for wrong in (
        lambda blob: decode(blob)[1:],
        lambda blob: decode(blob).astype("f4"),
        zlib.decompress,
        len,
    ):
        with pytest.raises(DataError, match="cannot be decoded"):
            Dataset(r, "packed", decode=wrong).rows([0])


# --- Each row once --------------------------------------------------------------------------------


@PROPERTY
@given(
    rows=st.integers(1, 700), chunk_bytes=st.sampled_from([1, 60, 400, 1 << 20]),
    blocks=st.integers(1, 3), batch_size=st.integers(1, 300),
    world_size=st.sampled_from([1, 2, 4, 8, 3, 6, 16]),
    seed=st.integers(-3, 2**63), data=st.data(),
)  # fmt: skip
def test_each_row_once_whatever_the_world_size(
    r: redis.Redis,
    rows: int,
    chunk_bytes: int,
    blocks: int,
    batch_size: int,
    world_size: int,
    seed: int,
    data: Any,
) -> None:
    whole = numbers(rows)
    parts = np.array_split(np.arange(rows), blocks)
    write(
        r, "p", ({k: v[part] for k, v in whole.items()} for part in parts), chunk_bytes=chunk_bytes
    )
    ds = Dataset(r, "p")
    alone = epoch(ds, batch_size, seed=seed)[0]
    ranks = epoch(ds, batch_size, world_size, seed=seed)
    assert sorted(flat(alone)) == list(range(rows))
    assert batches_of(ranks) == [sorted(batch) for batch in alone]
    assert {len(batch) for batch in alone[:-1]} <= {batch_size}
    for shares in zip(*ranks, strict=True):
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    start = data.draw(st.integers(0, len(alone) + 1))
    resumed = epoch(ds, batch_size, world_size, seed=seed, start=start, prefetch=start % 3)
    assert resumed == [share[start:] for share in ranks]


GOLDEN = [
    "b14c3c2fbac19e38",
    "9545c853218d4e21",
    "947b9b97a3949d24",
]  # of (seed, epoch) = (0, 0), (0, 1), (1, 0)


def test_the_order_is_a_pure_function_of_seed_and_epoch(r: redis.Redis) -> None:
    write(r, "order", numbers(3000))
    ds = Dataset(r, "order")
    orders = [flat(epoch(ds, 100, seed=s, epoch=e)[0]) for s, e in [(0, 0), (0, 1), (1, 0)]]
    assert len({tuple(order) for order in orders}) == 3
    write(r, "order", numbers(3000))
    assert flat(epoch(Dataset(r, "order"), 7)[0]) == orders[0]  # also of any batch size
    digests = [xxhash.xxh3_64_hexdigest(np.array(order, "<u4").tobytes()) for order in orders]
    assert digests == GOLDEN  # on every machine, with every version of numpy


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize(("rows", "chunk_bytes"), [(50, 1 << 20), (1000, 1 << 20), (4000, 333)])
def test_all_ranks_together_read_the_data_about_once(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch, world_size: int, rows: int, chunk_bytes: int
) -> None:
    manifest = write(r, "once", numbers(rows), chunk_bytes=chunk_bytes)
    manifest = append(r, "once", numbers(rows // 10))
    stored = manifest.rows * manifest.dtype.itemsize
    traffic = Traffic(monkeypatch)
    epoch(Dataset(r, "once"), 32, world_size)
    assert stored <= traffic.bytes <= 1.09 * stored


def test_a_resumed_epoch_does_not_read_what_came_before(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(r, "resume", numbers(8000), chunk_bytes=160)
    stored, traffic = manifest.rows * manifest.dtype.itemsize, Traffic(monkeypatch)
    for start in (25, 50, 75):
        traffic.bytes = 0
        epoch(Dataset(r, "resume"), 80, 4, start=start)
        assert traffic.bytes <= (1.12 - start / 100) * stored


def entropy(labels: np.ndarray) -> float:
    share = np.bincount(labels) / len(labels)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


@pytest.mark.parametrize("width", [4, 784])
def test_batches_of_sorted_data_are_mixed(r: redis.Redis, width: int) -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 6000)
    write(r, "sorted", {"x": np.zeros((60_000, width), np.uint8), "row": labels})
    full = np.random.default_rng(0).permutation(labels).reshape(-1, 250)
    for seed in range(3):
        batches = [np.array(batch) for batch in epoch(Dataset(r, "sorted"), 256, seed=seed)[0][:-1]]
        assert np.mean([*map(entropy, batches)]) >= 0.985 * np.mean([*map(entropy, full)])
        assert min(map(entropy, batches)) >= 0.9 * np.mean([*map(entropy, full)])


# --- Whole or not at all --------------------------------------------------------------------------


def test_a_reader_in_mid_epoch_finishes_on_its_generation(r: redis.Redis) -> None:
    write(r, "g", numbers(2000))
    old = Dataset(r, "g")
    reader = old.batches(100, prefetch=0)
    rows = [next(reader)["row"]]
    old_keys = keys_of(r, "g") - {b"td:{g}"}
    write(r, "g", {"other": np.ones(50)})
    rows += [batch["row"] for batch in reader]
    assert sorted(np.concatenate(rows)) == list(range(2000))
    assert np.array_equal(old.rows([5])["row"], [5])
    assert len(Dataset(r, "g")) == 50
    assert {0 < r.ttl(key) <= training_data.RETIRED_S for key in old_keys} == {True}
    key = next(iter(old_keys))
    r.expire(key, 100)
    write(r, "g", {"other": np.ones(60)})  # does not make the old ones live longer
    assert r.ttl(key) <= 100
    assert {r.ttl(key) for key, _, _ in Dataset(r, "g").manifest.chunks} == {-1}


WRITER = """
import sys, numpy as np, redis
from recipes.training_data import write
def blocks():
    for i in range(1000):
        yield {"x": np.full((2000, 500), i, np.uint8)}
        if i == 20: print("staged", flush=True); sys.stdin.read()
write(redis.Redis.from_url(sys.argv[1]), "k", blocks())
"""


def killed_writer(r: redis.Redis, url: str) -> set[bytes]:
    """Return the keys that a writer has left which was killed (-9) at work."""
    before = keys_of(r, "k")
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"staged\n"
        child.kill()
    finally:
        child.kill()
        child.communicate()
    return keys_of(r, "k") - before


@pytest.mark.real_redis
def test_a_killed_writer_changes_nothing_and_leaves_nothing(r: redis.Redis, url: str) -> None:
    write(r, "k", numbers(300))
    leftovers = killed_writer(r, url)
    assert len(leftovers) > 100
    assert all(0 < r.ttl(key) <= training_data.STAGED_S for key in leftovers)
    assert flat(epoch(Dataset(r, "k"), 50, shuffle=False)[0]) == list(range(300))
    write(r, "k", numbers(400))
    servers.wait_until(lambda: not r.exists(*leftovers), what="leftovers are removed", timeout_s=5)
    assert len(Dataset(r, "k").rows(range(400))["x"]) == 400
    killed_writer(r, url)
    delete(r, "k")
    assert keys_of(r, "k") == set()


def test_a_writer_that_fails_cleans_up(r: redis.Redis) -> None:
    write(r, "f", numbers(300))
    before = keys_of(r, "f")

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        yield numbers(600_000)
        assert len(keys_of(r, "f")) > len(before)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        write(r, "f", blocks())
    assert keys_of(r, "f") == before
    assert len(Dataset(r, "f").rows(range(300))["x"]) == 300


def test_of_two_writers_one_wins_whole(r: redis.Redis) -> None:
    def blocks() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": np.zeros((500, 2000))}
        write(r, "w", {"x": np.ones((800, 2000))})  # begins later, ends earlier, removes nothing
        assert set(Dataset(r, "w").rows(range(800))["x"].flat) == {1}
        yield {"x": np.zeros((500, 2000))}

    write(r, "w", blocks())
    assert len(Dataset(r, "w")) == 1000
    assert set(Dataset(r, "w").rows(range(1000))["x"].flat) == {0}


def test_readers_never_see_a_mix(r: redis.Redis) -> None:
    write(r, "m", {"x": np.zeros(400)})
    failures: list[BaseException] = []

    def writer(value: int) -> None:
        try:
            for i in range(6):
                write(r, "m", {"x": np.full(400 + value, value + 10 * i)})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=writer, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        values = np.concatenate([batch["x"] for batch in Dataset(r, "m").batches(64)])
        assert len(set(values.tolist())) == 1 and len(values) == 400 + values[0] % 10
    assert not failures


def test_append_is_all_or_nothing(r: redis.Redis) -> None:
    write(r, "a", numbers(1000))
    old, before = Dataset(r, "a"), keys_of(r, "a")

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        for _ in range(2):
            yield numbers(40)
            assert len(Dataset(r, "a")) == 1000

    manifest = append(r, "a", blocks())
    new = Dataset(r, "a")
    assert manifest.rows == len(new) == 1080 and new.manifest == manifest
    assert sorted(flat(epoch(old, 64)[0])) == list(range(1000))
    assert flat(epoch(new, 64, shuffle=False)[0]) == [*range(1000), *range(40), *range(40)]
    assert before < keys_of(r, "a") and {r.ttl(key) for key in keys_of(r, "a")} == {-1}
    with pytest.raises(DataError, match=r"Stored is .*'row'.*; given is .* Give the same columns"):
        append(r, "a", {"x": np.zeros((5, 3), np.int32)})
    assert len(keys_of(r, "a")) == 1 + len(manifest.chunks)
    with pytest.raises(DataError, match="no data set"):
        append(r, "absent", numbers(5))


def test_append_keeps_the_old_rows_that_were_set_to_expire(r: redis.Redis) -> None:
    manifest = write(r, "e", numbers(1000))
    for key, _, _ in manifest.chunks:  # so a failover that undoes a replacement leaves them
        r.expire(key, 1000)
    append(r, "e", numbers(40))
    assert {r.ttl(key) for key in keys_of(r, "e")} == {-1}
    r.delete(manifest.chunks[0][0])
    with pytest.raises(DataError, match="are gone"):
        append(r, "e", numbers(40))
    assert Dataset(r, "e").manifest.rows == 1040


def test_two_appends_both_count(r: redis.Redis) -> None:
    write(r, "b", {"x": np.zeros(100)})

    def blocks(depth: int) -> Iterator[dict[str, np.ndarray]]:
        if depth:
            append(r, "b", blocks(depth - 1))  # is faster than the one that called it
        yield {"x": np.full(10, float(depth))}

    append(r, "b", blocks(3))
    assert Dataset(r, "b").rows(range(140))["x"][100:].tolist() == [
        d for d in range(4) for _ in range(10)
    ]
    write(r, "b", {"x": np.zeros(7)})
    assert len(keys_of(r, "b")) == 8 + 100 + 4 * 10  # the old ones have a TTL
    assert sum(r.ttl(key) == -1 for key in keys_of(r, "b")) == 8


def test_chunks_that_vanish_before_the_flip_are_noticed(r: redis.Redis) -> None:
    write(r, "v", numbers(300))

    def blocks(key: bytes, before: set[bytes]) -> Iterator[dict[str, np.ndarray]]:
        yield numbers(200_000)
        yield numbers(200_000)
        staged = keys_of(r, "v") - before
        r.delete(next(k for k in staged if (b"{" in k) == (key == b"mark")))
        yield numbers(5)

    for key in (b"mark", b"chunk"):
        with pytest.raises(DataError, match="are gone"):
            write(r, "v", blocks(key, keys_of(r, "v")))
        assert len(Dataset(r, "v").rows(range(300))["x"]) == 300


def test_a_ttl_ends_all_of_it(r: redis.Redis) -> None:
    write(r, "t", numbers(300), ttl=100)
    assert {90 < r.ttl(key) <= 100 for key in keys_of(r, "t")} == {True}
    append(r, "t", numbers(20))
    assert {80 < r.ttl(key) <= 100 for key in keys_of(r, "t")} == {True}
    write(r, "t", numbers(300), ttl=0.5)
    r.unlink(*[key for key in keys_of(r, "t") if r.ttl(key) > 1])
    servers.wait_until(lambda: not keys_of(r, "t"), what="all has expired")
    with pytest.raises(DataError, match="no data set"):
        Dataset(r, "t")
    write(r, "t", numbers(300), ttl=100)
    write(r, "t", numbers(400))
    assert {
        r.ttl(k) for k in (b"td:{t}", *[key for key, _, _ in Dataset(r, "t").manifest.chunks])
    } == {-1}


def test_delete_removes_all_of_one_name_only(r: redis.Redis) -> None:
    others = ["d2", "xd", "d:e", "d:0123456789abcdef", "d/train"]
    for name in ["d", *others]:
        write(r, name, numbers(20))
    r.set("td:d:note", 1)
    write(r, "d", numbers(30))
    assert delete(r, "d") == 1 + 30 + 20
    assert delete(r, "d") == 0
    for name in others:
        write(r, name, numbers(20))
        assert len(Dataset(r, name).rows(range(20))["x"]) == 20
    assert r.exists("td:d:note")


@pytest.mark.real_redis
def test_on_a_cluster_chunks_spread_and_all_works(cluster: redis.RedisCluster) -> None:
    manifest = write(cluster, "c/train", numbers(3000))
    for node in cluster.get_primaries():
        held = [k for k in cluster.scan_iter("td:c/train:*", target_nodes=node)]
        assert len(held) > len(manifest.chunks) / 6
    ds = Dataset(cluster, "c/train")
    assert batches_of(epoch(ds, 100, 4)) == batches_of(epoch(ds, 100, 2))
    assert np.array_equal(ds.rows([7, 2999, 7])["row"], [7, 2999, 7])

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        append(cluster, "c/train", numbers(100))
        yield numbers(50)

    append(cluster, "c/train", blocks())
    assert len(Dataset(cluster, "c/train")) == 3150
    write(cluster, "c/train", numbers(10))
    assert sorted(flat(epoch(ds, 100)[0])) == list(range(3000))
    delete(cluster, "c/train")
    assert not list(cluster.scan_iter("td:*"))


# --- Random access --------------------------------------------------------------------------------


@PROPERTY
@given(data=st.data(), rows=st.integers(1, 400), chunk_bytes=st.sampled_from([1, 77, 1 << 20]))
def test_rows_are_numpys_take(r: redis.Redis, data: Any, rows: int, chunk_bytes: int) -> None:
    whole = numbers(rows)
    write(r, "take", whole, chunk_bytes=chunk_bytes)
    wanted = data.draw(st.lists(st.integers(0, rows - 1), max_size=50))
    dtype = data.draw(st.sampled_from(["i8", "u2", "u8", ">i4"]))
    for indices in (wanted, np.array(wanted, dtype), tuple(wanted), (i for i in wanted)):
        found = Dataset(r, "take").rows(indices)
        for name, column in whole.items():
            assert np.array_equal(found[name], column[np.array(wanted, int)])
            assert found[name].dtype == column.dtype


@pytest.mark.parametrize(
    "indices",
    [[-1], [100], [0, 2**63], [0.5], ["a"], [[1, 2]], np.ones(100, bool), 3, np.int64(3), None],
)
def test_other_indices_are_an_index_error(r: redis.Redis, indices: Any) -> None:
    write(r, "i", numbers(100))
    with pytest.raises(IndexError, match=r"0 to 99|whole numbers"):
        Dataset(r, "i").rows(indices)


def test_round_trips_do_not_grow_with_the_indices(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(r, "trips", numbers(50_000))
    ds, traffic = Dataset(r, "trips"), Traffic(monkeypatch)
    ds.rows(np.arange(0, 50_000, 7))
    assert traffic.trips == 1
    write(r, "trips", numbers(1_000_000))  # 20 MB, in pipelines of 2 MiB
    ds, traffic.trips = Dataset(r, "trips"), 0
    ds.rows(np.arange(0, 1_000_000, 7))
    assert traffic.trips <= 12


# --- Clear errors ---------------------------------------------------------------------------------

DEEP = functools.reduce(lambda dtype, _: np.dtype([("a", dtype)]), range(150), np.dtype("u1"))
CANNOT = {
    "unequal": ({"x": np.zeros(3), "y": np.zeros(4)}, "unequal"),
    "object": ({"x": np.array([{}, None])}, "fixed size"),
    "ragged": ({"x": [[1], [1, 2]]}, "S/U strings"),
    "strings": ({"x": np.array(["a", "b"], np.dtypes.StringDType())}, "StringDType"),
    "in a struct": ({"x": np.zeros(2, [("a", object)])}, "fixed size"),
    "scalar": ({"x": 3}, "S/U strings"),
    "no columns": ({}, "S/U strings"),
    "not a name": ({1: np.zeros(3)}, "S/U strings"),
    "no name": ({"": np.zeros(3)}, "name"),
    "no rows": ({"x": np.zeros((0, 3))}, "no rows"),
    "no blocks": ([], "no rows"),
    "not a mapping": ([np.zeros(3)], "Give {name: array}"),
    "an array": (np.zeros((3, 2)), "Give {name: array}.*ndarray"),
    "a number": (3, "Give {name: array}"),
    "other blocks": ([{"x": np.zeros(3)}, {"x": np.zeros(3, "f4")}], "blocks differ"),
    "wider strings": (
        [{"x": ["a"]}, {"x": ["ab"]}],
        r"U1.*U2.*same columns.*np.asarray\(x, 'U12'\)",
    ),
    "other columns": ([{"x": np.zeros(3)}, {"y": np.zeros(3)}], "blocks differ"),
    "a huge row": ({"x": np.broadcast_to(np.uint8(0), (1, 65 << 20))}, "more than"),
    "many columns": ({f"column {i}": np.zeros(2) for i in range(3000)}, "into one 2-d column"),
    "a long name": ({"x" * 65_536: np.zeros(2)}, "too long column names"),
    "a deep struct": ({"x": np.zeros(2, DEEP)}, "nested"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_stored_is_refused(r: redis.Redis, case: str) -> None:
    columns, message = CANNOT[case]
    with pytest.raises(DataError, match=message):
        write(r, "bad", columns)
    assert not r.dbsize()


def test_arguments_out_of_range_are_refused_at_once(r: redis.Redis) -> None:
    write(r, "args", numbers(10))
    ds = Dataset(r, "args")
    for wrong in ({"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}, {"start": -1},
                  {"prefetch": -1}, {"batch_size": 0}):  # fmt: skip
        rule = "wanted: .* 0 or more, 0 <= rank < world_size"
        with pytest.raises(DataError, match=f"{next(iter(wrong))}=.*; {rule}"):
            ds.batches(**{"batch_size": 5, **wrong})
    names: tuple[Any, ...] = ("", "a{b}", "a*", "a?", "[a]", "a" * 201, 7, b"args", None)
    for name in names:
        for call in (write, append, lambda r, name, _: delete(r, name)):
            with pytest.raises(DataError, match="no name: str"):
                call(r, name, numbers(5))
    assert len(Dataset(r, "args")) == 10
    for options in ({"chunk_bytes": 0}, {"chunk_bytes": 1 << 30}, {"ttl": 0}, {"ttl": -1}):
        with pytest.raises(DataError, match="chunk_bytes"):
            write(r, "args", numbers(5), **options)
    with pytest.raises(DataError, match="no data set 'absent'"):
        Dataset(r, "absent")


def test_a_client_that_decodes_is_refused_and_changes_nothing(r: redis.Redis) -> None:
    write(r, "text", numbers(10))
    before, decodes = {key: r.dump(key) for key in r.scan_iter()}, servers.decoding(r)
    for call in (
        lambda: write(decodes, "text", numbers(5)),
        lambda: append(decodes, "text", numbers(5)),
        lambda: delete(decodes, "text"),
        lambda: Dataset(decodes, "text"),
        lambda: training_data.Manifest.load(decodes, "text"),
        lambda: training_data.demo(decodes),
    ):
        with pytest.raises(TypeError, match="without decode_responses=True"):
            call()
    assert {key: r.dump(key) for key in r.scan_iter()} == before


@pytest.mark.real_redis
def test_a_cluster_client_that_decodes_is_refused(cluster: redis.RedisCluster) -> None:
    with (
        servers.decoding(cluster) as decodes,
        pytest.raises(TypeError, match="without decode_responses=True"),
    ):
        write(decodes, "text", numbers(5))
    assert not list(cluster.scan_iter())


def test_a_missing_chunk_names_the_setting(r: redis.Redis) -> None:
    manifest = write(r, "e", numbers(3000))
    r.delete(manifest.chunks[70][0])
    for read in (lambda ds: list(ds.batches(64)), lambda ds: ds.rows(range(3000))):
        with pytest.raises(DataError, match=r"evicted.*maxmemory-policy noeviction"):
            read(Dataset(r, "e"))
    assert len(Dataset(r, "e").rows([0, 1])["x"]) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "swap", "empty"])
def test_a_damaged_chunk_is_never_used(r: redis.Redis, damage: str) -> None:
    manifest = write(r, "h", numbers(3000))
    key, other = manifest.chunks[33][0], manifest.chunks[34][0]
    raw = r.get(key)
    assert isinstance(raw, bytes)
    new = {"flip": raw[:50] + bytes([raw[50] ^ 1]) + raw[51:], "truncate": raw[:-1],
           "extend": raw + b"\0", "swap": r.get(other), "empty": b""}[damage]  # fmt: skip
    r.set(key, new)  # type: ignore[arg-type]
    for read in (lambda ds: list(ds.batches(64)), lambda ds: ds.rows(range(3000))):
        with pytest.raises(DataError, match=f"{key} fails its checksum"):
            read(Dataset(r, "h"))


def forged(r: redis.Redis, name: str, **changes: Any) -> bytes:
    """A manifest with changes and the right checksum, as an attacker would make it."""
    body = json.loads(r.hget(f"td:{{{name}}}", "manifest"))  # type: ignore[arg-type]
    body = {key: value for key, value in (body | changes).items() if key != "checksum"}
    return json.dumps(
        body | {"checksum": xxhash.xxh3_64_hexdigest(json.dumps(body).encode())}
    ).encode()


HUGE = "[('x', '<i4', ({n},)), ('row', '<i8')]"
FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": 2}, "version 2.*update"),
    "version text": ({"version": "x" * 10**6}, "version xxx"),
    "many rows": ({"chunks": [["td:n:0123456789abcdef:0", 10**12, 0]]}, "its own"),
    "rows below 1": ({"chunks": [["td:n:0123456789abcdef:0", 0, 0]]}, "its own"),
    "rows true": ({"chunks": [["td:n:0123456789abcdef:0", True, 0]]}, "its own"),
    "other key": ({"chunks": [["secret", 1, 0]]}, "its own"),
    "no chunks": ({"chunks": []}, "wrong"),
    "chunks": ({"chunks": 5}, "damaged"),
    "triple": ({"chunks": [[1, 2]]}, "damaged"),
    "huge row": ({"dtype": HUGE.format(n=1 << 28)}, "more than"),
    "huger row": ({"dtype": HUGE.format(n=1 << 40)}, "damaged"),
    "object": ({"dtype": "[('x', '|O')]"}, "fixed size"),
    "plain": ({"dtype": "'<f8'"}, "fixed size"),
    "call": ({"dtype": "__import__('os').getpid()"}, "damaged"),
    "deep": ({"dtype": "[" * 60_000}, "damaged"),
    "deeper": ({"dtype": "-" * 60_000}, "damaged"),
    "long": ({"dtype": str([(f"column {i}", "<f8") for i in range(3000)])}, "damaged: too many"),
    "number": ({"dtype": 7}, "damaged"),
    "none": ({"dtype": None}, "damaged"),
    "encoded": ({"encoded": "yes"}, "checksum"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_hostile_manifest_is_refused(r: redis.Redis, case: str) -> None:
    changes, message = FORGED[case]
    write(r, "n", numbers(50))
    r.hset("td:{n}", "manifest", forged(r, "n", **changes))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            Dataset(r, "n")
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


def test_a_manifest_that_nobody_could_read_is_not_published(
    r: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(r, "many", numbers(30), ttl=1000)
    before = {key: r.dump(key) for key in keys_of(r, "many")}
    monkeypatch.setattr(training_data, "MAX_MANIFEST", 5000)
    for store in (
        lambda: write(r, "many", numbers(90), chunk_bytes=1),
        lambda: append(r, "many", numbers(90)),
    ):
        with pytest.raises(DataError, match=r"are too many chunks: .* more chunk_bytes"):
            store()
        assert {key: r.dump(key) for key in keys_of(r, "many")} == before
        assert {0 < r.ttl(key) <= 1000 for key in before} == {True}
    append(r, "many", numbers(10))
    assert Dataset(r, "many").rows(range(40))["row"].tolist() == [*range(30), *range(10)]
    monkeypatch.setattr(training_data, "MAX_MANIFEST", 1000)
    with pytest.raises(DataError, match=r"damaged: \d+ bytes, more than 1000"):
        Dataset(r, "many")
    assert len(manifest.chunks) == 30


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_manifest_that_does_not_fit_its_chunks_is_noticed(r: redis.Redis, change: int) -> None:
    (key, rows, checksum), *others = write(r, "n", numbers(500)).chunks
    chunks = [(key, rows + change, checksum), *others]
    r.hset("td:{n}", "manifest", forged(r, "n", chunks=chunks))
    for read in (lambda: Dataset(r, "n").rows([0]), lambda: list(Dataset(r, "n").batches(50))):
        with pytest.raises(DataError, match=r"cannot be decoded: .* were written"):
            read()


def test_memory_is_taken_only_for_bytes_that_arrived(r: redis.Redis) -> None:
    write(r, "n", numbers(50))
    rows = training_data.MAX_CHUNK // 1000 // 2
    chunks = [["td:n:0123456789abcdef:0", rows, 0]] * 100
    r.set(chunks[0][0], b"tiny")  # type: ignore[arg-type]
    r.hset("td:{n}", "manifest", forged(r, "n", dtype="[('row', '|S1000')]", chunks=chunks))
    ds = Dataset(r, "n")  # 100 chunks of 32 MB, it says
    tracemalloc.start()
    try:
        for read in (lambda: ds.rows(range(5)), lambda: next(iter(ds.batches(5)))):
            with pytest.raises(DataError, match="checksum"):
                read()
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


def test_one_good_chunk_does_not_pay_for_the_claims_of_others(r: redis.Redis) -> None:
    real = write(r, "n", {"row": np.zeros(1, "S1000")}).chunks
    claims = [("td:n:0123456789abcdef:0", training_data.MAX_ROWS, 0)] * 50
    r.hset("td:{n}", "manifest", forged(r, "n", chunks=[*real, *claims]))
    ds = Dataset(r, "n")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="missing"):
            next(iter(ds.batches(5, shuffle=False)))
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


@PROPERTY
@given(data=st.data())
def test_no_bytes_break_the_manifest_parser(r: redis.Redis, data: Any) -> None:
    write(r, "z", numbers(3))
    raw = r.hget("td:{z}", "manifest")
    assert isinstance(raw, bytes)
    at = data.draw(st.integers(0, len(raw) - 1))
    flipped = raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]
    others = [raw[:at], raw[at:], flipped, b"[" * 10**5, b"null", b"{}", b"7", b""]
    new = data.draw(st.sampled_from(others) | st.binary())
    r.hset("td:{z}", "manifest", new)
    if new != raw:
        with pytest.raises(DataError):
            Dataset(r, "z")


def test_a_damaged_manifest_can_be_replaced_and_nothing_else_removes_it(r: redis.Redis) -> None:
    manifest = write(r, "y", numbers(50))
    r.hset("td:{y}", "manifest", forged(r, "y", version=9))
    with pytest.raises(DataError):
        write(r, "y", {"x": 3})
    assert {r.ttl(key) for key, _, _ in manifest.chunks} == {-1}  # a newer version may read them
    write(r, "y", numbers(60))
    assert len(Dataset(r, "y").rows(range(60))["x"]) == 60


# --- Threads and memory ---------------------------------------------------------------------------


def test_no_thread_is_left_behind(r: redis.Redis) -> None:
    write(r, "th", numbers(5000), chunk_bytes=100)
    ds, before = Dataset(r, "th"), threading.active_count()
    for prefetch in (0, 1, 2, 9):
        closed = ds.batches(10, prefetch=prefetch)
        next(closed)
        assert threading.active_count() <= before + 1
        closed.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
        dropped = ds.batches(10, prefetch=prefetch)
        next(dropped)
        del dropped
        gc.collect()
        assert threading.active_count() == before
        ds.batches(10, prefetch=prefetch)
        list(ds.batches(1000, prefetch=prefetch))
        assert threading.active_count() == before
    r.delete(ds.manifest.chunks[-1][0])
    with pytest.raises(DataError):
        list(ds.batches(10))
    gc.collect()
    assert threading.active_count() == before


def test_iterators_of_one_dataset_do_not_disturb_each_other(r: redis.Redis) -> None:
    write(r, "it", numbers(5000), chunk_bytes=100)
    ds = Dataset(r, "it")
    alone = [epoch(ds, 64, seed=seed)[0] for seed in range(3)]
    together = zip(*(ds.batches(64, seed=seed) for seed in range(3)), strict=True)
    found = [
        [batch["row"].tolist() for batch in batches] for batches in zip(*together, strict=True)
    ]
    assert found == alone
    kept = [*ds.batches(64, seed=0)]  # a batch is the caller's own
    epoch(ds, 64, seed=1)
    assert [batch["row"].tolist() for batch in kept] == alone[0]


UNFINISHED = """
import sys, redis
from recipes.training_data import Dataset
reader = Dataset(redis.Redis.from_url(sys.argv[1]), "u").batches(10)
print(len(next(reader)["row"]))
"""


@pytest.mark.real_redis
def test_a_program_ends_with_an_iterator_in_use(r: redis.Redis, url: str) -> None:
    write(r, "u", numbers(5000), chunk_bytes=100)
    child = subprocess.run([sys.executable, "-c", UNFINISHED, url], capture_output=True, timeout=30)
    assert (child.stdout, child.stderr, child.returncode) == (b"10\n", b"", 0)


@pytest.mark.real_redis
def test_reading_and_writing_hold_a_few_windows(r: redis.Redis) -> None:
    def blocks() -> Iterator[dict[str, np.ndarray]]:
        for i in range(60):
            yield {"x": np.full((1000, 1000), i, np.uint8), "row": np.arange(1000)}

    tracemalloc.start()
    try:
        manifest = write(r, "big", blocks(), chunk_bytes=64 << 10)  # 60 MB
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
        tracemalloc.reset_peak()
        assert sum(len(batch["row"]) for batch in Dataset(r, "big").batches(256)) == 60_000
        window = 40 * 65 * 1010
        assert tracemalloc.get_traced_memory()[1] < 5 * window + (6 << 20)
    finally:
        tracemalloc.stop()
    assert len(manifest.chunks) > 900


# --- Idioms that the page shows -------------------------------------------------------------------


# --8<-- [start:splits]
def splits(rows: int) -> dict[str, np.ndarray]:
    """Indices of three splits. A row's split depends on its number alone: more rows move none."""
    at = hashed(rows, "split") / 2.0**64
    return {
        "train": np.flatnonzero(at < 0.8),
        "validation": np.flatnonzero((at >= 0.8) & (at < 0.9)),
        "test": np.flatnonzero(at >= 0.9),
    }


# --8<-- [end:splits]


# --8<-- [start:ragged]
def write_texts(r: redis.Redis, name: str, texts: list[list[int]]) -> None:
    """Token ids of any lengths: one flat column, and where each text begins and ends in it."""
    ends = np.cumsum([len(text) for text in texts])
    flat = np.concatenate([np.array(text, np.uint16) for text in texts])
    write(
        r, f"{name}/tokens", {"token": flat}, chunk_bytes=64 << 10
    )  # small: rows() reads whole ones
    write(r, f"{name}/texts", {"start": np.append(0, ends[:-1]), "end": ends})


def batches_of_texts(r: redis.Redis, name: str, batch_size: int) -> Iterator[list[np.ndarray]]:
    """Shuffled batches of texts; all tokens of a batch come in one call."""
    tokens = Dataset(r, f"{name}/tokens")
    for batch in Dataset(r, f"{name}/texts").batches(batch_size):
        spans = [np.arange(*span) for span in zip(batch["start"], batch["end"], strict=True)]
        flat = tokens.rows(np.concatenate(spans))["token"]
        yield np.split(flat, np.cumsum([len(span) for span in spans])[:-1])


# --8<-- [end:ragged]


def test_splits_are_stable_and_of_the_right_size() -> None:
    small, large = splits(10_000), splits(20_000)
    assert sorted(np.concatenate([*small.values()])) == list(range(10_000))
    for name, share in {"train": 0.8, "validation": 0.1, "test": 0.1}.items():
        assert np.array_equal(small[name], large[name][large[name] < 10_000])
        assert abs(len(large[name]) / 20_000 - share) < 0.01


def test_texts_of_any_length_come_back(r: redis.Redis) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 50_000, rng.integers(0, 40)).tolist() for _ in range(300)]
    write_texts(r, "corpus", texts)
    found = [text.tolist() for batch in batches_of_texts(r, "corpus", 32) for text in batch]
    assert sorted(found) == sorted(texts)


def test_two_uint64_of_the_hash_are_splitmix64s() -> None:
    """The reference's own numbers: SplitMix64 (Vigna's splitmix64.c) from the state 0."""
    state, wanted = xxhash.xxh3_64_intdigest(b"()"), []
    for i in range(3):
        z = (state + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        wanted.append(z ^ (z >> 31))
    assert hashed(3).tolist() == wanted
