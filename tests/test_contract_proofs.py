"""Every rule of the contract catches a bad example that no other rule catches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import fakeredis
import pytest
import redis

from tests import new_recipe
from tests.contract import FILES, HOUSE_RULES, RULES, Recipe, name_problems, runs
from tests.contract.__main__ import main

STEM = "running_mean"


class House:
    """A small cookbook with one good recipe, for a bad change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        assert new_recipe.write(root, STEM, "Running mean") == []
        self._finish()

    def _finish(self) -> None:
        """Do what the scaffolder leaves to people: run things, and write more."""
        self.write("docs/hooks.py", f"CHAPTERS = {{'Data': ('{STEM}',)}}\n")
        table = "<!-- --8<-- [start:record] -->\n| 1 |\n<!-- --8<-- [end:record] -->\n"
        self.write(FILES["figures"].format(STEM), table)
        self.write(f"docs/benchmarks/{STEM}-record.svg", "<svg/>")
        self.edit("recipe", "import redis\n", "import redis\n" + "\nPADDING = 0" * 80 + "\n")
        self.edit("page", "## Pitfalls\n", "## Pitfalls\n\n" + "Many a word. " * 160)

        def run(book: dict) -> None:
            code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
            for number, cell in enumerate(code, 1):
                cell["execution_count"] = number
            picture = {"data": {"image/png": "iVBO"}, "metadata": {}, "output_type": "display_data"}
            code[-2]["outputs"] = [picture]

        self.edit_notebook(run)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def text(self, part: str) -> str:
        return Recipe(self.root, STEM).text(part)

    def edit(self, part: str, old: str, new: str) -> None:
        text = self.text(part)
        assert old in text, f"nothing to change: {old!r} is not in {FILES[part]}"
        self.write(FILES[part].format(STEM), text.replace(old, new, 1))

    def edit_notebook(self, change: Callable[[dict], None]) -> None:
        book = json.loads(self.text("notebook"))
        change(book)
        self.write(FILES["notebook"].format(STEM), json.dumps(book, indent=1))

    def broken_rules(self) -> set[str]:
        stem_rules = {name for name, rule in RULES.items() if rule(self.root, STEM)}
        return stem_rules | {name for name, rule in HOUSE_RULES.items() if rule(self.root)}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_good_house_breaks_no_rule(house: House) -> None:
    assert house.broken_rules() == set()


def edit(part: str, old: str, new: str) -> Callable[[House], None]:
    return lambda house: house.edit(part, old, new)


def cell(number: int, new: str) -> Callable[[House], None]:
    """Replace the text of a cell (0 is the title, odd ones are code)."""

    def change(book: dict) -> None:
        book["cells"][number]["source"] = new

    return lambda house: house.edit_notebook(change)


def top(line: str) -> Callable[[House], None]:
    """Add a line to the recipe's top level."""
    return edit("recipe", "Client = ", f"{line}\nClient = ")


def prose(text: str) -> Callable[[House], None]:
    return edit("page", "## Pitfalls", f"{text}\n\n## Pitfalls")


def needs(packages: str) -> Callable[[House], None]:
    return edit("recipe", "pip install redis numpy\n", f"pip install {packages}\n")


def all_of(*changes: Callable[[House], object]) -> Callable[[House], object]:
    return lambda house: [change(house) for change in changes]


def inside(line: str) -> Callable[[House], None]:
    """Add a line to a function of the recipe."""
    return edit("recipe", "    array = np.asarray", f"    {line}\n    array = np.asarray")


def in_test(line: str) -> Callable[[House], None]:
    return edit("tests", "    with pytest.raises", f"    {line}\n    with pytest.raises")


def another_recipe(house: House) -> None:
    """A recipe that comes first and whose shared section is another."""
    house.write(
        "recipes/another.py", "# --8<-- [start:shared-x]\n# Why.\n# --8<-- [end:shared-x]\n"
    )
    shared = "# --8<-- [start:shared-x]\n# Because.\n# --8<-- [end:shared-x]\n"
    house.edit("recipe", "Client = ", shared + "Client = ")
    house.edit("page", "### Mean", f'--8<-- "recipes/{STEM}.py:shared-x"\n\n### Mean')


