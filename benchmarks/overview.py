"""One page over all recipes, docs/benchmarks/index.md, from the tables that the benchmarks wrote.

    python -m benchmarks.overview     (each benchmark does it at its end)

Nothing is measured here, and no figure is typed: HEADLINES names the rows of the tables.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import harness

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"(?m)^\| (.+?) \| [^|]+/s \| ([\d.,e-]+) \| [^|]+\|$")
MACHINE = re.compile(r"(?m)^Measured on: (.+)\.$")


class Headline(NamedTuple):
    """A comparison: the labels of a table's rows, by the role that each way plays in it."""

    stem: str
    section: str
    work: str
    recipe: str
    naive: str = ""
    peers: tuple[str, ...] = ()
    limit: str = ""


class Ratios(NamedTuple):
    """The recipe's rate, divided by that of each other way."""

    headline: Headline
    naive: float | None
    peers: dict[str, float]
    limit: float | None


QUEUES = ("rq", "celery", "taskiq")
HEADLINES = (
    Headline("training_data", "epoch", "one shuffled epoch", "recipe", "naive: one HGET a row",
             ("np.memmap, a full permutation", "LMDB, a full permutation",
              "torch DataLoader over a memmap"),
             "limit: pipelined GET of the chunks, nothing else"),
    Headline("training_data", "rows", "random rows", "rows(), chunk_bytes=16 KiB",
             "naive: one HGET a row", ("one HMGET",)),
    Headline("tensor_compression", "naive", "token ids, there and back",
             "encode(array, 'blosc2')", "json.dumps(array.tolist())",
             ("np.savez_compressed", "blosc2.pack_tensor"), "array.tobytes(), nothing checked"),
    Headline("tensor_compression", "records-speed", "JSON records, there and back",
             "each alone, zstd with a dictionary", "each alone, zlib", (),
             "each alone, as it is"),
    Headline("model_params", "save", "save a model", "this recipe: save()",
             "naive: HSET, a field for each number", ("pickle, one SET", "torch.save, one SET"),
             "bare pipelined SET, same bytes"),
    Headline("model_params", "load", "load a model", "this recipe: load()",
             "naive: HGETALL, a field for each number",
             ("GET, one pickle", "GET, one torch.load"), "bare pipelined GET, same bytes"),
    Headline("model_params", "part", "load one tensor of many", "this recipe: load(names=[...])",
             "GET, one pickle, then one tensor", (), "bare GET of that tensor"),
    Headline("training_checkpoints", "save", "save a checkpoint", "training_checkpoints: save",
             "naive: pickle and one SET", ("numpy.savez to a file, fsync",),
             "limit: pipelined SET of the same bytes"),
    Headline("training_checkpoints", "load", "load a checkpoint", "training_checkpoints: latest",
             "naive: one GET and pickle", ("numpy.load of the file (in the page cache)",),
             "limit: pipelined GET of the same bytes"),
    Headline("distributed_training", "processes-2", "mean over 2 processes", "this recipe",
             "naive: whole gradients, polling", ("torch.distributed, gloo",),
             "limit: the same bytes, SET and GET"),
    Headline("distributed_training", "processes-4", "mean over 4 processes", "this recipe",
             "naive: whole gradients, polling", ("torch.distributed, gloo",),
             "limit: the same bytes, SET and GET"),
    Headline("parameter_server", "uneven", "steps of uneven workers, staleness 2", "staleness=2",
             "naive: overwrite (loses gradients)", ("synchronous: distributed_training",),
             "no bound"),
    Headline("distributed_prediction", "naive", "rows predicted, 256 a batch",
             "recipe, batches of 256 rows", "LPOP, predict, HSET of JSON, row by row", (),
             "limit: the same bytes by LPOP and HSET of 100, nothing else"),
    Headline("distributed_prediction", "one-row", "jobs of one row", "recipe", "", QUEUES),
    Headline("distributed_prediction", "many-rows", "jobs of many rows", "recipe", "", QUEUES),
    Headline("realtime_training", "speed", "predict, then learn, 64 a batch",
             "recipe, mini-batches of 64",
             "naive: river, a read and a write of the model an event",
             ("river alone, no Redis",), "limit: only reading the stream"),
    Headline("realtime_prediction", "read", "features of 100 entities", "this recipe: get()",
             "HGETALL, one round trip an entity",
             ("Feast's Redis store", "HGETALL in one pipeline"),
             "limit: bare MGET, nothing decoded"),
    Headline("realtime_prediction", "serve", "requests answered", "Predictor, 256 clients",
             "one request at a time: read, predict"),
    Headline("realtime_recommendation", "events", "visits recorded", "recipe: record",
             "naive: a round trip a pair and side, the last 50",
             (),
             "limit: a PING an event"),
    Headline("realtime_language_model", "learn", "tokens learned",
             "learn, all modules as one text", "HINCRBY, a round trip each",
             ("HINCRBY, pipelines of 3,000", "nltk, in its own memory"),
             "limit: the same bytes, nothing stored"),
    Headline("realtime_language_model", "score", "tokens scored", "perplexity", "",
             ("nltk, in its own memory",)),
    Headline("realtime_language_model", "complete", "next tokens", "next_tokens",
             "naive: score the whole vocabulary", (), "limit: one bare ZRANGE of five"),
    Headline("realtime_language_model", "stream", "tokens sent one by one",
             "stream_tokens: with TTL, limit and cancel", "", (), "limit: XADD only"),
    Headline("persistence", "backup", "back up a server", "persistence: backup",
             "naive: SCAN and DUMP (no point in time)",
             ("redis-cli --rdb (no checksum of its own)",),
             "limit: SAVE to the server's own disk"),
    Headline("persistence", "fsync", "writes known to be on disk",
             "durable_write, appendfsync always", "", ("SET, appendfsync always",),
             "naive: SET, everysec, and hope"),
    Headline("high_availability", "cost", "client that rides failovers",
             "connect(), one at a time", "", (), "limit: redis-py's own client, one at a time"),
    Headline("high_availability", "cost", "writes confirmed by a replica",
             "confirmed, one at a time", "", (), "limit: redis-py's own client, one at a time"),
    Headline("high_availability", "cost", "writes confirmed, many at once",
             "confirmed, transactions of 100", "", (), "connect(), transactions of 100"),
    Headline("security", "small", "seal small values", "Sealed", "",
             ("AES-256-GCM by hand, bound to nothing",),
             "naive: in clear, unsigned (the limit)"),
    Headline("security", "large", "seal large values", "Sealed", "",
             ("AES-256-GCM by hand, bound to nothing",),
             "naive: in clear, unsigned (the limit)"),
)  # fmt: skip

