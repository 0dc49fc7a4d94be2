.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
PIP := DS_BUILD_OPS=0 $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints-cpu.txt

# Two workers with a thread each; a file's tests stay together, they share runs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

PURELIB := $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

.PHONY: env
env: $(STAMP) ## make .venv with the plugin, OpenRLHF and all tools (PYTHON=python3.12 picks the interpreter)

# On a machine with an NVIDIA GPU the same torch pin brings the CUDA build, wherever pip is set to look.
# OpenRLHF goes in without its dependencies, which include flash-attn (pyproject.toml says more), and from its wheel for
# Python 3.12 whatever the interpreter: there is none for 3.13, and all of them hold the same plain Python.
$(STAMP): pyproject.toml setup.py constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make env: Python 3.11 or newer is needed; try make env PYTHON=python3.12")'
	@echo "env 1/4  virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "env 2/4  PyTorch, the largest download"
	@$(PIP) torch
	@echo "env 3/4  DeepSpeed, transformers, the plugin and its tools"
	@$(PIP) --editable '.[openrlhf,demo,dev]'
	@echo "env 4/4  OpenRLHF"
	@$(PIP) --no-deps --only-binary :all: --python-version 3.12 --upgrade --target "$$($(PURELIB))" openrlhf
	@touch $@
	@echo "env      ready: source .venv/bin/activate"

.PHONY: test
test: env lint ## run the linters and every test
	$(PYTEST)

.PHONY: test-fast
test-fast: env ## run the unit tests only (under 2 minutes)
	$(PYTEST) tests/unit

.PHONY: invariants
invariants: env ## run every layout of tests/invariant, of which `test` runs a covering set (about an hour and a half)
	$(PYTEST) --dist load tests/invariant --every-layout

.PHONY: lint
lint: env ## check style, formatting and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

.PHONY: format
format: env ## sort imports and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Waiting threads sleep: spinning ones slow a shared machine down several times.
.PHONY: demo
demo: env ## the paper's sentiment experiment in miniature, to runs/demo (about 3 minutes)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/demo/run.py

# TRL's chunked loss is Liger's, whose Triton the CPU does not need.
.PHONY: bench
bench: env ## measure the step's cost on the CPU, renew benchmarks/results and the tables (about half an hour)
	@$(PIP) --editable '.[bench]'
	@$(PIP) --no-deps liger-kernel
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/report.py

# What cannot be looked up is not taken for sound: --strict, and first a look whether the database answers at all.
DATABASE := import json, urllib.request as r; json.load(r.urlopen("https://pypi.org/pypi/pip/23.0/json", timeout=15))["vulnerabilities"]
.PHONY: audit
audit: env ## look up the pinned packages among known vulnerabilities (asks pypi.org)
	@$(PIP) pip-audit
	@$(BIN)/python -c '$(DATABASE)' 2>/dev/null || { echo "audit: the database at pypi.org cannot be reached, nothing was looked up" >&2; exit 1; }
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints-cpu.txt

.PHONY: clean
clean: ## remove the environment and what runs, builds and tools left
	rm -rf .venv runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