SHARED = "# --8<-- [start:shared-y]\n# Why.\n# --8<-- [end:shared-y]\n"


def change_cell(number: int, change: dict) -> Callable[[House], None]:
    return lambda house: house.edit_notebook(lambda book: book["cells"][number].update(change))


def no_cell(*numbers: int) -> Callable[[House], None]:
    """Leave cells out, and count the rest anew."""

    def change(book: dict) -> None:
        book["cells"] = [c for i, c in enumerate(book["cells"]) if i not in numbers]
        code = [c for c in book["cells"] if c["cell_type"] == "code"]
        for number, c in enumerate(code, 1):
            c["execution_count"] = number

    return lambda house: house.edit_notebook(change)


def output(kind: str, **fields: object) -> Callable[[House], None]:
    def change(book: dict) -> None:
        book["cells"][3]["outputs"] = [{"output_type": kind, **fields}]

    return lambda house: house.edit_notebook(change)


PROMISED = ("recipe", "page", "notebook")
COST = "Cost: one round trip a call and less than 100 bytes, however many numbers it holds."
RECIPE, NOTEBOOK, PAGE = (FILES[part].format(STEM) for part in ("recipe", "notebook", "page"))
IGNORE = "# NBVAL_IGNORE_OUTPUT\n"
INCLUDE_MEAN = f'--8<-- "{RECIPE}:mean"'
TABLE = f'--8<-- "docs/benchmarks/{STEM}.md:record"'
CLASS = """class _InParts:
    # --8<-- [start:a]
    # Why.
    def f(self) -> None: ...

    # --8<-- [end:a]
"""
LUA = "script = \"return redis.call('{}', KEYS[1])\""
LATER = "".join(("TO", "DO"))  # this file has to be clean, too