PAGE = """\
# All recipes, measured

Each row is one comparison of a recipe's own page. A ratio is the recipe's rate divided by that of
the other way, both measured in the same run, in turn: **above 1 the recipe is faster**, below 1 it
is slower.

- **naive**: what people write first.
- **peer**: what a reader would use instead, with Redis or without. A faster peer often does less:
  it reads files on one machine, or does not check what arrives.
- **limit**: the same bytes with nothing else done, or the same work without the guarantee. The
  distance below 1 is what the recipe's own work and its guarantees cost.

The table divides by the other way. The picture shows each way's own rate: the recipe is 1, **what
stands left of it is slower, what stands right of it is faster** than the recipe.

![The rates of the naive way, of the peers and of the limit, on a logarithmic axis where the recipe
is 1; the figures are in the table below](overview.svg)

{table}
## Machine and versions

{machines}

## To repeat it

```shell
make peers               # what the recipes are compared with (large)
make bench               # all of it; writes these pages
make bench RECIPE=NAME   # one recipe
```

A peer that is not installed is left out, and the recipe's page says so. Ratios differ between
machines: they hold for yours when you have run them there.
"""


def tables(text: str) -> dict[str, dict[str, float]]:
    """Section -> label -> ratio, of the comparisons on a benchmark's page."""
    sections = re.findall(r"\[start:([\w-]+)\] -->\n(.*?)<!-- --8<-- \[end:", text, re.DOTALL)
    rows = (
        (name, {label: float(ratio.replace(",", "")) for label, ratio in ROW.findall(body)})
        for name, body in sections
    )
    return {name: found for name, found in rows if found}


