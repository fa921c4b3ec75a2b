"""Compare ways to do the same work: interleaved runs, medians, ratios in one run.

A benchmark makes a Benchmark, calls compare() for each question, and write() at the end, which
stores docs/benchmarks/<name>.md (tables, one named section each) and one SVG plot a comparison.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import redis

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
INK = "#59636e"  # on white; docs/assets/cookbook.css turns plots around where it is dark
FILL = "#4c8dd6"
HIGHLIGHT = "#d6604c"

Run = Callable[[], float | None]


@dataclass(frozen=True)
class Timing:
    """What one way took: `seconds` is the median of all runs, for `amount` units of work."""

    name: str
    seconds: float
    fastest: float
    slowest: float
    amount: float
    ratio: float

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


class Benchmark:
    """One recipe's benchmark: collects tables and plots, then writes them."""

    def __init__(self, name: str, title: str, r: redis.Redis | None = None) -> None:
        self.name = name
        self._parts: list[str] = [f"# {title}\n", f"{machine(r)}\n"]

    def compare(
        self,
        section: str,
        title: str,
        ways: Mapping[str, Run | tuple[Run, float]],
        *,
        against: str,
        unit: str,
        amount: float,
        repeats: int = 5,
    ) -> dict[str, Timing]:
        """Time every way `repeats` times in turn, after one run of each that does not count.

        `ways` maps a label to a callable, or to (callable, amount) if it does another amount of
        work than the rest. A callable that returns a float has measured itself, in seconds.
        `against` is the label whose rate is 1.00; `unit` is what `amount` counts, such as "rows".
        """
        runs = {k: v if isinstance(v, tuple) else (v, amount) for k, v in ways.items()}
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        for repeat in range(repeats + 1):
            for label, (run, _) in runs.items():
                self._progress(f"{title}: {label} ({repeat}/{repeats})")
                elapsed = _timed(run)
                if repeat > 0:
                    seconds[label].append(elapsed)
        self._progress("")
        medians = {label: statistics.median(values) for label, values in seconds.items()}
        reference = runs[against][1] / medians[against]
        timings = {
            label: Timing(
                label, medians[label], min(seconds[label]), max(seconds[label]), done,
                done / medians[label] / reference,
            )
            for label, (_, done) in runs.items()
        }  # fmt: skip
        rows = [
            (t.name, f"{_short(t.rate)} {unit}/s", ratio_text(t.ratio),
             f"{_seconds(t.seconds)} ({_seconds(t.fastest)} to {_seconds(t.slowest)})")
            for t in timings.values()
        ]  # fmt: skip
        self.table(
            section, f"{title}. Median of {repeats} interleaved runs; 1 is {against!r}.",
            ("way", "rate", "ratio", "time of a run"), rows,
        )  # fmt: skip
        rates = {t.name: t.rate for t in timings.values()}
        self.bars(section, f"{unit} per second", rates, against)
        return timings

    def table(
        self, section: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> None:
        """Add a table under the section name by which pages include it; also print it."""
        lines = [
            f"{caption}\n",
            "| " + " | ".join(header) + " |",
            "|" + "---|" * len(header),
            *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
        ]
        print("\n".join(lines), "\n")
        self._add(section, "\n".join(lines))

    def note(self, text: str) -> None:
        """Add a line, for example that a peer is not installed and so left out."""
        print(text)
        self._parts.append(f"{text}\n")

    def bars(self, section: str, xlabel: str, values: Mapping[str, float], against: str) -> None:
        """Add a bar chart on a logarithmic axis."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.2, 0.5 * len(values) + 0.7))
        colors = [HIGHLIGHT if label == against else FILL for label in values]
        bars = axes.barh(range(len(values)), list(values.values()), height=0.4, color=colors)
        axes.bar_label(bars, [_short(v) for v in values.values()], padding=3, color=INK)
        for y, label in enumerate(values):  # above its bar: readable on a narrow screen too
            text = axes.text(0.01, y - 0.22, label, va="bottom", color=INK)
            text.set_transform(axes.get_yaxis_transform())
        axes.set_yticks([])
        axes.set_ylim(len(values) - 0.7, -0.75)
        axes.set_xscale("log")
        axes.set_xlim(min(values.values()) / 3, max(values.values()) * 3)
        axes.set_xlabel(xlabel)
        self.plot(section, figure)

    def plot(self, section: str, figure: object) -> None:
        """Store a matplotlib figure as docs/benchmarks/<name>-<section>.svg, and show it."""
        file = FOLDER / f"{self.name}-{section}.svg"
        store(figure, file)
        self._parts.append(f"![{section}: the figures above as a plot]({file.name})\n")

    def write(self) -> None:
        """Store the page docs/benchmarks/<name>.md, and that of all recipes anew."""
        from benchmarks import overview

        FOLDER.mkdir(parents=True, exist_ok=True)
        repeat = f"To repeat it: `make bench RECIPE={self.name}`.\n"
        (FOLDER / f"{self.name}.md").write_text("\n".join([*self._parts, repeat]))
        overview.main()

    def _add(self, section: str, text: str) -> None:
        self._parts.append(
            f"<!-- --8<-- [start:{section}] -->\n{text}\n<!-- --8<-- [end:{section}] -->\n"
        )

    def _progress(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def store(figure: object, file: Path, description: str | None = None) -> None:
    """Write a matplotlib figure as SVG in the colours of all plots, on a transparent ground."""
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    for axes in figure.axes:
        axes.tick_params(colors=INK, which="both")
        legend = axes.get_legend()
        for text in (
            axes.xaxis.label,
            axes.yaxis.label,
            axes.title,
            *(legend.texts if legend else ()),
        ):
            text.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Description": description}
    with matplotlib.rc_context({"svg.hashsalt": "cookbook"}):
        figure.savefig(file, transparent=True, bbox_inches="tight", metadata=metadata)
    plt.close(figure)


def machine(r: redis.Redis | None = None) -> str:
    """Describe the machine and the versions that the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, {platform.system()}",
        f"Python {platform.python_version()}",
        *(f"{name} {metadata.version(name)}" for name in ("numpy", "redis", "hiredis")),
    ]
    if r is not None:
        info = r.info("server")
        name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
        parts.append(f"{name} {info.get('valkey_version', info['redis_version'])} on loopback")
    return "Measured on: " + "; ".join(parts) + "."


def _timed(run: Run) -> float:
    start = time.perf_counter()
    measured = run()
    return time.perf_counter() - start if measured is None else measured


def _short(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def ratio_text(value: float) -> str:
    """Return three digits, never as 1.5e+03: readers compare these."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def _seconds(value: float) -> str:
    for limit, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
