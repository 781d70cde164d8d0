# make demo: everything from an empty clone to a ranked table.   make check: every check.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Tests run side by side, so none of them may start a thread per core.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint type format picture check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3 found; set PYTHON=" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

install: $(INSTALLED)  ## make .venv and install the tested set

demo: install  ## train a router, rank it, print where the results lie
	@# On the Azure trace if it is here or can be fetched, else on requests like it from the embedded generator.
	@if $(BIN)/fleetgym download-traces --optional azure_conversation; \
		then echo demo_azure > $(VENV)/.demo; \
		else echo "note: the demo does without the trace: its requests are generated"; echo demo > $(VENV)/.demo; fi
	$(BIN)/fleetgym train experiment=$$(cat $(VENV)/.demo) hydra.run.dir=outputs/demo/train
	$(BIN)/fleetgym leaderboard experiment=$$(cat $(VENV)/.demo) hydra.run.dir=outputs/demo/leaderboard
	@echo "Trained router: $(CURDIR)/outputs/demo/train"
	@echo "Leaderboard:    $(CURDIR)/outputs/demo/leaderboard/leaderboard.html"

test: install  ## tests, then lint and types
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2
	$(MAKE) --no-print-directory lint type

test-slow: install  ## the long checks: mutants, thousands of generated cases, other trainers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[trainers]'
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m slow -n 2

lint: install  ## style and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: install  ## mypy, strict
	$(BIN)/mypy

format: install  ## rewrite to the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

picture: install  ## draw docs/images/architecture.svg from the imports
	$(BIN)/python docs/draw_architecture.py

check: test test-slow  ## every check there is

clean:  ## remove caches and builds; results and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