def ratios(folder: Path) -> Iterator[Ratios]:
    """Raises LookupError if a label is not in its table; peers may have been left out."""
    for headline in HEADLINES:
        page = folder / f"{headline.stem}.md"
        if not page.exists():  # not measured yet
            continue
        rates = tables(page.read_text(encoding="utf-8")).get(headline.section, {})
        for label in filter(None, (headline.recipe, headline.naive, headline.limit)):
            if label not in rates:
                raise LookupError(f"{page.name}, {headline.section}: there is no row {label!r}")
        against = {label: rates[headline.recipe] / rate for label, rate in rates.items()}
        yield Ratios(
            headline, against.get(headline.naive),
            {peer: against[peer] for peer in headline.peers if peer in against},
            against.get(headline.limit),
        )  # fmt: skip


def table(found: list[Ratios]) -> str:
    lines = [
        "| recipe | work | against naive | against a peer | against the limit |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        h = row.headline
        peers = "<br>".join(
            f"{harness.ratio_text(ratio)}: {peer}" for peer, ratio in row.peers.items()
        )
        cells = (
            f"[{h.stem}]({h.stem}.md)", h.work, _cell(row.naive), peers, _cell(row.limit)
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(ratio: float | None) -> str:
    return "" if ratio is None else harness.ratio_text(ratio)


def machines(folder: Path) -> str:
    """What the pages say that they were measured on; once, if it is the same for all."""
    by_machine: dict[str, list[str]] = {}
    for row in ratios(folder):
        stem = row.headline.stem
        for machine in MACHINE.findall((folder / f"{stem}.md").read_text(encoding="utf-8")):
            by_machine.setdefault(machine, []).append(stem)
    if len(by_machine) == 1:
        return f"All: {next(iter(by_machine))}."
    return "\n".join(
        f"- {', '.join(dict.fromkeys(stems))}: {machine}." for machine, stems in by_machine.items()
    )


def page(folder: Path) -> str:
    return PAGE.format(table=table([*ratios(folder)]), machines=machines(folder))


def digest(folder: Path) -> str:
    """Of what is drawn: the plot carries it, so that a test sees if it is an older one."""
    return hashlib.sha256(table([*ratios(folder)]).encode()).hexdigest()[:16]


def plot(found: list[Ratios], file: Path, description: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 0.45 * len(found) + 1))
    styles = {
        "naive": ("o", harness.INK), "peer": ("s", harness.FILL), "limit": (">", harness.INK),
    }  # fmt: skip
    axes.axvline(1, color=harness.HIGHLIGHT, lw=0.6)
    for y, row in enumerate(found):
        dots = [
            ("naive", row.naive),
            *(("peer", v) for v in row.peers.values()),
            ("limit", row.limit),
        ]
        rates = [(role, 1 / ratio) for role, ratio in dots if ratio]
        axes.plot(
            [*(rate for _, rate in rates), 1], [y] * (len(rates) + 1), color=harness.INK, lw=0.6
        )
        for role, rate in rates:
            marker, color = styles[role]
            axes.plot(rate, y, marker, color=color, fillstyle="none" if role == "naive" else "full")
        axes.plot(1, y, "D", color=harness.HIGHLIGHT)
        axes.text(
            0.01, y - 0.2, f"{row.headline.stem}: {row.headline.work}",
            transform=axes.get_yaxis_transform(), va="bottom", fontsize=9.5, color=harness.INK,
        )  # fmt: skip
    for role, (marker, color) in styles.items():
        fill = "none" if role == "naive" else "full"
        axes.plot([], [], marker, color=color, fillstyle=fill, label=role)
    axes.plot([], [], "D", color=harness.HIGHLIGHT, label="recipe")
    axes.set_xscale("log")
    axes.set_ylim(len(found) - 0.5, -1)
    axes.set_yticks([])
    axes.set_xlabel("slower than the recipe  ←  rate, the recipe's is 1  →  faster")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    harness.store(figure, file, description)


def main() -> int:
    folder = harness.FOLDER
    text, picture = folder / "index.md", folder / "overview.svg"
    text.write_text(page(folder), encoding="utf-8")
    plot([*ratios(folder)], picture, digest(folder))
    print(f"wrote {text} and {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
