"""security: who may do what, whom to trust, and values that only open where they belong."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from redis.backoff import NoBackoff
from redis.retry import Retry

from recipes import free_port, security, tensor_compression
from recipes.model_params import Corrupt, ParamStore
from recipes.realtime_recommendation import recommend
from recipes.security import (
    ROLES,
    Certificates,
    Credentials,
    Finding,
    Refused,
    Sealed,
    SecurityError,
    Signed,
    TlsRefused,
    UnknownKey,
    check_acl,
    make_test_certificates,
    render_acl,
    rotate_password,
    rules,
    tls_client,
    tls_context,
)
from recipes.training_data import DataError, Dataset, write
from tests import servers
from tests import test_acl_of_recipes as acl_of_recipes

SMALL = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ONCE = Retry(NoBackoff(), 0)  # else redis-py waits for a server that refuses us to think again
KEY, OTHER = bytes(range(32)), bytes(32)
CLOSED = {
    "Sealed": lambda secret=KEY: Sealed({"k1": secret}),
    "Signed": lambda secret=KEY: Signed(secret),
}
closed = pytest.mark.parametrize("make", CLOSED.values(), ids=CLOSED)

# --- Sealed and signed values ---------------------------------------------------------------------


@closed
def test_a_value_comes_back_from_redis(make: Callable[..., Any], r: redis.Redis) -> None:
    box = make()
    for value in (b"", b"\n", b"bytes", bytearray(b"more"), memoryview(b"view")):
        r.set("shop:x", box.encode(value, "shop:x", 7))
        assert box.decode(r.get("shop:x"), "shop:x", 7) == value
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    r.set("shop:x", box.encode(array[:, ::2], b"shop:x"))
    found = box.decode(r.get("shop:x"), b"shop:x")
    assert found.dtype == array.dtype and (found == array[:, ::2]).all()
    found += 1  # it is the reader's own
    with pytest.raises(Refused, match="no such key"):
        box.decode(r.get("shop:none"), "shop:none")


@closed
@SMALL
@given(
    array=hnp.arrays(
        st.one_of(
            hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64)),
            hnp.complex_number_dtypes(sizes=(64, 128)), hnp.unicode_string_dtypes(max_len=3),
        ),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    key=st.text(), version=st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_every_array_comes_back(
    make: Callable[..., Any], array: np.ndarray, key: str, version: int
) -> None:
    box = make()
    with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate is no key
        found = box.decode(box.encode(array, key, version), key, version)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


@closed
def test_a_wrong_secret_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="another secret"):
        make(OTHER).decode(make().encode(b"x", "shop:x"), "shop:x")


@closed
def test_a_value_moved_to_another_redis_key_is_refused(
    make: Callable[..., Any], r: redis.Redis
) -> None:
    box = make()
    r.set("shop:price", box.encode(b"9", "shop:price"))
    r.set("shop:stock", box.encode(b"7", "shop:stock"))
    r.rename("shop:stock", "shop:price")
    with pytest.raises(Refused, match="moved from another Redis key"):
        box.decode(r.get("shop:price"), "shop:price")
    for key, version in (("shop", 1), ("", 1), (b"shop:price ", 1)):
        with pytest.raises(Refused):
            box.decode(box.encode(b"9", "shop:price", 1), key, version)


@closed
def test_an_old_version_played_back_is_refused(make: Callable[..., Any], r: redis.Redis) -> None:
    box = make()
    old = box.encode(b"0 %", "shop:discount", 1)
    r.set("shop:discount", box.encode(b"5 %", "shop:discount", 2))
    assert box.decode(r.get("shop:discount"), "shop:discount", at_least=1) == b"5 %"
    r.set("shop:discount", old)  # somebody who may write, but not seal
    for expected in ({"version": 2}, {"at_least": 2}):
        with pytest.raises(Refused, match="version 1 was played back"):
            box.decode(r.get("shop:discount"), "shop:discount", **expected)
    assert box.version_of(old) == 1
    forged = old[:4] + (2).to_bytes(8) + old[12:]  # a version that it does not have
    with pytest.raises(Refused, match="changed"):
        box.decode(forged, "shop:discount", 2)


@closed
def test_every_flipped_bit_and_every_cut_is_refused(make: Callable[..., Any]) -> None:
    box = make()
    blob = box.encode(np.arange(3, dtype=np.int8), "shop:x", 1)
    for bit in range(8 * len(blob)):
        bad = bytearray(blob)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            box.decode(bad, "shop:x", 1)
    for end in range(len(blob)):
        with pytest.raises(Refused):
            box.decode(blob[:end], "shop:x", 1)
    with pytest.raises(Refused):
        box.decode(blob + b"\0", "shop:x", 1)


@closed
@SMALL
@given(tail=st.binary(max_size=200), length=st.integers(0, 255))
@example(b"", 0)
@example(b"", 255)
def test_hostile_bytes_are_refused(make: Callable[..., Any], tail: bytes, length: int) -> None:
    box = make()
    head = box.encode(b"", "x")[:12]
    for blob in (tail, head + tail, head + bytes([length]) + tail):
        with pytest.raises(Refused):
            box.decode(blob, "x")


@closed
@pytest.mark.parametrize("plain", [
    b"", b"[]", b"[]\n", b'["|O", [1]]\n12345678', b'["<f8", [2]]\n12345678', b'["<f8", -1]\n1',
    b'["<f8", [99999999999]]\n', b'{"a": 1}\n', b"\xff\n", b"[" * 900 + b"\n", b'["<f8", ["1"]]\n',
])  # fmt: skip
def test_what_a_holder_of_the_secret_wrote_wrongly_is_refused(
    make: Callable[..., Any], plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_pack", lambda value: [value])
    with pytest.raises(Refused, match="not what encode writes"):
        make().decode(make().encode(plain, "x"), "x")


@closed
def test_objects_and_text_are_not_taken(make: Callable[..., Any]) -> None:
    for value in ("text", 5, None, [1], np.array([object()]), np.zeros(1, "M8[s]")):
        with pytest.raises(TypeError):
            make().encode(value, "x")


@closed
@pytest.mark.parametrize("version", [-1, 2**64, 1.5, None])
def test_a_version_that_does_not_fit_is_told(make: Callable[..., Any], version: Any) -> None:
    with pytest.raises(SecurityError, match=r"'x': version=.*: wanted is an int from 0 to 2\*\*64"):
        make().encode(b"", "x", version)
    with pytest.raises(Refused, match="expected is"):
        make().decode(make().encode(b"", "x"), "x", version)


def test_too_large_a_value_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_BYTES", 60)
    box = CLOSED["Sealed"]()
    with pytest.raises(Refused, match="did not write"):
        box.decode(box.encode(bytes(60), "x"), "x")


def test_an_old_key_opens_and_the_new_one_seals(r: redis.Redis) -> None:
    old = Sealed({"2025": KEY})
    r.set("shop:x", old.encode(b"old", "shop:x"))
    both = Sealed({"2025": KEY, "2026": OTHER})
    assert both.decode(r.get("shop:x"), "shop:x") == b"old"
    r.set("shop:x", both.encode(b"new", "shop:x"))
    assert both.decode(r.get("shop:x"), "shop:x") == b"new"
    with pytest.raises(UnknownKey, match="'2026', the ring has 2025"):
        old.decode(r.get("shop:x"), "shop:x")
    assert Sealed({"2026": OTHER}).decode(r.get("shop:x"), "shop:x") == b"new"
    back = Sealed({"2025": KEY, "2026": OTHER}, current="2025")
    assert old.decode(back.encode(b"", "x"), "x") == b""


def test_two_ids_with_each_others_key_are_refused() -> None:
    blob = Sealed({1: KEY, 2: OTHER}, current=1).encode(b"x", "x")
    assert Sealed({2: OTHER, 1: KEY}).decode(blob, "x") == b"x"
    with pytest.raises(Refused, match="another secret"):
        Sealed({1: OTHER, 2: KEY}).decode(blob, "x")


@pytest.mark.parametrize("ring", [
    {}, {"a": b"short"}, {"a" * 70: KEY}, {"": KEY}, {1: KEY, "1": KEY}, b"short",
])  # fmt: skip
def test_a_bad_key_ring_is_refused(ring: Any) -> None:
    with pytest.raises(SecurityError, match="32 random bytes"):
        Sealed(ring)


def test_a_weak_secret_is_refused() -> None:
    with pytest.raises(SecurityError, match="at least 16"):
        Signed(b"secret")


def test_the_format_is_what_the_file_says() -> None:
    """By hand, with the library alone: AES-GCM, the head and the Redis key as associated data."""
    blob = Sealed({"k1": KEY}).encode(b"value", "shop:x", 258)
    head, nonce, rest = blob[:15], blob[15:27], blob[27:]
    assert head == b"SEA\1" + bytes(6) + b"\1\2" + b"\2k1"
    place = head + (6).to_bytes(8) + b"shop:x"
    assert AESGCM(KEY).decrypt(nonce, rest, place) == b"\nvalue"

    blob = Signed(KEY).encode(b"value", "shop:x", 258)
    head, tag, rest = blob[:13], blob[13:45], blob[45:]
    assert (head, rest) == (b"SIG\1" + bytes(6) + b"\1\2" + b"\0", b"\nvalue")
    own = hmac.digest(KEY, b"redis cookbook: Signed 1", "sha256")
    assert hmac.digest(own, head + (6).to_bytes(8) + b"shop:x" + rest, "sha256") == tag


def test_nonces_never_repeat_and_nothing_shows_through() -> None:
    box = Sealed(KEY)
    blobs = [box.encode(b"the same value", "x") for _ in range(2000)]
    assert len({blob[15:27] for blob in blobs}) == len(blobs)
    assert not any(b"same" in blob for blob in blobs)


def test_tags_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compare(a: bytes, b: bytes) -> bool:
        asked.append((len(a), len(b)))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    with pytest.raises(Refused):
        Signed(KEY).decode(Signed(KEY).encode(b"x", "x"), "x")
    assert asked == [(32, 32)]


def test_a_tag_is_no_other_protocols() -> None:
    """The same secret may sign other things; none of that fits here, nor the other way round."""
    blob = Signed(KEY).encode(b"x", "x")
    assert hmac.digest(KEY, blob[:13] + (1).to_bytes(8) + b"x" + blob[45:], "sha256") != blob[13:45]
    with pytest.raises(Refused):
        Signed(KEY).decode(b"SIG\1" + Sealed(KEY).encode(b"x", "x")[4:], "x")


# --- With the other recipes -----------------------------------------------------------------------


@closed
def test_model_params_takes_it(make: Callable[..., Any], r: redis.Redis) -> None:
    params = {"w": np.arange(4.0), "b": np.float32([1])}
    # --8<-- [start:compose]
    encode, decode = make().bound("params:shop")
    store = ParamStore(r, "shop", encode=encode, decode=decode)
    # --8<-- [end:compose]
    store.save(params)
    found = store.load()
    assert all(found[name].tobytes() == params[name].tobytes() for name in params)
    wrong = make(OTHER).bound("params:shop")
    with pytest.raises(Corrupt, match="another secret"):
        ParamStore(r, "shop", encode=wrong.encode, decode=wrong.decode).load()
    elsewhere = make().bound("params:other")
    with pytest.raises(Corrupt, match="moved"):
        ParamStore(r, "shop", encode=elsewhere.encode, decode=elsewhere.decode).load()
    if make is CLOSED["Sealed"]:
        assert not any(params["w"].tobytes() in r.get(key) for key in r.scan_iter("*:blob:*"))


@closed
def test_training_data_takes_it(make: Callable[..., Any], r: redis.Redis) -> None:
    box = make().bound("td:shop")
    rows = {"x": np.arange(20.0).reshape(10, 2), "y": np.array([b"a", b"bc"] * 5)}
    write(r, "shop", rows, encode=box.encode)
    found = Dataset(r, "shop", decode=box.decode).rows(range(10))
    assert (found["x"] == rows["x"]).all() and (found["y"] == rows["y"]).all()
    with pytest.raises(DataError, match="another secret"):
        Dataset(r, "shop", decode=make(OTHER).bound("td:shop").decode).rows([0])


@closed
def test_a_codec_runs_inside(make: Callable[..., Any], r: redis.Redis) -> None:
    codec = (tensor_compression.encode, tensor_compression.decode)
    box = make().bound("params:shop", 3, inner=codec)
    zeros = {"w": np.zeros((100, 100))}
    store = ParamStore(r, "shop", encode=box.encode, decode=box.decode)
    store.save(zeros)
    assert (store.load()["w"] == 0).all()
    assert len(box.encode(zeros["w"])) < 1000


# --- Why not pickle -------------------------------------------------------------------------------

RAN: list[str] = []


# --8<-- [start:pickle]
def harmless(text: str) -> None:
    """Stands for any function of any module: os.system would do as well."""
    RAN.append(text)


class Model:
    """What the attacker puts into Redis in place of a model."""

    def __reduce__(self) -> tuple[Any, ...]:
        return harmless, ("this ran in the process that only wanted to read",)


def test_reading_a_pickle_runs_what_is_in_it(r: redis.Redis) -> None:
    import pickle  # naive: to show that reading is running

    r.set("model", pickle.dumps(Model()))
    pickle.loads(r.get("model"))  # noqa: S301
    assert RAN == ["this ran in the process that only wanted to read"]
    with pytest.raises(Refused):
        Signed(KEY).decode(r.get("model"), "model")
    RAN.clear()


# --8<-- [end:pickle]
# --- Users and rights -----------------------------------------------------------------------------


def apply(r: redis.Redis, text: str) -> None:
    for line in text.splitlines():
        r.execute_command("ACL SETUSER", *line.split()[1:])


@pytest.fixture
def server(server_kind: str) -> Iterator[servers.Server]:
    with servers.lone(server_kind) as started:
        yield started


@pytest.fixture
def admin(server: servers.Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def may(r: redis.Redis, user: str, *command: Any) -> bool:
    reply = r.execute_command("ACL DRYRUN", user, *command)
    return reply in (b"OK", "OK")


@pytest.mark.real_redis
def test_rendered_roles_work_as_an_acl_file(server_kind: str, tmp_path: Path) -> None:
    # --8<-- [start:acl-file]
    passwords = {role: secrets.token_urlsafe(16) for role in ROLES}
    file = tmp_path / "users.acl"
    file.write_text(render_acl("shop", passwords=passwords, default_off=True))
    # --8<-- [end:acl-file]
    kind = servers.binary(server_kind)
    started = servers.Server(kind, *servers.VOLATILE, "--aclfile", str(file))
    try:
        for role, password in passwords.items():
            with started.client(username=role, password=password) as r:
                assert r.ping()
                with pytest.raises(redis.exceptions.NoPermissionError):
                    r.execute_command("FLUSHALL")  # denied: to nobody
        with started.client(retry=ONCE) as nobody, pytest.raises(redis.AuthenticationError):
            nobody.ping()
        with started.client(username="admin", password=passwords["admin"]) as r:
            found = check_acl(r, "shop")
            assert {finding.what for finding in found} == {"no tls-port is set"}
            assert rotate_password(r, "trainer", lambda new: None, new="n", grace_s=0) == "n"
            assert passwords["trainer"] not in file.read_text()
        with started.client(username="trainer", password="n") as r:
            r.set("shop:x", 1)
        started.stop(keep_folder=True)
        started.start()  # the ACL file was saved
        with started.client(username="trainer", password="n") as r:
            servers.wait_until(r.ping, what="the trainer logs in")
    finally:
        started.stop()


@pytest.mark.real_redis
@pytest.mark.parametrize("role", ["trainer", "server", "publisher"])
def test_each_role_runs_its_recipes_and_its_own_keys(
    role: str, server: servers.Server, admin: redis.Redis
) -> None:
    apply(admin, render_acl("shop", [role], passwords={role: "p"}))
    with server.client(username=role, password="p") as r:
        for entry in ROLES[role].needs:
            driver = acl_of_recipes.DRIVERS[entry]
            if "shop" in "".join(driver.names):
                servers_own = (acl_of_recipes.data_all, acl_of_recipes.models)
                driver.prepare(admin)
                run = {"training_data": servers_own[0], "model_params": servers_own[1],
                       "training_checkpoints": acl_of_recipes.checkpoints,
                       "realtime_training": acl_of_recipes.training_online,
                       "distributed_prediction": acl_of_recipes.job_again,
                       "realtime_prediction": acl_of_recipes.features_all,
                       "realtime_recommendation": acl_of_recipes.recommendation,
                       "realtime_language_model": acl_of_recipes.language,
                       }.get(entry, driver.run)  # fmt: skip
                run(r)
                acl_of_recipes.remove_all(admin)
        admin.set("shop:own", 1)
        assert r.get("shop:own") == b"1"


WRITES = {"trainer": True, "publisher": True, "server": False, "monitor": False, "admin": False}
READS = WRITES | {"server": True}


@pytest.mark.real_redis
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_nothing_else(role: str, admin: redis.Redis) -> None:
    apply(admin, render_acl("shop"))
    for key in ("shop", "shop:x", "shop/x"):
        assert may(admin, role, "SET", key, 1) == WRITES[role]
        assert may(admin, role, "GET", key) == READS[role]
    for key in ("other", "shopping", "shopping:x", "xshop:x", "", "td:{other}", "{params:other}:x"):
        for command in (("SET", key, 1), ("GET", key), ("UNLINK", key), ("TYPE", key)):
            assert not may(admin, role, *command)
    for command in ("FLUSHALL", "KEYS *", "MONITOR", "DEBUG SLEEP 0", "SCRIPT FLUSH", "SWAPDB 0 1",
                    "EVAL x 0", "PSYNC ? -1", "RANDOMKEY", "CLIENT KILL x:1", "SAVE"):  # fmt: skip
        allowed = role == "admin" and command in ("CLIENT KILL x:1",)
        allowed |= command == "EVAL x 0" and role in ("trainer", "server", "publisher")
        assert may(admin, role, *command.split()) == allowed, command
    for command in ("CONFIG SET dir /", "ACL SETUSER x", "SHUTDOWN", "SLOWLOG GET"):
        assert may(admin, role, *command.split()) == (role == "admin"), command


@pytest.mark.real_redis
def test_who_serves_a_model_cannot_change_it(server: servers.Server, admin: redis.Redis) -> None:
    """Selectors keep the commands of one recipe away from the keys of another."""
    acl_of_recipes.model_damaged(admin)  # version 1 is in production, version 2 is bad
    apply(admin, render_acl("shop", ["server"], passwords={"server": "p"}))
    with server.client(username="server", password="p") as r:
        store = ParamStore(r, "shop")
        assert len(store.load("production")) == 1
        for attempt in (
            lambda: store.save({"w": np.zeros(1)}),
            lambda: store.promote(2),
            lambda: store.prune(keep=1),
            lambda: r.set("{params:shop}:aliases", "x"),
            lambda: r.eval("return redis.call('DEL', KEYS[1])", 1, "{params:shop}:versions"),
        ):
            with pytest.raises(
                redis.exceptions.ResponseError, match=r"permission|can't (access|run)"
            ):
                attempt()
        assert len(store.load("production")) == 1
    assert_online_models_stay(server, admin)


def assert_online_models_stay(server: servers.Server, admin: redis.Redis) -> None:
    """Keys of three recipes begin with {NAME}:, and two of them write a few of these to answer."""
    acl = acl_of_recipes
    for store in (acl.learned, acl.recommended, acl.language):
        store(admin)
    answers = re.compile(rb"\{shop\}:(shown$|offered:)")  # what exploring writes
    before = {key: admin.dump(key) for key in admin.scan_iter() if not answers.match(key)}
    assert {b"{shop}:state", b"{shop}:meta", b"{shop}:items", b"{shop}:counts"} < before.keys()
    online = [entry for entry in ROLES["server"].needs if entry.startswith("realtime_")]
    for entry in online:
        line = f"on >p {security.CONNECT} {rules(entry, 'shop')}"
        admin.execute_command("ACL SETUSER", entry, *line.split())
    for user in ("server", *online):
        with server.client(username=user, password="p") as r:
            for key in before:
                for command, *args in (
                    ["SET", "x"], ["EXPIRE", 0], ["UNLINK"], ["XADD", "*", "x", 1],
                    ["HINCRBY", "3:1", 1], ["SADD", "x"], ["ZADD", 1, "x"],
                ):  # fmt: skip
                    script = "return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))"
                    for call in (command, key, *args), ("EVAL", script, 1, key, command, *args):
                        with pytest.raises(
                            redis.exceptions.ResponseError, match=r"permission|can't (access|run)"
                        ):
                            r.execute_command(*call)
    assert {key: admin.dump(key) for key in before} == before
    with server.client(username="server", password="p") as r:  # and it can do its work
        for answer in (acl.model_reader, acl.recommend, acl.language_predict):
            answer(r)
        found = recommend(r, "shop", "u1", exclude_seen=False, explore=1.0, seed=1)
        assert {scored.reason for scored in found} == {"explore"}
        assert admin.hgetall("{shop}:shown") and admin.smembers("{shop}:offered:u1")


@pytest.mark.real_redis
def test_the_monitor_sees_sizes_and_no_value(server: servers.Server, admin: redis.Redis) -> None:
    apply(admin, render_acl("shop", "monitor", passwords={"monitor": "p"}))
    admin.xadd("shop:events", {"card": "1234"})
    admin.xgroup_create("shop:events", "group", 0)
    admin.xreadgroup("group", "reader", {"shop:events": ">"})
    admin.set("shop:secret", "value")
    with server.client(username="monitor", password="p") as r:
        assert r.xlen("shop:events") == 1 and r.strlen("shop:secret") == 5
        assert r.xinfo_groups("shop:events")[0]["pending"] == 1
        assert r.xinfo_consumers("shop:events", "group")[0]["name"] == b"reader"
        assert r.xpending("shop:events", "group")["pending"] == 1
        assert r.memory_usage("shop:secret") > 0 and r.info("memory")
        for attempt in (
            lambda: r.get("shop:secret"), lambda: r.dump("shop:secret"),
            lambda: r.slowlog_get(), lambda: r.xrange("shop:events", count=1),
            lambda: r.execute_command("XINFO STREAM", "shop:events"),
            lambda: r.execute_command("XINFO STREAM", "shop:events", "FULL", "COUNT", 0),
            lambda: r.execute_command("CLIENT TRACKING", "ON", "BCAST"),  # names of all keys
        ):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                attempt()


@pytest.mark.real_redis
def test_rules_of_one_recipe_make_a_user(server: servers.Server, admin: redis.Redis) -> None:
    # --8<-- [start:rules]
    line = f"on >secret {security.CONNECT} {rules('training_data/read', 'digits/train')}"
    admin.execute_command("ACL SETUSER", "reader", *line.split())
    # --8<-- [end:rules]
    write(admin, "digits/train", {"x": np.arange(4)})
    with server.client(username="reader", password="secret") as r:
        assert len(Dataset(r, "digits/train").rows([0, 1])["x"]) == 2
        with pytest.raises(redis.exceptions.NoPermissionError):
            write(r, "digits/train", {"x": np.arange(4)})
    with pytest.raises(SecurityError, match="not in NEEDS"):
        rules("nonsense")


@pytest.mark.real_redis
def test_two_namespaces_live_on_one_server(admin: redis.Redis) -> None:
    for name in ("shop", "team:fraud"):
        apply(admin, render_acl(name, ["trainer"], user=name + "-{}"))
    assert may(admin, "shop-trainer", "GET", "shop:x")
    assert not may(admin, "shop-trainer", "GET", "team:fraud:x")
    assert may(admin, "team:fraud-trainer", "GET", "team:fraud/x")


@pytest.mark.parametrize("namespace", ["", "*", "a b", "x ~*", "a\nuser b", "[x]", "a?", "ä", "a)"])
def test_a_namespace_cannot_widen_the_rules(namespace: str) -> None:
    with pytest.raises(SecurityError, match="namespace"):
        render_acl(namespace)


def test_no_password_is_rendered_and_unknown_roles_are_refused() -> None:
    text = render_acl("shop", ["trainer", "admin"], passwords={"trainer": "correct horse"})
    assert "correct" not in text
    trainer, own = text.splitlines()
    assert re.search(r" on resetpass #[0-9a-f]{64} resetkeys ", trainer)
    assert "#" not in own and "nopass" not in text
    for options in ({"roles": ["root"]}, {"roles": "root"}, {"passwords": {"sever": "mistyped"}}):
        with pytest.raises(SecurityError, match="is not a role: trainer, server"):
            render_acl("shop", **options)
    server = render_acl("shop", "server", passwords=dict.fromkeys(ROLES, "p"))  # of more roles
    assert server.startswith("user server on resetpass #") and server.count("\n") == 1


# --- The audit ------------------------------------------------------------------------------------


def what(found: list[Finding]) -> set[str]:
    return {finding.what for finding in found}


@pytest.mark.real_redis
def test_a_fresh_server_has_findings(admin: redis.Redis) -> None:
    found = check_acl(admin)
    assert what(found) == {
        "user default needs no password",
        "user default may use every command, key or channel",
        "user default may use dangerous commands",
        "no aclfile is set",
        "no tls-port is set",
    }
    assert found[0].severity == "critical" and {f.severity for f in found[1:]} == {"warning"}
    for finding in found:
        assert finding.why and finding.mend and "{}" not in f"{finding}"
    with pytest.raises(AttributeError):
        found[0].what = ""  # type: ignore[misc]


@pytest.mark.real_redis
def test_users_are_looked_at_by_a_client_that_decodes_too(
    server: servers.Server, admin: redis.Redis
) -> None:
    decodes = redis.Redis.from_url(f"{server.url}?decode_responses=1")
    apply(admin, render_acl("shop", passwords=dict.fromkeys(ROLES, "old")))
    with contextlib.closing(decodes):
        assert check_acl(decodes, "shop") == check_acl(admin, "shop") != []
        assert rotate_password(decodes, "trainer", str, new="new", grace_s=0) == "new"
    assert "several passwords" not in str(check_acl(admin))


@pytest.mark.real_redis
def test_rendered_users_are_trusted_until_they_drift(admin: redis.Redis) -> None:
    general = what(check_acl(admin))
    assert what(check_acl(admin, "shop")) - general == {
        f"user {role} is not what its role says" for role in ROLES
    }
    apply(admin, render_acl("shop", passwords=dict.fromkeys(ROLES, "p")))
    apply(admin, render_acl("shop"))  # again: nothing is added twice, passwords stay
    assert what(check_acl(admin, "shop")) == general
    for change in ("~*", "+get", "-info", "(+set ~other)", "&*", "nopass", "clearselectors"):
        admin.execute_command("ACL SETUSER", "monitor", *change.split())
        drifted = [f for f in check_acl(admin, "shop") if "monitor" in f.what]
        assert drifted and drifted[0].severity == "critical", change
        apply(admin, render_acl("shop", passwords={"monitor": "p"}))
        assert what(check_acl(admin, "shop")) == general


@pytest.mark.real_redis
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("on nopass", "needs no password"),
        ("on >a >b", "several passwords"),
        ("on >a ~* +get", "every command, key or channel"),
        ("on >a (%R~* +get)", "every command, key or channel"),
        ("on >a &* +publish", "every command, key or channel"),
        ("on >a ~x +@all -@dangerous", "every command, key or channel"),
        ("on >a ~x +keys", "dangerous"),
        ("on >a (+acl)", "dangerous"),
        ("on >a (+config|set)", "dangerous"),
        ("off nopass ~* +@all", ""),
        ("on >a ~x:* +get +set", ""),
    ],
)
def test_each_weak_user_is_found(rule: str, expected: str, admin: redis.Redis) -> None:
    general = what(check_acl(admin))
    admin.execute_command("ACL SETUSER", "bob", *rule.split())
    new = what(check_acl(admin)) - general
    assert any(expected in text for text in new) if expected else not new, new


@pytest.mark.real_redis
def test_an_auditor_without_rights_is_told(server: servers.Server, admin: redis.Redis) -> None:
    apply(admin, render_acl("shop", ["trainer"], passwords={"trainer": "p"}))
    with (
        server.client(username="trainer", password="p") as r,
        pytest.raises(redis.exceptions.NoPermissionError, match=r"acl\|list"),
    ):
        check_acl(r)


@pytest.mark.real_redis
def test_a_cluster_is_looked_at_node_by_node(cluster: redis.RedisCluster) -> None:
    nodes = [cluster.get_redis_connection(node) for node in cluster.get_nodes()]
    try:
        assert "user bob may use dangerous commands" not in what(check_acl(cluster))
        nodes[-1].execute_command("ACL SETUSER", "bob", "on", ">p", "+keys", "~b:*")
        assert "user bob may use dangerous commands" in what(check_acl(cluster))
        with pytest.raises(SecurityError, match="not on every node"):
            rotate_password(cluster, "bob", print)
        for node in nodes:
            node.execute_command("ACL SETUSER", "bob", "on", ">p")
        rotate_password(cluster, "bob", lambda new: None, new="n", grace_s=0)
        for node in nodes:
            assert len(node.acl_getuser("bob")["passwords"]) == 1
        box = Sealed(KEY)
        for i in range(20):
            cluster.set(f"shop:{i}", box.encode(b"%d" % i, f"shop:{i}"))
            assert box.decode(cluster.get(f"shop:{i}"), f"shop:{i}") == b"%d" % i
    finally:
        for node in nodes:
            node.acl_deluser("bob")


@pytest.mark.real_redis
def test_roles_work_on_a_cluster(cluster: redis.RedisCluster) -> None:
    """Each node has the users, and the client may ask where the slots are."""
    nodes = [cluster.get_redis_connection(node) for node in cluster.get_nodes()]
    roles = ["publisher", "server"]
    first = cluster.get_primaries()[0]
    try:
        for node in nodes:
            apply(node, render_acl("shop", roles, passwords=dict.fromkeys(roles, "p")))
        assert not any("publisher" in text for text in what(check_acl(cluster, "shop", roles)))
        publisher, server = (
            redis.RedisCluster(host=first.host, port=first.port, username=role, password="p")
            for role in roles
        )
        store = ParamStore(publisher, "shop")
        store.promote(store.save({"w": np.zeros(1000)}))
        write(publisher, "shop", {"x": np.arange(100)})
        assert len(ParamStore(server, "shop").load("production")["w"]) == 1000
        with pytest.raises(redis.exceptions.NoPermissionError):
            Dataset(server, "shop")
        with pytest.raises(redis.exceptions.ResponseError):
            ParamStore(server, "shop").save({"w": np.zeros(1)})
    finally:
        for node in nodes:
            node.acl_deluser(*roles)


# --- Passwords ------------------------------------------------------------------------------------


@pytest.mark.real_redis
def test_no_request_fails_while_passwords_rotate(
    server: servers.Server, admin: redis.Redis
) -> None:
    """Four threads log in anew again and again, while the password changes three times."""
    apply(admin, render_acl("shop", ["trainer"], passwords={"trainer": "first"}))
    # --8<-- [start:rotate]
    login = Credentials("trainer", "first")
    client = redis.Redis(port=server.port, credential_provider=login)

    def rotate() -> str:
        return rotate_password(admin, "trainer", login.switch, grace_s=0.2)

    # --8<-- [end:rotate]
    client.set_retry(ONCE)  # no second try may hide a failure
    stop, done, failed = threading.Event(), [0] * 4, []

    def work(i: int) -> None:
        while not stop.is_set():
            try:
                client.incr("shop:pooled")
                with server.client(credential_provider=login, retry=ONCE) as fresh:
                    fresh.incr("shop:x")
                done[i] += 1
                time.sleep(0.002)  # load: some hundred requests a second
            except redis.RedisError as error:
                failed.append(error)

    def slowly(new: str, switch: Callable[[str], None] = login.switch) -> None:
        before = sum(done) + len(failed)  # clients hear of it late, and log in as before till then
        servers.wait_until(lambda: sum(done) + len(failed) > before + 8, what="all go on")
        switch(new)

    login.switch = slowly  # type: ignore[method-assign]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        used = ["first"]
        for _ in range(3):
            before = sum(done)
            used.append(rotate())
            servers.wait_until(lambda n=before: sum(done) > n + 8, what="all go on")  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        client.close()
    assert failed == []
    assert len(set(used)) == 4
    for password in used:
        with server.client(username="trainer", password=password, retry=ONCE) as r:
            if password is used[-1]:
                assert int(r.get("shop:x")) == sum(done)
            else:
                with pytest.raises(redis.AuthenticationError):
                    r.ping()


@pytest.mark.real_redis
def test_a_rotation_that_cannot_tell_the_clients_changes_nothing(
    server: servers.Server, admin: redis.Redis
) -> None:
    apply(admin, render_acl("shop", ["trainer"], passwords={"trainer": "old"}))
    before = admin.acl_getuser("trainer")

    def fail(new: str) -> None:
        for password in ("old", new):  # both are valid now
            with server.client(username="trainer", password=password) as r:
                assert r.ping()
        raise OSError("the secrets manager is down")

    with pytest.raises(OSError, match="is down"):
        rotate_password(admin, "trainer", fail)
    assert admin.acl_getuser("trainer") == before
    for change in ("resetpass >again", ">another", "nopass"):  # again after a crash; no password
        admin.execute_command("ACL SETUSER", "trainer", *change.split())
        before = admin.acl_getuser("trainer")
        with pytest.raises(ZeroDivisionError):
            rotate_password(admin, "trainer", lambda new: 1 / 0, new="again")
        assert admin.acl_getuser("trainer") == before, change
    with pytest.raises(SecurityError, match="is not on every node"):
        rotate_password(admin, "nobody", print)
    with pytest.raises(SecurityError, match="empty"):
        rotate_password(admin, "trainer", print, new="")


@pytest.mark.real_redis
def test_a_rotation_that_was_killed_is_found_and_finished(admin: redis.Redis) -> None:
    apply(admin, render_acl("shop", ["trainer"], passwords={"trainer": "old"}))
    admin.execute_command("ACL SETUSER", "trainer", ">lost")  # killed after the first step
    assert "user trainer has several passwords" in what(check_acl(admin, "shop"))
    rotate_password(admin, "trainer", lambda new: None, grace_s=0)
    assert len(admin.acl_getuser("trainer")["passwords"]) == 1


@pytest.mark.real_redis
def test_the_password_itself_is_never_sent(admin: redis.Redis) -> None:
    sent = []
    original = admin.execute_command
    admin.execute_command = lambda *args, **kw: (sent.append(args), original(*args, **kw))[1]
    apply(admin, render_acl("shop", ["trainer"], passwords={"trainer": "first password"}))
    new = rotate_password(admin, "trainer", lambda new: None, grace_s=0)
    assert len(sent) > 3 and "first password" not in f"{sent}" and new not in f"{sent}"


# --- TLS ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tls_server(files: Certificates) -> Iterator[int]:
    """Debian's redis-server (the Valkey of the wheel has no TLS); yields its TLS port."""
    port = free_port()
    options = {
        "--tls-port": port, "--tls-cert-file": files.server_cert,
        "--tls-key-file": files.server_key, "--tls-ca-cert-file": files.ca,
    }  # fmt: skip
    arguments = [str(text) for pair in options.items() for text in pair]
    with servers.lone("redis", *servers.VOLATILE, *arguments):
        yield port


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_test_certificates(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def tls_port(files: Certificates) -> Iterator[int]:
    with tls_server(files) as port:
        yield port


def connected(
    port: int, ca: Path, cert: Path | None, key: Path | None, host: str = "127.0.0.1"
) -> bool:
    # --8<-- [start:tls]
    context = tls_context(ca, cert, key)
    with tls_client(host, port, context) as r:
        return bool(r.ping())
    # --8<-- [end:tls]


@pytest.mark.real_redis
def test_with_a_client_certificate_tls_works(files: Certificates, tls_port: int) -> None:
    assert connected(tls_port, files.ca, files.client_cert, files.client_key)
    assert connected(tls_port, files.ca, files.client_cert, files.client_key, "localhost")
    context = tls_context(files.ca, files.client_cert, files.client_key)
    with tls_client("localhost", tls_port, context, db=2) as r:
        assert r.connection_pool.make_connection().db == 2
        box = Sealed(KEY)
        r.set("shop:x", box.encode(bytes(1 << 20), "shop:x"))
        assert box.decode(r.get("shop:x"), "shop:x") == bytes(1 << 20)
    # The same files by redis-py's own options, which is all that they say about themselves.
    with redis.Redis(
        port=tls_port, ssl=True, ssl_ca_certs=str(files.ca), ssl_certfile=str(files.client_cert),
        ssl_keyfile=str(files.client_key),
    ) as r:  # fmt: skip
        assert r.ping()


@pytest.mark.real_redis
def test_other_errors_stay_what_they_are(files: Certificates, tls_port: int) -> None:
    context = tls_context(files.ca, files.client_cert, files.client_key)
    wrong = tls_client("127.0.0.1", tls_port, context, username="nobody", password="x", retry=ONCE)
    with wrong as r, pytest.raises(redis.AuthenticationError):
        r.ping()
    nobody = tls_client("127.0.0.1", free_port(), context, retry=ONCE)
    with nobody as r, pytest.raises(redis.ConnectionError, match="refused"):
        r.ping()


@pytest.mark.real_redis
def test_a_server_of_another_ca_is_refused(
    files: Certificates, tls_port: int, tmp_path: Path
) -> None:
    other = make_test_certificates(tmp_path)
    with pytest.raises(TlsRefused, match="another CA than yours signed the server"):
        connected(tls_port, other.ca, files.client_cert, files.client_key)


@pytest.mark.real_redis
def test_a_client_of_another_ca_is_refused(
    files: Certificates, tls_port: int, tmp_path: Path
) -> None:
    other = make_test_certificates(tmp_path)
    with pytest.raises(TlsRefused, match="the server does not know who signed"):
        connected(tls_port, files.ca, other.client_cert, other.client_key)


@pytest.mark.real_redis
def test_no_client_certificate_is_refused(files: Certificates, tls_port: int) -> None:
    with pytest.raises(TlsRefused, match="give cert= and key="):
        connected(tls_port, files.ca, None, None)


@pytest.mark.real_redis
def test_a_wrong_host_name_is_refused(files: Certificates, tmp_path: Path) -> None:
    other = make_test_certificates(tmp_path, hosts=["redis.example"])
    with (
        tls_server(other) as port,
        pytest.raises(TlsRefused, match="for other host names"),
    ):
        connected(port, other.ca, other.client_cert, other.client_key)


@pytest.mark.real_redis
def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    old = make_test_certificates(tmp_path, days=-1)
    with tls_server(old) as port, pytest.raises(TlsRefused, match="renew the certificate"):
        connected(port, old.ca, old.client_cert, old.client_key)


@pytest.mark.real_redis
def test_an_expired_client_is_refused(tmp_path: Path) -> None:
    """Of one CA: the server's certificate is good, the client's has expired."""
    expired, good = [Certificates(*(tmp_path / name for name in (
        "ca.crt", f"server{i}.crt", f"server{i}.key", f"client{i}.crt", f"client{i}.key"
    ))) for i in (0, 1)]  # fmt: skip
    make_of_one_ca(tmp_path, expired, good)
    with tls_server(good) as port:
        assert connected(port, good.ca, good.client_cert, good.client_key)
        with pytest.raises(TlsRefused, match="renew the certificate"):
            connected(port, good.ca, expired.client_cert, expired.client_key)


def make_of_one_ca(folder: Path, expired: Certificates, good: Certificates) -> None:
    """make_test_certificates twice, with the same key of the CA."""
    made = security.ec.generate_private_key
    first: list[Any] = []

    def generate(curve: Any) -> Any:
        first.append(made(curve))
        return first[0] if len(first) in (1, 4) else first[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security.ec, "generate_private_key", generate)
        for days, wanted in ((-1, expired), (1, good)):
            for source, target in zip(
                make_test_certificates(folder, days=days), wanted, strict=True
            ):
                if source != target:
                    source.rename(target)


@pytest.mark.real_redis
def test_a_port_without_tls_is_told(files: Certificates) -> None:
    context = tls_context(files.ca, files.client_cert, files.client_key)
    with servers.lone("redis") as plain, pytest.raises(TlsRefused, match="speaks no TLS"):
        tls_client("127.0.0.1", plain.port, context, socket_timeout=0.3, retry=ONCE).ping()


def test_missing_and_mixed_up_files_are_told(files: Certificates, tmp_path: Path) -> None:
    for bad in (
        (tmp_path / "none.crt", None, None),
        (files.server_key, None, None),
        (files.ca, files.client_cert, files.server_key),
        (files.ca, tmp_path / "none", files.client_key),
    ):
        with pytest.raises(TlsRefused, match="give PEM files"):
            tls_context(*bad)


def test_nobody_can_read_the_keys(files: Certificates) -> None:
    for path in (files.server_key, files.client_key):
        assert os.stat(path).st_mode & 0o077 == 0


def test_old_tls_is_not_spoken(files: Certificates) -> None:
    context = tls_context(files.ca)
    assert context.minimum_version >= security.ssl.TLSVersion.TLSv1_2
    assert context.check_hostname and context.verify_mode == security.ssl.CERT_REQUIRED
