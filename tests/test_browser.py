"""Every page of the site in Chromium, served from a sub-folder, as a reader meets it.

On a wide and on a narrow screen, light and dark: no error, no request to another host, no broken
link, nothing cut off, diagrams drawn, no serious finding of axe-core. At the end each check is
shown to fail on a page that was broken on purpose.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from docs import hooks

CHROMIUM = shutil.which("chromium")
WIDE, NARROW = (1400, 900), (390, 844)
FOLDERS = ("recipes", "notebooks", "benchmarks", "")
NAMES = hooks.RECIPES
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")  # axe-core, as npm has it

ARGUMENTS = [
    "--no-sandbox",  # for root, who runs CI
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    *("--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ,
        reason="wants Chromium: apt-get install chromium",
    ),
]


# --- the site, served, and a browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is read: http://127.0.0.1:PORT/cookbook/."""
    handler = functools.partial(Quiet, directory=site.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{site.name}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")  # Playwright runs an event loop: not beside other modules' tests
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "in CI Chromium must be there"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, timeout=60_000
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport=size(WIDE), color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.add_init_script(  # the theme draws diagrams where scripts cannot look: open that
        "const attach = Element.prototype.attachShadow;"
        "Element.prototype.attachShadow = function () { return attach.call(this, {mode: 'open'}) }"
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.complaints = []  # type: ignore[attr-defined]
    watch(page, address, page.complaints.append)  # type: ignore[attr-defined]
    yield page
    context.close()


def size(pixels: tuple[int, int]) -> Any:
    return {"width": pixels[0], "height": pixels[1]}


def watch(page: Page, address: str, complain: Callable[[str], None]) -> None:
    def request(r: Any) -> None:
        if not r.url.startswith((address, "data:", "blob:")):
            complain(f"asks for {r.url}")

    page.on("console", lambda m: m.type in ("error", "warning") and complain(f"says {m.text}"))
    page.on("pageerror", lambda e: complain(f"raises {e}"))
    page.on("request", request)
    page.on("response", lambda r: r.status >= 400 and complain(f"gets {r.status} for {r.url}"))


# --- what is asked of each page


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_page_is_whole_and_readable(
    folder: str, page: Page, address: str, site: Path
) -> None:
    files = [file for file in sorted(site.rglob("*.html")) if kind(file, site) == folder]
    assert len(files) >= (len(NAMES) if folder else 3)
    every = Links(site)
    found = {
        f"{file.relative_to(site)}": findings(page, address, file, every, views=VIEWS[n > 2 :])
        for n, file in enumerate(files)
    }
    assert {name: what for name, what in found.items() if what} == {}


def kind(file: Path, site: Path) -> str:
    top = file.relative_to(site).parts[0]
    return top if top in FOLDERS else ""


def findings(
    page: Page, address: str, file: Path, links: Links, views: tuple[View, ...]
) -> list[str]:
    """Return all that is wrong with a page."""
    page.complaints.clear()  # type: ignore[attr-defined]
    page.set_viewport_size(size(WIDE))
    path = str(file.relative_to(links.site)).removesuffix("index.html")
    response = page.goto(address + path, wait_until="load")
    assert response
    diagrams = response.text().count('<pre class="mermaid"')
    found = [*undrawn(page, diagrams), *links.broken(page, address, path), *no_label(page)]
    page.evaluate(FEWER_TOKENS)
    page.evaluate(AXE.read_text())
    for pixels, scheme, rules in views:
        page.set_viewport_size(size(pixels))
        page.emulate_media(color_scheme="dark" if scheme else "light")
        page.evaluate(SWITCH, scheme)
        where = f"{pixels[0]} pixels, {'dark' if scheme else 'light'}: "
        found += [where + what for what in (*cut_off(page), *inaccessible(page, rules))]
    return [*page.complaints, *dict.fromkeys(found)]  # type: ignore[attr-defined]


# axe-core is slow: all rules once, then those whose answer depends on the colours or on the width.
# The first view is for a few pages of each kind: they have their dark colours in common.
View = tuple[tuple[int, int], int, list[str]]
VIEWS: tuple[View, ...] = (
    (WIDE, 1, ["color-contrast"]),
    (WIDE, 0, []),
    (WIDE, 1, ["image-alt"]),
    (NARROW, 1, ["scrollable-region-focusable"]),
    (NARROW, 0, ["scrollable-region-focusable"]),
)

# As a click does; without the fading of colours, which would be measured half-way.
SWITCH = """async scheme => {
  const still = document.createElement("style");
  still.textContent = "*, ::before, ::after { transition: none !important }";
  document.head.append(still);
  document.getElementById("__palette_" + scheme)?.click();
  dispatchEvent(new Event("resize"));
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""

# Thousands of pieces of code have few colours: one of each is enough to judge them.
FEWER_TOKENS = """() => {
  const seen = new Set();
  for (const piece of document.querySelectorAll("pre span, .doc-signature span")) {
    const block = piece.closest(".highlight, .jupyter-wrapper")?.className;
    const key = [block, piece.parentElement.className, piece.className].join();
    if (seen.has(key) && !piece.id) piece.replaceWith(...piece.childNodes);
    seen.add(key);
  }
}"""


class Links:
    """The pages of a site and their anchors."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.anchors: dict[Path, set[str]] = {}

    def broken(self, page: Page, base: str, path: str) -> list[str]:
        return [
            f"the link {link!r} leads nowhere"
            for link in dict.fromkeys(page.evaluate(LINKS))
            if not self.leads_somewhere(urljoin(base + path, link), base)
        ]

    def leads_somewhere(self, link: str, base: str) -> bool:
        if urlsplit(link).scheme in ("data", "mailto"):
            return True
        if urlsplit(link).netloc != urlsplit(base).netloc:
            return urlsplit(link).scheme == "https"  # elsewhere is not asked
        whole, anchor = urldefrag(link)
        if not whole.startswith(base):
            return False
        file = self.site / unquote(whole.removeprefix(base))
        file = file / "index.html" if whole.endswith("/") else file
        return file.is_file() and (not anchor or unquote(anchor) in self.anchors_of(file))

    def anchors_of(self, file: Path) -> set[str]:
        if file not in self.anchors:
            collector = Anchors()
            collector.feed(file.read_text())
            self.anchors[file] = collector.found
        return self.anchors[file]


class Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = {"__top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name in ("id", "name") and value}


LINKS = """() => {
  const found = [], roots = [document];
  for (const root of roots) {
    for (const a of root.querySelectorAll("a"))
      found.push(a.getAttribute("href") ?? a.getAttribute("xlink:href"));
    for (const e of root.querySelectorAll("*")) if (e.shadowRoot) roots.push(e.shadowRoot);
  }
  return found.filter(link => link !== null);
}"""


def undrawn(page: Page, wanted: int) -> list[str]:
    """Wait for the diagrams of the page; complain if they do not come."""
    ends = time.monotonic() + 30
    while (drawn := page.evaluate(DRAWN)) < wanted and time.monotonic() < ends:
        if page.complaints:  # type: ignore[attr-defined]
            break
        page.wait_for_timeout(20)
    return [] if drawn == wanted else [f"{drawn} of {wanted} diagrams are drawn"]


DRAWN = """() => [...document.querySelectorAll("div.mermaid")].filter(box => {
  const drawn = box.shadowRoot?.querySelector("svg");
  return drawn && drawn.getBoundingClientRect().height > 20 && drawn.querySelector("g.node");
}).length"""


def no_label(page: Page) -> list[str]:
    """Return what search engines and previews of links miss."""
    wanted = ("meta[name=description]", "meta[property='og:title']", "link[rel=canonical]")
    lacks = [w for w in wanted if not page.locator(f"head > {w}").count()]
    return [] if page.url.endswith("/404.html") else [f"lacks {w}" for w in lacks]


def cut_off(page: Page) -> list[str]:
    return [f"{what} is cut off or overflows" for what in page.evaluate(CUT_OFF)]


# What sticks out of the screen, unless a box around it scrolls; and text too small to read.
CUT_OFF = """() => {
  const found = [], wide = document.documentElement.clientWidth;
  const page = document.documentElement.scrollWidth;
  if (page > wide) found.push(`the page, ${page} pixels,`);
  const scrolls = e => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) ||
                             scrolls(e.parentElement));
  for (const e of document.querySelectorAll(".md-content *")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.height && (box.right > wide + 1 || box.left < -1) &&
        !e.closest("svg, .MathJax_Preview") && !scrolls(e.parentElement) && !scrolls(e))
      found.push(`<${e.localName} class="${e.className}">`);
  }
  return found.slice(0, 5);
}"""


AXE_OPTIONS = {"resultTypes": ["violations"], "preload": False, "iframes": False}


def inaccessible(page: Page, rules: list[str]) -> list[str]:
    """Return the serious and critical findings of axe-core, by some of its rules or by all."""
    only = {"runOnly": rules} if rules else {}
    menu = [] if page.url.endswith("/cookbook/") else [".md-sidebar--primary"]  # on each page
    found = page.evaluate("a => axe.run({exclude: a[0]}, a[1])", [menu, {**AXE_OPTIONS, **only}])
    return [
        f"{violation['id']}: {node['html'][:200]} {(node['any'] or [{}])[0].get('message', '')}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


# --- what a reader does


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_taken_along_exactly(name: str, page: Page, address: str) -> None:
    file = hooks.ROOT / "recipes" / f"{name}.py"
    page.goto(f"{address}recipes/{name}/")
    assert page.locator("details.example code").text_content() == file.read_text()
    buttons, downloads = page.locator("[data-copy-file]").all(), page.locator("[download]").all()
    assert len(buttons) == len(downloads) == 2  # above, and beside the whole file
    for button in buttons:
        page.evaluate("navigator.clipboard.writeText('')")
        button.click()
        button.filter(has_text="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == file.read_text()
    for link in downloads:
        with page.expect_download() as download:
            link.click()
        assert Path(download.value.path()).read_bytes() == file.read_bytes()
        assert download.value.suggested_filename == file.name


@pytest.mark.parametrize("name", NAMES)
def test_three_lines_and_the_links_beside_them(name: str, page: Page, address: str) -> None:
    page.goto(f"{address}recipes/{name}/")
    get, install, run = page.locator(".recipe code").first.inner_text().strip().splitlines()
    with urllib.request.urlopen(get.removeprefix("curl -O ")) as reply:
        assert reply.read() == (hooks.ROOT / "recipes" / f"{name}.py").read_bytes()
    needs = hooks.header(name).partition("\nNeeds:")[2].partition("\nRun:")[0]
    assert install.replace("  # optional:", "; optional:") in " ".join(needs.split())
    assert run.startswith(f"python {name}.py ")
    assert "127.0.0.1:6379" in run
    at = NAMES.index(name)
    beside = [f"recipes/{n}/" for n in (*NAMES[:at][-1:], *NAMES[at + 1 :][:1])]
    links = page.evaluate("[...document.querySelectorAll('.recipe a')].map(a => a.href)")
    wanted = [f"files/{name}.py", f"notebooks/{name}/", *beside]
    assert [link.removeprefix(address) for link in links] == wanted


WORDS = {word: name for name in NAMES for word in hooks.SEARCH_WORDS.get(name, ())}
WORDS |= {"deploy": "model_params", "duplicate": "realtime_training"}  # a part of what is shown


def test_the_search_finds_a_recipe_by_the_words_of_its_problem(page: Page, address: str) -> None:
    page.goto(address)
    first = {word: search(page, word)[0] for word in WORDS}
    assert first == {word: f"{address}recipes/{name}/" for word, name in WORDS.items()}
    assert not page.complaints  # type: ignore[attr-defined]


def test_each_recipe_has_words_to_be_found_by() -> None:
    without = {name for name in NAMES if not hooks.SEARCH_WORDS.get(name)}
    assert without == set(), "name what readers search for in SEARCH_WORDS of docs/hooks.py"


def search(page: Page, words: str) -> list[str]:
    """Type words into the search; return the addresses of the pages found, best first."""
    box = page.get_by_role("textbox", name="Search")
    for text, shown in (("", "Type to start"), (words, " match")):
        box.fill(text)
        box.press("End")  # the theme searches when a key is let go
        page.locator(".md-search-result__meta", has_text=shown).wait_for()
    found = page.locator(".md-search-result__item > a")
    return [urldefrag(str(a.evaluate("a => a.href")).partition("?")[0])[0] for a in found.all()]


# --- the checks can fail: each finds what was put into a good page


BREAKS = {
    "'../gone/' leads nowhere": '<a href="../gone/">a page that is gone</a>',
    "'#gone' leads nowhere": '<a href="#gone">an anchor that is gone</a>',
    "'../../#gone' leads nowhere": '<a href="../../#gone">an anchor of another page</a>',
    "'/' leads nowhere": '<a href="/">out of the sub-folder</a>',
    "asks for https://elsewhere": '<img alt="foreign" src="https://elsewhere.example/a.png">',
    "gets 404 for": '<img alt="missing" src="missing.png">',
    "says oops": "<script>console.error('oops')</script>",
    "raises broken": "<script>throw Error('broken')</script>",
    "diagrams are drawn": '<pre class="mermaid"><code>no diagram</code></pre>',
    "1400 pixels, light: the page,": '<div style="width: 1500px">too wide</div>',
    "390 pixels, dark: the page,": '<div style="width: 500px">too wide for some</div>',
    '<p class="out">': '<p class="out" style="margin-left: -50px">half of it is out</p>',
    "light: color-contrast": '<p style="color: #ccc; background: #fff">pale on white</p>',
    "dark: color-contrast": '<p style="color: #444">dark on dark</p>',
    "image-alt": '<img src="../../assets/images/favicon.png">',
    "scrollable-region-focusable": '<div style="overflow: auto; white-space: nowrap">'
    + "wide " * 400,
}


def test_a_broken_page_is_noticed(page: Page, address: str, site: Path) -> None:
    """Each fault is put into a page that has passed; each is found."""
    file = site / "recipes" / NAMES[0] / "index.html"
    broken = file.read_text().replace("</article>", "\n".join(BREAKS.values()) + "</article>", 1)

    def answer(route: Route) -> None:
        route.fulfill(body=broken, content_type="text/html")

    page.route(f"{address}recipes/{NAMES[0]}/", answer)
    found = findings(page, address, file, Links(site), VIEWS)
    assert {what for what in BREAKS if not any(what in f for f in found)} == set(), found


def test_a_changed_file_is_noticed(page: Page, address: str) -> None:
    """What is copied is what the server has, not what the page shows."""
    page.route(f"{address}files/{NAMES[0]}.py", lambda route: route.fulfill(body="changed"))
    with pytest.raises(AssertionError):
        test_a_recipe_is_taken_along_exactly(NAMES[0], page, address)


def test_a_file_that_cannot_be_copied_is_said(page: Page, address: str) -> None:
    page.route(f"{address}files/{NAMES[0]}.py", lambda route: route.fulfill(status=500))
    page.goto(f"{address}recipes/{NAMES[0]}/")
    page.locator("[data-copy-file]").first.click()
    page.get_by_role("button", name="Not copied: download it").wait_for()