# Each rule, and changes of which each breaks that rule alone.
BAD: dict[str, list[Callable[[House], object]]] = {
    "chapter": [lambda house: house.write("docs/hooks.py", "CHAPTERS = {'Data': ()}\n")],
    "files": [lambda house: (house.root / FILES["benchmark"].format(STEM)).unlink()],
    "readable": [
        lambda house: house.write(FILES["benchmark"].format(STEM), "def main(:\n"),
        lambda house: house.write(NOTEBOOK, "{}"),
    ],
    # the header
    "promise": [
        all_of(*(edit(part, "record.", "record") for part in PROMISED)),
        all_of(*(edit(part, "Keep the", "Keep, " * 5 + "the") for part in PROMISED)),
        edit("recipe", "record.\n\n", "record.\n"),
    ],
    "labels": [
        edit("recipe", "Cost: ", "Price: "),
        edit("recipe", "\nKeys: ", "\nkeys: "),
        edit("recipe", COST, "Cost:"),
    ],
    "needs": [
        needs("redis"),
        needs("redis numpy xxhash"),
        edit("recipe", "; pip install", ", pip install"),
        inside("import lz4.block"),
        all_of(needs("redis numpy; optional: lz4"), top("import lz4")),
    ],
    "few_packages": [
        all_of(needs("redis numpy lz4 rich blake3"), top("import blake3, lz4, rich")),
    ],
    # sections
    "section_markers": [
        top("# --8<-- [start:later]"),
        top("# --8<-- [end:earlier]"),
        all_of(
            edit("recipe", "start:mean]", "start:The_Mean]"),
            edit("recipe", "end:mean]", "end:The_Mean]"),
            edit("page", ".py:mean", ".py:The_Mean"),
        ),
    ],
    "section_count": [
        all_of(
            edit("recipe", "# --8<-- [end:record]\n", ""),
            edit("recipe", "# --8<-- [start:mean]\n", ""),
            edit("recipe", "[end:mean]", "[end:record]"),
            edit("page", ".py:mean", ".py:record"),
        ),
    ],
    "section_comments": [
        edit("recipe", "# Two reads could fall on either side of a record. One", "\n# One"),
        edit("recipe", "[start:mean]\n", "[start:mean]\nnothing = 0\n"),
    ],
    "section_usage": [
        all_of(
            edit("recipe", '6.")\n\n\n# --8<-- [end:usage]', '6.")'),
            edit("recipe", "[start:usage]\n", "[start:usage]\n# Why.\n# --8<-- [end:usage]\n"),
        ),
    ],
    "loose_code": [
        top("def _loose() -> None: ...\n"),
        top("class _Loose: ...\n"),
        all_of(top(CLASS + "    def g(self) -> None: ...\n"), prose(f'--8<-- "{RECIPE}:a"')),
    ],
    "shared_sections": [another_recipe],
    # the code
    "lines": [
        edit("recipe", "\nPADDING = 0" * 80, ""),
        edit("recipe", "PADDING = 0", "PADDING = 0\n" * 330),
    ],
    "imports": [
        edit("recipe", "from __future__ import annotations\n", ""),
        inside("from recipes import connect"),
        inside("from . import other"),
    ],
    "import_time": [
        top("print('imported')"),
        top("try:\n    import numpy\nexcept ImportError:\n    pass"),
    ],
    "main_block": [
        edit("recipe", '"redis://127', '"redis://localhost'),
        edit("recipe", "    import os\n\n    demo", "    import os\n\n    print()\n    demo"),
    ],
    "demo": [
        edit("recipe", "def demo(r: redis.Redis) -> None", "def demo(r: redis.Redis)"),
        edit("recipe", "def demo(", "def show("),
    ],
    "client_first": [
        edit("recipe", "delete(r: Client, name: str)", "delete(name: str, r: Client)"),
        edit("recipe", "def delete(r: Client", "def delete(client: redis.Redis | None"),
    ],
    "docstrings": [
        edit("recipe", '"""Remove what is recorded; returns the number of keys removed."""', "..."),
    ],
    "no_unsafe_decoder": [
        inside("import pickle"),
        inside("from marshal import loads"),
        inside("import shelve  # naive: this excuses no recipe"),
        inside("np.load(name)"),
        inside("np.save(name, values, allow_pickle=True)"),
        in_test("import pickle"),
        cell(5, f"import pickle\nassert {STEM}"),
    ],
    "no_eval": [inside("eval(name)"), in_test("exec('')")],
    "no_decoded_client": [inside("redis.Redis(decode_responses=True)")],
    "no_keys": [
        inside("r.keys()"),
        inside("self.client.keys('*')"),
        inside("r.execute_command('KEYS *')"),
        inside(LUA.format("keys")),
        in_test("r.keys('*')"),
    ],
    "no_flush": [
        inside("r.flushdb()"),
        inside("r.execute_command('FLUSHALL')"),
        inside(LUA.format("FLUSHDB")),
        in_test("r.flushall()"),
        cell(5, f"r.flushdb()\nassert {STEM}"),
    ],
    "no_unbounded_reply": [
        inside("r.hgetall(name)"),
        inside("r.smembers(name)"),
        inside("r.lrange(name, 0, -1)"),
        inside("r.zrange(name, start=0, end=-1, withscores=True)"),
        inside("r.xrange(name)"),
        inside(LUA.format("HGETALL")),
        cell(5, "assert r.hgetall(name)"),
    ],
    # tests, benchmark, output
    "tests_on_servers": [
        lambda house: house.write(
            FILES["tests"].format(STEM),
            "\n".join(f"def {name}() -> None: ..." for name in (
                "test_the_mean_is_numpys", "test_writers_at_once_lose_nothing",
                "test_errors_say_what_to_do", "test_it_works_on_a_cluster")),
        ),
    ],
    "tests_do_not_sleep": [in_test("time.sleep(1)")],
    "tests_are_run": [
        in_test("pytest.skip('no')"),
        edit("tests", "@pytest.mark.real_redis", "@pytest.mark.xfail"),
        edit("tests", "@pytest.mark.real_redis", "@pytest.mark.skipif(True, reason='')"),
    ],
    "benchmark": [
        edit("benchmark", f'Benchmark("{STEM}"', 'Benchmark("other"'),
        edit("benchmark", 'if __name__ == "__main__":\n    main()\n', "main()\n"),
    ],
    "expected_output": [
        edit("expected", "recorded 6\n", ""),
        edit("expected", "The mean moved", "The mean moved" * 10),
    ],
    # the page
    "page_headings": [
        edit("page", "## Pitfalls", "## Traps"),
        edit("page", "# Running mean\n", "Running mean\n"),
        edit("page", "## API", "## More\n\n## API"),
    ],
    "page_promise": [edit("page", "Keep the mean", "Keep a mean")],
    "page_sections": [
        edit("page", f"```python\n{INCLUDE_MEAN}\n```\n", ""),
        edit("page", "One command reads both sums, so that they are of one moment.\n", ""),
        top(SHARED),
    ],
    "page_includes": [
        prose(f'--8<-- "{RECIPE}:nowhere"'),
        prose(f'--8<-- "{RECIPE}:1:5"'),
        prose('--8<-- "recipes/nothing.py"'),
    ],
    "page_code": [
        prose("```python\nprint(1)\n```"),
        edit("page", INCLUDE_MEAN, f"{INCLUDE_MEAN}\nmean(r, name)"),
        prose("~~~\n>>> 1\n~~~"),
        prose("```shell\npython -c 'print(1)'\n```"),
    ],
    "page_proofs": [
        edit("page", "`test_errors_say_what_to_do`", "`test_errors`"),
        edit("page", "`test_errors_say_what_to_do`", "of course"),
        prose("See `test_nothing`."),
        lambda house: house.write(PAGE, re.sub(r"(?m)^\|.*\n", "", house.text("page"))),
    ],
    "page_diagram": [edit("page", "```mermaid", "```text")],
    "page_usage": [
        edit("page", f'It prints:\n\n```text\n--8<-- "docs/expected/{STEM}.txt"\n```\n', ""),
    ],
    "page_whole_file": [
        edit("page", f'    --8<-- "{RECIPE}"\n', ""),
        edit("page", "{ download }", ""),
        edit("page", f"(../notebooks/{STEM}.ipynb)", ""),
        edit("page", "::: recipes.", "::: "),
    ],
    "page_measured": [
        edit("page", TABLE, ""),
        prose("It is 3 times faster."),
    ],
    "page_pictures": [
        edit("page", "![Numbers per second: one call a number, and one call]", "![]"),
        edit("page", "-record.svg", "-other.svg"),
    ],
    "page_is_local": [
        prose('<script src="https://example.org/a.js"></script>'),
        prose("![a picture](https://example.org/a.png)"),
    ],
    "page_words": [
        edit("page", "Many a word. " * 160, ""),
        edit("page", "Many a word. ", "Many a word. " * 300),
    ],
    # the notebook
    "notebook_valid": [
        change_cell(2, {"unknown": 1}),
        lambda house: house.edit_notebook(lambda book: book["cells"][2].pop("id")),
    ],
    "notebook_opening": [
        cell(0, "# Running mean\n\nKeep some mean."),
        cell(1, "from recipes import connect\n\nr = connect()"),
        cell(3, "assert r.ping()\nname = 'x'"),
    ],
    "notebook_cells": [cell(5, "assert r\n" + "\n".join(f"a{i} = {i}" for i in range(8)))],
    "notebook_asserts": [lambda house: [cell(i, "r")(house) for i in (5, 7)]],
    "notebook_markers": [
        cell(5, "# NBVAL_SKIP\nassert r"),
        cell(5, "import time  # NBVAL_IGNORE_OUTPUT\nassert r"),
        cell(5, IGNORE + "assert r"),
        change_cell(5, {"metadata": {"tags": ["nbval-skip"]}}),
    ],
    "notebook_magics": [
        cell(5, "%pip install redis\nassert r"),
        cell(5, "!ls\nassert r"),
    ],
    "notebook_prose": [no_cell(4), no_cell(14)],
    "notebook_outputs": [
        change_cell(3, {"execution_count": None}),
        change_cell(11, {"outputs": []}),
        output("error", ename="ValueError", evalue="", traceback=[]),
        output("stream", name="stderr", text="DeprecationWarning"),
    ],
    "notebook_cleans_up": [cell(13, "assert r.ping()")],
    "notebook_pastes_nothing": [cell(5, "def mean():\n    return 1\n\nassert mean()")],
    # the house
    "no_orphans": [
        lambda house: house.write("notebooks/other.ipynb", "{}"),
        lambda house: house.write("tests/recipes/test_other.py", ""),
        lambda house: house.write("docs/benchmarks/other-plot.svg", ""),
    ],
    "clean_text": [
        lambda house: house.write("docs/index.md", f"{LATER}: write this"),
        lambda house: house.write("tests/x.py", "# see /" + "root/x.py"),
        lambda house: house.write("README.md", "https://pypi" + ".org/simple"),
    ],
}  # fmt: skip


