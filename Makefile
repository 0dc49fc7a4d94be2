.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3

# Every environment is made by the one recipe below: `make env VENV=… EXTRAS=… CONSTRAINTS=…`.
VENV := .venv
EXTRAS := openrlhf,trl,analysis,demo,dev
CONSTRAINTS := constraints-cpu.txt

BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PIP := DS_BUILD_OPS=0 $(BIN)/python -m pip install -qq --disable-pip-version-check
PINNED := $(addprefix --constraint ,$(CONSTRAINTS))

# Two workers with a thread each; a file's tests stay together, they share runs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# OpenRLHF goes in without its dependencies, which include flash-attn (pyproject.toml says more), and from its wheel for
# Python 3.12 on Linux whatever is here: there is none for 3.13, macOS or ARM, and all of them hold the same plain Python.
OPENRLHF := --no-deps --python-version 3.12 --platform manylinux1_x86_64
PURELIB := $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
TESTED := $(BIN)/python -c 'from sparsepo_plugin.hosts.openrlhf.patched import TESTED; print(*TESTED)'

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

.PHONY: env
env: $(STAMP) ## make .venv with the plugin, OpenRLHF and all tools (PYTHON=python3.12 picks the interpreter)

# On a machine with an NVIDIA GPU the same torch pin brings the CUDA build, wherever pip is set to look.
$(STAMP): pyproject.toml setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make env: Python 3.11 or newer is needed; try make env PYTHON=python3.12")'
	@echo "env 1/4  virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "env 2/4  PyTorch, the largest download"
	@$(PIP) $(PINNED) torch
	@echo "env 3/4  DeepSpeed, transformers, the plugin and its tools"
	@$(BIN)/python -m pip uninstall -qq --yes openrlhf # or pip misses its dependencies, and another release's metadata stays
	@$(PIP) $(PINNED) --editable '.[$(EXTRAS)]'
	@echo "env 4/4  OpenRLHF, and beside it every release that is patched in the tests"
	@$(PIP) $(PINNED) $(OPENRLHF) --target "$$($(PURELIB))" openrlhf
	@for release in $$($(TESTED)); do \
		$(PIP) $(OPENRLHF) --upgrade --target $(VENV)/openrlhf/$$release openrlhf==$$release || exit; \
	done
	@touch $@
	@echo "env      ready: source $(VENV)/bin/activate"

# Axolotl's pins clash with OpenRLHF's: an environment of its own, in which every package is pinned, so that pip need not resolve.
AXOLOTL := .venv-axolotl
AXOLOTL_PIP := DS_BUILD_OPS=0 $(AXOLOTL)/bin/python -m pip install -qq --disable-pip-version-check --no-deps

.PHONY: env-axolotl
env-axolotl: $(AXOLOTL)/.complete ## make .venv-axolotl with the plugin, Axolotl and the tools of its tests (Python 3.11)

$(AXOLOTL)/.complete: pyproject.toml setup.py constraints-axolotl-cpu.txt
	@echo "env-axolotl 1/3  virtual environment in $(AXOLOTL)"
	@python3.11 -m venv $(AXOLOTL)
	@echo "env-axolotl 2/3  PyTorch, the largest download"
	@$(AXOLOTL_PIP) --constraint constraints-axolotl-cpu.txt torch
	@echo "env-axolotl 3/3  Axolotl, TRL, DeepSpeed, the plugin and its tools"
	@$(AXOLOTL_PIP) --requirement constraints-axolotl-cpu.txt
	@$(AXOLOTL_PIP) --editable .
	@touch $@
	@echo "env-axolotl      ready: source $(AXOLOTL)/bin/activate"

# What each run of pytest found is kept, for the last line of `make test`.
RESULTS := build/tests

.PHONY: test
test: lint test-openrlhf test-trl test-axolotl ## run the linters and every test, in both environments (under 40 minutes), and say what was covered
	@$(BIN)/python tests/covered.py $(RESULTS)/openrlhf.xml $(RESULTS)/trl.xml $(RESULTS)/axolotl.xml $(RESULTS)/hosts_agree.xml

.PHONY: test-openrlhf
test-openrlhf: env ## run the tests of the core, of OpenRLHF, of the site and of the package
	$(PYTEST) --junitxml $(RESULTS)/openrlhf.xml --ignore tests/trl --ignore tests/axolotl --ignore tests/hosts_agree

.PHONY: test-trl
test-trl: env ## run the tests of TRL, with its newest release
	$(PYTEST) --junitxml $(RESULTS)/trl.xml tests/trl

