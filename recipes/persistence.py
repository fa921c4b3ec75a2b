"""Choose, check and prove what a server keeps through a crash, a restart, a loss.

Use when: somebody would miss what is in Redis: settings for each use, an audit, verified backups.
Not when: a provider runs the server (use its settings and snapshots; audit() still tells much),
    or service must go on when a machine dies: that takes a second one, with high_availability.
Keys: none of its own. durable_write() writes what it is given; audit() reads a sample of yours.
Guarantees: render() starts on Redis 7.0+ and Valkey. backup() is one point in time, under writes,
    and appears whole under its name or not at all; verify() and restore() refuse a file in which
    one bit differs; restore() overwrites nothing. durable_write() says what is really on disk. A
    disk that dies, or lies about fsync, ends all promises.
Cost: audit: 3 round trips, 1 for 1,000 keys of SCAN, 1 for 200 of the sample. backup: one fork of
    the server, one transfer, and repl-diskless-sync-delay (5 s by default), reading the file once
    more. durable_write: 1 round trip and the fsync.
Needs: Redis 7.0+ or Valkey 7.2+ (WAITAOF: Redis 7.2+); pip install redis
Run: python recipes/persistence.py shows it; `audit REDIS_URL PROFILE [--json]` audits a server
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import redis

Client = redis.Redis | redis.RedisCluster
Checks = Iterator[tuple[Any, ...]]
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")  # of this machine


class PersistenceError(Exception):
    """The server, the file or the arguments do not allow it; the message says what to do."""


class DamagedBackup(PersistenceError):
    """The file is cut off, changed, or no backup: use another one."""


# --8<-- [start:profiles]
# One redis.conf for all data is wrong for most of it: a cache that saves itself is slow and comes
# back stale, and models on a cache's settings are evicted without a word. So: one for each worth.
@dataclass(frozen=True)
class Profile:
    """What `data` is worth; the eviction `policies` that do it no harm (the first is the best);
    `settings`: directive -> (value, reason), in the words of redis.conf.
    """

    name: str
    data: str
    policies: list[str]
    settings: dict[str, tuple[str, str]]

    def __getitem__(self, directive: str) -> str:
        return self.settings[directive][0]


SAFE = {chr(code) for code in range(32, 127)} - set("\"'\\")  # in redis.conf as they are


# fmt: off
COMMON = {
    "bind": ("127.0.0.1 -::1", "This machine only; add the one private address that others use."),
    "protected-mode": ("yes", "Without a password no other machine is answered."),
    "maxmemory": ("1gb", "SET IT: half of the memory, where a fork saves. None: the kernel kills."),
    "no-appendfsync-on-rewrite": ("no", "With yes a rewrite suspends the promised fsync."),
    "aof-load-truncated": ("yes", "A tail cut by a crash is dropped; damage inside stops it."),
    "stop-writes-on-bgsave-error": ("yes", "A disk that is full must not go unnoticed."),
    "replica-read-only": ("yes", "What is written to a replica is lost when it synchronizes."),
    "min-replicas-to-write": ("0", "With replicas 1: no writes that a failover would drop."),
    "repl-backlog-size": ("64mb", "After a short cut a replica catches up, with no full copy."),
}
COPY = ("3600 1", "A file to copy away; a restart loads the log.")


def _profile(name: str, data: str, policies: str, evict: str, fsync: str, log: str,
             points: str, rdb: str) -> Profile:
    return Profile(name, data, policies.split(), COMMON | {
        "maxmemory-policy": (policies.split()[0], evict),
        "appendonly": ("yes" if fsync else "no", log),
        "appendfsync": (fsync or "everysec", log if fsync else "Counts only where there is a log."),
        "save": (points, rdb)})


PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (
    _profile("cache", "Copies (predictions, embeddings): all of it can be computed again.",
             "allkeys-lfu allkeys-lru allkeys-lrm", "Full: forget what is used least.",
             "", "A log of what can be computed again is work for nothing.",
             "", "No fork, no disk; and a restart begins empty instead of stale."),
    _profile("features", "Online features: the offline store has them too, hours away.",
             "volatile-ttl volatile-lru volatile-lfu noeviction",
             "First goes what ends soonest; without TTL nothing: a default is a wrong answer.",
             "everysec", "A power cut costs a second of updates; the next ones mend it.", *COPY),
    _profile("training_data", "Data sets, loaded in bulk from files that still exist.",
             "noeviction", "An evicted chunk is a hole in each epoch: better refuse the write.",
             "", "A bulk load would be written twice; it can be repeated.",
             "900 1", "One snapshot after the load spares loading again after a restart."),
    _profile("params", "Published models: written seldom, served to all, missed at once.",
             "noeviction", "An evicted tensor is a model that no longer loads.",
             "always", "Publishing is rare, so it may wait for the disk.", *COPY),
    _profile("checkpoints", "States of runs: large, written often, the last one counts.",
             "noeviction volatile-ttl", "Evicted chunks are hours of training.",
             "everysec", "A power cut costs at most the newest; always slows down each.", *COPY),
    _profile("stream", "Events and jobs that exist nowhere else once they are acknowledged.",
             "noeviction", "A full server must refuse an event, not drop an older one.",
             "always", "The producer forgets it at our reply: by then it must be on disk.", *COPY),
)}
# fmt: on


def _settings(profile: str | Profile, overrides: Mapping[str, Any]) -> Profile:
    if isinstance(profile, str) and profile not in PROFILES:
        raise PersistenceError(f"no profile {profile!r}: there are {', '.join(PROFILES)}")
    known = PROFILES[profile] if isinstance(profile, str) else profile
    settings = dict(known.settings)
    for word, given in overrides.items():
        name, value = word.replace("_", "-"), str(given)
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or re.search(r"[\r\n\0]", value):
            raise PersistenceError(f"{name}={value!r}: small letters, and a value on one line")
        was, _ = settings.pop(name, ("nothing", ""))
        if given is not None:
            value = {"True": "yes", "False": "no"}.get(value, value)
            settings[name] = value, f"Yours; the profile has {was or 'none'}."
    return replace(known, settings=settings)


def render(profile: str | Profile, **overrides: Any) -> str:
    """Return a redis.conf with a reason above each line; a server starts by `redis-server FILE`.

    `overrides` are directives with _ for -, such as maxmemory="8gb", requirepass="...", port=6380,
    dir="/data", rename_command='FLUSHALL ""'; None leaves one out. They stand last, and only the
    server checks them.
    """
    known = _settings(profile, overrides)
    lines = [f"# {known.name}: {known.data}", "# Give it a password: requirepass, or users (ACL)."]
    for name, (value, why) in known.settings.items():
        several = value and name in ("save", "bind", "user", "loadmodule", "rename-command")
        words = ["" if word == '""' else word for word in value.split()] if several else [value]
        lines += ["", f"# {why}", " ".join([name, *map(_quoted, words)])]
    return "\n".join(lines) + "\n"


def _quoted(value: str | bytes) -> str:
    data = value.encode() if isinstance(value, str) else value
    if data and set(data.decode("latin-1")) <= SAFE - {" "}:
        return data.decode()
    return "".join(['"', *(chr(b) if chr(b) in SAFE else f"\\x{b:02x}" for b in data), '"'])


def apply(
    r: Client, profile: str | Profile, *, rewrite: bool = False, **overrides: Any
) -> list[tuple[str, str, str]]:
    """Set a live server to the profile; return what has changed: (directive, before, after).

    The log is turned on here and never by editing the file: a server that restarts with a new
    `appendonly yes` loads the log, which is empty, and not dump.rdb. Returns when the log, or the
    snapshot that takes its place, is on disk. `rewrite` puts all into the server's redis.conf;
    else the next restart has the old settings. Left alone, unless among the `overrides`: bind,
    protected-mode, and maxmemory where one is set or the data comes near to 1 GB.
    """
    if isinstance(r, redis.RedisCluster):
        nodes = _nodes(r).values()
        return [c for node in nodes for c in apply(node, profile, rewrite=rewrite, **overrides)]
    known = _settings(profile, overrides)
    try:
        old: Any = r.config_get("*")
        tight = old["maxmemory"] != "0" or r.info()["used_memory"] > 2**29  # lowering it evicts
        left = {"bind", "protected-mode", "maxmemory" if tight else ""}
        left -= {name.replace("_", "-") for name in overrides}
        wanted = {name: known[name] for name in known.settings if name not in left}
        log = wanted.pop("appendonly", old["appendonly"])
        if wanted:
            r.config_set(*itertools.chain(*wanted.items()))  # all or none
        if log == "no" and wanted.get("save", old["save"]):
            # else nothing is on disk until the first point is reached
            _finished(r, r.bgsave, "rdb_last_bgsave_status")
        if log != old["appendonly"]:
            _finished(r, lambda: r.config_set("appendonly", log), "aof_last_bgrewrite_status")
        if rewrite:
            r.config_rewrite()
        new: Any = r.config_get("*")
    except redis.ResponseError as error:
        raise PersistenceError(f"the server refuses: {error}. Compare with render().") from error
    return [(name, old[name], new[name]) for name in new if old.get(name) != new[name]]


def _nodes(r: Any) -> dict[str, redis.Redis]:
    return {node.name: r.get_redis_connection(node) for node in r.get_nodes()}


def _finished(r: redis.Redis, start: Callable[[], object], status: str) -> None:
    busy = ("rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled")
    for begin in start, lambda: None:  # after what runs already; and until it has finished
        while any(r.info("persistence")[name] for name in busy):
            time.sleep(0.02)
        begin()
    if (state := r.info("persistence")[status]) != "ok":
        raise PersistenceError(f"not on disk: {status} is {state}; see the server's log")


# --8<-- [end:profiles]
# --8<-- [start:audit]
# Redis runs on in silence on settings that lose data, and says so on the day of the crash. Each
# finding says what is, why it matters for this profile's data, and the command that mends it.
class Severity(StrEnum):
    """INFO: a hint. WARNING: data may be lost. CRITICAL: it is being lost, or will be."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


