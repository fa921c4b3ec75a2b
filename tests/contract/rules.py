"""Where the rules are kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.contract.anatomy import Recipe

ROOT = Path(__file__).parent.parent.parent

Check = Callable[[Path, str], list[str]]
RULES: dict[str, Check] = {}
HOUSE_RULES: dict[str, Callable[[Path], list[str]]] = {}


def rule(*parts: str) -> Callable[[Callable[[Recipe], Iterable[str]]], Check]:
    """Keep a rule. It is tried only if the files that it looks at are there and can be read."""

    def keep(find: Callable[[Recipe], Iterable[str]]) -> Check:
        @functools.wraps(find)
        def check(root: Path, stem: str) -> list[str]:
            recipe = Recipe(root, stem)
            if any(recipe.unreadable(part) for part in parts):
                return []  # `files` and `readable` tell
            return list(find(recipe))

        RULES[find.__name__] = check
        return check

    return keep


def house_rule(find: Callable[[Path], Iterable[str]]) -> Callable[[Path], list[str]]:
    HOUSE_RULES[find.__name__] = lambda root: list(find(root))
    return HOUSE_RULES[find.__name__]
