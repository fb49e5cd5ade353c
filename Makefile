# `make help` lists what there is; every target sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
DALI   ?= cuda13          # which DALI wheel: cuda12 or cuda13; either runs on a machine without a GPU
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint .ci/constraints.txt
export PYTHONUNBUFFERED = 1

# For other versions some of the pinned packages have no wheels.
FITS   := import sys; v = sys.version_info[:2]; \
          sys.exit(None if (3, 11) <= v <= (3, 14) else "$(PYTHON) is Python %d.%d; \
          3.11 to 3.14 will do: make setup PYTHON=python3.12" % v)
WHICH  := import sys; print(sys.version_info[:2], sys.base_prefix)

.PHONY: help setup demo test lint bench clean
help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## make the virtual environment and install everything at pinned versions
$(VENV)/.ready: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c '$(FITS)'
	@echo "setting up $(VENV) (some minutes the first time: 2.4 GB, and several more if torch brings CUDA's libraries)"
	@if [ -e $(VENV)/pyvenv.cfg ] && [ "$$($(BIN)/python -c '$(WHICH)' 2>&1)" != "$$($(PYTHON) -c '$(WHICH)')" ]; then \
		echo "$(VENV) is made anew: it was another Python's"; $(PYTHON) -m venv --clear $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi
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

clean:  ## remove the virtual environment, caches, peers of the benchmark and what the demo made; no other runs
	rm -rf $(VENV) .bench build runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