INFO, WARNING, CRITICAL = Severity
RANK = list(Severity).index
REFUSED = "So some was not checked.", "ACL SETUSER <user> +info +config|get +acl|getuser"


@dataclass(frozen=True)
class Finding:
    """`what` is found, `why` it matters, the `command` that mends it; `name` is for scripts."""

    severity: Severity
    name: str
    what: str
    why: str
    command: str


def audit(
    r: Client, profile: str | Profile, *, sample: int = 10_000, match: str = "*", big: int = 4 << 20
) -> list[Finding]:
    """Compare a live server with a profile; return findings, the worst first.

    Reads INFO, CONFIG GET, ACL GETUSER, and memory and TTL of at most `sample` keys like `match`:
    the first ones that SCAN gives in the database of `r`. `big` is in bytes. What a server refuses
    to tell is a finding, too. Of a cluster all nodes are asked.
    """
    known, found = _settings(profile, {}), list[Finding]()
    if isinstance(r, redis.RedisCluster):
        for name, node in _nodes(r).items():
            told = audit(node, known, sample=sample, match=match, big=big)
            found += [replace(finding, what=f"{name}: {finding.what}") for finding in told]
    else:
        answers: list[Any] = []
        for question in (r.info, r.config_get, lambda: r.acl_getuser("default")):
            try:
                answers.append(question())
            except redis.ResponseError as error:  # a managed server, or too few rights
                answers.append({})
                found.append(Finding(INFO, "refused", f"it does not tell: {error}", *REFUSED))
        checks = (*_checks(known, *answers), *_key_checks(r, known, sample, match, big))
        found += [Finding(*texts) for holds, *texts in checks if holds]
    return sorted(found, key=lambda finding: -RANK(finding.severity))