def test_problems_are_printed_by_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no_such_recipe"]) == 1
    printed = capsys.readouterr().out
    assert "no_such_recipe: 8 problems" in printed
    assert "files: recipes/no_such_recipe.py is missing" in printed
    assert printed.endswith(" .venv/bin/python -m pytest -k 'no_such_recipe'\n")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edit("recipe", "\nPADDING = 0" * 80, ""), "at least: too short: add what a reader needs"),
        (edit("recipe", "PADDING = 0", "PADDING = 0\n" * 330), "at most: split rather than grow"),
    ],
)
def test_too_few_lines_are_told_from_too_many(
    house: House, change: Callable[[House], None], problem: str
) -> None:
    change(house)
    (found,) = RULES["lines"](house.root, STEM)
    assert problem in found


def test_a_table_does_not_count_as_code(house: House) -> None:
    table = "ROWS = {\n" + "".join(f"    {i}: 0,\n" for i in range(400)) + "}\n"
    house.edit("recipe", "PADDING = 0", f"{table}PADDING = 0")
    assert list(RULES["lines"](house.root, STEM)) == []


def test_what_the_demo_prints_is_written(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "fake://expected")
    promised = house.text("expected")
    house.edit("recipe", 'print("recorded 6")', 'print("recorded six")')
    assert main(["--write-expected", STEM], house.root) == 0
    assert house.text("expected") == promised.replace("recorded 6\n", "recorded six\n")
    assert capsys.readouterr().out == f"docs/expected/{STEM}.txt: written, as the demo prints it\n"


