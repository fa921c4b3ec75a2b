"""Each recipe works with its entry of NEEDS in recipes/security.py, and uses all of it.

What a recipe uses is seen by a real server: commands in INFO commandstats, keys and channels in
MONITOR, whose commands COMMAND GETKEYSANDFLAGS takes apart. After a change of a recipe:

    .venv/bin/python -m tests.test_acl_of_recipes --write [RECIPE ...]
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from benchmarks.bench_security import needs_rows
from recipes import security
from tests import servers
from tests.conftest import remove_all
from tests.contract import ROOT, stems

PAGE = ROOT / "docs" / "benchmarks" / "security.md"
TABLE = re.compile(r"(?m)(^\| recipe \| keys.*\n\|---.*\n)((?:\|.*\n)*)")
FILE = ROOT / "recipes" / "security.py"
PASSWORD = "of a test"
OPTIONS = (*servers.VOLATILE, *servers.FAST_REPLICATION)
ROW = re.compile(r"(?ms)^NEEDS: dict\[str, str\] = \{\n(.*?)^\}\n")


@dataclass
class Driver:
    """How a recipe is used: `run` as its user, on data of these names, after `prepare`."""

    names: tuple[str, ...]
    run: Callable[[redis.Redis], object]
    prepare: Callable[[redis.Redis], object] = lambda r: None
    # Patterns of keys with rights of their own, such as the few that a reader may write.
    apart: tuple[str, ...] = ()
    # Rules that only some runs need (a race), and why: allowed, and not missed.
    sometimes: dict[str, str] = field(default_factory=dict)


def module(name: str) -> Any:
    return importlib.import_module(f"recipes.{name}")


def demo(name: str) -> Callable[[redis.Redis], object]:
    def run(r: redis.Redis) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            module(name).demo(r)

    return run


def then(*steps: Callable[[redis.Redis], object]) -> Callable[[redis.Redis], object]:
    return lambda r: [step(r) for step in steps]


# --- How each recipe is used ----------------------------------------------------------------------

ARRAYS = {"x": np.arange(64.0).reshape(16, 4)}


def data_stored(r: redis.Redis) -> None:
    module("training_data").write(r, "shop", ARRAYS)


def data_read(r: redis.Redis) -> None:
    ds = module("training_data").Dataset(r, "shop")
    assert len(ds.rows([3, 1])["x"]) == 2
    assert sum(len(batch["x"]) for batch in ds.batches(4, seed=1)) == 16


def data_all(r: redis.Redis) -> None:
    td = module("training_data")
    data_stored(r)
    td.append(r, "shop", ARRAYS)
    td.write(r, "shop", ARRAYS, ttl=60)
    td.delete(r, "shop")


def checkpoints(r: redis.Redis) -> None:
    cp = module("training_checkpoints").Checkpoints(r, "shop", keep=1)
    with cp.acquire("one") as lease:
        for step in (1, 2, 2):
            cp.save(lease, step, ARRAYS, {})
        lease.renew()
        assert cp.load(2).step == 2
    with pytest.raises(module("training_checkpoints").CheckpointError):
        cp.load(7)
    cp.delete()


def models(r: redis.Redis) -> None:
    store = module("model_params").ParamStore(r, "shop")
    first = store.save(ARRAYS)
    store.promote(first)
    assert store.resolve("production") == 1
    assert len(store.versions()) == 1 and store.load(names=["x"])
    assert [*store.watch("production", timeout_s=0.01)] == [1]
    store.save({"x": ARRAYS["x"] + 1}, parent=first)
    store.save({"x": ARRAYS["x"] + 2})
    store.prune(keep=1)
    store.delete()


def model_load(r: redis.Redis) -> None:
    store = module("model_params").ParamStore(r, "shop")
    assert store.load("production")["x"].shape == (16, 4)
    assert store.resolve("production") == 1
    assert len(store.versions()) == 2
    assert [*store.watch("production", timeout_s=0.01)] == [1]
    with contextlib.suppress(module("model_params").Corrupt):
        store.load("damaged")


def model_saved(r: redis.Redis) -> None:
    store = module("model_params").ParamStore(r, "shop")
    store.promote(store.save(ARRAYS))


def model_damaged(r: redis.Redis) -> None:
    """A good version, in production, and a damaged one."""
    model_saved(r)
    before = {*r.scan_iter("params:*")}
    module("model_params").ParamStore(r, "shop").save({"x": np.zeros(9)}, alias="damaged")
    (chunk,) = {*r.scan_iter("params:*")} - before
    r.setrange(chunk, 5, "oops")


def job(r: redis.Redis) -> None:
    dp = module("distributed_prediction")
    dp.submit(r, "shop", [{"x": np.zeros(i % 2 + 2)} for i in range(4)])


def job_taken(r: redis.Redis) -> None:
    """A worker took a batch and is never heard of again."""
    job(r)
    dp = module("distributed_prediction")
    dp._eval(r, "shop", dp._TAKE, "killed", 1, 1000)


def job_work(r: redis.Redis) -> None:
    dp = module("distributed_prediction")

    def predict(batch: Any) -> Any:
        if len(batch["x"]) == 3:
            raise ValueError
        return batch["x"]

    dp.work(r, "shop", predict, consumer="one", lease_s=0.1, max_deliveries=2)


def job_again(r: redis.Redis) -> None:
    dp = module("distributed_prediction")
    job(r)
    job_work(r)
    assert dp.retry_dead(r, "shop") == 2
    dp.delete(r, "shop")


def events(r: redis.Redis) -> None:
    rt = module("realtime_training")
    rt.emit(r, "shop:clicks", [({"a": 1.0}, i % 2) for i in range(20)])


def learned(r: redis.Redis) -> None:
    events(r)
    module("realtime_training").OnlineTrainer(r, "shop", "shop:clicks").run(20)


def model_reader(r: redis.Redis) -> None:
    rt = module("realtime_training")
    reader = rt.ModelReader(r, "shop")
    reader.refresh()
    assert reader.predict({"a": 1.0}) > 0


def training_online(r: redis.Redis) -> None:
    rt = module("realtime_training")
    events(r)
    rt.OnlineTrainer(r, "shop", "shop:clicks", trim=False).run(20)
    assert rt.metrics(r, "shop") and not rt.dead_letters(r, "shop")
    model_reader(r)
    rt.delete(r, "shop")


def table(r: redis.Redis) -> Any:
    return module("realtime_prediction").FeatureTable(r, "shop:users", {"visits": "i4"})


def features_put(r: redis.Redis) -> None:
    table(r).put([1, 2], {"visits": [3, 4]})


def features_get(r: redis.Redis) -> None:
    assert [*table(r).get([1, 2]).columns["visits"]] == [3, 4]

    async def serve() -> None:
        predictor = module("realtime_prediction").Predictor
        async with predictor(
            r, table(r), lambda _: (1, 2.0), lambda model, x: model * x["visits"], default=0.0,
            budget_ms=2000,
        ) as predict:  # fmt: skip
            assert (await predict(1)).score == 6

    asyncio.run(serve())


def features_all(r: redis.Redis) -> None:
    features_put(r)
    rp = module("realtime_prediction")
    newer = rp.FeatureTable(r, "shop:users", {"visits": "i4", "age": "i4"}, version=2)
    newer.put([1], {"visits": [1], "age": [1]}, ttl=9)
    newer.delete([1])
    newer.delete()


def recommended(r: redis.Redis) -> None:
    rr = module("realtime_recommendation")
    rr.record_many(r, "shop", [(f"u{i}", f"i{i % 3}") for i in range(9)])
    for i in range(3):
        rr.record(r, "shop", "me", f"i{i}")
    rr.recommend(r, "shop", "u1", explore=1.0, seed=1)  # what is offered here is soon not new
    rr.record_many(r, "shop", [("u2", f"new{i}") for i in range(200)])


def recommend(r: redis.Redis) -> None:
    rr = module("realtime_recommendation")
    rr.recommend(r, "shop", "me")
    rr.recommend(r, "shop", "u1", exclude_seen=False, explore=1e-9, seed=1)  # a share of no place
    rr.similar(r, "shop", "i1")
    rr.trending(r, "shop")


def explore(r: redis.Redis) -> None:
    """What recommend(explore=...) writes, alone: it needs /recommend besides."""
    rr = module("realtime_recommendation")
    rr._run(r, rr._OFFERED, ["{shop}:offered:u1", "{shop}:shown"], [60, "i1"])


def recommendation(r: redis.Redis) -> None:
    rr = module("realtime_recommendation")
    recommended(r)
    recommend(r)
    rr.recommend(r, "shop", "u1", exclude_seen=False, explore=1.0, seed=1)
    rr.record(r, "shop", "u1", "i2")
    rr.delete(r, "shop")


def language(r: redis.Redis) -> None:
    lm = module("realtime_language_model")
    lm.LanguageModel(r, "shop").learn([*["a", "b", "a", "c", "a", "b", "d"], "long" * 20])


def language_predict(r: redis.Redis) -> None:
    lm = module("realtime_language_model")
    model = lm.LanguageModel(r, "shop")
    assert model.probability("b", ["a"]) > 0
    assert model.perplexity(["a", "b"]) > 0
    assert model.next_tokens(["a"])
    lm.stream_tokens(r, "shop:reply", model.generate(["a"], 3, seed=1))
    assert [*lm.read_tokens(r, "shop:reply")]
    lm.cancel_tokens(r, "shop:other")
    with contextlib.suppress(lm.TokenStreamError):
        lm.stream_tokens(r, "shop:other", "abc")


def key_values(r: redis.Redis) -> None:
    """What audit() looks at."""
    r.mset({f"demo:persistence:{i}": "x" for i in range(3)})


def audit(r: redis.Redis) -> None:
    module("persistence").audit(r, "cache", match="demo:persistence:*")


def durable(r: redis.Redis) -> None:
    module("persistence").durable_write(r, "SET", "shop:x", 1, timeout_s=0.1)


def operate(r: redis.Redis) -> None:
    persistence = module("persistence")
    for name in persistence.PROFILES:
        persistence.apply(r, name)
    with contextlib.suppress(persistence.PersistenceError):  # there is no redis.conf
        persistence.apply(r, "params", rewrite=True)
    with tempfile.TemporaryDirectory() as folder:
        persistence.backup(r, Path(folder) / "backup.rdb")


def confirm(r: redis.Redis) -> None:
    ha = module("high_availability")
    no_replicas = contextlib.suppress(ha.NotReplicated)
    with no_replicas, ha.confirmed(r, "shop:x", timeout_s=0.01) as pipe:
        pipe.set("shop:x", 1)


def security_all(r: redis.Redis) -> None:
    sealed = security.Sealed(bytes(32))
    r.set("demo-security:other", sealed.encode(b"1", "demo-security:other"))
    assert sealed.decode(r.get("demo-security:other"), "demo-security:other") == b"1"


DRIVERS = {
    "training_data": Driver(
        ("demo/train", "demo/test", "shop"), then(demo("training_data"), data_all)
    ),
    "training_data/read": Driver(("shop",), data_read, data_stored),
    "tensor_compression": Driver(("demo:tensor",), demo("tensor_compression")),
    "model_params": Driver(
        ("model-params-demo", "shop"),
        then(demo("model_params"), models),
    ),
    "model_params/load": Driver(("shop",), model_load, model_damaged),
    "training_checkpoints": Driver(
        ("demo-calm", "demo-cut", "shop"), then(demo("training_checkpoints"), checkpoints)
    ),
    "distributed_training": Driver(
        ("demo-1", "demo-4", "demo-3", "demo-h", "demo-c"), demo("distributed_training")
    ),
    "parameter_server": Driver(("demo-0", "demo-4"), demo("parameter_server")),
    "distributed_prediction": Driver(
        ("demo", "shop"), then(demo("distributed_prediction"), job_again)
    ),
    "distributed_prediction/work": Driver(("shop",), job_work, job_taken),
    "realtime_training": Driver(
        ("phishing", "sites", "shop"), then(demo("realtime_training"), training_online)
    ),
    "realtime_training/emit": Driver(("shop",), events),
    "realtime_training/predict": Driver(("shop",), model_reader, learned),
    "realtime_prediction": Driver(
        ("demo:users", "shop:users"), then(demo("realtime_prediction"), features_all)
    ),
    "realtime_prediction/get": Driver(("shop:users",), features_get, features_put),
    "realtime_recommendation": Driver(
        ("demo-imports", "shop"), then(demo("realtime_recommendation"), recommendation)
    ),
    "realtime_recommendation/recommend": Driver(("shop",), recommend, recommended),
    "realtime_recommendation/explore": Driver(
        ("shop",), explore, recommended, ("{NAME}:offered:*", "{NAME}:shown")
    ),
    "realtime_language_model": Driver(
        ("demo-zen-reply", "demo-zen", "shop:reply", "shop:other", "shop"),
        then(demo("realtime_language_model"), language, language_predict),
    ),
    "realtime_language_model/predict": Driver(
        ("shop:reply", "shop:other", "shop"),
        language_predict,
        language,
        ("{NAME}:tokens", "{NAME}:cancel"),
    ),
    "persistence": Driver(
        ("demo:persistence", "shop"), then(demo("persistence"), audit, durable, operate)
    ),
    "persistence/audit": Driver(("demo:persistence",), audit, key_values),
    "persistence/durable_write": Driver(("shop",), durable),
    "high_availability": Driver(
        ("ha:naive", "ha:careful", "shop"), then(demo("high_availability"), confirm)
    ),
    "security": Driver(
        ("demo-security:weights", "demo-security:other"), then(demo("security"), security_all)
    ),
}
NEWER = ("+waitaof",)  # since Redis 7.2: leave it out on Redis 7.0
ENTRIES = [entry for entry in DRIVERS if entry.partition("/")[0] in stems(ROOT)]

# --- What the server saw --------------------------------------------------------------------------


@dataclass
class Seen:
    """Commands (as in rules: get, client|setinfo), and the commands that name keys or channels."""

    commands: set[str]
    calls: list[tuple[list[bytes], list[tuple[bytes, set[str]]]]]
    channels: set[str]

    def rules(self, driver: Driver) -> list[str]:
        """The entry that allows this and no more."""
        modes: dict[str, set[str]] = {}
        for _, keys in self.calls:
            for key, flags in keys:
                modes.setdefault(generalised(key.decode("latin1"), driver), set()).update(flags)
        kinds = {
            pattern: "~" if len(mode) == 2 else "%W~" if mode == {"W"} else "%R~"
            for pattern, mode in modes.items()
        }
        return [
            *sorted(kind + pattern for pattern, kind in kinds.items()),
            *sorted(f"&{generalised(channel, driver)}" for channel in self.channels),
            *sorted(f"+{command}" for command in self.commands),
        ]


def generalised(key: str, driver: Driver) -> str:
    """NAME instead of the name, and * instead of what is behind it, or the pattern of `apart` that
    fits; other keys as they are."""
    for name in driver.names:
        if match := re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", key):
            brace, rest = re.match(r"(\}?)(.*)", key[match.end() :], re.DOTALL).groups()  # type: ignore[union-attr]
            start = f"{key[: match.start()]}NAME{brace}"
            apart = [pattern for pattern in driver.apart if fnmatchcase(start + rest, pattern)]
            return apart[0] if apart else f"{start}{rest[:1]}{'*' * bool(rest)}"
    return key


def unquoted(line: bytes) -> list[bytes]:
    r"""The arguments in a line of MONITOR: in quotes, with \n, \" and \x00."""
    plain = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}

    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code[1:], 16)]) if len(code) == 3 else plain.get(code, code)

    quoted = re.findall(rb'"((?:[^"\\]|\\.)*)"', line.partition(b"] ")[2])
    return [re.sub(rb"\\(x[0-9a-f]{2}|.)", one, text) for text in quoted]


