PYTHON ?= python3
BIN := .venv/bin

.PHONY: search test test-slow lint

# The environment, built anew when what it is made of changes.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

search: .venv/installed
	$(BIN)/accelerate launch -m autobert_zero.search --output_dir runs/demo

test: .venv/installed lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: .venv/installed
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