# fmt: off
def _checks(p: Profile, info: Any, conf: Any, user: Any) -> Checks:
    conf = {"maxmemory": str(info.get("maxmemory", 1)), "save": p["save"], "bind": p["bind"],
            "maxmemory-policy": info.get("maxmemory_policy", p["maxmemory-policy"]),
            "appendonly": ("no", "yes")[info.get("aof_enabled", p["appendonly"] == "yes")]} | conf
    used, policy, points = info.get("used_memory", 0), conf["maxmemory-policy"], conf["save"]
    logs, log, fsync = p["appendonly"] == "yes", conf["appendonly"] == "yes", p["appendfsync"]
    now, weaker = conf.get("appendfsync"), ["no", "everysec"][: 1 + (fsync == "always")]
    role, replicas = info.get("role"), info.get("connected_slaves", 0)
    bind, is_open = conf["bind"].replace("-", ""), {"on", "nopass"} <= {*user.get("flags", ())}
    wide = not bind or {*bind.split()} & {"*", "0.0.0.0", "::*", "::"}
    better = {"min-replicas-to-write": "1", "maxmemory": str(max(2**30, 2 * used))}
    spare, backlog = conf.get("min-replicas-to-write"), conf.get("repl-backlog-size", 2**24)
    for name, severity, holds in (
        ("maxmemory", CRITICAL if "all" in p.policies[0] else WARNING, conf["maxmemory"] == "0"),
        ("maxmemory-policy", CRITICAL if "all" in policy else WARNING, policy not in p.policies),
        ("appendonly", CRITICAL if fsync == "always" or not points else WARNING, logs and not log),
        ("appendonly", INFO, log and not logs),
        ("appendfsync", CRITICAL if now == "no" else WARNING, log and logs and now in weaker),
        ("no-appendfsync-on-rewrite", WARNING, log and logs),
        ("save", INFO if points or log else WARNING, bool(points) != bool(p["save"])),
        ("stop-writes-on-bgsave-error", WARNING, points),
        ("replica-read-only", WARNING, role == "slave"),
        ("min-replicas-to-write", WARNING, logs and replicas and spare == "0"),
        ("repl-backlog-size", WARNING, replicas and int(backlog) < 2**24),
        ("bind", CRITICAL if is_open else WARNING, wide),
    ):
        value = better.get(name, p[name])
        yield (holds and conf.get(name, value) != value, severity, name, f"{name} is "
               f"{conf.get(name) or 'empty'}", f"{p.data} {p.settings[name][1]}",
               f"CONFIG SET {name} {_quoted(value)}")
    for status in "rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status":
        yield (info.get(status, "ok") != "ok", CRITICAL, status, f"{status} is not ok", "Nothing "
               f"newer is on disk. Is it full? (df -h {conf.get('dir')}) Make room, then",
               "BGSAVE" if status[0] == "r" else "BGREWRITEAOF")
    yield (role == "slave" and info["master_link_status"] != "up", CRITICAL, "replica-link", "this "
           "replica has no link to its primary", "What it serves is old, what is new has no copy.",
           f"REPLICAOF {info.get('master_host')} {info.get('master_port')}")
    yield (role == "master" and logs and not replicas, INFO, "no-replica", "no replica", "A disk "
           "may die: backup(), or on a second server", f"REPLICAOF <host> {info.get('tcp_port')}")
    version = info.get("valkey_version", info.get("redis_version", "99.0"))
    number = [int(n) for n in re.findall(r"\d+", version)[:2]]
    yield (number < [7, 2], WARNING if number < [7, 0] else INFO, "version", f"version {version}",
           "Before 7.2 there is no WAITAOF, before 7.0 no support.", "apt-get install redis-server")
    mode, host = "not to be seen from this machine", platform.uname()
    if info.get("os") == f"{host.system} {host.release} {host.machine}" and OVERCOMMIT.exists():
        mode = OVERCOMMIT.read_text().strip()
    yield (info and mode != "1", INFO, "overcommit", f"vm.overcommit_memory is {mode}", "Unless it "
           "is 1 a fork may fail although there is memory.", "sysctl -w vm.overcommit_memory=1")
    yield (used > 2**26 and info["mem_fragmentation_ratio"] < 0.9, WARNING, "swap", "part of it "
           "is swapped out", "Reads wait, and a fork reads it all.", "sysctl -w vm.swappiness=1")
    yield (is_open, CRITICAL if wide else WARNING, "password", "no password", "Who reaches the "
           "port may delete all.", "CONFIG SET requirepass <a secret>")


