# Everything sets itself up from Python 3.11 or newer, make, and the package index:
#
#   make demo     two stores and two peers on this machine, objects moving between them
#   make test     lint, types, and all tests with coverage
#   make lint     ruff and mypy alone
#   make fuzz     spoilt input for parsers and live servers; a million of them, or INPUTS=..., from SEED=...
#   make kills    kill 500 clients of each kind (KILLS=...) at random moments, and check the store each time
#   make faults   cut and spoil transfers between peers at FAULTS=... times as many places as make test does
#   make soak     ten minutes (SECONDS=...) of transfers between two nodes while everything goes wrong (needs root)
#   make simulate   2,000 simulated worlds of peers in trouble (SEEDS=...), from SEED=... on
#   make bench    measure everything beside its rivals, or PARTS='store peer' alone; SAVE=--save keeps the results
#   make schema   regenerate the flatbuffers code that the tests compare ours with (needs flatc)
#   make clean    remove what the others made, the environments included
#
# Two environments: .venv has this package (PYTHON=... chooses the interpreter it is made with), .venv-apache the
# last pyarrow that came with Plasma, which needs CPython 3.11 (APACHE_PYTHON=...); without it, tests skip.

.DELETE_ON_ERROR:
.PHONY: help demo test check lint fuzz kills faults simulate soak bench schema clean setup setup-apache setup-fuzz setup-bench

PYTHON ?= python3.11 python3.12 python3.13 python3
APACHE_PYTHON ?= python3.11 python3

BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --no-input --disable-pip-version-check
APACHE_REQUIREMENTS := 'pyarrow==11.0.0' 'numpy<2'
APACHE_READY := .venv-apache/ready-pyarrow-11.0.0

# Fuzzing led by coverage has an environment of its own, .venv-fuzz, for a CPython that atheris has wheels for.
INPUTS ?= 1000000
FUZZ_PYTHON ?= python3.12 python3.13 python3.11 python3.14 python3
FUZZ_READY := .venv-fuzz/ready

# Packages of `wire` that have a schema; the tests of each have the code that flatc makes of it.
SCHEMAS := plasma stream/v2

# $(call find_python,NAMES,CONDITION) is a shell command that prints the first interpreter of these names, in the
# whole PATH, that really runs (a version manager's shim may be there and fail), meets the condition and can make
# environments.
define find_python
for name in $(1); do \
    for candidate in $$(type -a -p "$$name"); do \
      if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(not ($(2)))' >/dev/null 2>&1 </dev/null; \
      then echo "$$candidate"; exit 0; fi; \
    done; \
  done; exit 1
endef

SHELL := bash

help:
	@sed -n '/^#   make /s/^# *//p' Makefile

demo: setup
	@$(BIN)/plasmastream demo

test: lint
	@$(MAKE) --no-print-directory check

# The tests alone. Where Apache's parts are installed, a test that cannot use them fails rather than skips.
check: setup setup-apache
	@if [ -e $(APACHE_READY) ]; then export PLASMASTREAM_REQUIRE_APACHE=1; fi; \
	  $(BIN)/python -m coverage run -m pytest
	@$(BIN)/python -m coverage report

lint: setup
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

# A failed run prints its seed: make kills SEED=... repeats it.
KILLS ?= 500
kills: setup setup-apache
	@if [ -e $(APACHE_READY) ]; then export PLASMASTREAM_REQUIRE_APACHE=1; fi; \
	  PLASMASTREAM_KILLS=$(KILLS) PLASMASTREAM_KILLS_SEED=$(or $(SEED),0) \
	  $(BIN)/python -m pytest -rP -k random_moments tests/interop/test_kills.py

# From 127 on, every bit of the conversations has its turn. A failed run prints what it drew from its seed.
FAULTS ?= 20
faults: setup
	@PLASMASTREAM_FAULTS=$(FAULTS) PLASMASTREAM_FAULTS_SEED=$(or $(SEED),1) \
	  $(BIN)/python -m pytest tests/peer/test_cuts.py tests/peer/test_flips.py

# Two machines are two network namespaces here. PEER_VERSION=2 lets happen what version 1 cannot notice.
SECONDS ?= 600
PEER_VERSION ?= 2
soak: setup
	@$(BIN)/python -m tests.soak --seconds $(SECONDS) --seed $(or $(SEED),1) --peer-version $(PEER_VERSION)

# What is found is printed with its seed, and the command that repeats it. VERSION is that of the peer protocol.
SEEDS ?= 2000
VERSION ?= 2
simulate: setup
	@$(BIN)/python -m tests.simulation --version $(VERSION) --seeds $(SEEDS) --seed $(or $(SEED),0)