@pytest.mark.parametrize("names", [[], ["no_such_recipe"]])
def test_what_cannot_be_written_is_said(
    names: list[str], house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--write-expected", *names], house.root)
    assert f"wants names of {STEM}" in capsys.readouterr().err


def test_every_rule_has_a_bad_example() -> None:
    assert {*BAD, "name"} == {*RULES, *HOUSE_RULES}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        pytest.param(rule, change, id=f"{rule}-{number}")
        for rule, changes in BAD.items()
        for number, change in enumerate(changes)
    ],
)
def test_a_bad_example_breaks_its_rule_alone(
    house: House, rule: str, change: Callable[[House], object]
) -> None:
    change(house)
    assert house.broken_rules() == {rule}


EXCUSED = [
    inside("r.hgetall(name)  # bounded: two fields"),
    inside("# bounded: two fields\n    r.hgetall(name)"),
    inside("r.lrange(name, 0, 9)"),
    inside("r.xrange(name, count=10)"),
    inside("dict(a=1).keys()"),
    inside(LUA.format("HGETALL") + "  # bounded: two fields"),
    in_test("values = r.hgetall('t')"),
    in_test("time.sleep(0.01)  # load: a slow model"),
    in_test("import pickle  # naive: what must be refused"),
    in_test("# denied: the user may not\n    r.flushdb()"),
    all_of(needs("redis numpy; optional: lz4"), inside("import lz4.block")),
    all_of(needs("redis numpy lz4"), inside("import lz4.block")),
    all_of(
        needs("redis numpy; optional: torch, lz4"),
        inside("[importlib.import_module(m) for m in ('torch', 'lz4')]"),
    ),
    edit("recipe", "def mean(", SHARED + "\n\ndef mean("),  # within a section that is shown
    all_of(top(CLASS), prose(f'--8<-- "{RECIPE}:a"')),
    top("class _Wrong(ValueError): ...\n\n\nclass _Worse(_Wrong): ...\n\n"),
    edit("recipe", "def delete(r: Client, name", "def delete(r: Client, more: str, name"),
]  # fmt: skip


@pytest.mark.parametrize("change", EXCUSED)
def test_what_has_a_reason_is_allowed(house: House, change: Callable[[House], object]) -> None:
    change(house)
    assert house.broken_rules() == set()


