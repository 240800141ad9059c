# Two commands do all the set-up: `make demo` and `make test`. Everything goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs bench soak format clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed ## create .venv with nmstep and everything it is developed with

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nmstep needs Python 3.11 or later, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## dense, ASP, SR-STE and STEP at 1:16 on real digits, 3 seeds: table, checks, report
	$(BIN)/nmstep demo --out $(RUNS)/demo --jobs $(JOBS)

test: setup ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --quiet

check: setup ## format, lint, types, and the pages of docs/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

docs: setup ## the pages of docs/, to build/docs, warnings as errors
	$(BIN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --nitpicky --quiet docs build/docs

bench: setup ## step, mask, iteration and memory against torch's AdamW; nothing else should be running
	$(BIN)/python benchmarks/run.py

soak: setup ## runs killed, starved, damaged and shared, and 10,000 generated calls: one table, half an hour at most
	OMP_NUM_THREADS=1 $(BIN)/python -m soak

format: setup ## reformat and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv and caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