@contextlib.contextmanager
def monitored(port: int) -> Iterator[list[list[bytes]]]:
    """All commands that the server runs meanwhile, also those of scripts."""
    found: list[list[bytes]] = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(b"MONITOR\r\n")
        lines = link.makefile("rb")
        assert lines.readline() == b"+OK\r\n"

        def read() -> None:
            for line in lines:
                if (call := unquoted(line)) == [b"ECHO", b"the end"]:
                    return
                found.append(call)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield found
        finally:
            with redis.Redis(port=port) as admin:
                admin.echo("the end")
            reader.join()


def calls_of(admin: redis.Redis) -> dict[str, int]:
    stats = admin.info("commandstats").items()
    return {name.removeprefix("cmdstat_").lower(): int(stat["calls"]) for name, stat in stats}


def watch(server: servers.Server, driver: Driver, rules: str) -> Seen:
    """Use the recipe as a user with these rules, and return what it used."""
    with server.client() as admin:
        remove_all(admin)
        admin.script_flush()
        admin.acl_log_reset()
        admin.execute_command("ACL SETUSER", "reader", "reset", "on", f">{PASSWORD}",
                              *security.CONNECT.split(), *known(admin, rules))  # fmt: skip
        driver.prepare(admin)
        admin.script_flush()  # the first use sends the script
        with monitored(server.port) as lines:
            before = calls_of(admin)
            with server.client(username="reader", password=PASSWORD) as r:
                driver.run(r)
            after = calls_of(admin)
        before["info"] = before.get("info", 0) + 1  # that of calls_of itself
        used = {name for name, count in after.items() if count > before.get(name, 0)}
        used -= {"auth", "hello", "ping", "client|setinfo"}  # CONNECT
        return Seen(used, *taken_apart(admin, lines, driver))


