"""The pages about all recipes: each recipe has its place on them, and nothing has drifted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks import harness, overview
from tests import guarantees, picture, servers
from tests.contract import ROOT, stems

RECIPES = stems(ROOT)
CHOOSING, GLOSSARY, INDEX = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("choosing", "glossary", "index")
)
SVG = "{http://www.w3.org/2000/svg}"


# --- Which recipe? --------------------------------------------------------------------------------


def choices(page: str) -> list[list[str]]:
    """The cells of the rows of the page's first table, without its header."""
    rows = re.search(r"(?m)(?:^\|.*\n)+", page)
    return [row.strip("| ").split(" | ") for row in rows[0].splitlines()[2:]] if rows else []


def test_every_recipe_has_one_row_of_five_filled_cells() -> None:
    rows = choices(CHOOSING)
    for row in rows:
        assert len(row) == 5 and all(cell.strip() for cell in row), (
            f"docs/choosing.md: five filled cells in the row {row}"
        )
        assert re.fullmatch(r"\[(\w+)\]\(recipes/\1\.md\)", row[1]), (
            f"docs/choosing.md: [NAME](recipes/NAME.md) in place of {row[1]}"
        )
    named = [row[1][1:].partition("]")[0] for row in rows]
    assert not difference(named), f"docs/choosing.md, first table: {difference(named)}"


def difference(named: Iterable[str]) -> str:
    """What to do so that each recipe is named once, or nothing."""
    counts = Counter(named)
    more = [f"add a row or place for {name}" for name in RECIPES if not counts[name]]
    less = [f"there is no recipe {name}: remove it" for name in counts if name not in RECIPES]
    twice = [f"name {name} once" for name, count in counts.items() if count > 1]
    return "; ".join(more + less + twice)


def test_what_is_missing_or_too_much_is_said() -> None:
    first, *others = RECIPES
    assert difference(RECIPES) == ""
    assert difference(others) == f"add a row or place for {first}"
    assert difference([*RECIPES, first]) == f"name {first} once"
    assert difference([*RECIPES, "gone"]) == "there is no recipe gone: remove it"


def test_it_says_what_redis_is_not_for() -> None:
    heading = "## Do not use Redis for this"
    assert f"{heading}\n" in CHOOSING, f"docs/choosing.md: put back the part {heading!r}"


# --- The glossary ---------------------------------------------------------------------------------


def entries(page: str) -> list[tuple[str, str, list[str]]]:
    """Each term, what it means, and the recipes that use it."""
    found = re.findall(r"(?m)^\*\*(.+?)\*\*\{ #[\w-]+ \} *\n(.+?) *\n(\[.+)$", page)
    return [(term, text, re.findall(r"recipes/(\w+)\.md", links)) for term, text, links in found]


def test_each_term_stands_once_with_few_sentences_and_its_recipes() -> None:
    found = entries(GLOSSARY)
    assert len(found) == GLOSSARY.count("**{ #") > 40, (
        "docs/glossary.md: each entry has a line with the term and its anchor, one of text, and "
        f"one of links; so have {[term for term, _, _ in found]}"
    )
    anchors = Counter(re.findall(r"\{ #([\w-]+) \}", GLOSSARY))
    twice = [anchor for anchor, count in anchors.items() if count > 1]
    assert not twice, f"docs/glossary.md: one entry, and one anchor, for each of {twice}"
    for term, text, recipes in found:
        assert 1 <= len(re.findall(r"[.:](?: |$)", text)) <= 6, (
            f"docs/glossary.md: one to six sentences for {term}"
        )
        gone = set(recipes) - set(RECIPES)
        assert not gone, f"docs/glossary.md, {term}: there is no recipe {gone}"
    unused = set(RECIPES) - {recipe for _, _, recipes in found for recipe in recipes}
    assert not unused, f"docs/glossary.md: link {sorted(unused)} below a term that they use"


# --- The picture on the first page ----------------------------------------------------------------


def test_the_picture_is_the_one_that_its_source_draws() -> None:
    drawn = picture.FILE.read_text(encoding="utf-8")
    assert drawn == picture.draw(), "it has drifted: .venv/bin/python -m tests.picture"
    include = '--8<-- "docs/assets/system.svg"'
    assert include in INDEX, f"docs/index.md: include the picture again, {include}"


