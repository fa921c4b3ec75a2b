"""The contract: the rules that every recipe keeps, each a small function that finds problems.

`python -m tests.contract [STEM ...]` prints what is missing. tests/test_contract.py runs every
rule for every recipe; tests/test_contract_proofs.py proves each by a bad example that it alone
catches.

    rules.py     where the rules are kept          anatomy.py   a recipe's files, and their parts
    header.py    names, files, header, sections    code.py      recipe, tests, benchmark, output
    page.py      the page of the site              notebook.py  the notebook
    house.py     the whole repository              runs.py      what is seen only when it runs

A comment on the line, or on the line above, excuses it from one rule, and gives the reason:
`# bounded: at most 64 fields`, `# load: a slow model`, `# naive: to be measured`,
`# denied: the server must refuse it` (inside a Lua script `-- bounded: ...`).
"""

from tests.contract import code, header, house, notebook, page, runs  # they keep their rules
from tests.contract.anatomy import FILES, Recipe, chapters, stems
from tests.contract.header import name_problems
from tests.contract.rules import HOUSE_RULES, ROOT, RULES

__all__ = [
    "FILES",
    "HOUSE_RULES",
    "ROOT",
    "RULES",
    "Recipe",
    "chapters",
    "code",
    "header",
    "house",
    "name_problems",
    "notebook",
    "page",
    "runs",
    "stems",
]
