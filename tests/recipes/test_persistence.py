"""Tests of persistence: real configurations, crashes, full disks, damaged files, backups."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import bench_persistence as bench
from recipes import persistence
from recipes.persistence import (
    PROFILES,
    Backup,
    DamagedBackup,
    Finding,
    PersistenceError,
    Severity,
    apply,
    audit,
    backup,
    durable_write,
    main,
    render,
    restore,
    verify,
)
from tests import servers

RECIPE = Path(persistence.__file__)
PASSWORD = 's e"c\\r\xe9t #1'
NO_DELAY = ("--save", "", "--repl-diskless-sync-delay", "0")
real_redis = pytest.mark.real_redis


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def as_typed(command: str) -> list[bytes]:
    """Split a command as redis-cli does."""
    return [
        word.encode().decode("unicode_escape").encode("latin-1") for word in shlex.split(command)
    ]


def serious(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity is not Severity.INFO]


@contextlib.contextmanager
def started(kind: str, folder: Path, conf: str, password: str = "") -> Iterator[servers.Server]:
    """A server started from a rendered file; its client() is the password's."""
    file = folder / "redis.conf"
    file.write_text(conf)
    server = servers.Server(servers.binary(kind), str(file), folder=folder)
    try:
        client = server.client(password=password or None)
        servers.wait_until(client.ping, what="it has loaded its data")
        yield server
    finally:
        server.stop(keep_folder=True)


# --- Profiles, render, apply ----------------------------------------------------------------------


def test_every_profile_gives_its_reasons() -> None:
    assert set(PROFILES) == {
        "cache",
        "features",
        "training_data",
        "params",
        "checkpoints",
        "stream",
    }
    for name, profile in PROFILES.items():
        assert profile.name == name
        text = render(name)
        for directive, (value, reason) in profile.settings.items():
            assert len(reason) > 20 and f"# {reason}\n{directive} " in text
            assert value == profile[directive]
        assert all(len(line) <= 100 for line in text.splitlines())


@real_redis
@pytest.mark.parametrize("name", PROFILES)
def test_a_rendered_file_starts_and_is_what_the_server_says(
    name: str, server_kind: str, tmp_path: Path
) -> None:
    conf = render(name, requirepass=PASSWORD, maxmemory="512mb")
    with started(server_kind, tmp_path, conf, PASSWORD) as server:
        r = server.client(password=PASSWORD)
        told: Any = r.config_get("*")
        expected = {k: v for k, (v, _) in PROFILES[name].settings.items() if k != "bind"}
        expected |= {"maxmemory": str(512 << 20), "repl-backlog-size": str(64 << 20)}
        assert {k: told[k] for k in expected} == expected
        assert told["requirepass"] == PASSWORD
        assert serious(audit(r, name)) == []


@real_redis
def test_the_rendered_bind_is_accepted(server_kind: str, tmp_path: Path) -> None:
    """GuardedServer gives --bind itself, so it is set on the running server here."""
    with started(server_kind, tmp_path, render("cache")) as server:
        server.client().config_set("bind", PROFILES["cache"]["bind"])
        assert server.client().ping()


@real_redis
def test_a_directive_of_several_words_starts(server_kind: str, tmp_path: Path) -> None:
    conf = render("cache", rename_command="FLUSHALL  hidden", oom_score_adj_values="0 200 800")
    conf += render("cache", rename_command='FLUSHDB ""').splitlines()[-1] + "\n"
    with started(server_kind, tmp_path, conf) as server:
        r = server.client()
        for command in "FLUSHALL", "FLUSHDB", '""':
            with pytest.raises(redis.ResponseError, match="unknown command"):
                r.execute_command(command)
        assert r.execute_command("hidden")
        assert r.config_get("oom-score-adj-values") == {"oom-score-adj-values": "0 200 800"}
    assert 'requirepass "\\x22\\x22"' in render("cache", requirepass='""')


def test_overrides_stand_last_and_say_what_they_replace() -> None:
    text = render("stream", appendfsync="everysec", save=None, lazyfree_lazy_user_del=True)
    assert text.endswith(
        "# Yours; the profile has always.\nappendfsync everysec\n\n"
        "# Yours; the profile has nothing.\nlazyfree-lazy-user-del yes\n"
    )
    assert "\nsave" not in text and "appendfsync always" not in text
    assert 'save ""' in render("stream", save="")
    assert "save 60 1 10 1000\n" in render("stream", save="60 1 10 1000")


@pytest.mark.parametrize(
    "overrides",
    [{"requirepass": "a\nrename-command GET x"}, {"dir": "a\rb"}, {"x\nport": 1}, {"ä": 1}],
)
def test_a_value_cannot_smuggle_in_a_second_line(overrides: dict[str, Any]) -> None:
    with pytest.raises(PersistenceError, match="one line"):
        render("cache", **overrides)


def test_an_unknown_profile_names_those_there_are() -> None:
    for call in (render, lambda name: audit(redis.Redis(), name)):
        with pytest.raises(PersistenceError, match=r"no profile 'modles'.*checkpoints"):
            call("modles")  # type: ignore[operator]


@real_redis
@pytest.mark.parametrize("name", PROFILES)
def test_apply_makes_a_running_server_what_the_audit_wants(name: str, server_kind: str) -> None:
    with servers.lone(server_kind, "--maxmemory-policy", "allkeys-random") as server:
        r = server.client()
        r.set("kept", "value", ex=1000)
        changes = apply(r, name)
        assert ("maxmemory", "0", str(1 << 30)) in changes
        assert set(by_name(serious(audit(r, name)))) <= {"password"}
        assert apply(r, name) == []
        server.kill()  # what apply() has turned on is on disk when it returns
        if name != "cache":
            server.options = () if name == "training_data" else ("--appendonly", "yes")
            server.start_again()
            assert server.client().get("kept") == b"value"


