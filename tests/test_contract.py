"""Every recipe keeps every rule. (tests/test_contract_proofs.py proves the rules.)"""

from __future__ import annotations

from pathlib import Path

import fakeredis
import pytest
import redis

from tests.contract import HOUSE_RULES, ROOT, RULES, Recipe, runs, stems
from tests.contract.house import CAPSTONE
from tests.contract.notebook import OPENING


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stem", stems(ROOT))
def test_recipe(stem: str, rule: str) -> None:
    problems = RULES[rule](ROOT, stem)
    assert not problems, "\n".join(["", *problems])


@pytest.mark.parametrize("rule", HOUSE_RULES)
def test_house(rule: str) -> None:
    problems = HOUSE_RULES[rule](ROOT)
    assert not problems, "\n".join(["", *problems])


# Without a recipe these two are not tried: they would pass whatever the notebook holds.
OF_A_RECIPE = {"notebook_opening", "notebook_pastes_nothing"}


@pytest.mark.parametrize(
    "rule", [n for n in RULES if n.startswith(("notebook_", "no_")) and n not in OF_A_RECIPE]
)
def test_notebook_of_all_recipes(rule: str) -> None:
    problems = RULES[rule](ROOT, CAPSTONE)
    assert not problems, "\n".join(["", *problems])


def test_notebook_of_all_recipes_opens_as_the_others() -> None:
    assert Recipe(ROOT, CAPSTONE).code_cells[0].source.strip() == OPENING


@pytest.mark.parametrize("stem", stems(ROOT))
def test_import_does_nothing(stem: str) -> None:
    assert runs.quiet_import(ROOT, stem) == []


@pytest.mark.parametrize("stem", stems(ROOT))
def test_demo_prints_what_the_page_shows(stem: str, r: redis.Redis) -> None:
    r.set("not the demo's", 1)
    assert runs.demo_run(ROOT, stem, r) == []
    assert r.get("not the demo's") == b"1"


@pytest.mark.parametrize("stem", stems(ROOT))
def test_demo_works_with_a_client_that_decodes_or_refuses_it(stem: str) -> None:
    r = fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
    assert runs.decoded_run(ROOT, stem, r) == []


@pytest.mark.real_redis
@pytest.mark.parametrize("stem", stems(ROOT))
def test_copied_alone_it_runs(stem: str, url: str, tmp_path: Path) -> None:
    assert runs.standalone(ROOT, stem, url, tmp_path) == []