def _key_checks(r: redis.Redis, p: Profile, sample: int, match: str, big: int) -> Checks:
    seen: list[tuple[int, bytes, int]] = []
    keys = itertools.islice(r.scan_iter(match, 1000), sample)
    while batch := list(itertools.islice(keys, 200)):
        with r.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.ttl(key), pipe.strlen(key), pipe.memory_usage(key)
            told = pipe.execute(raise_on_error=False)  # STRLEN of a list is an error, and no size
        told = [number if isinstance(number, int) else 0 for number in told]
        sizes = [length or memory for length, memory in zip(told[1::3], told[2::3], strict=True)]
        seen += zip(sizes, batch, told[::3], strict=True)
    lasting = sorted(key for _, key, ttl in seen if ttl == -1 and "all" in p.policies[0])
    large = sorted(entry for entry in seen if entry[0] > big)
    for key in lasting[:1]:
        yield (True, WARNING, "no-ttl", f"{len(lasting)} of {len(seen)} keys have no TTL, as "
               + repr(key).lstrip("b"), "What never ends is served long after it was right.",
               f"EXPIRE {_quoted(key)} 86400")
    for size, key, _ in large[-1:]:
        yield (True, WARNING, "big-key", f"{len(large)} of {len(seen)} keys exceed {big} bytes, as "
               f"{repr(key).lstrip('b')}: {size}", "All wait while it is sent: store chunks "
               "of 1 MiB, or trim the stream; then", f"UNLINK {_quoted(key)}")
