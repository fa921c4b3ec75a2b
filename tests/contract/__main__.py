"""Print what each recipe lacks: `python -m tests.contract [STEM ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes import ServerUnreachable, connect
from tests.contract import FILES, HOUSE_RULES, ROOT, RULES, runs, stems


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="STEM", help="default: all, and the house")
    parser.add_argument(
        "--write-expected",
        action="store_true",
        help=f"run the demo, and write what it prints to {FILES['expected'].format('STEM')}",
    )
    chosen = parser.parse_args(arguments)
    if not chosen.write_expected:
        return check(chosen.names, root)
    if not chosen.names or not {*chosen.names} <= {*stems(root)}:
        parser.error(f"--write-expected wants names of {', '.join(stems(root))}")
    return write_expected(chosen.names, root)


def check(names: list[str], root: Path) -> int:
    """Print what each recipe lacks, and, if none is named, the house."""
    found = {
        stem: [f"{key}: {text}" for key, check in RULES.items() for text in check(root, stem)]
        for stem in names or stems(root)
    }
    if not names:
        found["the house"] = [text for check in HOUSE_RULES.values() for text in check(root)]
    for stem, problems in found.items():
        print(f"{stem}: {len(problems) or 'no'} problems", *problems, sep="\n  ")
    chosen = f" -k '{' or '.join(names)}'" if names else ""
    print("Not checked here: what the demo prints, the notebook's outputs, the tests.")
    print(f"They are run by: .venv/bin/python -m pytest{chosen}")
    return int(any(found.values()))


def write_expected(names: list[str], root: Path) -> int:
    """Run the demos on the server of connect(), and write what they print."""
    try:
        r = connect()
    except ServerUnreachable as error:
        print(error, file=sys.stderr)
        return 2
    for name in names:
        path = runs.write_expected(root, name, r)
        print(f"{path.relative_to(root)}: written, as the demo prints it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
