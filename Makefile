# Two commands: `make train` trains a real small chat model here, through every phase; `make test` runs every check.
# Each does its own set-up, into $(VENV), and needs only python3.11 or newer, git, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/toy.sh
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test test-fast lint bench chaos clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: $(VENV)/.train ## train a real small chat model on this computer, and prove that it is in the bucket (a folder)
	$(BIN)/python train_and_upload.py --script $(RECIPE)

test: $(VENV)/.test lint ## lint, types, and every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.test ## the unit tests alone
	$(BIN)/python -m pytest -m "not slow and not s3 and not docker and not browser and not upstream"

lint: $(VENV)/.test ## ruff, mypy, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x recipes/*.sh entrypoint/*.sh build_and_push.sh .ci/run

bench: $(VENV)/.test ## the figures of benchmarks/RESULTS.md, measured again here
	$(BIN)/python -m benchmarks

chaos: $(VENV)/.test ## kill -9 at random moments by the dozen, a bucket that dies for minutes (half an hour)
	$(BIN)/python tests/chaos.py --fake 50 --real 10 --outages 3 30 300 --slow-down 60

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "homerun needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: the one that every figure here was measured with
$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing homerun and torch into $(VENV) (once; a minute or two)"
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[train,serve]'
	@touch $@

$(VENV)/.test: $(VENV)/.train
	@echo "installing what the tests need into $(VENV) (once)"
	$(PIP) --editable '.[test,upstream,lint]'
	@touch $@

clean: ## remove the environment and the caches (never a run)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