# fmt: on


# --8<-- [end:audit]
# --8<-- [start:backup]
# A copied dump.rdb may be an hour old, or be replaced while it is copied; who notices on the day
# of the restore? So ask for a snapshot as a replica does: one point in time, over the network,
# with its count of keys and a checksum, and under its name only when all of it is on disk.
TAIL = 512  # bytes behind the RDB: the checksum, and what the snapshot is, as JSON


@dataclass(frozen=True)
class Backup:
    """What a file holds: `keys` (None: not counted, as there are several databases or functions),
    `size` of the RDB in bytes, the `server` and its version; `sha256` of all that.
    """

    path: Path
    sha256: str
    keys: int | None
    size: int
    server: str


def backup(r: Client, path: str | os.PathLike[str], *, timeout_s: float = 60) -> Backup:
    """Store a snapshot of all databases of a running server as one file, readable by its owner.

    It is an RDB, which a server loads as it is, and one line of text behind that. A file that is
    there already is replaced at the end. Of a cluster back up each primary by a client of its own.

    Raises PersistenceError where the server does not give it (fakeredis, most managed servers) or
    is silent for `timeout_s`; then nothing is left.
    """
    if isinstance(r, redis.RedisCluster):
        raise PersistenceError("each primary alone: backup(r.get_redis_connection(node), path)")
    target = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            info, databases = r.info("server"), {*r.info("keyspace")}
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                _receive(r, file, timeout_s, valkey := info.get("valkey_version"))
                size, single = file.tell(), len({*r.info("keyspace"), *databases}) < 2
                server = f"valkey {valkey}" if valkey else f"redis {info['redis_version']}"
                facts = {"keys": _keys(file) if single else None, "size": size, "server": server}
                line = json.dumps(facts).ljust(TAIL - 65).encode() + b"\n"
                file.write(_digest(file, size, line) + line)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, target)
        handle = os.open(target.parent, os.O_RDONLY)
        os.fsync(handle)  # the name, too
        os.close(handle)
    except (OSError, ValueError, redis.RedisError) as error:
        raise PersistenceError(f"no backup at {target}: {error}") from error
    return verify(target)


