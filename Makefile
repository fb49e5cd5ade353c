# `make help` lists what there is; every target sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
DALI   ?= cuda13          # which DALI wheel: cuda12 or cuda13; either runs on a machine without a GPU
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint .ci/constraints.txt
export PYTHONUNBUFFERED = 1

.PHONY: help setup demo test lint bench clean
help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## make the virtual environment and install everything at pinned versions
$(VENV)/.ready: pyproject.toml .ci/constraints.txt
	@echo "setting up $(VENV) (some minutes the first time: about 2 GB of packages)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --no-build-isolation deepspeed     # a source package that looks at torch while it is built; compiles nothing
	$(PIP) --editable '.[$(strip $(DALI)),deepspeed,demo,dev,export]'
	@touch $@

demo: $(VENV)/.ready  ## the whole method on scanned digits with wrong labels, on the CPU, in minutes
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

test: $(VENV)/.ready  ## all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready  ## ours beside what you would use instead, in under ten minutes; see tests/bench
	$(PIP) --editable '.[bench]'
	$(BIN)/python -m tests.bench --install

clean:  ## remove the virtual environment, caches, peers of the benchmark and demo runs
	rm -rf $(VENV) .bench build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