def known(admin: redis.Redis, rules: str) -> list[str]:
    """The rules without commands that this server does not have: it would refuse the whole line."""
    found = []
    for rule in rules.split():
        try:
            admin.execute_command("ACL SETUSER", "known", rule)
            found.append(rule)
        except redis.ResponseError:
            assert rule in NEWER, f"{rule} is no rule here, and not in NEWER"
    return found


def taken_apart(
    admin: redis.Redis, lines: list[list[bytes]], driver: Driver
) -> tuple[list[Any], set[str]]:
    """One command of each shape, with its keys and what it does to them; the channels."""
    shapes: dict[tuple[str, ...], list[bytes]] = {}
    channels: set[str] = set()
    for call in lines:
        command = call[0].decode().lower()
        if command in ("subscribe", "psubscribe", "ssubscribe"):
            channels |= {channel.decode() for channel in call[1:]}
        elif command in ("publish", "spublish"):
            channels.add(call[1].decode())
        args = [generalised(arg.decode("latin1"), driver) for arg in call[1:]]
        shape = [arg if "NAME" in arg else "" for arg in args]
        shapes.setdefault((command, *shape[:8], str(len(shape) > 8)), call)
    with admin.pipeline(transaction=False) as pipe:
        for call in shapes.values():
            pipe.execute_command("COMMAND GETKEYSANDFLAGS", *call)
        replies = pipe.execute(raise_on_error=False)
    calls = []
    for call, reply in zip(shapes.values(), replies, strict=True):
        if not isinstance(reply, Exception):
            calls.append((call, [(key, mode_of({*map(text_of, flags)})) for key, flags in reply]))
    return calls, channels


