"""Run the recipes' demos: `python -m recipes [name ...]`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import time
from pathlib import Path
from typing import TextIO

import redis
from rich.console import Console
from rich.table import Table

from recipes import ServerUnreachable, connect, without_password

FOLDER = Path(__file__).parent
NEXT = "Next: make lab (the notebooks), make site (the docs)."


def names() -> list[str]:
    """Return the names of all recipes, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(names())}")
    chosen = parser.parse_args(arguments).names or names()
    if unknown := [name for name in chosen if name not in names()]:
        return _fail(f"No recipe {unknown[0]!r}. There are: {', '.join(names())}.")
    try:
        r = connect()
    except ServerUnreachable as error:
        return _fail(str(error))
    print(f"Server: {_server(r)}\n", flush=True)
    return _run(r, chosen, Console())


def _server(r: redis.Redis) -> str:
    """Say what answers, and where: a demo must not surprise a server of the reader's own."""
    if type(r).__module__.startswith("fakeredis"):
        return "fakeredis, in this process"
    try:
        info = r.info("server")
    except redis.ResponseError:  # a user without the right to ask
        info = {}
    is_valkey = "valkey_version" in info
    name = "Valkey" if is_valkey else "Redis"
    version = info.get("valkey_version" if is_valkey else "redis_version", "(version unknown)")
    url = os.environ.get("REDIS_URL")
    return f"{name} {version} at {without_password(url)}" if url else f"embedded {name} {version}"


def _run(r: redis.Redis, chosen: list[str], console: Console) -> int:
    summary = Table("recipe", "what it showed", "time")
    failed = []
    for number, name in enumerate(chosen, 1):
        console.rule(f"{number}/{len(chosen)} {name}", align="left")
        start = time.perf_counter()
        try:
            printed = _demo(r, name)
        except (ImportError, redis.RedisError) as error:
            failed.append(name)
            printed = f"FAILED: {type(error).__name__}: {error}"
            console.print(printed, markup=False, highlight=False)
        seconds = f"{time.perf_counter() - start:.1f} s"
        summary.add_row(name, printed.rstrip().rsplit("\n", 1)[-1], seconds)
    console.print(summary)
    closing = f"FAILED: {', '.join(failed)}." if failed else NEXT
    print(f"{len(chosen) - len(failed)} of {len(chosen)} ran. {closing}")
    return 1 if failed else 0


def _demo(r: redis.Redis, name: str) -> str:
    """Run one demo, show its lines as they come, and return them."""
    recipe = importlib.import_module(f"recipes.{name}")
    copy = _Tee(sys.stdout)
    with contextlib.redirect_stdout(copy):
        recipe.demo(r)
    return copy.getvalue()


class _Tee(io.StringIO):
    """Keeps what is written and passes it on at once."""

    def __init__(self, screen: TextIO) -> None:
        super().__init__()
        self._screen = screen

    def write(self, text: str) -> int:
        print(text, end="", file=self._screen, flush=True)
        return super().write(text)


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