setup: .venv/ready

# An interrupted run leaves `incomplete` behind, and the next one starts afresh. A working environment is kept, so
# that a changed pyproject.toml costs a moment only.
.venv/ready: pyproject.toml
	@python=$$($(call find_python,$(PYTHON),sys.version_info >= (3, 11))) || \
	  { echo "Python 3.11 or newer, with its venv module, was not found; try make PYTHON=/path/to/python"; exit 1; }; \
	if [ -e .venv/incomplete ] || ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then \
	  echo "Making .venv with $$python"; \
	  rm -rf .venv && mkdir .venv && touch .venv/incomplete && "$$python" -m venv .venv || exit 1; \
	fi; \
	echo "Installing plasmastream and its test tools into .venv"; \
	touch .venv/incomplete && rm -f $@ && \
	$(BIN)/python $(PIP_INSTALL) --editable '.[test,lint]' && \
	rm .venv/incomplete && touch $@

setup-apache:
	@[ ! -e $(APACHE_READY) ] || exit 0; \
	python=$$($(call find_python,$(APACHE_PYTHON),sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 11))) || \
	  { echo "Without CPython 3.11, which the last pyarrow with Plasma needs, tests against Apache's parts skip"; exit 0; }; \
	echo "Making .venv-apache with $$python, for Apache's own store and client"; \
	rm -rf .venv-apache && "$$python" -m venv .venv-apache && \
	.venv-apache/bin/python $(PIP_INSTALL) --only-binary :all: $(APACHE_REQUIREMENTS) && \
	touch $(APACHE_READY) || \
	{ rm -rf .venv-apache; echo "Apache's parts could not be installed; tests against them skip"; }

# Arrow Flight and gRPC, as they are today, have an environment of their own; without them their figures are left out.
PARTS ?=
SAVE ?=
BENCH_REQUIREMENTS := 'pyarrow>=20' 'grpcio>=1.70'
BENCH_READY := .venv-bench/ready
bench: setup setup-apache setup-bench
	@$(BIN)/python -m benchmarks $(PARTS) $(SAVE)

setup-bench: setup
	@[ ! -e $(BENCH_READY) ] || exit 0; \
	echo "Making .venv-bench, for Arrow Flight and gRPC"; \
	rm -rf .venv-bench && $(BIN)/python -m venv .venv-bench && \
	.venv-bench/bin/python $(PIP_INSTALL) --only-binary :all: $(BENCH_REQUIREMENTS) && \
	touch $(BENCH_READY) || \
	{ rm -rf .venv-bench; echo "Arrow Flight and gRPC could not be installed; they do not take part"; }

fuzz: setup setup-fuzz
	@if [ -e $(FUZZ_READY) ]; then guided='--guided .venv-fuzz/bin/python'; \
	else echo "Without atheris no input is led by coverage: all of them are made by chance"; fi; \
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(or $(SEED),1) $$guided

setup-fuzz:
	@[ ! $(FUZZ_READY) -nt pyproject.toml ] || exit 0; \
	python=$$($(call find_python,$(FUZZ_PYTHON),sys.implementation.name == "cpython" and (3, 11) <= sys.version_info[:2] <= (3, 14))) || \
	  { echo "CPython 3.11 to 3.14, which atheris has wheels for, was not found"; exit 0; }; \
	echo "Making .venv-fuzz with $$python, for atheris"; \
	rm -rf .venv-fuzz && "$$python" -m venv .venv-fuzz && \
	.venv-fuzz/bin/python $(PIP_INSTALL) --only-binary atheris --editable '.[test,fuzz]' && \
	touch $(FUZZ_READY) || \
	{ rm -rf .venv-fuzz; echo "atheris could not be installed for this Python and machine"; }

# The generated modules import each other by their namespace, which tests/wire/oracle.py gives them.
schema:
	@command -v flatc >/dev/null || \
	  { echo "flatc, the flatbuffers compiler (package flatbuffers-compiler), is not installed"; exit 1; }
	@for package in $(SCHEMAS); do \
	  schema=plasmastream/wire/$$package/schema; generated=tests/wire/$$package/generated; \
	  rm -rf $$generated && mkdir -p $$generated && \
	  flatc --python -o $$generated -I $$schema $$schema/*.fbs && touch $$generated/__init__.py && \
	  echo "Made $$(find $$generated -name '*.py' | wc -l) modules in $$generated" || exit 1; \
	done

clean:
	@rm -rf .venv .venv-apache .venv-bench .venv-fuzz .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache \
	  build dist demo-logs
	@find plasmastream tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