def text_of(flag: Any) -> str:
    return flag.decode("latin1") if isinstance(flag, bytes) else str(flag)


def mode_of(flags: set[str]) -> set[str]:
    """What an ACL asks for: R for `access`, W for the rest; for the size alone either will do."""
    write = {"W"} if flags & {"insert", "delete", "update"} else set()
    return write | ({"R"} if "access" in flags else set())


@pytest.fixture
def server(server_kind: str) -> Iterator[servers.Server]:
    with servers.lone(server_kind, *OPTIONS) as started:
        yield started


# --- The tests ------------------------------------------------------------------------------------

WRITE = ".venv/bin/python -m tests.test_acl_of_recipes --write"
MEASURE = ".venv/bin/python -m benchmarks.bench_security"
ADD = (
    "Add how {0} is used to DRIVERS in tests/test_acl_of_recipes.py (its demo, and what the demo "
    "leaves out), then: " + WRITE + " {0}"
)


def test_every_recipe_has_an_entry() -> None:
    for stem in stems(ROOT):
        assert stem in DRIVERS and stem in security.NEEDS, ADD.format(stem)
    for entry in security.NEEDS:
        assert entry in DRIVERS, f"NEEDS[{entry!r}] is not tested: " + ADD.format(entry)


@pytest.mark.parametrize("stem", stems(ROOT))
def test_every_command_of_a_script_is_in_the_entry(stem: str) -> None:
    """Also of branches that no run here takes, such as the recovery of something rare."""
    assert stem in security.NEEDS, ADD.format(stem)
    text = (ROOT / "recipes" / f"{stem}.py").read_text(encoding="utf-8")
    named = {name.lower() for name in re.findall(r"redis\.p?call\(\s*['\"](\w+)", text)}
    allowed = {rule[1:].partition("|")[0] for rule in security.NEEDS[stem].split()}
    assert named - allowed == set(), ADD.format(stem)


