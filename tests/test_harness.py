"""The benchmark harness: interleaved, medians, ratios by rate, a page with named sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Benchmark


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    return Benchmark("example", "An example")


def test_ratios_are_of_median_rates_and_count_the_amount(bench: Benchmark) -> None:
    slow = iter([9.0, 4.0, 2.0, 3.0])  # the first does not count: the median is 3
    timings = bench.compare(
        "speed", "Speed",
        {"limit": lambda: 1.0, "slow": lambda: next(slow), "small": (lambda: 1.0, 5)},
        against="limit", unit="rows", amount=10, repeats=3,
    )  # fmt: skip
    assert timings["limit"].ratio == 1.0
    assert timings["slow"].ratio == pytest.approx(1 / 3)
    assert (timings["slow"].fastest, timings["slow"].slowest) == (2.0, 4.0)
    assert timings["small"].ratio == pytest.approx(0.5)


def test_runs_are_interleaved(bench: Benchmark) -> None:
    order: list[str] = []
    ways = {name: (lambda n=name: order.append(n)) for name in "ab"}
    bench.compare("s", "T", ways, against="a", unit="x", amount=1, repeats=2)
    assert order == ["a", "b"] * 3


def test_the_page_has_named_sections_and_the_plot(bench: Benchmark, tmp_path: Path) -> None:
    bench.compare(
        "speed", "Speed", {"a": lambda: 0.5}, against="a", unit="rows", amount=10, repeats=1
    )
    bench.note("A peer is not installed: left out.")
    bench.write()
    page = (tmp_path / "example.md").read_text()
    assert page.startswith("# An example\n\nMeasured on: ")
    assert "<!-- --8<-- [start:speed] -->" in page
    assert "| a | 20 rows/s | 1 | 500 ms (500 ms to 500 ms) |" in page
    assert "(example-speed.svg)" in page
    assert "left out" in page
    assert "<svg" in (tmp_path / "example-speed.svg").read_text()
