"""Start a recipe: `python -m tests.new_recipe NAME [--title "A Title"]` writes all its files.

What they hold works and is small: numbers that several processes record, and their mean. Put your
own in its place; `.venv/bin/python -m tests.contract NAME` says what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbformat import v4

from tests.contract import FILES, ROOT, name_problems
from tests.contract.code import MAIN
from tests.contract.notebook import OPENING

PROMISE = "Keep the mean of numbers that several processes record."

RECIPE = '''\
"""{promise}

Use when: several processes record numbers, and any of them asks for the mean.
Not when: you want quantiles or a history; use t-digests or time series.
Keys: <name> is a hash with the fields n and total; it has no TTL, delete() removes it.
Guarantees: a record counts whole or not at all; no number of writers loses one.
Cost: one round trip a call and less than 100 bytes, however many numbers it holds.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis numpy
Run: python recipes/{stem}.py records a few numbers and prints their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import redis

Client = redis.Redis | redis.RedisCluster


class NothingRecorded(Exception):
    """There is no mean yet. The message names what to call."""


# --8<-- [start:record]
# Read, add and write back loses numbers as soon as two processes do it. The server adds here,
# and MULTI makes the two sums one step.
def record(r: Client, name: str, values: Sequence[float]) -> None:
    """Add finite `values`, of any number, to what is recorded under `name`.

    Raises ValueError for NaN and infinity, which would spoil the mean for good.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("values hold NaN or infinity: leave them out before you record")
    with r.pipeline(transaction=True) as pipe:
        pipe.hincrby(name, "n", array.size)
        pipe.hincrbyfloat(name, "total", float(array.sum()))
        pipe.execute()


# --8<-- [end:record]


# --8<-- [start:mean]
# Two reads could fall on either side of a record. One command sees both sums of one moment.
def mean(r: Client, name: str) -> float:
    """Return the mean of all that is recorded; raises NothingRecorded."""
    n, total = r.hmget(name, ["n", "total"])
    if n is None or total is None or int(n) == 0:
        raise NothingRecorded(f"nothing is recorded under {{name!r}}: call record() first")
    return float(total) / int(n)


def delete(r: Client, name: str) -> int:
    """Remove what is recorded; returns the number of keys removed."""
    return int(r.unlink(name))


# --8<-- [end:mean]


# --8<-- [start:usage]
# The smallest honest use: two calls, one mean, nothing left behind.
def demo(r: redis.Redis) -> None:
    """Record a few numbers, print their mean, and remove them."""
    record(r, "demo:{stem}", [1.0, 2.0, 3.0])
    print("recorded 1, 2 and 3")
    print("mean", mean(r, "demo:{stem}"))
    record(r, "demo:{stem}", [6.0])
    print("recorded 6")
    print("mean", mean(r, "demo:{stem}"))
    delete(r, "demo:{stem}")
    print("The mean moved from 2 to 3 when a second call recorded 6.")


# --8<-- [end:usage]

''' + MAIN.replace("{", "{{").replace("}", "}}")

EXPECTED = """\
recorded 1, 2 and 3
mean 2.0
recorded 6
mean 3.0
The mean moved from 2 to 3 when a second call recorded 6.
"""

TESTS = '''\
"""{title}: what its header promises."""

from __future__ import annotations

import math
import threading

import pytest
import redis

from recipes import {stem}


def test_the_mean_is_numpys(r: redis.Redis) -> None:
    {stem}.record(r, "t", [1.5, -2.0])
    {stem}.record(r, "t", [4.0])
    assert math.isclose({stem}.mean(r, "t"), 3.5 / 3)


def test_writers_at_once_lose_nothing(r: redis.Redis) -> None:
    def write() -> None:
        for _ in range(50):
            {stem}.record(r, "t", [1.0, 3.0])

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert r.hget("t", "n") == b"400"
    assert {stem}.mean(r, "t") == 2.0


def test_errors_say_what_to_do(r: redis.Redis) -> None:
    with pytest.raises({stem}.NothingRecorded, match="record"):
        {stem}.mean(r, "t")
    with pytest.raises(ValueError, match="NaN"):
        {stem}.record(r, "t", [math.nan])
    assert {stem}.delete(r, "t") == 0


@pytest.mark.real_redis
def test_it_works_on_a_cluster(cluster: redis.RedisCluster) -> None:
    {stem}.record(cluster, "t", [1.0, 3.0])
    assert {stem}.mean(cluster, "t") == 2.0
    assert {stem}.delete(cluster, "t") == 1
'''

BENCHMARK = '''\
"""{title}: one call beside one call a number. Wants nothing but requirements.txt."""

from __future__ import annotations

from benchmarks.harness import Benchmark
from recipes import connect, {stem}


def main() -> None:
    r = connect()
    values = [float(i) for i in range(1_000)]
    bench = Benchmark("{stem}", "{title}", r)

    def one_by_one() -> None:
        for value in values:
            {stem}.record(r, "bench:{stem}", [value])

    bench.compare(
        "record",
        "1,000 numbers",
        {{
            "one call a number": one_by_one,
            "one call": lambda: {stem}.record(r, "bench:{stem}", values),
        }},
        against="one call a number",
        unit="numbers",
        amount=len(values),
    )
    {stem}.delete(r, "bench:{stem}")
    bench.write()


if __name__ == "__main__":
    main()
'''

PAGE = """\
# {title}

{promise}

## Use when / not when

Use it when several processes record numbers, and any of them asks for the mean.
Do not use it when you want quantiles or a history: use t-digests or time series.

## The naive way

Each number costs a round trip of its own.

--8<-- "docs/benchmarks/{stem}.md:record"

## Keys

```mermaid
flowchart LR
    name["&lt;name&gt;<br>hash: n, total"]
```