def _receive(r: redis.Redis, file: IO[bytes], timeout_s: float, valkey: str | None) -> None:
    connection: Any = r.connection_pool.get_connection()
    try:
        # no file there; no writes behind it; Valkey writes all types for its own version only
        options = ["version", valkey] if valkey else []
        connection.send_command("REPLCONF", "capa", "eof", "rdb-only", "1", *options)
        connection.read_response()
        connection.send_command("SYNC")
        connection._sock.settimeout(timeout_s)
        with connection._sock.makefile("rb") as stream:
            head = next((line for line in stream if line != b"\n"), b"")  # \n: a sign of life
            if not head.startswith(b"$"):
                raise ValueError(f"the server gives no snapshot: {head.decode().strip()}")
            mark = head[5:45] if head.startswith(b"$EOF:") else b""
            left, held = 0 if mark else int(head[1:]), b""
            while held != mark if mark else left:
                block = stream.read1(1 << 20 if mark else min(left, 1 << 20))
                if not block:
                    raise ValueError("the server closed the connection in the middle")
                left, held = left - len(block), held + block
                file.write(held[: len(held) - len(mark)])
                held = held[len(held) - len(mark) :]
    finally:
        connection.disconnect()
        r.connection_pool.release(connection)


def _keys(file: IO[bytes]) -> int | None:
    file.seek(0)  # the RDB begins with facts; then, for a database, its number and its size
    found = re.search(rb"aof-base\xc0.(\xff|\xfe.\xfb(.{9}))", file.read(1000), re.DOTALL)
    if not found or not found[2]:
        return 0 if found else None
    first, wide = found[2][0], 9 if found[2][0] == 0x81 else 5
    if first < 0x80:
        return first if first < 0x40 else (first & 63) << 8 | found[2][1]
    return int.from_bytes(found[2][1:wide])


def _digest(file: IO[bytes], size: int, line: bytes) -> bytes:
    file.seek(0)
    digest = hashlib.sha256(line)
    for at in range(0, size, 1 << 20):
        digest.update(file.read(min(1 << 20, size - at)))
    return digest.hexdigest().encode()


def verify(path: str | os.PathLike[str]) -> Backup:
    """Read the whole file and return what it holds; DamagedBackup unless it is what was stored."""
    try:
        with open(path, "rb") as file:
            size = file.seek(-TAIL, os.SEEK_END)
            digest, line = file.read(64), file.read()
            made = Backup(Path(path), digest.decode(), **json.loads(line))
            if digest != _digest(file, size, line) or made.keys not in (None, _keys(file)):
                raise ValueError("its checksum or number of keys differs")
    except (OSError, ValueError, TypeError) as error:
        raise DamagedBackup(f"{path} is cut off, changed, or no backup: {error}") from error
    return made


def restore(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Backup:
    """Make `folder` the `dir` of a fresh server that has the backup's data; then start it there.

    It serves a server with `appendonly` and one without, of the usual file names, and of the same
    version or a newer one. Into a running, empty server it comes by REPLICAOF that one, then
    REPLICAOF NO ONE. DamagedBackup or PersistenceError, and nothing done, if verify() refuses the
    file, the folder has data, or the disk is full. It needs a file system with hard links.
    """
    made, target = verify(path), Path(folder)
    log, snapshot = target / "appendonlydir", target / "dump.rdb"
    new = [place for place in (target, *target.parents) if not os.path.exists(place)]
    try:
        if log.exists() or snapshot.exists():
            raise FileExistsError("it has data: name an empty folder, or move that away")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".restore.") as scratch:
            (half := Path(scratch, log.name)).mkdir()
            base = shutil.copyfile(path, half / "appendonly.aof.1.base.rdb")
            os.truncate(base, made.size)
            (half / "appendonly.aof.manifest").write_text(f"file {base.name} seq 1 type b\n")
            os.link(base, snapshot)  # a server replaces these two, it never writes into them
            try:
                half.rename(log)
            except OSError:
                snapshot.unlink()
                raise
    except OSError as error:
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise PersistenceError(f"not restored into {target}: {error}") from error
    return made


# --8<-- [end:backup]
# --8<-- [start:durable-write]
# "OK" means: in memory. Whether it is on disk depends on settings that the writer does not see,
# and WAITAOF on another connection, or on another node, speaks of other writes than ours.
PROMISES = {
    "fsynced": "on the disk of the server: it survives a power cut",
    "written": "in the log, no fsync known: a power cut, or kill -9 on a slow disk, may lose it",
    "memory": "only in memory: a crash before the next snapshot loses it",
    "unknown": "the server does not say what it keeps",
}


