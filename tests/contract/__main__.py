"""Print what each recipe lacks: `python -m tests.contract [STEM ...]`."""

from __future__ import annotations

import sys

from tests.contract import HOUSE_RULES, ROOT, RULES, stems


def main(names: list[str]) -> int:
    """Print what each recipe lacks, and, if none is named, the house."""
    found = {
        stem: [f"{key}: {text}" for key, check in RULES.items() for text in check(ROOT, stem)]
        for stem in names or stems(ROOT)
    }
    if not names:
        found["the house"] = [text for check in HOUSE_RULES.values() for text in check(ROOT)]
    for stem, problems in found.items():
        print(f"{stem}: {len(problems) or 'no'} problems", *problems, sep="\n  ")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
