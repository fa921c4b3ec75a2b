"""Give each program only the rights it needs, and trust no byte from Redis.

Use when: more than one program, team or network reaches the server; values are worth stealing or
    forging (models, features, personal data); or an auditor asks who may do what.
Not when: a server that only this machine reaches holds what anyone may read and change. Keys,
    certificates and passwords themselves: a secrets manager (Vault, a cloud's KMS), not this file.
Keys: none of its own. ROLES are ACL users; a sealed or signed value is a string, field or chunk
    that lives as long as the caller says, 30 to 70 bytes longer than what is in it.
Guarantees: a user can do what its line says and nothing else; the lines of the cookbook's recipes
    are measured, not guessed. A sealed value that was changed, moved to another Redis key, played
    back from an older version or sealed by another key is refused (AES-256-GCM); a signed one too
    (HMAC-SHA256), but anyone can read it. Nobody's password fails while it is rotated.
    Who can write may still delete; nothing here keeps a secret from who has the keys.
Cost: no round trip: a value is encrypted or hashed once, and copied twice. ACLs: the server checks
    each command against the user's rules.
Needs: Redis 7.0+ or Valkey 7.2+, TLS built in for TLS; pip install redis numpy cryptography
Run: python recipes/security.py seals an array, and shows what is refused and what a reader may.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis
from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
Client = redis.Redis | redis.RedisCluster


class SecurityError(Exception):
    """Something is not as safe as it was asked to be; the message says what to do."""


class Refused(SecurityError, ValueError):
    """This value is not what a holder of the key wrote for this place. Do not use it."""


class UnknownKey(Refused):
    """The value names a key that is not in the ring."""


class TlsRefused(SecurityError):
    """The server was not trusted, or did not trust us. (Not retried: it would not help.)"""


# --8<-- [start:acl]
# The default user may do everything, so one leaked password, or none, is the whole server. These
# rules are what each recipe was seen to use, no more (a test records it and compares). NAME is the
# name of the data set, store, job or model; after a slash stands what one side of a recipe needs.
# (recommend(explore=...) needs two: /recommend, and in brackets, as a selector, /explore.)
NEEDS: dict[str, str] = {
    "training_data": "~td:NAME:* ~td:{NAME} ~td:{NAME}:* &td:{NAME}:* +del +eval +exists +expire +get +hget +hmget +hset +persist +pexpire +pttl +pubsub|numsub +scan +set +setrange +subscribe +unlink",  # noqa: E501
    "training_data/read": "%R~td:NAME:* %R~td:{NAME} +get +hmget",
    "tensor_compression": "~NAME +del +get +set +strlen",
    "model_params": "~params:NAME:* ~{params:NAME}:* +eval +get +hdel +hexists +hget +hgetall +hkeys +hscan +hset +hsetnx +hstrlen +hvals +incr +sadd +set +srandmember +srem +strlen +time +unlink +xadd +xrange +xread +xrevrange",  # noqa: E501
    "model_params/load": "%R~params:NAME:* ~{params:NAME}:* +eval +get +hexists +hget +hscan +hstrlen +strlen +xrange +xread +xrevrange",  # noqa: E501
    "training_checkpoints": "~checkpoints:NAME:* ~{checkpoints:NAME}:* +del +eval +get +hget +hincrby +hset +llen +lpop +lpos +lrange +lrem +persist +pexpire +pttl +rpush +sadd +set +smembers +srem +sscan +strlen +unlink",  # noqa: E501
    "distributed_training": "~dt:{NAME:* ~dt:{NAME}:* +eval +exec +get +multi +pexpire +scan +set +time +unlink +xadd +xread +xrevrange +zadd +zrange +zrem +zremrangebyscore +zscore",  # noqa: E501
    "parameter_server": "~ps:NAME:* ~ps:{NAME}:* +eval +exec +get +hget +hset +multi +pexpire +scan +set +time +unlink +xadd +xrange +xread +xrevrange +xtrim +zadd +zrange +zrem +zscore",  # noqa: E501
    "distributed_prediction": "~predict:{NAME}:* +eval +exists +expire +hdel +hexists +hget +hincrby +hlen +hmget +hscan +hset +unlink +xack +xadd +xclaim +xdel +xgroup|create +xpending +xrange +xreadgroup",  # noqa: E501
    "distributed_prediction/work": "~predict:{NAME}:* +eval +exists +hget +hlen +hset +xack +xclaim +xdel +xpending +xreadgroup",  # noqa: E501
    "realtime_training": "~NAME ~NAME:* ~{NAME}:* +del +eval +evalsha +exec +get +hget +hgetall +hincrby +hmget +hset +multi +script|load +set +unlink +xadd +xlen +xrange +xread +xrevrange +xtrim",  # noqa: E501
    "realtime_training/emit": "%W~NAME:* +xadd",
    "realtime_training/predict": "%R~{NAME}:* +exec +hget +hgetall +hmget +multi",
    "realtime_prediction": "~NAME:* +eval +get +getrange +mget +scan +set +unlink",
    "realtime_prediction/get": "%R~NAME:* +mget",
    "realtime_recommendation": "~{NAME}:* +eval +evalsha +expire +hdel +hexists +hget +hincrby +sadd +scan +smembers +srem +time +unlink +zadd +zcard +zmscore +zpopmin +zremrangebyrank +zrevrange +zscore",  # noqa: E501
    "realtime_recommendation/recommend": "~{NAME}:* +eval +evalsha +hget +time +zmscore +zrevrange +zscore",  # noqa: E501
    "realtime_recommendation/explore": "~{NAME}:offered:* ~{NAME}:shown +eval +evalsha +expire +hexists +hincrby +sadd +smembers +srem",  # noqa: E501
    "realtime_language_model": "~{NAME}:* +del +eval +exec +exists +expire +get +hdel +hget +hgetall +hincrby +hmget +hset +hsetnx +multi +scan +set +unlink +xadd +xrange +xread +zadd +zcard +zcount +zmscore +zrangebyscore +zrem +zrevrange",  # noqa: E501
    "realtime_language_model/predict": "%R~{NAME}:* %W~{NAME}:cancel ~{NAME}:tokens +exec +exists +expire +hgetall +hmget +multi +set +xadd +xrange +xread +zcard +zcount +zmscore +zrevrange",  # noqa: E501
    "persistence": "~NAME:* +acl|getuser +bgsave +config|get +config|rewrite +config|set +info +memory|usage +replconf +scan +set +strlen +sync +ttl +unlink +waitaof",  # noqa: E501
    "persistence/audit": "%R~NAME:* +acl|getuser +config|get +info +memory|usage +scan +strlen +ttl",  # noqa: E501
    "persistence/durable_write": "%W~NAME:* +config|get +set +waitaof",
    "high_availability": "%W~NAME:* ~NAME +exec +get +incrby +multi +set +unlink +wait",
    "security": "~NAME +get +set +unlink",
}
# What redis-py sends by itself, also to a cluster. (A rule may not name CLIENT SETINFO, which Redis
# 7.0 does not know.) AUTH and HELLO need no right.
CONNECT = (
    "+client -@admin -@dangerous -client|tracking "  # it would tell the names of others' keys
    "+ping +command +cluster|slots +asking +readonly"
)
DATA = "-@dangerous -@scripting -scan -randomkey -dbsize"  # keys of others, by name


class Role(NamedTuple):
    """What a user is for: entries of NEEDS, rules for keys of its own, rules without keys."""

    does: str
    needs: tuple[str, ...] = ()
    own: str = ""
    server: str = ""


ROLES = {
    "trainer": Role("reads data, trains, saves checkpoints", (
        "training_data/read", "training_checkpoints", "distributed_training", "parameter_server",
        "realtime_training"), f"~NAME +@read +@write {DATA}"),
    "server": Role("loads models and features, answers requests", (
        "model_params/load", "realtime_prediction/get", "distributed_prediction/work",
        "realtime_training/predict", "realtime_recommendation/recommend",
        "realtime_recommendation/explore", "realtime_language_model/predict"),
        f"%R~NAME +@read {DATA}"),
    "publisher": Role("writes data, features, events and models", ("training_data", "model_params",
        "distributed_prediction", "realtime_training/emit", "realtime_prediction",
        "realtime_recommendation", "realtime_language_model"), f"~NAME +@read +@write {DATA}"),
    "monitor": Role("watches sizes, ages and load; sees no value", (),
        "%R~NAME +exists +type +ttl +pttl +strlen +llen +scard +zcard +hlen +xlen +xpending "
        "+xinfo|groups +xinfo|consumers +memory|usage",  # XINFO STREAM shows entries
        "+info +dbsize +lastsave +role +latency|latest +latency|history +slowlog|len "
        "+memory|stats +client|list +cluster|info"),
    "admin": Role("manages users, settings and nodes; no keys, but it can take any right", (), "",
        "+acl +config +client +info +dbsize +command +latency +slowlog +memory|stats +role "
        "+cluster +lastsave +bgsave +bgrewriteaof +replicaof +failover +shutdown"),
}  # fmt: skip


def rules(recipe: str, *names: str) -> str:
    """Return an entry of NEEDS with these names (or glob patterns) in place of NAME."""
    if recipe not in NEEDS:
        raise SecurityError(f"{recipe!r} is not in NEEDS: {', '.join(NEEDS)}")
    return _named(NEEDS[recipe], names)


def _named(text: str, names: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(t.replace("NAME", n) for t in text.split() for n in names))


def render_acl(
    namespace: str, roles: Iterable[str] = tuple(ROLES), *,
    passwords: Mapping[str, str] | None = None, user: str = "{}", default_off: bool = False,
) -> str:  # fmt: skip
    """Return the lines of an ACL file: a user for each role, for keys named NAMESPACE, NAMESPACE:*
    and NAMESPACE/*, and the recipes' keys of data sets, models and jobs of these names.

    A line without its first word is also the arguments of ACL SETUSER, and may be applied again.
    passwords: role -> password; only its SHA-256 is written. A role without one cannot log in
    until ACL SETUSER or rotate_password gives it one. user: how users are named, such as
    "shop-{}". default_off: also turn the default user off (keep an admin with a password).
    """
    name, lines = namespace.rstrip(":/"), ["user default off resetpass"] if default_off else []
    if not re.fullmatch(r"[\w.:/-]+", name, re.ASCII):
        raise SecurityError(f"a namespace is letters, digits and any of _.-:/, not {namespace!r}")
    roles, passwords = (roles,) if isinstance(roles, str) else tuple(roles), passwords or {}
    if unknown := [role for role in (*roles, *passwords) if role not in ROLES]:
        raise SecurityError(f"{unknown[0]!r} is not a role: {', '.join(ROLES)}")
    for role in roles:
        password = passwords.get(role, "").encode()
        secret = f"resetpass #{hashlib.sha256(password).hexdigest()} " if password else ""
        lines.append(f"user {user.format(role)} on {secret}{_rights(ROLES[role], name)}")
    return "\n".join([*lines, ""])


def _rights(role: Role, name: str) -> str:
    # A selector in brackets for each recipe: together they would allow each recipe's commands on
    # the keys of all the others, for example to whoever may load a model, to overwrite it.
    names = (name, f"{name}[:/]*")
    sets = [_named(text, names) for text in (*(NEEDS[entry] for entry in role.needs), role.own)]
    start = f"resetkeys resetchannels clearselectors -@all {CONNECT} {role.server}".strip()
    return " ".join([start, *(f"({text})" for text in sets if text)])


# --8<-- [end:acl]
# --8<-- [start:check]
# Rules rot: someone adds `~*` in the night to see whether "it is the ACL". So look at the server
# itself; ACL DRYRUN asks it what a user may do, without doing it.
@dataclass(frozen=True)
class Finding:
    """What is wrong: severity "critical" or "warning", what, why it matters, what mends it."""

    severity: str
    what: str
    why: str
    mend: str


FINDINGS = [Finding(*line.split(" | ")) for line in """\
critical | user {} needs no password | whoever is there is this user | ACL SETUSER {} resetpass >NEW
critical | user {} is not what its role says | it was changed or is missing | render_acl again
warning | user {} has several passwords | a rotation was cut short | rotate_password(r, "{}", ...)
warning | user {} may use every command, key or channel | its bugs, too | give it a role, or rules()
warning | user {} may use dangerous commands | a leak ends the server | ACL SETUSER {} -@dangerous
warning | no aclfile is set | a restart may undo ACL SETUSER | set aclfile in redis.conf, ACL SAVE
warning | no tls-port is set | passwords are sent in clear | set tls-port, tls-*-file, and port 0\
""".splitlines()]  # fmt: skip
DANGEROUS = ("FLUSHALL", "KEYS *", "CONFIG SET dir /", "SHUTDOWN", "ACL SETUSER x", "MONITOR")


def check_acl(
    r: Client, namespace: str | None = None, roles: Iterable[str] = tuple(ROLES), *,
    user: str = "{}",
) -> list[Finding]:  # fmt: skip
    """Return what is wrong with the users of a live server (each node of a cluster), worst first.

    With `namespace`, also which users differ from render_acl(namespace, roles, user=user); those
    that do not are trusted. `r` needs the rights of the role admin; else NoPermissionError. To
    see how the server spells a role, it makes a user for a moment that cannot log in.
    """
    found: set[Finding] = set()
    rendered = render_acl(namespace, roles, user=user).splitlines() if namespace else []
    for node in _nodes(r):
        there = dict(map(_parse, node.acl_list()))
        wanted = {line.split()[1]: _spelled(node, line.split()[2:]) for line in rendered}
        for name in there.keys() | wanted.keys():
            wrong = _wrong(node, name, there.get(name), wanted.get(name))
            found |= {Finding(*(text.replace("{}", name) for text in vars(FINDINGS[i]).values()))
                      for i, is_so in enumerate(wrong) if is_so}  # fmt: skip
        for setting, finding in zip(("aclfile", "tls-port"), FINDINGS[-2:], strict=True):
            with contextlib.suppress(redis.ResponseError):  # renamed or forbidden, as in a cloud
                if node.config_get(setting).get(setting) in ("", "0", None):
                    found.add(finding)
    return sorted(found, key=lambda finding: (finding.severity, finding.what))


def _nodes(r: Client) -> list[Any]:
    """ACLs are not replicated: each node of a cluster has its own."""
    if isinstance(r, redis.RedisCluster):
        return [r.get_redis_connection(node) for node in r.get_nodes()]  # type: ignore[no-untyped-call]
    return [r]


def _spelled(node: Any, rights: list[str]) -> list[str]:
    probe = f"check-{secrets.token_hex(8)}"
    try:
        node.execute_command("ACL SETUSER", probe, *rights, "off")
        return dict(map(_parse, node.acl_list()))[probe][1]
    finally:
        node.acl_deluser(probe)


def _parse(line: str) -> tuple[str, tuple[set[str], list[str]]]:
    """Return a user's name, its flags and passwords, and its rights."""
    name, *tokens = re.findall(r"\([^)]*\)|[^\s()]+", line.removeprefix("user "))
    rights = [token for token in tokens if token[0] in "+-~%&("]
    return name, ({*tokens} - {*rights}, rights)


def _wrong(node: Any, name: str, there: Any, wanted: Any) -> Iterator[bool]:
    """Yield for each of FINDINGS about users whether it is so."""
    flags, rights = there or (set(), [])
    is_right, words = rights == wanted, {*re.findall(r"[^\s()]+", " ".join(rights))}
    is_open = "on" in flags and not is_right
    yield "on" in flags and "nopass" in flags
    yield wanted is not None and not is_right
    yield "on" in flags and sum(flag[0] == "#" for flag in flags) > 1
    yield is_open and bool({"+@all", "~*", "%RW~*", "%R~*", "%W~*", "&*"} & words)
    yield is_open and any(_may(node, name, command) for command in DANGEROUS)


def _may(node: Any, name: str, command: str) -> bool:
    with contextlib.suppress(redis.ResponseError):  # this server does not know it
        return bool(node.execute_command("ACL DRYRUN", name, *command.split()) in (b"OK", "OK"))
    return False


# --8<-- [end:check]
# --8<-- [start:passwords]
# To change a password in one step locks out all who have the old one. A user may have several: so
# add the new one, let the clients switch, then remove the old one. Connections made before stay.
class Credentials(redis.CredentialProvider):
    """For `credential_provider=`: each new connection logs in with the password of that moment."""

    def __init__(self, user: str, password: str) -> None:
        self._pair = (user, password)

    def get_credentials(self) -> tuple[str, str]:
        """Return (user, password); redis-py asks at each connect."""
        return self._pair

    def switch(self, password: str) -> None:
        """Use this password from now on."""
        self._pair = (self._pair[0], password)


def rotate_password(
    r: Client, user: str, switch: Callable[[str], object], *,
    new: str | None = None, grace_s: float = 2.0,
) -> str:  # fmt: skip
    """Give `user` a new password while nobody fails, and return it.

    `switch(new)` tells all clients (Credentials.switch, a secrets manager) and returns when they
    know; `grace_s` more seconds are for logins under way. If it raises, the old password stays
    and the new one goes, unless it was valid before. `r` may be a cluster; it needs the role
    admin. Run again after a crash.
    """
    new = secrets.token_urlsafe(32) if new is None else new
    nodes, fresh = _nodes(r), hashlib.sha256(new.encode()).hexdigest()
    there = [node.acl_getuser(user) for node in nodes]
    if not new or not all(there):
        raise SecurityError(f"empty password, or user {user!r} is not on every node: render_acl")
    _set_user(nodes, user, f"#{fresh}")
    try:
        switch(new)
    except BaseException:
        for node, before in zip(nodes, there, strict=True):
            if fresh not in before["passwords"]:  # else it may be the only one
                _set_user([node], user, "nopass" if "nopass" in before["flags"] else f"!{fresh}")
        raise
    time.sleep(grace_s)
    _set_user(nodes, user, "resetpass", f"#{fresh}")  # one command: there is always a password
    return new


def _set_user(nodes: list[Any], user: str, *change: str) -> None:
    for node in nodes:
        node.execute_command("ACL SETUSER", user, *change)
        with contextlib.suppress(redis.ResponseError):  # no ACL file: check_acl tells
            node.execute_command("ACL SAVE")


# --8<-- [end:passwords]
# --8<-- [start:tls]
# Without TLS passwords and values are there to read on the way; with TLS that does not verify,
# for whoever stands in between. A refused handshake tells a code: here it tells what to do.
ADVICE = (
    ("hostname mismatch|ip address mismatch|doesn't match", "the server's certificate is for other "
     "host names: connect by one of those, or issue it with this one as subjectAltName"),
    ("certificate has expired|certificate expired|not yet valid", "check the clocks, and renew the "
     "certificate that has expired: the server's, or, if it sent an alert, this client's"),
    ("alert unknown ca|alert bad certificate|decrypt error", "the server does not know who signed "
     "this client's certificate: use one of the CA in its tls-ca-cert-file"),
    ("self.signed|unable to get|verify failed", "another CA than yours signed the server's "
     "certificate: give the right one as ca=; never turn verification off"),
    ("wrong.version|record layer|handshake op", "this port speaks no TLS: use tls-port"),
    ("certificate.required|handshake failure", "the server wants a client certificate: give cert= "
     "and key=, of the CA in its tls-ca-cert-file"),
)  # fmt: skip


def tls_context(
    ca: str | Path, cert: str | Path | None = None, key: str | Path | None = None
) -> ssl.SSLContext:
    """Return a client's context: TLS 1.2 or later, only this CA, the host name is verified.

    PEM files; `cert` and `key` say who the client is. Raises TlsRefused if a file is missing or
    cannot be used.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
        if cert is not None or key is not None:
            context.load_cert_chain(str(cert), str(key or cert))
    except OSError as error:
        raise TlsRefused(f"{ca, cert, key}: {error}: give PEM files, the key of cert") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class TlsConnection(redis.SSLConnection):
    """A connection by a context of one's own, that says why it was refused."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self._context = context

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        return self._context.wrap_socket(sock, server_hostname=self.host)

    def connect(self) -> None:
        """Connect and log in; raises TlsRefused, which says what to do."""
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            why = "" if isinstance(error, redis.AuthenticationError) else self._why()
            for words, advice in ADVICE:
                if re.search(words, why, re.IGNORECASE):
                    raise TlsRefused(f"{self.host}:{self.port}: {advice} ({why})") from error
            raise

    def _why(self) -> str:
        # In TLS 1.3 the server looks at our certificate after we think that all is well: its
        # alert comes with its first answer, unless a write of ours failed before. So try again.
        try:
            address = (self.host, self.port)
            with socket.create_connection(address, 2) as s, self._wrap_socket_with_ssl(s) as tls:
                return str(tls.recv(1))
        except OSError as error:
            return str(error)


def tls_client(host: str, port: int, context: ssl.SSLContext, **options: Any) -> redis.Redis:
    """Return a client over TLS; `options` are those of a redis.ConnectionPool."""
    options |= {"connection_class": TlsConnection, "host": host, "port": port, "context": context}
    return redis.Redis.from_pool(redis.ConnectionPool(**options))


class Certificates(NamedTuple):
    """PEM files of a CA, and of the server and the client that it signed."""

    ca: Path = Path("ca.crt")
    server_cert: Path = Path("server.crt")
    server_key: Path = Path("server.key")
    client_cert: Path = Path("client.crt")
    client_key: Path = Path("client.key")


def make_test_certificates(
    folder: str | Path, *, hosts: Iterable[str] = ("localhost", "127.0.0.1"), days: float = 1
) -> Certificates:
    """Write certificates for tests (the CA's key is thrown away) and return their paths.

    They end in `days`; below 0 they have ended already. Not for production: use your CA.
    """
    found = Certificates(*(Path(folder) / name for name in Certificates._field_defaults.values()))
    ca_key, ca_name = ec.generate_private_key(ec.SECP256R1()), _name("test CA")
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(host)) if re.fullmatch(r"[\d.]+|.*:.*", host)
        else x509.DNSName(host) for host in hosts]  # fmt: skip

    def issue(path: Path, title: str, key: ec.EllipticCurvePrivateKey, end: dt.datetime) -> None:
        builder = x509.CertificateBuilder(
            ca_name, _name(title), key.public_key(), x509.random_serial_number(),
            min(now, end) - dt.timedelta(days=1), end,
        ).add_extension(x509.BasicConstraints(key is ca_key, None), critical=True)  # fmt: skip
        if title == "server":
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        path.write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(PEM))

    found.ca.parent.mkdir(parents=True, exist_ok=True)
    issue(found.ca, "test CA", ca_key, now + dt.timedelta(days=3650))
    for cert, secret in found[1:3], found[3:]:
        key = ec.generate_private_key(ec.SECP256R1())
        issue(cert, cert.stem, key, now + dt.timedelta(days=days))
        secret.touch(0o600)
        secret.write_bytes(key.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    return found


def _name(title: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])


# --8<-- [end:tls]
# --8<-- [start:seal]
# Encryption on the way and rights do not help once somebody writes to Redis, or reads its disk. So
# what leaves this process is closed, together with where it belongs: its Redis key and version are
# not stored but authenticated, so a value that is moved, or an old one put back, does not open.
#   magic (4 bytes), version (8), length of the key id (1), key id, nonce (12) or tag (32), the rest
MAX_BYTES = 512 << 20  # a larger value does not fit into a Redis string


class Bound(NamedTuple):
    """`encode(value) -> bytes` and `decode(bytes) -> value` for one key and version."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class _Closed:
    """What Sealed and Signed share: what is inside, and where it belongs."""

    magic, _current = b"", ""
    _close: Any
    _open: Any

    def encode(self, value: Any, key: str | bytes = "", version: int = 0) -> bytes:
        """Return closed bytes of bytes-like or an array, to be stored under `key` as `version`.

        A version is an int from 0 to 2**64 - 1; else SecurityError.
        """
        id = self._current.encode()
        try:
            head = self.magic + struct.pack(">QB", version, len(id)) + id
        except struct.error:
            wanted = "an int from 0 to 2**64 - 1"
            raise SecurityError(f"{key!r}: version={version!r}: wanted is {wanted}") from None
        return bytes(self._close(head, _place(head, key), _pack(value)))

    def decode(
        self, blob: Any, key: str | bytes = "", version: int = 0, *, at_least: int | None = None
    ) -> Any:
        """Return the bytes or the array, if it was closed for this key and version; else Refused.

        at_least: accept this version and any newer one instead (see version_of).
        """
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise Refused(f"{key!r}: {type(blob).__name__}, not bytes (None: no such key)")
        data = memoryview(blob).cast("B")
        if not 13 <= len(data) <= MAX_BYTES or data[:4] != self.magic:
            raise Refused(f"{key!r}: {len(data)} bytes that {type(self).__name__} did not write")
        found, length = struct.unpack(">QB", data[4:13])
        if found < at_least if at_least is not None else found != version:
            wanted = version if at_least is None else f"{at_least} or newer"
            raise Refused(f"{key!r}: version {found} was played back, expected is {wanted}")
        head, id = bytes(data[: 13 + length]), bytes(data[13 : 13 + length])
        plain = self._open(id.decode("utf-8", "replace"), _place(head, key), data[13 + length :])
        if plain is None:
            why = "changed, moved from another Redis key, or written with another secret"
            raise Refused(f"{key!r}: {why}: do not use it, find out who can write there")
        return _unpack(plain)

    def bound(self, key: str | bytes, version: int = 0, inner: Any = None) -> Bound:
        """Return the pair that other recipes take as `encode=` and `decode=`.

        inner: a pair of their kind that runs inside, such as a codec's (encode, decode).
        """
        first, last = inner or (lambda value: value, lambda value: value)
        return Bound(
            lambda value: self.encode(first(value), key, version),
            lambda blob: last(self.decode(blob, key, version)),
        )

    @staticmethod
    def version_of(blob: bytes) -> int:
        """Return the version that a value claims; believe it after decode only."""
        return int.from_bytes(blob[4:12])


class Sealed(_Closed):
    """AES-256-GCM: secret and authentic. `key_ring`: id -> 32 bytes; the last one seals, all open.

    To rotate, add a key at the end; drop an old one when nothing is left that it sealed. Nonces
    are 96 random bits, so seal at most 2**32 values with a key (NIST SP 800-38D, 8.3).
    """

    magic = b"SEA\1"

    def __init__(self, key_ring: Mapping[Any, bytes] | bytes, *, current: Any = None) -> None:
        ring = key_ring if isinstance(key_ring, Mapping) else {"0": key_ring}
        self._current = str([*ring][-1] if current is None else current) if ring else ""
        wrong = [id for id, key in ring.items() if len(key) != 32 or not 0 < len(f"{id}") < 64]
        if wrong or self._current not in (ids := {*map(str, ring)}) or len(ids) < len(ring):
            raise SecurityError(f"key_ring is id -> 32 random bytes (secrets.token_bytes): {wrong}")
        self._keys = {str(id): AESGCM(bytes(key)) for id, key in ring.items()}

    def _close(self, head: bytes, place: bytes, parts: list[Any]) -> bytes:
        nonce, cipher = secrets.token_bytes(12), self._keys[self._current]
        return b"".join([head, nonce, cipher.encrypt(nonce, b"".join(parts), place)])

    def _open(self, id: str, place: bytes, rest: memoryview) -> memoryview | None:
        if id not in self._keys:
            raise UnknownKey(f"sealed with key {id!r}, the ring has {', '.join(self._keys)}")
        with contextlib.suppress(InvalidTag, ValueError):
            return memoryview(self._keys[id].decrypt(bytes(rest[:12]), rest[12:], place))
        return None


class Signed(_Closed):
    """HMAC-SHA256: authentic, but not secret. `secret`: at least 16 random bytes."""

    magic = b"SIG\1"

    def __init__(self, secret: bytes | str) -> None:
        secret = secret.encode() if isinstance(secret, str) else bytes(secret)
        if len(secret) < 16:
            raise SecurityError("secret: at least 16 random bytes, as of secrets.token_bytes(32)")
        # Under a key of its own, so that nothing else signed with the secret fits here.
        self._key = hmac.digest(secret, b"redis cookbook: Signed 1", "sha256")

    def _close(self, head: bytes, place: bytes, parts: list[Any]) -> bytes:
        return b"".join([head, hmac.digest(self._key, b"".join([place, *parts]), "sha256"), *parts])

    def _open(self, id: str, place: bytes, rest: memoryview) -> memoryview | None:
        tag = hmac.digest(self._key, place + rest[32:], "sha256")
        return rest[32:] if hmac.compare_digest(tag, rest[:32]) else None  # in constant time


def _place(head: bytes, key: str | bytes) -> bytes:
    key = key.encode() if isinstance(key, str) else bytes(key)
    return b"%s%s%s" % (head, len(key).to_bytes(8), key)  # lengths, so that no two places are alike


def _pack(value: Any) -> list[Any]:
    """An array is its dtype and shape as a line of JSON, and its bytes; bytes follow no line."""
    if not isinstance(value, np.ndarray | np.generic):
        return [b"\n", memoryview(value).cast("B")]
    if value.dtype.kind not in "biufcSU":
        raise TypeError(f"arrays of numbers, bools or S/U strings, not of {value.dtype}")
    array = np.asarray(value, order="C")
    head = json.dumps([array.dtype.str, array.shape]).encode() + b"\n"
    return [head, array.reshape(-1).view(np.uint8).data]


def _unpack(plain: memoryview) -> bytes | NDArray[Any]:
    """Who has the key may still err: an array is no more than the bytes that are there."""
    try:
        if not (line := bytes(plain[:1000]).index(b"\n")):
            return bytes(plain[1:])
        dtype, shape = json.loads(bytes(plain[:line]))
        return np.frombuffer(plain[line + 1 :], dtype).reshape(shape).copy()
    except (ValueError, TypeError) as error:
        raise Refused(f"authentic, but not what encode writes: {error}") from error


# --8<-- [end:seal]
# --8<-- [start:usage]
# The smallest honest use: what a thief of the disk, or a writer with a grudge, can do to a value.
def demo(r: redis.Redis) -> None:
    """Seal an array; move, change and play back; rotate the key; show what a reader may do."""
    _of_bytes(r)
    ring = {"2025": bytes(range(32))}
    sealed, key, weights = Sealed(ring), "demo-security:weights", np.arange(8, dtype=np.float32)
    old = sealed.encode(weights, key, version=1)
    r.set(key, sealed.encode(weights * 2, key, version=2))
    stored: Any = r.get(key)
    print("the array's bytes can be read in Redis:", (weights * 2).tobytes() in stored)
    print("with the key, the version and the secret:", sealed.decode(stored, key, 2)[:3])
    attacks = [
        ("moved", stored, "demo-security:other", sealed), ("played back", old, key, sealed),
        ("changed", stored[:-1] + bytes([stored[-1] ^ 1]), key, sealed),
        ("another secret", stored, key, Sealed({"2025": bytes(32)})),
    ]  # fmt: skip
    for attack, blob, place, reader in attacks:
        try:
            reader.decode(blob, place, version=2)
        except Refused as error:
            print(f"{attack}: refused,", str(error).split(": ")[1])
    rotated = Sealed(ring | {"2026": bytes(32)})
    print("after a rotation the old value opens:", rotated.decode(stored, key, 2)[1] == 2)
    print("to read a data set it takes:", rules("training_data/read", "shop"))
    r.unlink(key)
    print("A value opens only in its place, in its version, with its key; few rights will do.")


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