@real_redis
def test_turning_the_log_on_in_the_file_loses_all_and_apply_does_not(server_kind: str) -> None:
    with servers.lone(server_kind, "--appendonly", "no") as server:
        server.client().set("kept", "value")
        server.client().save()
        server.kill()
        server.options = ("--appendonly", "yes")
        server.start_again()
        assert server.client().get("kept") is None  # the trap that apply() avoids


@real_redis
def test_apply_evicts_nothing_by_a_limit_that_is_too_low(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        r = server.client()
        r.config_set("maxmemory", "3gb")
        apply(r, "cache")
        assert r.config_get("maxmemory") == {"maxmemory": str(3 << 30)}
        apply(r, "cache", maxmemory="2gb")
        assert r.config_get("maxmemory") == {"maxmemory": str(2 << 30)}


@real_redis
@pytest.mark.parametrize("name", PROFILES)
def test_apply_leaves_alone_what_is_none(name: str, playground: servers.Server) -> None:
    r = playground.client()
    other = PROFILES["stream" if name == "cache" else "cache"]
    everything = dict.fromkeys((d.replace("-", "_") for d in other.settings), None)
    for left_out in (*everything, None):
        apply(r, other, maxmemory="2gb", repl_backlog_size="32mb", min_replicas_to_write=0)
        before: Any = r.config_get("*")
        overrides: dict[str, Any] = {left_out: None} if left_out else everything
        changes = apply(r, name, **overrides)
        after: Any = r.config_get("*")
        assert {(d, before[d], after[d]) for d in after if before[d] != after[d]} == set(changes)
        given = {word.replace("_", "-") for word in overrides}
        wanted = {d: v for d, (v, _) in PROFILES[name].settings.items() if d not in given}
        wanted = {d: v for d, v in wanted.items() if d not in ("bind", "maxmemory")}
        wanted |= {"repl-backlog-size": str(64 << 20)} if "repl-backlog-size" in wanted else {}
        assert {d: after[d] for d in wanted} == wanted
        assert {d: after[d] for d in given} == {d: before[d] for d in given}


@real_redis
def test_apply_waits_for_a_snapshot_that_is_under_way(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        r = server.client()
        r.mset({f"key:{i}": i for i in range(100)})
        r.config_set("rdb-key-save-delay", 5000)  # microseconds: half a second in all
        r.bgsave()
        r.set("later", "value")
        apply(r, "training_data")
        server.kill()
        server.options = ()
        server.start_again()
        assert server.client().get("later") == b"value"


@real_redis
def test_apply_is_all_or_nothing_and_rewrites_the_file(server_kind: str, tmp_path: Path) -> None:
    with started(server_kind, tmp_path, render("cache")) as server:
        r = server.client()
        before = r.config_get("*")
        with pytest.raises(PersistenceError, match="refuses"):
            apply(r, "params", save="sometimes")
        assert r.config_get("*") == before
        apply(r, "params", rewrite=True)
        assert re.search(r"(?m)^appendonly yes", (tmp_path / "redis.conf").read_text())
        server.kill()
        server.start_again()
        assert r.config_get("appendfsync") == {"appendfsync": "always"}


@real_redis
def test_without_a_file_a_rewrite_is_a_clear_error(server_kind: str) -> None:
    with servers.lone(server_kind) as server, pytest.raises(PersistenceError, match="config file"):
        apply(server.client(), "cache", rewrite=True)


# --- Audit: each finding, provoked on a real server -----------------------------------------------

SETTINGS = [  # finding, profile, settings, severity
    ("maxmemory-policy", "params", {"maxmemory-policy": "allkeys-lru"}, "critical"),
    ("maxmemory-policy", "cache", {"maxmemory-policy": "noeviction"}, "warning"),
    ("maxmemory-policy", "stream", {"maxmemory-policy": "volatile-lru"}, "warning"),
    ("maxmemory", "cache", {"maxmemory": "0"}, "critical"),
    ("maxmemory", "stream", {"maxmemory": "0"}, "warning"),
    ("appendonly", "stream", {"appendonly": "no"}, "critical"),
    ("appendonly", "features", {"appendonly": "no"}, "warning"),
    ("appendonly", "features", {"appendonly": "no", "save": ""}, "critical"),
    ("appendonly", "cache", {"appendonly": "yes"}, "info"),
    ("appendfsync", "stream", {"appendfsync": "everysec"}, "warning"),
    ("appendfsync", "checkpoints", {"appendfsync": "no"}, "critical"),
    ("no-appendfsync-on-rewrite", "params", {"no-appendfsync-on-rewrite": "yes"}, "warning"),
    ("save", "training_data", {"save": ""}, "warning"),
    ("save", "stream", {"save": ""}, "info"),
    ("save", "cache", {"save": "60 1"}, "info"),
    ("stop-writes-on-bgsave-error", "params", {"stop-writes-on-bgsave-error": "no"}, "warning"),
    ("bind", "cache", {"bind": "* -::*"}, "critical"),
    ("bind", "cache", {"bind": "0.0.0.0"}, "critical"),
]


@pytest.fixture(scope="module")
def playground(server_kind: str) -> Iterator[servers.Server]:
    with servers.lone(server_kind) as server:
        yield server


@real_redis
@pytest.mark.parametrize(("name", "profile", "wrong", "severity"), SETTINGS)
def test_a_wrong_setting_is_found_and_its_command_mends_it(
    name: str, profile: str, wrong: dict[str, str], severity: str, playground: servers.Server
) -> None:
    r = playground.client()
    apply(r, profile, maxmemory="1gb")
    assert name not in by_name(audit(r, profile))
    for directive, value in wrong.items():
        r.config_set(directive, value)
    finding = by_name(audit(r, profile))[name]
    assert finding.severity == severity
    assert finding.what and len(finding.why) > 20
    r.execute_command(*as_typed(finding.command))
    servers.wait_until(lambda: not r.info("persistence")["aof_rewrite_in_progress"])
    assert name not in by_name(audit(r, profile))


@real_redis
def test_no_password_is_found_and_a_password_is_enough(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        r = server.client()
        finding = by_name(audit(r, "cache"))["password"]
        assert finding.severity is Severity.WARNING
        r.config_set("bind", "* -::*")
        assert by_name(audit(r, "cache"))["password"].severity is Severity.CRITICAL
        r.execute_command(*finding.command.replace("<a secret>", "secret").split())
        names = by_name(audit(server.client(password="secret"), "cache"))
        assert "password" not in names and names["bind"].severity is Severity.WARNING


@real_redis
def test_a_default_user_that_is_off_counts_as_no_open_door(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        admin = {"username": "admin", "password": "secret"}
        server.client().execute_command("ACL SETUSER admin on >secret ~* &* +@all")
        r = server.client(**admin)
        r.execute_command("ACL SETUSER default off")
        assert "password" not in by_name(audit(r, "cache"))


@real_redis
def test_replica_settings_are_found(server_kind: str) -> None:
    with servers.replicated(server_kind) as (primary, (follower,)):
        r, replica = primary.client(), follower.client()
        apply(r, "params", repl_backlog_size="1mb")
        servers.wait_until(lambda: r.info("replication")["connected_slaves"] == 1)
        found = by_name(audit(r, "params"))
        assert "no-replica" not in found
        for name in "min-replicas-to-write", "repl-backlog-size":
            assert found[name].severity is Severity.WARNING
            r.execute_command(*as_typed(found[name].command))
        assert not {"min-replicas-to-write", "repl-backlog-size"} & set(by_name(audit(r, "params")))
        replica.config_set("replica-read-only", "no")
        found = by_name(audit(replica, "params"))
        assert found["replica-read-only"].severity is Severity.WARNING
        assert "replica-link" not in found
        primary.kill()
        servers.wait_until(lambda: replica.info("replication")["master_link_status"] == "down")
        link = by_name(audit(replica, "params"))["replica-link"]
        assert link.severity is Severity.CRITICAL
        assert link.command == f"REPLICAOF 127.0.0.1 {primary.port}"


@real_redis
def test_a_server_without_a_replica_is_a_hint(r: redis.Redis) -> None:
    assert by_name(audit(r, "stream"))["no-replica"].severity is Severity.INFO
    assert "no-replica" not in by_name(audit(r, "cache"))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MB (as root), so that a full disk is a full disk."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    yield folder if mounted else Path("/dev/full")
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


class Recorded:
    """A client whose INFO has other values, for states that a test cannot bring about."""

    def __init__(self, r: redis.Redis, **info: Any) -> None:
        self.r, self.changed = r, info

    def info(self, *sections: str) -> Any:
        return self.r.info(*sections) | self.changed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.r, name)


@real_redis
def test_a_full_disk_is_found(server_kind: str, small_disk: Path) -> None:
    names = {"rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"}
    place = ("--dir", str(small_disk)) if small_disk.is_dir() else ()
    with servers.lone(server_kind, *servers.VOLATILE, *place) as server:
        r: Any = server.client()
        assert not names & set(by_name(audit(r, "params")))
        if small_disk.is_dir():
            r.config_set("appendfsync", "everysec", "rdbcompression", "no")
            r.config_set("appendonly", "yes")
            servers.wait_until(lambda: not r.info("persistence")["aof_rewrite_in_progress"])
            with contextlib.suppress(redis.ResponseError):  # it refuses when it notices
                for i in range(40):
                    r.set(f"large:{i}", os.urandom(100_000))
            servers.wait_until(lambda: r.info("persistence")["aof_last_write_status"] == "err")
            for start, status in (
                (r.bgsave, "rdb_last_bgsave_status"),
                (r.bgrewriteaof, "aof_last_bgrewrite_status"),
            ):
                start()
                servers.wait_until(lambda s=status: r.info("persistence")[s] == "err")  # type: ignore[misc]
        else:  # not root: as such a server has told it
            r = Recorded(r, **dict.fromkeys(names, "err"))
        found = by_name(audit(r, "params"))
        assert names <= set(found)
        for name in names:
            assert found[name].severity is Severity.CRITICAL
            assert str(r.config_get("dir")["dir"]) in found[name].why
        if small_disk.is_dir():  # room is made: then the commands mend it
            subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
            for name in sorted(names, reverse=True):
                servers.wait_until(lambda: not r.info("persistence")["aof_rewrite_in_progress"])
                r.execute_command(*found[name].command.split())
                servers.wait_until(lambda n=name: r.info("persistence")[n] == "ok")  # type: ignore[misc]
            assert not names & set(by_name(audit(r, "params")))


@real_redis
def test_swap_and_overcommit_and_old_versions_are_told(
    r: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = tmp_path / "overcommit_memory"
    monkeypatch.setattr(persistence, "OVERCOMMIT", mode)
    mode.write_text("1\n")
    assert not {"overcommit", "swap"} & set(by_name(audit(r, "cache")))
    mode.write_text("0\n")
    finding = by_name(audit(r, "cache"))["overcommit"]
    assert (finding.severity, finding.command) == ("info", "sysctl -w vm.overcommit_memory=1")
    elsewhere = by_name(audit(Recorded(r, os="Linux 4.19 riscv64"), "cache"))["overcommit"]
    assert "not to be seen" in elsewhere.what
    swapped = Recorded(r, used_memory=10**9, mem_fragmentation_ratio=0.4)
    assert by_name(audit(swapped, "cache"))["swap"].severity is Severity.WARNING
    for version, severity in (("6.2.14", "warning"), ("7.0.15", "info"), ("10.0.1", None)):
        told = by_name(audit(Recorded(r, redis_version=version, valkey_version=version), "cache"))
        assert (told["version"].severity if "version" in told else None) == severity


def test_keys_without_ttl_in_a_cache_are_found(r: redis.Redis) -> None:
    for i in range(300):
        r.set(f"cached:{i}", "value", ex=None if i % 100 == 0 else 60)
    finding = by_name(audit(r, "cache"))["no-ttl"]
    assert (finding.severity, finding.what[:24]) == ("warning", "3 of 300 keys have no TT")
    assert "no-ttl" not in by_name(audit(r, "params"))
    for _ in range(3):
        r.execute_command(*as_typed(by_name(audit(r, "cache"))["no-ttl"].command))
    assert "no-ttl" not in by_name(audit(r, "cache"))


def test_big_keys_are_found(r: redis.Redis) -> None:
    r.set("small", bytes(4 << 20))
    assert "big-key" not in by_name(audit(r, "params"))
    r.set('a "big" one', bytes((4 << 20) + 1))
    finding = by_name(audit(r, "params"))["big-key"]
    assert finding.severity is Severity.WARNING and str((4 << 20) + 1) in finding.what
    r.execute_command(*as_typed(finding.command))
    assert "big-key" not in by_name(audit(r, "params"))
    assert "big-key" in by_name(audit(r, "params", big=1 << 20))


@real_redis
def test_big_collections_are_found(r: redis.Redis) -> None:
    r.hset("hash", mapping={f"field {i}": bytes(1000) for i in range(5000)})
    assert "'hash'" in by_name(audit(r, "params"))["big-key"].what


@real_redis
def test_the_audit_of_many_keys_is_bounded(r: redis.Redis) -> None:
    with r.pipeline(transaction=False) as pipe:
        for i in range(20_000):
            pipe.set(f"other:{i}", "value")
        pipe.execute()
    r.config_resetstat()
    found = audit(r, "cache", sample=500)
    stats: Any = r.info("commandstats")
    assert stats["cmdstat_ttl"]["calls"] == stats["cmdstat_strlen"]["calls"] == 500
    assert stats["cmdstat_scan"]["calls"] == 1
    assert "500 of 500" in by_name(found)["no-ttl"].what
    assert not {"cmdstat_keys", "cmdstat_get", "cmdstat_dump"} & set(stats)


@real_redis
def test_a_server_that_refuses_to_tell_is_a_finding_and_no_crash(server_kind: str) -> None:
    with servers.lone(server_kind) as server:
        server.client().execute_command(
            "ACL SETUSER few on >secret ~* &* +@all -config -acl +acl|whoami"
        )
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        r = server.client(username="few", password="secret")
        found = audit(r, "params")
        assert sum(finding.name == "refused" for finding in found) == 2
        names = by_name(found)  # what INFO tells is still judged
        assert {"maxmemory", "maxmemory-policy", "appendonly"} <= set(names)
        with pytest.raises(PersistenceError, match="refuses"):
            apply(r, "params")
        server.client().execute_command("ACL SETUSER few -info")
        assert sum(finding.name == "refused" for finding in audit(r, "params")) == 3


def test_an_audit_of_any_server_sorts_by_severity(r: redis.Redis) -> None:
    r.set("big", bytes(5 << 20))
    for name in PROFILES:
        found = audit(r, name)
        order = [list(Severity).index(finding.severity) for finding in found]
        assert order == sorted(order, reverse=True)
        assert all(isinstance(finding, Finding) and finding.command for finding in found)


@real_redis
def test_of_a_cluster_all_nodes_are_audited(cluster: redis.RedisCluster) -> None:
    found = audit(cluster, "stream")
    nodes = {finding.what.rsplit(": ", 1)[0] for finding in found if finding.name == "appendonly"}
    assert nodes == {node.name for node in cluster.get_nodes()}  # type: ignore[no-untyped-call]
    apply(cluster, "stream")
    try:
        assert "appendonly" not in by_name(audit(cluster, "stream"))
    finally:
        apply(cluster, "cache")


# --- The command line -----------------------------------------------------------------------------


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@real_redis
def test_the_exit_code_is_the_severity(server_kind: str, tmp_path: Path) -> None:
    conf = render("stream", requirepass="secret")
    with started(server_kind, tmp_path, conf, "secret") as server:
        url = f"redis://:secret@127.0.0.1:{server.port}"
        assert command_line("audit", url, "stream").returncode == 0
        server.client(password="secret").config_set("appendfsync", "everysec")
        run = command_line("audit", url, "stream")
        assert run.returncode == 1 and "CONFIG SET appendfsync always" in run.stdout
        server.client(password="secret").config_set("appendonly", "no")
        run = command_line("audit", url, "stream", "--json")
        assert run.returncode == 2 and "secret" not in run.stdout
        found = json.loads(run.stdout)
        assert found[0]["severity"] == "critical"
        assert all(
            {*finding} == {"severity", "name", "what", "why", "command"} for finding in found
        )


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "redis://127.0.0.1:1", "cache"),
        ("audit", "http://127.0.0.1", "cache"),
        ("audit", "redis://127.0.0.1:port", "cache"),
        ("audit", "redis://127.0.0.1:1", "modles"),
        ("audit", "redis://127.0.0.1:1"),
        ("audti", "redis://127.0.0.1:1", "cache"),
        ("--help",),
    ],
)
def test_what_cannot_be_audited_is_one_clear_line(words: tuple[str, ...]) -> None:
    run = command_line(*words)
    assert run.returncode == 3 and run.stdout == ""
    assert len(run.stderr.splitlines()) == 1 and "Traceback" not in run.stderr


def test_a_wrong_password_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with started("valkey", tmp_path, render("cache", requirepass="secret"), "secret") as server:
        assert main(["audit", f"redis://:wrong@127.0.0.1:{server.port}", "cache"]) == 3
    assert "wrong" not in capsys.readouterr().err.replace("WRONGPASS", "")


# --- The drill and damaged files ------------------------------------------------------------------


@real_redis
@pytest.mark.parametrize("mode", bench.MODES)
def test_kill_9_loses_what_the_setting_promises(mode: str, server_kind: str) -> None:
    run = bench.drill(
        servers.binary(server_kind), bench.MODES[mode], seconds=0.3, batch=10, stored=500
    )
    assert run.acknowledged > 0
    if mode.endswith("everysec"):  # on a busy disk it holds back what it writes, up to 2 s
        assert run.lost <= 2.2 * run.rate
    elif mode.startswith("AOF"):
        assert run.lost == 0  # the page cache outlives a process (not a power cut)
    else:
        assert run.lost == run.acknowledged  # no snapshot was due within that time


@real_redis
def test_what_starts_after_damage_and_what_the_tool_saves(
    server_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cases = {case.name: case[1:] for case in bench.damage(servers.binary(server_kind))}
    assert cases["AOF, its last command cut off"] == (999, 999)
    assert cases["the same, with aof-load-truncated no"] == (None, 999)
    at_start, after = cases["AOF, a command in the middle overwritten"]
    assert at_start is None and 450 < (after or 0) < 550  # what stands before the damage
    assert cases["AOF, one byte of a value changed"] == (1000, 1000)  # unnoticed: no checksum
    assert cases["RDB, cut off in the middle"] == (None, None)
    assert cases["RDB, one byte of a value changed"] == (None, None)
    assert [*tmp_path.iterdir()] == []  # no folder of a server is left


# --- Backup, verify, restore ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(server_kind: str) -> Iterator[servers.Server]:
    """A server with keys of all types, in one database."""
    with servers.lone(server_kind, *NO_DELAY) as server:
        r = server.client()
        for i in range(2000):
            r.set(f"string:{i}", os.urandom(i % 300), ex=5000 if i % 7 == 0 else None)
        r.hset("hash", mapping={str(i): os.urandom(20) for i in range(3000)})
        r.rpush("list", *(os.urandom(100) for _ in range(500)))
        r.sadd("set", *range(1000))
        r.zadd("zset", {f"member {i}": i / 7 for i in range(1000)})
        r.set("large", os.urandom(2 << 20))
        for i in range(100):
            r.xadd("stream", {"n": i})
        r.xgroup_create("stream", "workers", "0")
        r.xreadgroup("workers", "one", {"stream": ">"}, count=10)
        yield server


def strings(r: redis.Redis) -> dict[bytes, tuple[bytes, bool]]:
    """Each string, and whether it has a TTL."""
    keys = sorted(r.scan_iter("string:*", count=1000))
    with r.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.get(key).ttl(key)
        told = pipe.execute()
    pairs = zip(told[::2], told[1::2], strict=True)
    return {key: (value, ttl > 0) for key, (value, ttl) in zip(keys, pairs, strict=True)}


@real_redis
@pytest.mark.parametrize("appendonly", ["yes", "no"])
def test_a_backup_is_restored_into_a_fresh_server_key_by_key(
    appendonly: str, source: servers.Server, server_kind: str, tmp_path: Path
) -> None:
    r = source.client()
    made = backup(r, tmp_path / "backup")
    assert made == verify(str(tmp_path / "backup"))
    assert made.keys == r.dbsize() and (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    assert restore(tmp_path / "backup", tmp_path / "data") == made
    conf = f"appendonly {appendonly}\nappendfsync always\n"
    with started(server_kind, tmp_path / "data", conf) as server:
        fresh = server.client()
        assert fresh.dbsize() == made.keys
        assert sorted(fresh.scan_iter(count=1000)) == sorted(r.scan_iter(count=1000))
        assert strings(fresh) == strings(r) and len(strings(r)) == 2000
        assert fresh.get("large") == r.get("large")
        assert fresh.hgetall("hash") == r.hgetall("hash")
        assert fresh.lrange("list", 0, -1) == r.lrange("list", 0, -1)
        assert fresh.smembers("set") == r.smembers("set")
        assert fresh.zrange("zset", 0, -1, withscores=True) == r.zrange(
            "zset", 0, -1, withscores=True
        )
        assert fresh.xrange("stream") == r.xrange("stream")
        assert fresh.xpending("stream", "workers") == r.xpending("stream", "workers")
        assert abs(fresh.ttl("string:0") - r.ttl("string:0")) <= 1
        fresh.set("written later", 1)
        server.kill()
        server.start_again()
        assert fresh.dbsize() == made.keys + (appendonly == "yes")


@real_redis
def test_a_backup_under_writes_is_one_point_in_time(server_kind: str, tmp_path: Path) -> None:
    """Each transaction raises two keys and appends to a list: never may one be ahead."""
    with servers.lone(server_kind, *NO_DELAY) as server:
        r, end = server.client(), threading.Event()
        for i in range(24):
            r.set(f"ballast:{i}", os.urandom(1 << 20))

        def write() -> None:
            with server.client() as writer:
                n = 0
                while not end.is_set():
                    n += 1
                    with writer.pipeline() as pipe:
                        pipe.set("a", n).set(f"number:{n}", n).rpush("log", n).set("z", n)
                        pipe.execute()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            servers.wait_until(lambda: r.exists("number:100"))
            low = int(r.get("a"))
            made = backup(r, tmp_path / "backup")
            high = int(r.get("a"))
        finally:
            end.set()
            thread.join()
        restore(tmp_path / "backup", tmp_path / "data")
        with started(server_kind, tmp_path / "data", "") as fresh:
            copy = fresh.client()
            n = int(copy.get("a"))
            assert low <= n < high  # it went on while the backup was made
            assert int(copy.get("z")) == n == copy.llen("log")
            assert copy.dbsize() == made.keys == 24 + 3 + n


@real_redis
def test_a_disk_based_server_is_backed_up_too(server_kind: str, tmp_path: Path) -> None:
    with servers.lone(server_kind, "--save", "", "--repl-diskless-sync", "no") as server:
        r = server.client()
        r.mset({f"key:{i}": os.urandom(1000) for i in range(3000)})
        assert backup(r, tmp_path / "backup").keys == 3000
        assert verify(tmp_path / "backup").size > 3_000_000


@real_redis
@pytest.mark.parametrize("count", [0, 1, 63, 64, 16383, 16384])
def test_the_number_of_keys_is_right_at_every_length(
    count: int, server_kind: str, tmp_path: Path, playground: servers.Server
) -> None:
    r = playground.client()
    r.config_set("repl-diskless-sync-delay", 0)
    with r.pipeline(transaction=False) as pipe:
        for i in range(count):
            pipe.set(i, i)
        pipe.execute()
    try:
        assert backup(r, tmp_path / "backup").keys == count
    finally:
        for first in range(0, count, 5000):
            r.unlink(*range(first, min(first + 5000, count)))


@real_redis
def test_several_databases_and_functions_are_kept_but_not_counted(
    server_kind: str, tmp_path: Path
) -> None:
    with servers.lone(server_kind, *NO_DELAY) as server:
        for db in (0, 3):
            server.client(db=db).set("key", db)
        r = server.client()
        assert backup(r, tmp_path / "backup").keys is None
        r.execute_command(
            "FUNCTION LOAD", "#!lua name=l\nredis.register_function('f', function() return 7 end)"
        )
        assert backup(r, tmp_path / "backup").keys is None
    restore(tmp_path / "backup", tmp_path / "data")
    with started(server_kind, tmp_path / "data", "") as fresh:
        assert fresh.client(db=3).get("key") == b"3"
        assert fresh.client().fcall("f", 0) == 7


@real_redis
def test_a_backup_keeps_ttls_of_hash_fields(tmp_path: Path) -> None:
    with servers.lone("valkey", *NO_DELAY) as server:
        r = server.client()
        r.hset("hash", mapping={"a": 1, "b": 2})
        r.hexpire("hash", 1000, "a")
        backup(r, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "data")
    with started("valkey", tmp_path / "data", "") as fresh:
        assert fresh.client().httl("hash", "a", "b")[0] > 900


@pytest.fixture(scope="module")
def stored(source: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("stored") / "backup"
    backup(source.client(), file)
    return file.read_bytes()


@real_redis
def test_a_backup_cut_off_anywhere_is_refused(stored: bytes, tmp_path: Path) -> None:
    size = len(stored)
    for length in (0, 1, 9, 600, size // 2, size - 513, size - 512, size - 65, size - 2, size - 1):
        (tmp_path / "cut").write_bytes(stored[:length])
        for refuse in (verify, lambda path: restore(path, tmp_path / "data")):
            with pytest.raises(DamagedBackup, match="cut off"):
                refuse(tmp_path / "cut")  # type: ignore[operator]
        assert not (tmp_path / "data").exists()


@real_redis
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_one_changed_bit_anywhere_is_refused(
    data: st.DataObject, stored: bytes, tmp_path: Path
) -> None:
    near_the_end = data.draw(st.booleans())
    at = data.draw(st.integers(len(stored) - 512 if near_the_end else 0, len(stored) - 1))
    changed = bytearray(stored)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "changed").write_bytes(changed)
    with pytest.raises(DamagedBackup):
        verify(tmp_path / "changed")


@given(text=st.binary(max_size=2000))
@settings(max_examples=100, deadline=None)
def test_hostile_bytes_are_no_backup(text: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        with pytest.raises(DamagedBackup):
            verify(file.name)


@pytest.mark.parametrize("facts", ["[]", "{}", '{"keys": 1}', "null", '{"path": "/etc"}', "{"])
def test_a_hostile_last_line_is_no_backup(facts: str, tmp_path: Path) -> None:
    file = tmp_path / "hostile"
    line = facts.ljust(persistence.TAIL - 65).encode() + b"\n"
    file.write_bytes(b"REDIS")
    with file.open("r+b") as stream:
        digest = persistence._digest(stream, 5, line)
        stream.seek(5)
        stream.write(digest + line)
    with pytest.raises(DamagedBackup):
        verify(file)


@real_redis
def test_a_wrong_number_of_keys_is_refused(stored: bytes, tmp_path: Path) -> None:
    """Someone takes the snapshot of another server under a line that is right for its bytes."""
    file, size = tmp_path / "forged", len(stored) - persistence.TAIL
    facts = json.loads(stored[size + 64 :])
    line = json.dumps(facts | {"keys": facts["keys"] + 1}).ljust(447).encode() + b"\n"
    file.write_bytes(stored[:size])
    with file.open("r+b") as stream:
        digest = persistence._digest(stream, size, line)
        stream.seek(size)
        stream.write(digest + line)
    with pytest.raises(DamagedBackup, match="number of keys"):
        verify(file)


@real_redis
def test_a_server_that_dies_in_the_middle_leaves_the_older_backup(
    server_kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    with servers.lone(server_kind, *NO_DELAY) as server:
        r = server.client(retry=None)
        r.set("key", "value")
        older = backup(r, file)
        r.config_set("rdb-key-save-delay", 20_000)  # microseconds a key: the snapshot takes long
        r.mset({f"key:{i}": os.urandom(1000) for i in range(2000)})
        failed: list[Exception] = []

        def run() -> None:
            try:
                backup(r, file)
            except PersistenceError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        servers.wait_until(lambda: any(p.is_dir() and any(p.iterdir()) for p in tmp_path.iterdir()))
        assert verify(file) == older  # the name is not touched meanwhile
        server.kill()
        thread.join()
        assert len(failed) == 1 and "no backup at" in str(failed[0])
        assert verify(file) == older and [*tmp_path.iterdir()] == [file]


@real_redis
def test_a_connection_cut_in_the_middle_is_no_backup(
    source: servers.Server, tmp_path: Path
) -> None:
    """The server lives on, so only the missing end of the snapshot tells."""
    with cutting_proxy(source.port, after=1 << 20) as port:
        r = redis.Redis(port=port, retry=None)
        with pytest.raises(PersistenceError, match="in the middle"):
            backup(r, tmp_path / "backup")
        assert r.ping() and [*tmp_path.iterdir()] == []


@contextlib.contextmanager
def cutting_proxy(port: int, after: int) -> Iterator[int]:
    """Forward connections, and close each one that has brought `after` bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(one: socket.socket, other: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError), one, other:
            while left > 0 and (data := one.recv(min(left, 65536))):
                other.sendall(data)
                left -= len(data)
            for end in (one, other):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for pair in ((client, server, 1 << 30), (server, client, after)):
                    threading.Thread(target=forward, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


BACK_UP = """
import sys, redis
sys.path.insert(0, sys.argv[1])
import persistence
persistence.backup(redis.Redis(port=int(sys.argv[2])), sys.argv[3])
"""


@real_redis
def test_a_backup_that_is_killed_never_appears_under_its_name(
    server_kind: str, tmp_path: Path
) -> None:
    with servers.lone(server_kind, *NO_DELAY) as server:
        r = server.client()
        r.config_set("rdb-key-save-delay", 20_000)
        r.mset({f"key:{i}": os.urandom(1000) for i in range(2000)})
        words = [str(RECIPE.parent), str(server.port), str(tmp_path / "backup")]
        child = subprocess.Popen([sys.executable, "-c", BACK_UP, *words])
        try:
            servers.wait_until(lambda: any(p.stat().st_size for p in tmp_path.rglob("tmp*")))
        finally:
            child.kill()
            child.wait()
        assert not (tmp_path / "backup").exists()
        with pytest.raises(DamagedBackup):
            verify(next(tmp_path.rglob("tmp*")))


@real_redis
def test_a_silent_server_is_given_up(server_kind: str, tmp_path: Path) -> None:
    with servers.lone(server_kind, "--save", "", "--repl-diskless-sync-delay", "30") as server:
        with pytest.raises(PersistenceError, match="no backup at"):
            backup(server.client(), tmp_path / "backup", timeout_s=0.2)
        assert [*tmp_path.iterdir()] == []
        assert server.client().ping()


@real_redis
def test_a_server_that_refuses_is_a_clear_error(server_kind: str, tmp_path: Path) -> None:
    with servers.lone(server_kind, *NO_DELAY) as server:
        server.client().execute_command("ACL SETUSER few on >secret ~* &* +@all -sync -replconf")
        r = server.client(username="few", password="secret")
        with pytest.raises(PersistenceError, match=r"permissions|NOPERM"):
            backup(r, tmp_path / "backup")
        assert r.ping() and [*tmp_path.iterdir()] == []


def test_where_there_is_no_folder_or_no_server_it_says_so(tmp_path: Path) -> None:
    nobody = redis.Redis(port=1, retry=None)
    for path in (tmp_path / "no" / "backup", tmp_path / "backup"):
        with pytest.raises(PersistenceError, match="no backup at"):
            backup(nobody, path)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(DamagedBackup, match="No such file"):
        verify(tmp_path / "backup")


def test_fakeredis_and_clusters_are_refused(
    r: redis.Redis, tmp_path: Path, server_kind: str
) -> None:
    if server_kind == "fake":
        with pytest.raises(PersistenceError, match="no backup at"):
            backup(r, tmp_path / "backup")
    assert [*tmp_path.iterdir()] == []


@real_redis
def test_of_a_cluster_each_primary_is_backed_up_alone(
    cluster: redis.RedisCluster, tmp_path: Path
) -> None:
    rc: Any = cluster
    for i in range(300):
        rc.set(f"key:{i}", i)
    with pytest.raises(PersistenceError, match="each primary alone"):
        backup(rc, tmp_path / "all")
    total = 0
    for node in rc.get_primaries():
        client = rc.get_redis_connection(node)
        client.config_set("repl-diskless-sync-delay", 0)
        total += backup(client, tmp_path / str(node.port)).keys or 0
    assert total == 300


@pytest.mark.parametrize("head", [b"$EOF:" + b"m" * 40, b"$100"])
def test_a_snapshot_that_ends_too_early_is_an_error(head: bytes) -> None:
    r = mock.Mock()
    sock = r.connection_pool.get_connection.return_value._sock
    sock.makefile.return_value = io.BytesIO(b"\n" + head + b"\r\nREDIS0011")
    with pytest.raises(ValueError, match="closed the connection in the middle"):
        persistence._receive(r, io.BytesIO(), 1, None)


@real_redis
def test_restore_overwrites_nothing(stored: bytes, server_kind: str, tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(stored)
    for name in "dump.rdb", "appendonlydir":
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).touch() if name == "dump.rdb" else (folder / name).mkdir()
        with pytest.raises(PersistenceError, match="has data"):
            restore(tmp_path / "backup", folder)
        assert [path.name for path in folder.iterdir()] == [name]


RESTORE = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
import persistence
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # what a write gets in its place is an OSError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    persistence.restore(sys.argv[2], sys.argv[3])
except persistence.PersistenceError as error:
    print(type(error.__cause__).__name__, error)
"""


@real_redis
@pytest.mark.parametrize("place", ["data", "a/new/one", "with files"])
def test_a_restore_that_fails_leaves_nothing_and_can_be_repeated(
    place: str, stored: bytes, server_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backup").write_bytes(stored)
    (tmp_path / "with files").mkdir()
    (tmp_path / "with files" / "redis.conf").touch()
    before = sorted(tmp_path.rglob("*"))
    words = [str(RECIPE.parent), str(tmp_path / "backup"), str(tmp_path / place)]
    child = [sys.executable, "-c", RESTORE, *words]
    told = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    assert told.startswith("OSError not restored into ") and "File too large" in told
    assert sorted(tmp_path.rglob("*")) == before
    for module, name in ((os, "link"), (Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, mock.Mock(side_effect=OSError("broken")))
            with pytest.raises(PersistenceError, match="broken"):
                restore(tmp_path / "backup", tmp_path / place)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(PersistenceError, match="not restored into"):
        restore(tmp_path / "backup", tmp_path / "with files" / "redis.conf")
    made = restore(tmp_path / "backup", tmp_path / place)
    with started(server_kind, tmp_path / place, "") as server:
        assert server.client().dbsize() == made.keys


@real_redis
def test_a_restored_server_fills_a_running_one(
    stored: bytes, server_kind: str, tmp_path: Path
) -> None:
    """As the docstring says: REPLICAOF, then REPLICAOF NO ONE."""
    (tmp_path / "backup").write_bytes(stored)
    made = restore(tmp_path / "backup", tmp_path / "data")
    conf = "repl-diskless-sync-delay 0\n"
    with servers.lone(server_kind) as running, started(server_kind, tmp_path / "data", conf) as old:
        r = running.client()
        r.replicaof("127.0.0.1", old.port)
        servers.wait_until(lambda: r.info("replication")["master_link_status"] == "up")
        r.replicaof("NO", "ONE")
        assert r.dbsize() == made.keys


@real_redis
def test_the_file_is_an_rdb_that_a_server_and_its_tool_read(
    stored: bytes, server_kind: str, tmp_path: Path
) -> None:
    (tmp_path / "dump.rdb").write_bytes(stored)
    check = subprocess.run(
        ["redis-check-rdb", str(tmp_path / "dump.rdb")],
        executable=servers.binary(server_kind), capture_output=True, text=True,
    )  # fmt: skip
    made = verify(tmp_path / "dump.rdb")
    assert isinstance(made, Backup)
    assert check.returncode == 0 and f"{made.keys} keys read" in check.stdout
    with started(server_kind, tmp_path, "") as server:
        assert server.client().dbsize() == made.keys


# --- durable_write --------------------------------------------------------------------------------

LEVELS = [  # appendonly, appendfsync, with WAITAOF, without
    ("no", "always", "memory", "memory"),
    ("yes", "no", "written", "written"),
    ("yes", "everysec", "fsynced", "written"),
    ("yes", "always", "fsynced", "fsynced"),
]


@real_redis
@pytest.mark.parametrize(("appendonly", "fsync", "newer", "older"), LEVELS)
def test_a_durable_write_says_what_the_server_can_promise(
    appendonly: str, fsync: str, newer: str, older: str, server_kind: str
) -> None:
    options = ("--save", "", "--appendonly", appendonly, "--appendfsync", fsync)
    with servers.lone(server_kind, *options) as server:
        r = server.client()
        written = durable_write(r, "SET", "key", "value", timeout_s=0.3 if fsync == "no" else 3)
        assert written.level == (newer if server_kind == "valkey" else older)
        assert written.fsynced is (written.level == "fsynced")
        assert written.replies == [True] and written.replicas == 0
        assert persistence.PROMISES[written.level] in written.promise
        server.kill()
        server.start_again()
        if written.level != "written":
            assert server.client().get("key") == (b"value" if written.fsynced else None)


@real_redis
def test_always_without_waitaof_is_believed_only_with_its_safe_setting(server_kind: str) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with servers.lone(server_kind, *options, "--no-appendfsync-on-rewrite", "yes") as server:
        written = durable_write(server.client(), "SET", "key", "value")
        assert written.level == ("fsynced" if server_kind == "valkey" else "written")


def test_a_server_that_tells_nothing_promises_nothing(r: redis.Redis, server_kind: str) -> None:
    written = durable_write(r, lambda pipe: pipe.set("key", "value").incr("count"))
    assert written.replies == [True, 1] and r.get("key") == b"value"
    assert (written.level, written.fsynced) == (
        "unknown" if server_kind == "fake" else "memory", False,
    )  # fmt: skip


def test_an_error_of_the_write_is_raised(r: redis.Redis) -> None:
    r.set("key", "value")
    with pytest.raises(redis.ResponseError, match=r"WRONGTYPE|wrong kind"):
        durable_write(r, "LPUSH", "key", "value")


@real_redis
def test_write_and_wait_go_in_one_round_trip_of_one_connection(
    r: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    send = redis.Connection.send_packed_command

    def counting(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(b"".join([command] if isinstance(command, bytes) else command))
        return send(self, command, *args, **kwargs)

    r.ping()
    monkeypatch.setattr(redis.Connection, "send_packed_command", counting)
    durable_write(r, "SET", "key", "value")
    assert len(sent) == 1
    assert sent[0].index(b"SET") < sent[0].index(b"WAITAOF")


@real_redis
def test_replicas_that_fsync_are_counted() -> None:
    options = ("--appendonly", "yes", "--appendfsync", "everysec")
    with servers.replicated("valkey", *options) as (primary, (follower,)):
        r = primary.client()
        written = durable_write(r, "SET", "key", "value", replicas=1)
        assert (written.level, written.replicas) == ("fsynced", 1)
        follower.freeze()
        written = durable_write(r, "SET", "key", "value", replicas=1, timeout_s=1.5)
        follower.wake()
        assert written.replicas == 0 and "0 of 1 replicas" in written.promise


@real_redis
def test_on_a_cluster_the_node_of_the_key_is_asked(cluster: redis.RedisCluster) -> None:
    apply(cluster, "params")
    try:
        for i in range(9):
            assert durable_write(cluster, "SET", f"key:{i}", i).level == "fsynced"
            tagged = durable_write(cluster, lambda p: p.incr("{t}:a").incr("{t}:b"), key="{t}")
            assert tagged.replies == [i + 1, i + 1] and tagged.fsynced
        with pytest.raises(PersistenceError, match="key="):
            durable_write(cluster, lambda pipe: pipe.set("a", 1))
    finally:
        apply(cluster, "cache")