def test_every_recipe_stands_in_the_picture_once_and_its_link_resolves() -> None:
    links = list(ET.fromstring(picture.draw()).iter(f"{SVG}a"))
    named = difference(link.attrib["href"].split("/")[1] for link in links)
    assert not named, f"PLACES in tests/picture.py: {named}; then .venv/bin/python -m tests.picture"
    missing = [n for n in RECIPES if not (ROOT / "docs" / "recipes" / f"{n}.md").is_file()]
    assert not missing, f"write docs/recipes/NAME.md for {missing}"
    for link in links:
        assert re.fullmatch(r"recipes/\w+/", link.attrib["href"]) and link.attrib["aria-label"]


Box = tuple[float, float, float, float]  # left, top, right, bottom


def bounds(rect: ET.Element) -> Box:
    x, y, width, height = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def outside(svg: str) -> list[str]:
    """The links whose box lies in no frame."""
    root = ET.fromstring(svg)
    frames = [bounds(rect) for rect in root.findall(f"{SVG}rect[@class='frame']")]
    boxes = {a.attrib["href"]: bounds(rect) for a in root.iter(f"{SVG}a") for rect in a[:1]}
    return [href for href, box in boxes.items() if not any(within(box, f) for f in frames)]


def within(box: Box, frame: Box) -> bool:
    return all(a > b for a, b in zip(box[:2], frame[:2], strict=True)) and all(
        a < b for a, b in zip(box[2:], frame[2:], strict=True)
    )


def test_every_recipe_stands_in_a_frame_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outside(picture.draw())
    assert not found, f"tests/picture.py: mend row or column in PLACES, or FRAMES, for {found}"
    for lost in ({"row": 7.0}, {"column": "right"}):  # below its frame, and beside it
        places = [p._replace(**lost) if p.recipe == RECIPES[-1] else p for p in picture.PLACES]
        monkeypatch.setattr(picture, "PLACES", places)
        assert outside(picture.draw()) == [f"recipes/{RECIPES[-1]}/"]