## Usage

```python
--8<-- "recipes/{stem}.py:usage"
```

It prints:

```text
--8<-- "docs/expected/{stem}.txt"
```

## How it works

### Record

The server adds, so that no number is lost between a read and a write.

```python
--8<-- "recipes/{stem}.py:record"
```

### Mean

One command reads both sums, so that they are of one moment.

```python
--8<-- "recipes/{stem}.py:mean"
```

## Guarantees and costs

| guarantee | holds because | the test that proves it |
|---|---|---|
| The mean is that of all numbers. | Sums are kept, not means. | `test_the_mean_is_numpys` |
| No writer loses a number. | HINCRBY and MULTI. | `test_writers_at_once_lose_nothing` |
| Bad values are refused. | They are checked before they are sent. | `test_errors_say_what_to_do` |
| It works on Redis Cluster. | There is one key. | `test_it_works_on_a_cluster` |

## Measured

--8<-- "docs/benchmarks/{stem}.md:record"

![Numbers per second: one call a number, and one call](../benchmarks/{stem}-record.svg)

## Pitfalls

The total is a float: after very many numbers the smallest of them vanish in rounding.

## The whole file

??? example "recipes/{stem}.py"
    ```python
    --8<-- "recipes/{stem}.py"
    ```

[Download](../files/{stem}.py){{ download }} · [The notebook](../notebooks/{stem}.ipynb)

## API

::: recipes.{stem}
"""

CELLS = (  # markdown and code in turn
    "# {title}\n\n{promise}",
    OPENING,
    "Two calls record four numbers. We expect their mean.",
    """\
from recipes import {stem}

name = "notebook:{stem}"
{stem}.record(r, name, [1.0, 2.0])
{stem}.record(r, name, [3.0, 6.0])
assert {stem}.mean(r, name) == 3.0""",
    "The hash has two fields, however many numbers were recorded.",
    """\
{stem}.record(r, name, [3.0] * 1000)
assert r.hlen(name) == 2""",
    "NaN would spoil the mean for good. It is refused, and nothing has changed.",
    """\
try:
    {stem}.record(r, name, [float("nan")])
except ValueError as error:
    print(error)
assert {stem}.mean(r, name) == 3.0""",
    "One call takes ten thousand numbers as easily as one.",
    """\
# NBVAL_IGNORE_OUTPUT
from time import perf_counter

begin = perf_counter()
{stem}.record(r, name, range(10_000))
seconds = perf_counter() - begin
print(f"{{seconds * 1000:.1f}} ms")
assert seconds < 5""",
    "Each thousand zeros moves the mean less: the plot is a line that falls and flattens.",
    """\
# NBVAL_IGNORE_OUTPUT
import matplotlib.pyplot as plt

means = []
for _ in range(20):
    {stem}.record(r, name, [0.0] * 1000)
    means.append({stem}.mean(r, name))
_ = plt.figure(figsize=(6, 3), dpi=80), plt.plot(means)
assert means == sorted(means, reverse=True)""",
    "Remove what we wrote.",
    """\
{stem}.delete(r, name)
assert not list(r.scan_iter(match="notebook:{stem}*"))""",
    "## Exercises\n\n1. Keep the variance as well.\n2. Give the key a TTL.",
)


def files(stem: str, title: str) -> dict[str, str]:
    """Path -> text of all files of a new recipe; the benchmark writes docs/benchmarks itself."""
    texts = {
        "recipe": RECIPE,
        "expected": EXPECTED,
        "tests": TESTS,
        "benchmark": BENCHMARK,
        "page": PAGE,
    }
    filled = {
        FILES[part].format(stem): text.format(stem=stem, title=title, promise=PROMISE)
        for part, text in texts.items()
    }
    return {**filled, FILES["notebook"].format(stem): notebook(stem, title)}


def notebook(stem: str, title: str) -> str:
    """The notebook without outputs."""
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book = v4.new_notebook(metadata=metadata)
    for number, text in enumerate(CELLS):
        new_cell = v4.new_code_cell if number % 2 else v4.new_markdown_cell
        source = text.format(stem=stem, title=title, promise=PROMISE)
        book.cells.append(new_cell(source, id=f"cell-{number}"))
    return nbformat.writes(book) + "\n"


def write(root: Path, stem: str, title: str) -> list[str]:
    """Write the files; returns why not, if a name is bad or a file is there already."""
    problems = name_problems(stem)
    new = files(stem, title) if not problems else {}
    problems += [f"{path} is there already" for path in new if (root / path).exists()]
    if problems:
        return problems
    for path, text in new.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return []


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.new_recipe", description=__doc__)
    parser.add_argument("name", help="a noun phrase for the reader's problem, as model_params")
    parser.add_argument("--title", default="", help="of page and notebook; default: from the name")
    chosen = parser.parse_args(arguments)
    title = chosen.title or chosen.name.replace("_", " ").capitalize()
    if problems := write(root, chosen.name, title):
        print(*problems, sep="\n", file=sys.stderr)
        return 2
    print(*files(chosen.name, title), sep="\n")
    print(
        f"""
Next: name {chosen.name} in a chapter of CHAPTERS in docs/hooks.py, write your recipe, then
    .venv/bin/python -m pytest tests/recipes/test_{chosen.name}.py
    .venv/bin/python -m tests.contract --write-expected {chosen.name}
    .venv/bin/python -m benchmarks.bench_{chosen.name}
    .venv/bin/jupyter nbconvert --to notebook --execute --inplace notebooks/{chosen.name}.ipynb
    .venv/bin/python -m tests.contract {chosen.name}      (what is missing)
    .venv/bin/python -m tests.index --write
CONTRIBUTING.md names its places on the pages and in the tests about all recipes."""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