def table_of(needs: dict[str, str]) -> str:
    """The rows of the table that the page shows."""
    return "".join("| " + " | ".join(row) + " |\n" for row in needs_rows(needs))


def test_the_table_of_the_page_has_not_drifted() -> None:
    match = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert match is not None, f"no table in {PAGE.name}: {MEASURE}"
    assert match[2] == table_of(security.NEEDS), WRITE


@pytest.mark.real_redis
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_recipe_works_with_its_entry_and_uses_all_of_it(
    entry: str, server: servers.Server
) -> None:
    driver, again = DRIVERS[entry], f"{WRITE} {entry}"
    assert entry in security.NEEDS, ADD.format(entry)
    try:
        seen = watch(server, driver, security.rules(entry, *driver.names))
    except redis.exceptions.NoPermissionError as error:
        pytest.fail(
            f"NEEDS[{entry!r}] allows too little: {error}. See whether it may, then {again}"
        )
    with server.client() as admin:
        assert admin.acl_log() == [], f"denied, and swallowed: {again}"
        used, allowed = set(seen.rules(driver)), {*known(admin, security.NEEDS[entry])}
        assert used - allowed == set(), again
        assert allowed - used - set(driver.sometimes) == set(), f"allowed, and not used: {again}"
        assert_all_else_is_denied(admin, seen, driver, allowed)


