# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: help install demo test test-fast lint types unit docs package package-check miniature table clean

help:  ## Lists the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## Makes .venv with the pinned dependencies.

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing pinned dependencies into $(VENV) (torch is the big one)"
	$(INSTALL) torch
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --editable '.[docs]'
	@touch $@

demo: install  ## Distils four teachers into one student, evaluates and reports: runs/demo/report.html.
	$(BIN)/flow-opd demo

test: lint types unit  ## Lint, types and tests.

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-test
	$(BIN)/mypy

# A file stays on one worker, which makes its fixtures once; a worker has a core of its own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

unit: $(VENV)/.installed-test
	$(PYTEST)

test-fast: $(VENV)/.installed-test  ## The tests that are fast, without lint and types: under a minute on two idle cores.
	$(PYTEST) -m "not slow"

docs: $(VENV)/.installed-docs  ## The documentation as HTML, links checked: build/docs/index.html.
	$(BIN)/python docs/site/make.py

$(VENV)/.installed-package: $(VENV)/.installed
	$(INSTALL) --editable '.[package]'
	@touch $@

package: $(VENV)/.installed-package  ## A source distribution, and a wheel from it: dist/.
	rm -rf dist
	$(BIN)/python -m build --no-isolation

package-check: package  ## Installs the wheel in a fresh environment elsewhere and runs the tiniest demo there.
	PYTHON=$(PYTHON) .ci/package-check

table: install  ## The full table of the README: all rows, all domains, 500 prompts each (a quarter of an hour on two idle cores).
	$(BIN)/flow-opd demo asset:configs/table.yaml

miniature: install  ## Builds the miniature from seeds: VAE, base, rewards (hours; resumable; docs/miniature.md).
	$(BIN)/flow-opd miniature build

clean:  ## Removes .venv, build, dist and caches; runs/ stays.
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
