PYTHON ?= python3
BIN := .venv/bin

.PHONY: search test lint

# The environment, brought up to date when what it is made of changes.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

search: .venv/installed
	$(BIN)/accelerate launch -m autobert_zero.search --output_dir runs/demo

test: .venv/installed lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