def assert_all_else_is_denied(
    admin: redis.Redis, seen: Seen, driver: Driver, allowed: set[str]
) -> None:
    """Ask the server (ACL DRYRUN) about every other command, and the same ones with other keys."""
    admin.execute_command("ACL SETUSER", "connected", "reset", *security.CONNECT.split())
    for call in every_command(admin):
        if f"+{call[0]}" not in allowed:
            asked = call[0].split("|") + call[1:]
            is_connect = dry_run(admin, asked, "connected") == "OK"
            assert is_connect or "no permissions to run" in dry_run(admin, asked), call
    for call, keys in seen.calls:
        if any("NAME" in generalised(key.decode("latin1"), driver) for key, _ in keys):
            moved = list(call)
            for key, _ in keys:
                moved[moved.index(key)] = b"of-another:" + key
            assert "no permissions to access" in dry_run(admin, moved), moved


def every_command(admin: redis.Redis) -> Iterator[list[str]]:
    """Each command and subcommand that a user may be denied, with as many arguments as it wants."""
    connection = admin.connection_pool.get_connection()
    connection.send_command("COMMAND")
    for row in connection.read_response():  # as it is: redis-py drops the subcommands
        yield from command_of(row)
    admin.connection_pool.release(connection)


def command_of(row: list[Any]) -> Iterator[list[str]]:
    name, arity, flags, *_, subcommands = row[:10]
    for sub in subcommands:
        yield from command_of(sub)
    if not subcommands and "no_auth" not in map(text_of, flags):
        text = text_of(name)
        yield [text, *["1"] * (abs(arity) - 1 - text.count("|"))]


def dry_run(admin: redis.Redis, call: list[Any], user: str = "reader") -> str:
    try:
        return text_of(admin.execute_command("ACL DRYRUN", user, *call))
    except redis.ResponseError as error:
        return str(error)


# --- Regenerate -----------------------------------------------------------------------------------


def write(entries: list[str], file: Path = FILE) -> None:
    """Put what was seen on both servers into NEEDS of recipes/security.py."""
    found = dict(security.NEEDS)
    for entry in entries:
        driver, rules = DRIVERS[entry], set[str]()
        for kind in ("valkey", "redis"):
            with servers.lone(kind, *OPTIONS) as server:
                rules |= {*watch(server, driver, "~* &* +@all").rules(driver)}
        found[entry] = " ".join(
            sorted(rules | {*driver.sometimes}, key=lambda rule: ("%~&+".find(rule[0]), rule))
        )
        print(f"{entry}: {found[entry]}")
    found = {entry: found[entry] for entry in DRIVERS if entry in found}
    rows = [f'    "{entry}": "{rules}",' for entry, rules in found.items()]
    text = "".join(f"{row}  # noqa: E501\n" if len(row) > 100 else f"{row}\n" for row in rows)
    old = file.read_text(encoding="utf-8")
    file.write_text(ROW.sub(lambda _: f"NEEDS: dict[str, str] = {{\n{text}}}\n", old), "utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda match: f"{match[1]}{table_of(found)}", page), "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"]:
        sys.exit(__doc__)
    if unknown := [entry for entry in sys.argv[2:] if entry not in DRIVERS]:
        sys.exit(ADD.format(unknown[0]))
    write(sys.argv[2:] or ENTRIES)