@pytest.mark.parametrize(
    "name",
    ["compression", "queue", "redis", "numpy", "recipes", "Params", "step_1", "a-b", "_a", ""],
)
def test_bad_names(name: str, tmp_path: Path) -> None:
    assert name_problems(name)
    assert RULES["name"](tmp_path, name) == name_problems(name)


@pytest.mark.parametrize("name", ["training_data", "security", "persistence"])
def test_good_names(name: str) -> None:
    assert name_problems(name) == []


# --- What is seen only when it runs ---------------------------------------------------------------


def test_a_good_recipe_runs(house: House, r: redis.Redis) -> None:
    assert runs.quiet_import(house.root, STEM) == []
    assert runs.demo_run(house.root, STEM, r) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("print('hello')", "hello"),
        ("FILE = open('left.txt', 'w')", "open"),
        ("SOCKET = __import__('socket').socket()", "socket"),
        ("NOTHING = 1 / 0", "cannot be imported"),
        ("__import__('threading').Thread(target=print).start()", "a thread"),
        ("__import__('subprocess').run(['true'])", "subprocess.Popen"),
    ],
)
def test_an_import_that_does_something(house: House, line: str, problem: str) -> None:
    top(line)(house)
    (found,) = runs.quiet_import(house.root, STEM)
    assert problem in found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"demo:running_mean", [6.0]', '"demo:running_mean", [7.0]', "is not what demo prints"),
        ('    delete(r, "demo:running_mean")\n', "", "left 1 keys"),
        (
            '    delete(r, "demo',
            '    import threading\n\n    threading.Timer(0.5, float).start()\n    delete(r, "demo',
            "left threads",
        ),
    ],
)
def test_a_bad_demo(house: House, old: str, new: str, problem: str, r: redis.Redis) -> None:
    house.edit("recipe", old, new)
    assert problem in runs.demo_run(house.root, STEM, r)[0]


def test_a_changed_demo_is_told_how_to_write_its_output(house: House, r: redis.Redis) -> None:
    house.edit("expected", "recorded 6", "recorded 7")
    (found,) = runs.demo_run(house.root, STEM, r)
    assert f".venv/bin/python -m tests.contract --write-expected {STEM}" in found


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        ('    raise TypeError("not with decode_responses=True")\n', []),
        ('    r.set("left", 1)\n    raise TypeError("decode_responses")\n', ["left 1 keys"]),
        ('    raise AttributeError("decode")\n', ["is not refused: AttributeError"]),
        ('    raise TypeError("bytes")\n', ["is not refused: TypeError"]),
    ],
)
def test_a_demo_with_a_client_that_decodes(house: House, line: str, problems: list[str]) -> None:
    house.edit(
        "recipe",
        '    delete(r, "demo:running_mean")\n',
        '    delete(r, "demo:running_mean")\n' + line,
    )
    r = fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
    found = runs.decoded_run(house.root, STEM, r)
    assert len(found) == len(problems)
    assert all(problem in text for problem, text in zip(problems, found, strict=True))


@pytest.mark.real_redis
def test_a_good_recipe_runs_alone(house: House, url: str, tmp_path: Path) -> None:
    assert runs.standalone(house.root, STEM, url, tmp_path / "alone") == []


@pytest.mark.real_redis
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("import xxhash", "No module named 'xxhash'"),
        ("import hiredis", "No module named 'hiredis'"),
        ("from recipes import connect", "No module named 'recipes'"),
        ("open('left.txt', 'w').close()", "it left a file: left.txt"),
        ("print('more')", "is not what demo prints"),
        ("raise ValueError('no')", "ValueError: no"),
    ],
)
def test_a_recipe_that_cannot_stand_alone(
    house: House, line: str, problem: str, url: str, tmp_path: Path
) -> None:
    house.edit("recipe", "    import os\n", f"    import os\n    {line}\n")
    found = runs.standalone(house.root, STEM, url, tmp_path / "alone")
    assert problem in found[0]


def test_only_what_pip_would_install_is_there() -> None:
    assert "redis" in runs.modules_of({"redis"})
    assert "hiredis" not in runs.modules_of({"redis"})
    assert {"sklearn", "scipy", "joblib"} <= runs.modules_of({"scikit-learn"})
