"""Rules for what the code does, and for what no code does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from tests.contract.anatomy import DEFINITIONS, FUNCTIONS, Code, Recipe
from tests.contract.rules import rule

MAIN = """
if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
"""
CLI = MAIN.replace(
    "    import os\n\n",
    "    import os\n    import sys\n\n    if sys.argv[1:]:\n"
    "        raise SystemExit(main(sys.argv[1:]))\n",
)  # a recipe that operators call with arguments has also `def main(argv: list[str]) -> int`
LINES = (90, 400)  # of code: what documents it does not count against it
DEMO_LINES = (5, 15)
DEMO_SUMMARY = 100  # characters
UNSAFE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
    "torch.load": "weights_only=True",
}
WHOLE_REPLIES = {"smembers", "hgetall", "hvals", "hkeys"}

# --- The code of a recipe -------------------------------------------------------------------------


@rule("recipe")
def lines(recipe: Recipe) -> Iterable[str]:
    count = len(recipe.source.code_lines)
    least, most = LINES
    if count > most:
        yield f"{count} lines of code, and {most} at most: split rather than grow"
    if count < least:
        short = "too short: add what a reader needs, or put it into another recipe"
        yield f"{count} lines of code, and {least} at least: {short}"


@rule("recipe")
def imports(recipe: Recipe) -> Iterable[str]:
    if "from __future__ import annotations" not in recipe.source.lines:
        yield "the first import is `from __future__ import annotations`"
    for module, node, _ in recipe.source.imports():
        if module.startswith(".") or module.split(".")[0] in recipe.siblings:
            yield f"{recipe.source.at(node)}: imports {module}, but a recipe is copied alone"


@rule("recipe")
def import_time(recipe: Recipe) -> Iterable[str]:
    constants = (ast.Assign, ast.AnnAssign, ast.AugAssign)
    allowed = (ast.Import, ast.ImportFrom, *constants, *DEFINITIONS)
    guards = ("__name__ == '__main__'", "TYPE_CHECKING", "typing.TYPE_CHECKING")
    for node in recipe.source.tree.body[1:]:
        is_guard = isinstance(node, ast.If) and ast.unparse(node.test) in guards
        if not isinstance(node, allowed) and not is_guard:
            yield (
                f"{recipe.source.at(node)}: runs at import; at the top level are only imports, "
                "constants, functions, classes (import what is optional inside functions)"
            )


@rule("recipe")
def main_block(recipe: Recipe) -> Iterable[str]:
    ending = CLI if "main" in recipe.top_level else MAIN
    if not recipe.source.text.endswith("\n" + ending):
        yield f"the file ends, word for word, in:\n{ending}"


@rule("recipe")
def demo(recipe: Recipe) -> Iterable[str]:
    node = recipe.top_level.get("demo")
    signature = "def demo(r: redis.Redis) -> None:"
    if not isinstance(node, ast.FunctionDef) or ast.unparse(node).splitlines()[0] != signature:
        yield f"there is `{signature}`"


@rule("recipe")
def client_first(recipe: Recipe) -> Iterable[str]:
    clients = {"Redis", "RedisCluster"}
    for node in recipe.source.tree.body:  # Client = redis.Redis | redis.RedisCluster
        if isinstance(node, ast.Assign) and _is_client(node.value, clients):
            clients |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for function, is_method in recipe.public("__init__"):
        for position, arg in enumerate(_parameters(function)):
            if _is_client(arg.annotation, clients) and (position, arg.arg) != (is_method, "r"):
                where = f"{recipe.source.at(function)}: {function.name}"
                yield f"{where}: a client is the first parameter and named r; found {arg.arg}"


def _parameters(function: ast.AST) -> list[ast.arg]:
    if not isinstance(function, FUNCTIONS):
        return []
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _is_client(annotation: ast.expr | None, names: set[str]) -> bool:
    match annotation:
        case ast.Name(id=word) | ast.Attribute(attr=word):
            return word in names
        case ast.Subscript(value=value):
            return _is_client(value, names)
        case ast.BinOp(left=left, right=right):
            return _is_client(left, names) or _is_client(right, names)
    return False


@rule("recipe")
def docstrings(recipe: Recipe) -> Iterable[str]:
    for node, _ in recipe.public():
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        is_another_half = any(text.endswith((".setter", "overload")) for text in decorators)
        if not is_another_half and not ast.get_docstring(node):
            yield f"{recipe.source.at(node)}: {node.name} is public: give it a docstring"


# --- What no code does ----------------------------------------------------------------------------


@rule()
def no_unsafe_decoder(recipe: Recipe) -> Iterable[str]:
    """Benchmarks are free to measure the naive way; a notebook or test shows it by `# naive:`."""
    for code in recipe.codes("recipe", "notebook", "tests"):
        may_show = code.file != recipe.name("recipe")
        for module, node, _ in code.imports():
            is_shown = may_show and code.excused(node, "naive")
            if module.split(".")[0] in UNSAFE_MODULES and not is_shown:
                yield f"{code.at(node)}: {module} runs what it reads: use arrays or JSON"
        for call, function in code.calls:
            keywords = [ast.unparse(k) for k in call.keywords]
            safely = UNSAFE_CALLS.get(function)
            if (safely and safely not in keywords) or "allow_pickle=True" in keywords:
                yield f"{code.at(call)}: say {safely or 'allow_pickle=False'}"


@rule()
def no_eval(recipe: Recipe) -> Iterable[str]:
    for code in recipe.codes("recipe", "notebook", "tests"):
        for call, function in code.calls:
            if function in ("eval", "exec", "__import__", "os.system"):
                yield f"{code.at(call)}: {function} runs text"


@rule()
def no_decoded_client(recipe: Recipe) -> Iterable[str]:
    for code in recipe.codes("recipe", "notebook", "tests", "benchmark"):
        for call, _ in code.calls:
            if "decode_responses=True" in map(ast.unparse, call.keywords):
                yield f"{code.at(call)}: decode_responses=True breaks binary values"


@rule()
def no_keys(recipe: Recipe) -> Iterable[str]:
    for code in recipe.codes("recipe", "notebook", "tests", "benchmark"):
        client = re.compile(
            r"(.*\.)?_?(r|client|cluster|rc|redis)\.keys"
        )  # a dict has .keys(), too
        found = [
            c for c, f in code.calls if f.endswith(".keys") and (c.args or client.fullmatch(f))
        ]
        for node in (*found, *_commands(code, "KEYS")):
            yield f"{code.at(node)}: KEYS halts the server while it looks: use SCAN (scan_iter)"


@rule()
def no_flush(recipe: Recipe) -> Iterable[str]:
    for code in recipe.codes("recipe", "notebook", "tests", "benchmark"):
        found = [c for c, function in code.calls if function.endswith((".flushdb", ".flushall"))]
        for node in (*found, *_commands(code, "FLUSHDB", "FLUSHALL")):
            if not code.excused(node, "denied"):
                yield f"{code.at(node)}: deletes what is not yours: SCAN your prefix and UNLINK"


@rule()
def no_unbounded_reply(recipe: Recipe) -> Iterable[str]:
    """Replies that grow with the data; `# bounded: why` excuses one."""
    for code in recipe.codes("recipe", "notebook"):
        found = [call for call, function in code.calls if _is_unbounded(call, function)]
        for node in (*found, *_commands(code, *WHOLE_REPLIES)):
            if not code.excused(node, "bounded"):
                yield f"{code.at(node)}: the reply has no bound: page it, or say `# bounded: why`"


def _is_unbounded(call: ast.Call, function: str) -> bool:
    method = function.rpartition(".")[2] if "." in function else ""
    arguments = {ast.unparse(node) for node in (*call.args, *call.keywords)}
    if method in ("lrange", "zrange", "zrevrange"):
        return bool(arguments & {"0", "start=0"} and arguments & {"-1", "end=-1"})
    if method in ("xrange", "xrevrange"):
        return len(call.args) < 4 and not any(k.arg == "count" for k in call.keywords)
    return method in WHOLE_REPLIES


def _commands(code: Code, *names: str) -> Iterator[ast.AST]:
    """Find commands in execute_command("...") and in Lua text."""
    either = "|".join(names)
    in_lua = re.compile(rf"redis\.p?call\(\s*[\"'](?:{either})[\"']", re.IGNORECASE)
    for call, function in code.calls:
        command = getattr(call.args[0], "value", "") if call.args else ""
        text = command.decode(errors="replace") if isinstance(command, bytes) else str(command)
        is_raw = function.endswith("execute_command")
        if is_raw and re.match(rf"(?:{either})\b", text, re.IGNORECASE):
            yield call
    yield from (node for node in code.strings if in_lua.search(str(node.value)))


# --- Tests, benchmark, expected output ------------------------------------------------------------


@rule("tests")
def tests_on_servers(recipe: Recipe) -> Iterable[str]:
    used = {a.arg for node in recipe.code("tests").definitions for a in _parameters(node)}
    if not used & {"r", "url", "cluster", "server_kind"}:
        yield "no test takes the fixture r, which runs it on every server"


@rule("tests")
def tests_do_not_sleep(recipe: Recipe) -> Iterable[str]:
    code = recipe.code("tests")
    for call, function in code.calls:
        if function in ("time.sleep", "sleep") and not code.excused(call, "load"):
            yield f"{code.at(call)}: poll by servers.wait_until, or say `# load: what is simulated`"


@rule("tests")
def tests_are_run(recipe: Recipe) -> Iterable[str]:
    code = recipe.code("tests")
    for node in ast.walk(code.tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"pytest\.(mark\.)?(skip|skipif|xfail)", text):
            yield f"{code.at(node)}: no {text}; pytest.mark.real_redis says that fakeredis cannot"


@rule("benchmark")
def benchmark(recipe: Recipe) -> Iterable[str]:
    code = recipe.code("benchmark")
    made = [ast.unparse(c.args[0]) for c, name in code.calls if name == "Benchmark" and c.args]
    if repr(recipe.stem) not in made:
        yield f'the benchmark makes a Benchmark("{recipe.stem}", ...) of benchmarks.harness'
    if not code.text.endswith('\n\nif __name__ == "__main__":\n    main()\n'):
        yield 'the benchmark ends in `if __name__ == "__main__":` and `main()`'


@rule("expected")
def expected_output(recipe: Recipe) -> Iterable[str]:
    printed = recipe.text("expected").splitlines()
    if not DEMO_LINES[0] <= len(printed) <= DEMO_LINES[1]:
        yield f"demo prints {len(printed)} lines; {DEMO_LINES[0]} to {DEMO_LINES[1]} are wanted"
    if not 1 < len("".join(printed[-1:])) <= DEMO_SUMMARY:
        yield f"demo's last line says in at most {DEMO_SUMMARY} characters what it showed"
