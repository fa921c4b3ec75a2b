# Each target is one thin line over a tool; the first one that you run sets up .venv.
PYTHON ?= python3
BIN := .venv/bin

run: .venv/ready      ## run every recipe on an embedded server
	$(BIN)/python -m recipes $(RECIPE)

test: .venv/ready     ## run every test on every server that is installed
	$(BIN)/python -m pytest -n 3

coverage: .venv/ready ## which branches of the recipes no test takes
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing tests/recipes tests/test_contract.py

mutants: .venv/ready  ## break each guarantee of the recipes, to see a test fail
	$(BIN)/python -m tests.mutants $(RECIPE)

bench: .venv/ready    ## measure again; writes docs/benchmarks (RECIPE=name: only one)
	$(BIN)/python -m benchmarks $(RECIPE)

peers: .venv/ready    ## install what the benchmarks compare with (large)
	$(BIN)/python -m pip install -q -r requirements-bench.txt

site: .venv/ready     ## read the docs at http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lab: .venv/ready      ## open the notebooks
	$(BIN)/jupyter lab notebooks

lint: .venv/ready     ## ruff everywhere, mypy --strict over the recipes
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy --strict recipes

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	@echo "Installing requirements.txt into .venv (1.1 GB, once; a minute or more) ..."
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

.PHONY: run test coverage mutants bench peers site lab lint
