"""The picture of a machine-learning system on the site's first page: `python -m tests.picture`.

PLACES is its source; docs/assets/system.svg, which docs/index.md includes, is drawn from it.
Each place is a link to a recipe. tests/test_pages.py holds that every recipe has its place.
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from tests.contract import ROOT

FILE = ROOT / "docs" / "assets" / "system.svg"
WIDTH, ROW, HEIGHT = 520, 62, 50  # all lengths in pixels of a picture that is not scaled
COLUMNS = {  # column -> x and width
    "left": (14, 232), "right": (274, 232), "all": (14, 492),
    "live": (274, 170), "models": (14, 430),
    "first": (14, 156), "second": (182, 156), "third": (350, 156),
}  # fmt: skip
DESCRIPTION = (
    "A machine-learning system. Files and tables feed training: data, compression, workers, "
    "checkpoints. Events feed a model that learns from the stream, and serving. All training "
    "publishes to the model store, from which serving loads. Persistence, high availability and "
    "security stand under all of it."
)


class Place(NamedTuple):
    """A box: what happens there, the recipe behind it (or none), its row and column."""

    what: str
    recipe: str
    row: float
    column: str


class Frame(NamedTuple):
    """A stage of the system: a heading, and a frame from the top to the bottom row."""

    title: str
    top: float
    bottom: float
    column: str


class Arrow(NamedTuple):
    """A line down at x, from one row's upper edge to another's."""

    x: int
    start: float
    end: float


FRAMES = (
    Frame("Training", 1.6, 6.6, "left"),
    Frame("Learning online", 3.6, 4.6, "live"),
    Frame("Models", 7.55, 8.55, "models"),
    Frame("Serving", 9.5, 11.5, "all"),
    Frame("Under all of it", 12.25, 13.25, "all"),
)
PLACES = (
    Place("Files and tables", "", 0, "left"),
    Place("Events as they come", "", 0, "right"),
    Place("Feed it shuffled batches", "training_data", 1.6, "left"),
    Place("Compress what travels", "tensor_compression", 2.6, "left"),
    Place("Share it among workers", "distributed_training", 3.6, "left"),
    Place("Wait for no slow worker", "parameter_server", 4.6, "left"),
    Place("Resume after a crash", "training_checkpoints", 5.6, "left"),
    Place("Learn from events", "realtime_training", 3.6, "live"),
    Place("Publish, roll back, reload", "model_params", 7.55, "models"),
    Place("Work through a large job", "distributed_prediction", 9.5, "left"),
    Place("Answer within a budget", "realtime_prediction", 9.5, "right"),
    Place("Recommend", "realtime_recommendation", 10.5, "left"),
    Place("Complete text", "realtime_language_model", 10.5, "right"),
    Place("Restart safely", "persistence", 12.25, "first"),
    Place("Lose a server", "high_availability", 12.25, "second"),
    Place("Keep others out", "security", 12.25, "third"),
)
ARROWS = (
    Arrow(130, 0.8, 1.2), Arrow(359, 0.8, 3.2), Arrow(130, 6.55, 7.15), Arrow(359, 4.55, 7.15),
    Arrow(229, 8.5, 9.1), Arrow(480, 0.8, 9.1),
)  # fmt: skip
STYLE = """\
.system { max-width: 26rem; margin: 1rem auto; }
.system svg { display: block; width: 100%; height: auto; overflow: visible; }
.system text { fill: var(--md-default-fg-color, #222); font-size: 17px; text-anchor: middle; }
.system .name { font-family: var(--md-code-font-family, monospace); font-size: 14.5px; }
.system .title { font-size: 14.5px; text-anchor: start; font-weight: 700; }
.system rect { fill: none; stroke: var(--md-default-fg-color--light, #666); rx: 6px; }
.system .frame { stroke-dasharray: 3 4; }
.system a rect { fill: var(--md-code-bg-color, #f5f5f5); stroke: #4c8dd6; stroke-width: 1.5px; }
.system a .name { fill: var(--md-typeset-a-color, #1a5fb4); }
.system a:hover rect, .system a:focus rect { stroke-width: 3px; }
.system a:focus { outline: none; }
.system path { stroke: var(--md-default-fg-color--light, #666); fill: none; stroke-width: 1.5px; }
"""


def y(row: float) -> float:
    return round(4 + row * ROW, 1)


def box(place: Place) -> str:
    x, width = COLUMNS[place.column]
    middle, top = x + width / 2, y(place.row)
    rect = f'<rect x="{x}" y="{top}" width="{width}" height="{HEIGHT}"/>'
    line = top + (21 if place.recipe else 30)
    what = f'<text x="{middle:g}" y="{line:g}">{escape(place.what)}</text>'
    if not place.recipe:
        return f"<g>{rect}{what}</g>"
    name = f'<text class="name" x="{middle:g}" y="{top + 40:g}">{place.recipe}</text>'
    label = f"{escape(place.what)}: {place.recipe}"
    return f'<a href="recipes/{place.recipe}/" aria-label="{label}">{rect}{what}{name}</a>'


def frame(stage: Frame) -> str:
    x, width = COLUMNS[stage.column]
    top, bottom = y(stage.top) - 24, y(stage.bottom) - ROW + HEIGHT + 8
    return (
        f'<rect class="frame" x="{x - 8}" y="{top:g}" width="{width + 16}" '
        f'height="{bottom - top:g}"/><text class="title" x="{x}" y="{top + 17:g}">'
        f"{escape(stage.title)}</text>"
    )


def arrow(one: Arrow) -> str:
    end = y(one.end)
    return f'<path d="M{one.x} {y(one.start)}V{end}m-5-6l5 6l5-6"/>'


def draw() -> str:
    height = y(max(place.row for place in PLACES)) + HEIGHT + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="group" '
        f'aria-label="{escape(DESCRIPTION)}">',
        f"<style>\n{STYLE}</style>",
        *map(frame, FRAMES),
        *map(arrow, ARROWS),
        *map(box, PLACES),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
    print(f"wrote {FILE}")