def test_no_box_of_the_picture_overlaps_another_and_words_fit() -> None:
    root = ET.fromstring(picture.draw())
    boxes = []
    for group in (*root.iter(f"{SVG}a"), *root.iter(f"{SVG}g")):
        box = group.find(f"{SVG}rect")
        assert box is not None
        left, top, right, bottom = bounds(box)
        name = group.attrib.get("aria-label", group.findtext(f"{SVG}text"))
        assert left >= 0 and right <= picture.WIDTH, f"tests/picture.py: {name} sticks out"
        for text in group.iter(f"{SVG}text"):
            per_letter = 8.75 if text.get("class") == "name" else 9.4  # at 14.5 and 17 pixels
            assert len(text.text or "") * per_letter <= right - left, (
                f"tests/picture.py: {text.text!r} is longer than its box: fewer letters"
            )
        boxes.append((name, (left, top, right, bottom)))
    for i, (name, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (
                f"tests/picture.py: {name!r} and {other!r} overlap: another row or column for one"
            )


# --- All recipes, measured ------------------------------------------------------------------------


def test_the_benchmarks_page_is_that_of_the_tables() -> None:
    page = (harness.FOLDER / "index.md").read_text(encoding="utf-8")
    command = ".venv/bin/python -m benchmarks.overview"
    assert page == overview.page(harness.FOLDER), f"it has drifted: {command}"
    plot = (harness.FOLDER / "overview.svg").read_text(encoding="utf-8")
    assert overview.digest(harness.FOLDER) in plot, f"an older plot: {command}"


def test_every_recipe_has_a_row_on_the_benchmarks_page() -> None:
    named = difference({headline.stem for headline in overview.HEADLINES})
    assert not named, f"HEADLINES in benchmarks/overview.py: {named}"


def test_ratios_come_from_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    bench = harness.Benchmark("example", "An example")
    ways = {"recipe": lambda: 1.0, "naive": lambda: 8.0, "peer": lambda: 0.25, "limit": lambda: 0.5}
    bench.compare("speed", "Speed", ways, against="limit", unit="rows", amount=1, repeats=1)
    bench.write()
    headline = overview.Headline(
        "example", "speed", "work", "recipe", "naive", ("peer", "one that was left out"), "limit"
    )
    monkeypatch.setattr(overview, "HEADLINES", (headline,))
    assert [*overview.ratios(tmp_path)] == [overview.Ratios(headline, 8, {"peer": 0.25}, 0.5)]
    assert overview.main() == 0
    assert f"wrote {tmp_path}/index.md and {tmp_path}/overview.svg\n" in capsys.readouterr().out
    page = (tmp_path / "index.md").read_text()
    assert "| [example](example.md) | work | 8 | 0.25: peer | 0.5 |" in page
    assert f"All: {harness.machine().removeprefix('Measured on: ')}" in page
    monkeypatch.setattr(overview, "HEADLINES", (headline._replace(recipe="renamed"),))
    with pytest.raises(LookupError, match=r"example\.md, speed: there is no row 'renamed'"):
        overview.page(tmp_path)


def test_plots_are_transparent_and_readable_on_light_and_dark() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    inverted = "#" + "".join(f"{255 - int(harness.INK[i : i + 2], 16):02x}" for i in (1, 3, 5))
    assert contrast(harness.INK, "#ffffff") >= 4.5
    assert contrast(inverted, "#1e2129") >= 4.5  # what cookbook.css does on the dark ground
    css = (ROOT / "docs/assets/cookbook.css").read_text(encoding="utf-8")
    assert re.search(r'\[data-md-color-scheme="slate"\][^{]*svg[^{]*\{ filter: invert\(1\)', css)
    for plot in harness.FOLDER.glob("*.svg"):
        text = plot.read_text(encoding="utf-8")
        assert not re.search("fill: #ffffff(?!; opacity: 0)", text), plot.name  # but a legend's


# --- What each guarantee was tested with ----------------------------------------------------------


def test_the_guarantees_page_has_not_drifted() -> None:
    page = (ROOT / guarantees.PAGE).read_text(encoding="utf-8")
    assert page == guarantees.page(ROOT), (
        "it has drifted: .venv/bin/python -m tests.guarantees --write"
    )


def test_every_guarantee_has_a_test_that_is_on_record(pytestconfig: pytest.Config) -> None:
    rows = [row for _, found in guarantees.proofs(ROOT) for row in found]
    assert [stem for stem, found in guarantees.proofs(ROOT) if found] == [
        name for name, _ in guarantees.proofs(ROOT)
    ]
    for _, test in rows:
        file, _, name = test.partition("::")
        assert re.search(rf"(?m)^def {name}\(", (ROOT / file).read_text(encoding="utf-8")), test
    if pytestconfig.getoption("--guarantees"):
        pytest.skip("this run writes the record")
    recorded = guarantees.load(ROOT / guarantees.RECORD)["tests"]
    missing = sorted({test for _, test in rows} - {*recorded})
    command = ".venv/bin/python -m pytest -n 2 --guarantees=tests/guarantees.json"
    assert not missing, f"not on record as passed; run: {command}"


USES = """
import os, signal, subprocess
import pytest
from tests import servers

def start():
    return subprocess.Popen(["sleep", "60"])

@pytest.fixture(scope="module")
def shared():
    with servers.lone("valkey") as server:
        yield server

def test_on_all(r):
    assert r.ping()

@pytest.mark.real_redis
def test_on_real(r):
    assert r.ping()

def test_first(shared): ...
def test_second(shared): ...

def test_alone(): ...

def test_cluster(cluster):
    assert cluster.ping()

def test_killed_and_frozen():
    child = start()
    os.kill(child.pid, signal.SIGSTOP)
    child.kill()
    child.wait()

def end(child):
    child.kill()
    child.wait()

def test_cleaned_up():
    child = start()
    try:
        assert child.poll() is None
    finally:
        end(child)

@pytest.mark.parametrize("n", [1, 2])
def test_fails_once(n):
    assert n == 1

def test_skips():
    pytest.skip("not here")
"""


@pytest.mark.real_redis
@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_run_records_what_its_tests_used(tmp_path: Path, processes: str) -> None:
    for kind in ("valkey", "redis"):
        try:
            servers.binary(kind)
        except servers.MissingServer as error:
            pytest.skip(str(error))
    house = (
        "from tests.conftest import *\nfrom tests.conftest import _cluster_servers, _lone_servers\n"
    )
    (tmp_path / "conftest.py").write_text(house)
    (tmp_path / "test_uses.py").write_text(USES)
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "pytest", "-q", "-n", processes, "-p", "no:cacheprovider"]
    subprocess.run(
        [*command, f"--guarantees={record}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    found = guarantees.load(record)
    assert {name.partition("::")[2]: marks for name, marks in found["tests"].items()} == {
        "test_on_all": ["fake", "valkey", "redis"],
        "test_on_real": ["valkey", "redis"],
        "test_first": ["valkey"],
        "test_second": ["valkey"],
        "test_alone": [],
        "test_cluster": ["valkey", "cluster"],
        "test_killed_and_frozen": ["kill -9", "frozen"],
        "test_cleaned_up": [],
    }
    assert set(found["versions"]) == {"fake", "valkey", "redis"}