.PHONY: test-axolotl
test-axolotl: env env-axolotl ## run the tests of Axolotl, those of TRL with the release that it pins, and that hosts agree
	$(PYTEST:$(BIN)/%=$(AXOLOTL)/bin/%) --junitxml $(RESULTS)/axolotl.xml tests/axolotl tests/trl
	$(PYTEST) --junitxml $(RESULTS)/hosts_agree.xml tests/hosts_agree

.PHONY: test-fast
test-fast: env ## run the unit tests only, but for a few slow ones (under 2 minutes of one core)
	$(PYTEST) -m "not slow" tests/unit

# The two ends of what pyproject.toml allows. They are no part of `test`, and take as long.
.PHONY: test-oldest
test-oldest: ## run the tests of OpenRLHF and TRL on the oldest releases that are supported, in .venv-oldest
	@$(MAKE) test-host test-trl VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

.PHONY: test-newest
test-newest: ## run the tests of OpenRLHF and TRL on the newest releases of everything, in .venv-newest
	rm -rf .venv-newest
	@$(MAKE) test-host test-trl VENV=.venv-newest CONSTRAINTS=

.PHONY: test-host
test-host: env
	$(PYTEST) tests/host

# Branches of the core (pyproject.toml says what that is) that the unit tests take; the rest is not chased.
.PHONY: coverage
coverage: env ## run the unit tests and hold the branches of the core that they take at 95 % or more
	$(PYTEST) --cov --cov-report term --cov-report json:build/coverage.json tests/unit
	@$(BIN)/python tests/branches.py build/coverage.json 95

.PHONY: docs
docs: env ## build the site in build/docs; warnings are errors
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs
	@echo "docs     build/docs/index.html"

.PHONY: links
links: env ## ask other sites whether the links of ours are alive
	$(BIN)/python -m sphinx --builder linkcheck --quiet docs build/links

.PHONY: package
package: env ## build wheel and sdist in dist, and install the wheel as README.md says, with its downloads
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --quiet
	SPARSEPO_DIST=dist $(BIN)/python -m pytest tests/package

# What runs need on one kind of machine, by hash; README.md installs from them.
.PHONY: constraints
constraints: ## renew the files of constraints/ (asks the package index)
	$(PYTHON) constraints/renew.py

.PHONY: invariants
invariants: env ## run every layout of tests/invariant, of which `test` runs a covering set (about an hour and a half)
	$(PYTEST) --dist load tests/invariant --every-layout

.PHONY: lint
lint: env ## check style, formatting, the direction of imports, and the Dockerfiles
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile Dockerfile.cpu

.PHONY: format
format: env ## sort imports and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Waiting threads sleep: spinning ones slow a shared machine down several times.
.PHONY: demo
demo: env ## the paper's sentiment experiment in miniature, to runs/demo (about 3 minutes)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/demo/run.py

.PHONY: frontier
frontier: env ## the paper's Figure 2 in miniature, 63 runs, to runs/frontier (under 25 minutes on 2 cores; goes on where it was ended; METHODS=dpo,ln_dpo,tis_dpo compares these)
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=examples/demo:$$PYTHONPATH $(BIN)/python examples/frontier/run.py --methods "$(METHODS)"

# PAIRS and HELD_OUT are files of pairs of film reviews, of different prompts; docs/results.md says which.
.PHONY: localize
localize: env ## whether masks find edited words of film reviews, to runs/localize (PAIRS=… HELD_OUT=…, about 12 minutes)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/localize/run.py --pairs "$(PAIRS)" --held-out "$(HELD_OUT)"

# With what the tables were measured, in .venv-bench.
.PHONY: bench
bench: ## measure the step's cost on the CPU, renew benchmarks/results and the tables (under 20 minutes)
	@$(MAKE) env bench-cpu VENV=.venv-bench EXTRAS=openrlhf,bench CONSTRAINTS=benchmarks/constraints.txt

.PHONY: bench-cpu
bench-cpu:
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/report.py

# What cannot be looked up is not taken for sound: --strict, and first a look whether the database answers at all.
DATABASE := import json, urllib.request as r; json.load(r.urlopen("https://pypi.org/pypi/pip/23.0/json", timeout=15))["vulnerabilities"]
.PHONY: audit
audit: env ## look up the pinned packages among known vulnerabilities (asks pypi.org)
	@$(PIP) $(PINNED) pip-audit
	@$(BIN)/python -c '$(DATABASE)' 2>/dev/null || { echo "audit: the database at pypi.org cannot be reached, nothing was looked up" >&2; exit 1; }
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints-cpu.txt

.PHONY: clean
clean: ## remove the environments and what runs, builds and tools left
	rm -rf .venv .venv-* runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
