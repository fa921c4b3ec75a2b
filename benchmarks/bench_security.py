"""Benchmark of security: what sealing, signing and TLS cost, and what a user may do.

Peers: none beyond the cookbook's own requirements. TLS is measured on Debian's redis-server.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import redis
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.harness import Benchmark
from recipes import GuardedServer, connect, free_port
from recipes.security import (
    NEEDS,
    ROLES,
    Sealed,
    Signed,
    make_test_certificates,
    render_acl,
    rules,
    tls_client,
    tls_context,
)

KEY = bytes(range(32))
SMALL, LARGE = 1 << 10, 1 << 20


def main() -> None:
    r = connect()
    bench = Benchmark("security", "Security, measured", r)
    rights(bench, r)
    needs(bench)
    for section, size, count in (("small", SMALL, 2000), ("large", LARGE, 100)):
        values(bench, r, section, size, count)
    over_tls(bench)
    bench.write()


def rights(bench: Benchmark, r: redis.Redis) -> None:
    """Ask the server how many commands each user may run."""
    for line in render_acl("bench").splitlines():
        r.execute_command("ACL SETUSER", *line.split()[1:])
    reader = f"reset {rules('training_data/read', 'bench')}"
    r.execute_command("ACL SETUSER", "rules(training_data/read)", *reader.split())
    users = ["default", *ROLES, "rules(training_data/read)"]
    calls = [*every_command(r)]
    rows = []
    for user in users:
        able = sum("to run" not in answer(r, user, call) for call in calls)
        read, write = (
            answer(r, user, call) == "OK"
            for call in (["GET", "of-another"], ["SET", "of-another", "1"])
        )
        does = "read and overwrite" if write else "read" if read else "neither"
        rows.append((user, f"{able} of {len(calls)}", does))
        if user != "default":
            r.acl_deluser(user)
    bench.table(
        "naive",
        "What a leaked password opens: commands that the server allows each user (asked by ACL "
        "DRYRUN), and whether it reaches keys of others.",
        ("user", "commands", "reads or overwrites keys of others"),
        rows,
    )


def every_command(r: redis.Redis) -> Iterator[list[str]]:
    """Each command and subcommand, with as many arguments as it wants."""
    connection = r.connection_pool.get_connection()
    connection.send_command("COMMAND")
    rows = list(connection.read_response())
    r.connection_pool.release(connection)
    while rows:
        name, arity, _, *_, subcommands = rows.pop()[:10]
        rows += subcommands
        if not subcommands:
            words = name.decode().split("|")
            yield [*words, *["bench"] * (abs(arity) - len(words))]


def answer(r: redis.Redis, user: str, call: list[str]) -> str:
    try:
        reply: Any = r.execute_command("ACL DRYRUN", user, *call)
    except redis.ResponseError as error:
        return str(error)
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def needs_rows(entries: Mapping[str, str] = NEEDS) -> list[tuple[str, str, str]]:
    """The table of NEEDS: recipe, key patterns and channels, commands."""
    rows = []
    for entry, text in entries.items():
        commands = [rule[1:].upper() for rule in text.split() if rule[0] == "+"]
        places = [f"`{rule}`" for rule in text.split() if rule[0] != "+"]
        rows.append((entry, " ".join(places), ", ".join(commands).replace("|", " ")))
    return rows


def needs(bench: Benchmark) -> None:
    bench.table(
        "needs",
        "What each recipe uses, as MONITOR and INFO commandstats saw it. `~` is reading and "
        "writing, `%R~` reading only, `%W~` writing only, `&` a channel.",
        ("recipe", "keys and channels", "commands"),
        needs_rows(),
    )


def values(bench: Benchmark, r: redis.Redis, section: str, size: int, count: int) -> None:
    """Write and read values of one size."""
    value, sealed, signed, raw = bytes(size), Sealed(KEY), Signed(KEY), AESGCM(KEY)
    key = f"bench-security:{section}"

    def plain() -> None:
        for _ in range(count):
            r.set(key, value)
            r.get(key)

    def boxed(box: Sealed | Signed) -> None:
        for i in range(count):
            r.set(key, box.encode(value, key, i))
            box.decode(r.get(key), key, i)

    def by_hand() -> None:
        for i in range(count):
            nonce = i.to_bytes(12)
            r.set(key, nonce + raw.encrypt(nonce, value, None))
            stored: Any = r.get(key)
            raw.decrypt(stored[:12], stored[12:], None)

    def alone(box: Sealed | Signed) -> None:
        for i in range(count):
            box.decode(box.encode(value, key, i), key, i)

    bench.compare(
        section,
        f"SET and GET of values of {size >> 10} KiB, one at a time",
        {
            "Sealed": lambda: boxed(sealed),
            "Signed": lambda: boxed(signed),
            "AES-256-GCM by hand, bound to nothing": by_hand,
            "naive: in clear, unsigned (the limit)": plain,
            "Sealed, without Redis": lambda: alone(sealed),
            "Signed, without Redis": lambda: alone(signed),
        },
        against="naive: in clear, unsigned (the limit)",
        unit="MB",
        amount=count * size / 1e6,
        repeats=5,
    )
    r.unlink(key)


def over_tls(bench: Benchmark) -> None:
    """The same server with and without TLS."""
    binary = shutil.which("redis-server")
    if binary is None:
        bench.note("TLS is left out: redis-server (with TLS, as in Debian) is not installed.")
        return
    with tempfile.TemporaryDirectory() as folder:
        files, port = make_test_certificates(Path(folder)), free_port()
        server = GuardedServer(
            binary, "--save", "", "--tls-port", str(port), "--tls-cert-file",
            str(files.server_cert), "--tls-key-file", str(files.server_key),
            "--tls-ca-cert-file", str(files.ca),
        )  # fmt: skip
        try:
            measure_tls(bench, server, port, tls_context(files.ca, *files[3:]))
        finally:
            server.stop()


def measure_tls(bench: Benchmark, server: GuardedServer, port: int, context: Any) -> None:
    clients = {
        "plain": redis.Redis(port=server.port),
        "TLS": tls_client("127.0.0.1", port, context),
    }
    clients["plain"].set("value", bytes(LARGE))

    def get(r: redis.Redis) -> None:
        for _ in range(100):
            r.get("value")

    def ping(r: redis.Redis) -> None:
        for _ in range(1000):
            r.ping()

    def login(r: redis.Redis) -> None:
        for _ in range(50):
            r.connection_pool.disconnect()
            r.ping()

    for section, title, work, unit, amount in (
        ("tls-connect", "Connect with a client certificate, and PING", login, "connections", 50),
        ("tls-ping", "PING on an open connection", ping, "requests", 1000),
        ("tls-get", "GET of 1 MiB", get, "MB", 100 * LARGE / 1e6),
    ):
        bench.compare(
            section,
            f"{title} (Debian's redis-server)",
            {"TLS": lambda w=work: w(clients["TLS"]), "plain": lambda w=work: w(clients["plain"])},
            against="plain",
            unit=unit,
            amount=amount,
            repeats=5,
        )
    for client in clients.values():
        client.close()


if __name__ == "__main__":
    main()
