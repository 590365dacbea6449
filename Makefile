# Everything a person needs: `make demo`, `make test`. Every target sets up what it uses.
SHELL := /bin/bash
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .venv-tools
HOURS ?= 20
FIRST_SEED ?= 1
SECONDS_EACH ?= 20
# The tests of the safety-critical modules, each in the files that bear its name.
COVERED_BY := actuate modes contract contract_due contract_rows contract_slopes \
  envelope envelope_bank envelope_battery envelope_caps envelope_node envelope_windows \
  signals signal_bounds signal_crowd signal_ids signal_memory signal_silence signal_times

.PHONY: setup demo test check lint units configs faults swarm wire wire-slow process machine coverage mutation fuzz test-gpu tools benchmarks lock clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | column -t -s "$$(printf '\t')"

setup: $(VENV)/.stamp ## build .venv, so that .venv/bin/rampart exists

$(VENV)/.stamp: requirements.lock pyproject.toml
	@$(PY) -c 'import sys; sys.exit("Rampart needs Python 3.11 or newer; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## a training site on real wires, about 90 s; writes out/demo/
	$(BIN)/rampart hil run demo --wire --out out/demo

test: setup ## the default suite: on every core, then what needs real wires and real time alone
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not wire and not slow and not process and not machine'
	$(BIN)/python -m pytest -m 'wire and not slow and not process and not machine'

check: lint units configs ## lint, types, direction of imports, units, configs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

units: setup
	$(BIN)/python -m pytest -q tests/test_systemd.py

configs: setup
	$(BIN)/rampart check -c configs/site.example.yaml >/dev/null
	$(BIN)/rampart check -c configs/node.example.yaml >/dev/null
	$(BIN)/python -m pytest -q tests/test_contract_files.py tests/test_profiles.py tests/test_dsx_asyncapi.py

benchmarks: setup ## every recorded trace on the plant bench; writes the tables of docs/benchmarks.md
	$(BIN)/rampart bench plant --out docs/benchmarks.md

faults: setup ## every row of the fault catalogue in four states; writes out/faults/
	$(BIN)/python -m hil.matrix

swarm: setup ## HOURS of seeded fault swarms from FIRST_SEED on, in virtual time on every core; writes out/swarm/
	$(BIN)/python -m hil.swarm --hours $(HOURS) --first-seed $(FIRST_SEED)

wire: setup ## everything that needs real sockets, files or the C ABI
	$(BIN)/python -m pytest -m wire

wire-slow: setup ## of `wire`, what the default suite leaves out
	$(BIN)/python -m pytest -m 'wire and slow'

process: setup ## death of real processes under what plays systemd: kill -9, stops, full disk, split brain
	$(BIN)/python -m pytest -m process

machine: setup ## the shipped units on a Debian of its own, run by its systemd; root, debootstrap, systemd-container
	$(BIN)/python -m pytest -m machine tests/test_machine_lane.py

coverage: setup ## every line and branch of the safety-critical modules, by their own tests
	@mkdir -p out
	$(BIN)/coverage run -m pytest -q $(foreach m,$(COVERED_BY),tests/test_$(m).py)
	$(BIN)/coverage report

mutation: setup ## mutants of envelope, modes, signals and contract; writes out/mutation.json
	$(BIN)/python -m hil.mutation

fuzz: setup ## parsers of everything that comes from outside: many examples by rules, then by coverage
	RAMPART_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/test_fuzz_parsers.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3,<4'
	$(BIN)/python -m tests.fuzz_guided --seconds $(SECONDS_EACH)

test-gpu: setup ## read-only lane on a real NVIDIA GPU; writes out/gpu/seen.json
	$(BIN)/python -m pytest -m gpu tests/gpu

tools: setup $(TOOLS)/.stamp ## unmodified gpustat, nvitop and zeus on simulated GPUs
	RAMPART_TOOLS=$(TOOLS)/bin $(BIN)/python -m pytest -m slow tests/test_common_tools.py

$(TOOLS)/.stamp: Makefile
	$(PY) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check gpustat==1.1.1 nvitop==1.7.2 zeus==0.16.0
	@touch $@

lock: setup ## renew requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --extra dev --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --strip-extras --no-header --allow-unsafe --output-file requirements.lock pyproject.toml

clean: ## remove what builds and runs left
	rm -rf out dist .pytest_cache .mypy_cache .ruff_cache
