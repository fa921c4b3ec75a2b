"""Which codec wins on which link, on real data; and what Redis itself does about size.

Wants (requirements-bench.txt): scikit-learn, zstandard, lz4, blosc2, ml_dtypes, matplotlib. Run:
python -m benchmarks.bench_tensor_compression
"""

from __future__ import annotations

import ast
import io
import json
import sysconfig
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import blosc2
import numpy as np
import redis
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from benchmarks.harness import Benchmark
from recipes import connect
from recipes.tensor_compression import (
    Report,
    best,
    decode,
    decode_records,
    encode,
    encode_records,
    measure,
    train_dictionary,
)
from tests import servers

LINKS = (10, 100, 1000, 10_000)  # MB/s: 100 Mbit, about 1 Gbit, 10 Gbit and 100 Gbit Ethernet
SHOWN = ("raw", "zlib", "lz4", "zstd", "blosc2", "blosc2-bitshuffle")
LOSSY = ("bfloat16", "int8", "int8+zstd")
KEY = "bench:tensor_compression"
MODULES = 250  # of the standard library


def sources() -> Iterator[tuple[str, str]]:
    """Names and texts of the standard library's modules, in a fixed order."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.glob("*.py"))[:MODULES]:
        yield path.stem, path.read_text(encoding="utf-8", errors="replace")


def token_ids(texts: list[tuple[str, str]]) -> np.ndarray:
    """int32 ids of the Python tokens, numbered as they first occur."""
    vocabulary: dict[str, int] = {}
    ids = [
        vocabulary.setdefault(token.string, len(vocabulary))
        for _, text in texts
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    ]
    return np.array(ids, np.int32)


def json_records(texts: list[tuple[str, str]]) -> list[bytes]:
    """One small JSON record for each function of the standard library."""
    return [
        json.dumps({"module": name, "line": node.lineno, "function": node.name,
                    "arguments": [argument.arg for argument in node.args.args]}).encode()
        for name, text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]  # fmt: skip


def trained_weights(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The 512 x 512 hidden weights of a network that was trained on the digits."""
    model = MLPClassifier((512, 512), max_iter=15, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 15 passes are enough to have real weights
        model.fit(images, labels)
    return np.ascontiguousarray(model.coefs_[1].T, np.float32)


def break_even(report: Report, raw: Report) -> str:
    """The link in MB/s below which the codec is faster than no codec."""
    extra = 1 / report.encode_mb_s + 1 / report.decode_mb_s
    extra -= 1 / raw.encode_mb_s + 1 / raw.decode_mb_s
    saved = 1 / raw.ratio - 1 / report.ratio
    if saved <= 0:
        return "never"
    return f"{saved / extra:,.0f}" if extra > 0 else "any"


def naive(bench: Benchmark, r: redis.Redis, array: np.ndarray) -> None:
    """SET and GET of one array: as text, as people compress it, and by the recipe."""
    sizes: dict[str, int] = {}

    def way(name: str, pack: Callable[[], bytes], unpack: Callable[[bytes], object]) -> Callable:
        def run() -> None:
            blob = pack()
            sizes[name] = len(blob)
            r.set(KEY, blob)
            unpack(r.get(KEY))

        return run

    def savez() -> bytes:
        file = io.BytesIO()
        np.savez_compressed(file, array)
        return file.getvalue()

    ways = {
        "json.dumps(array.tolist())": (
            lambda: json.dumps(array.tolist()).encode(),
            lambda b: np.array(json.loads(b), np.int32)),
        "np.savez_compressed": (
            savez, lambda b: np.load(io.BytesIO(b), allow_pickle=False)["arr_0"]),
        "zlib.compress(array.tobytes())": (
            lambda: zlib.compress(array.tobytes()),
            lambda b: np.frombuffer(zlib.decompress(b), np.int32)),
        "blosc2.pack_tensor": (lambda: blosc2.pack_tensor(array), blosc2.unpack_tensor),
        **{f"encode(array, {codec!r})": (
            lambda codec=codec: encode(array, codec), decode) for codec in SHOWN},
        "array.tobytes(), nothing checked": (array.tobytes, lambda b: np.frombuffer(b, np.int32)),
    }  # fmt: skip
    timings = bench.compare(
        "naive", f"SET and GET of {array.nbytes / 1e6:.1f} MB of token ids on loopback",
        {name: way(name, *parts) for name, parts in ways.items()},
        against="array.tobytes(), nothing checked", unit="MB", amount=array.nbytes / 1e6,
    )  # fmt: skip
    bench.table(
        "naive-bytes", "The same, with the bytes that Redis holds and the link carries.",
        ("way", "bytes per array byte", "speed, 1 is bare bytes"),
        [(name, f"{sizes[name] / array.nbytes:.2f}", f"{timings[name].ratio:.2g}")
         for name in ways],
    )  # fmt: skip
    r.delete(KEY)


def links(bench: Benchmark, data: dict[str, np.ndarray]) -> dict[str, dict[str, Report]]:
    """The heart: for each data set its codecs, their break-even, and a plot over the links."""
    import matplotlib.pyplot as plt

    measured = {name: {x.codec: x for x in measure(array)} for name, array in data.items()}
    for name, reports in measured.items():
        section = name.split(",")[0].replace(" ", "-")
        shown = [reports[codec] for codec in SHOWN + LOSSY if codec in reports]
        bench.table(
            section, f"{name}, {data[name].nbytes / 1e6:.2f} MB.",
            ("codec", "ratio", "encode MB/s", "decode MB/s", "RMSE", "wins over raw below, MB/s"),
            [(x.codec, f"{x.ratio:.2f}", f"{x.encode_mb_s:,.0f}", f"{x.decode_mb_s:,.0f}",
              f"{x.rmse:.2g}", "" if x.codec == "raw" else break_even(x, reports["raw"]))
             for x in shown],
        )  # fmt: skip
    figure, panels = plt.subplots(1, len(measured), figsize=(11, 3.4), sharey=True)
    speeds = np.geomspace(3, 30_000, 60)
    for axes, (name, reports) in zip(panels, measured.items(), strict=True):
        for codec in (*SHOWN, "int8+zstd"):
            if codec in reports:
                raw = np.array([reports["raw"].seconds_per_mb(speed) for speed in speeds])
                own = np.array([reports[codec].seconds_per_mb(speed) for speed in speeds])
                style = {"color": "#808a94", "linestyle": "--"} if codec == "raw" else {}
                axes.loglog(speeds, raw / own, label=codec, **style)
        axes.set_title(name.split(",")[0], fontsize=10)
        axes.set_xlabel("link, MB/s")
        axes.set_ylim(0.02, 30)
    panels[0].set_ylabel("times as fast as raw")
    panels[1].legend(fontsize=7, loc="lower left")
    bench.plot("links", figure)
    return measured


def choices(bench: Benchmark, data: dict[str, np.ndarray]) -> None:
    """What best() says for each link, and how far it is from an independent measurement."""
    rows = []
    for name, array in data.items():
        for max_rmse in (0.0, float(array.std()) / 50) if array.dtype.kind == "f" else (0.0,):
            cells = []
            for link in LINKS:
                chosen = best(array, link_mb_s=link, max_rmse=max_rmse)
                again = [x for x in measure(array) if x.rmse <= max_rmse]
                times = {x.codec: x.seconds_per_mb(link) for x in again}
                cells.append(f"{chosen.codec} ({times[chosen.codec] / min(times.values()):.2f})")
            rows.append((name.split(",")[0], f"{max_rmse:.2g}" if max_rmse else "none", *cells))
    bench.table(
        "best", "What `best` chooses for links of 10 to 10,000 MB/s; in brackets the time of that "
        "choice in a second measurement, where 1.00 is the fastest of all codecs then.",
        ("data", "RMSE allowed", *(f"{link:,} MB/s" for link in LINKS)), rows,
    )  # fmt: skip


def records(bench: Benchmark, r: redis.Redis, items: list[bytes]) -> None:
    """Small JSON records, each readable alone."""
    total = sum(map(len, items))
    dictionary = train_dictionary(items[::10])
    whole = b"\n".join(items)
    ways: dict[str, tuple[Callable[[], list[bytes]], Callable[[list[bytes]], object]]] = {
        "each alone, as it is": (lambda: [bytes(item) for item in items], list),
        "each alone, zlib": (
            lambda: [zlib.compress(item) for item in items],
            lambda blobs: [zlib.decompress(blob) for blob in blobs]),
        "each alone, zstd with a dictionary": (
            lambda: encode_records(items, dictionary),
            lambda blobs: decode_records(blobs, dictionary)),
        "all in one blob, zstd": (
            lambda: [encode(np.frombuffer(whole, np.uint8))],
            lambda blobs: bytes(decode(blobs[0])).split(b"\n")),
    }  # fmt: skip
    packed = {name: pack() for name, (pack, _) in ways.items()}

    def there_and_back(name: str) -> Callable[[], None]:
        pack, unpack = ways[name]

        def run() -> None:
            unpack(pack())

        return run

    timings = bench.compare(
        "records-speed", f"Encoding and decoding {len(items):,} JSON records",
        {name: there_and_back(name) for name in ways},
        against="each alone, zlib", unit="records", amount=len(items),
    )  # fmt: skip
    bench.table(
        "records", f"{len(items):,} JSON records of {total / len(items):.0f} bytes on average.",
        ("way", "bytes per record", "ratio", "records/s, there and back", "one read alone"),
        [(name, f"{sum(map(len, blobs)) / len(items):.0f}",
          f"{total / sum(map(len, blobs)):.2f}",
          f"{timings[name].rate / 1e3:,.0f} k", "no" if len(blobs) == 1 else "yes")
         for name, blobs in packed.items()],
    )  # fmt: skip


def server_side(bench: Benchmark, data: dict[str, np.ndarray], items: list[bytes]) -> None:
    """MEMORY USAGE, and the size of the RDB file with rdbcompression on and off."""
    items = items[:5000]
    dictionary = train_dictionary(items[::5])
    small = encode_records(items, dictionary)

    def store_hashes(r: redis.Redis, blobs: list[bytes], longest: int) -> None:
        r.config_set("hash-max-listpack-value", longest)
        for start in range(0, len(blobs), 100):
            fields = {str(i): blob for i, blob in enumerate(blobs[start : start + 100])}
            r.hset(f"h:{start}", mapping=fields)

    def store_list(r: redis.Redis, depth: int) -> None:
        r.config_set("list-compress-depth", depth)
        for start in range(0, len(items), 500):
            r.rpush("l", *items[start : start + 500])

    cases: dict[str, Callable[[redis.Redis], object]] = {
        **{f"{name.split(',')[0]}, {codec}": (
            lambda r, a=array, c=codec: r.set("a", encode(a, c)))
           for name, array in data.items() for codec in ("raw", "zstd")},
        "records, a key each": lambda r: [r.set(f"k:{i}", x) for i, x in enumerate(items)],
        "records, a key each, dictionary": lambda r: [
            r.set(f"k:{i}", x) for i, x in enumerate(small)],
        "records, hashes of 100 (hashtable)": lambda r: store_hashes(r, items, 64),
        "records, hashes of 100 (listpack)": lambda r: store_hashes(r, items, 2048),
        "records, hashes of 100 (listpack), dictionary": lambda r: store_hashes(r, small, 2048),
        "records, one list": lambda r: store_list(r, 0),
        "records, one list, list-compress-depth 1": lambda r: store_list(r, 1),
    }  # fmt: skip
    rows = []
    for name, store in cases.items():
        with servers.lone("valkey", "--save", "", "--appendonly", "no") as server:
            r = server.client()
            store(r)
            memory = sum(r.memory_usage(key, samples=0) for key in r.scan_iter(count=1000))
            sizes = []
            for setting in ("no", "yes"):
                r.config_set("rdbcompression", setting)
                r.save()
                sizes.append((server.folder / "dump.rdb").stat().st_size)
            rows.append((name, f"{memory:,}", *(f"{size:,}" for size in sizes)))
    bench.table(
        "server", "Bytes in the server (MEMORY USAGE of all keys) and in its RDB file.",
        ("stored", "memory", "RDB, rdbcompression no", "RDB, rdbcompression yes (LZF)"), rows,
    )  # fmt: skip


def main() -> None:
    r = connect()
    bench = Benchmark("tensor_compression", "Tensor compression: what pays on which link", r)
    digits = load_digits()
    texts = list(sources())
    tokens = token_ids(texts)
    data = {
        "digits, float32 images in 0 to 1": (digits.data / 16).astype(np.float32),
        "weights, float32 of a trained network": trained_weights(digits.data / 16, digits.target),
        "tokens, int32 ids of the standard library": tokens[:1_000_000],
    }
    items = json_records(texts)
    data["json, records joined as bytes"] = np.frombuffer(b"\n".join(items), np.uint8)
    naive(bench, r, data["tokens, int32 ids of the standard library"])
    links(bench, data)
    choices(bench, data)
    records(bench, r, items)
    server_side(bench, data, items)
    bench.write()


if __name__ == "__main__":
    main()