@dataclass(frozen=True)
class Durability:
    """What is known of a write: the `level`, one of PROMISES, and the `promise` in words; the
    `replies` of the write; how many `replicas` have fsynced it, too.
    """

    level: str
    fsynced: bool
    promise: str
    replies: list[Any]
    replicas: int


def durable_write(
    r: Client, write: Any, *args: Any, key: Any = None, replicas: int = 0, timeout_s: float = 3
) -> Durability:
    """Write, wait for the fsync of the server (and of `replicas`), and return what is known.

    `write` is a command with its `args`, such as "SET", key, value; or a function that is given a
    pipeline. On a cluster all keys are of one slot: that of `key`, else of the first of `args`.
    After `timeout_s` (shorter than the client's socket_timeout) the level is what is reached.

    Raises what the write itself raises. It takes one round trip, and is no transaction.
    """
    node: Any = r
    if isinstance(r, redis.RedisCluster):
        if key is None and not args:
            raise PersistenceError("on a cluster say key=..., which names the node")
        node = node.get_redis_connection(node.get_node_from_key(args[0] if key is None else key))
    with node.pipeline(transaction=False) as pipe:
        write(pipe) if callable(write) else pipe.execute_command(write, *args)
        pipe.config_get("*append*")
        pipe.waitaof(1, replicas, int(timeout_s * 1000))
        *replies, conf, synced = pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    names = "appendonly", "appendfsync", "no-appendfsync-on-rewrite"
    log, *rest = [conf.get(name) if isinstance(conf, dict) else None for name in names]
    here, there = synced if isinstance(synced, list) else (rest == ["always", "no"], 0)
    level = "memory" if log == "no" or "appendonly is" in str(synced) else "unknown"
    if log == "yes" or isinstance(synced, list):
        level = "fsynced" if here else "written"
    promise = PROMISES[level] + f"; fsynced by {there} of {replicas} replicas" * bool(replicas)
    return Durability(level, level == "fsynced", promise, replies, there)


# --8<-- [end:durable-write]
# --8<-- [start:usage]
# An audit that nobody runs finds nothing: cron and CI go by the exit code.
def main(argv: list[str]) -> int:
    """Audit a server; return 0 (nothing, or hints), 1 (warnings), 2 (critical), 3 (cannot)."""
    words = [word for word in argv if word != "--json"]
    try:
        if len(words) != 3 or words[0] != "audit":
            raise PersistenceError("usage: persistence.py audit REDIS_URL PROFILE [--json]")
        findings = audit(redis.Redis.from_url(words[1]), words[2])
    except (redis.RedisError, OSError, ValueError, PersistenceError) as error:
        print(f"persistence: {' '.join(str(error).split())}", file=sys.stderr)
        return 3
    texts = [f"{f.severity:8} {f.what}\n  why: {f.why}\n  mend: {f.command}" for f in findings]
    print(json.dumps([*map(asdict, findings)], indent=2) if "--json" in argv else "\n".join(texts))
    return max((RANK(finding.severity) for finding in findings), default=0)


def demo(r: redis.Redis) -> None:
    """Compare two profiles, audit a cache's keys, and write with a promise."""
    for name in "cache", "params":
        lines = [s for s in render(name).splitlines() if s.startswith(("maxmem", "append", "save"))]
        print(f"{name}: {'; '.join(lines)}")
    for i in range(20):
        r.set(f"demo:persistence:{i}", bytes(5 << 20 if i == 9 else 9), ex=60 if i > 2 else None)
    for finding in audit(r, "cache", match="demo:persistence:*"):
        if finding.name in ("no-ttl", "big-key"):
            print(f"{finding.severity}: {finding.what}")
    written = durable_write(r, "SET", "demo:persistence:0", "acknowledged", "EX", 60)
    print("durable_write says what it knows:", written.level in PROMISES)
    r.unlink(*r.scan_iter("demo:persistence:*"))
    print("What is lost in a crash is chosen beforehand, by settings that fit the data's worth.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os
    import sys

    if sys.argv[1:]:
        raise SystemExit(main(sys.argv[1:]))
    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
