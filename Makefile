# `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Or every process of a run and of a test would compile what .ci/install.py left to the first import.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || echo python3)
BIN := .venv/bin
# Remakes .venv for a PYTHON that was given; without one, any supported Python that .venv has is fine.
INSTALL = $(PYTHON) .ci/install.py $(if $(filter file,$(origin PYTHON)),,--python)
WHEELHOUSE ?= wheelhouse
# Two at a time, each a whole module: tests/conftest.py says which belong together.
PYTEST := $(BIN)/python -m pytest -q --numprocesses $(or $(WORKERS),2) --dist loadscope --no-loadscope-reorder
PIPELINE ?= configs/digits

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: install  ## train, export, prove and serve real handwritten digits; again, to swap in a new version
	@echo "demo: training, validating and serving $(PIPELINE), a minute or two; state goes to $${SLIPWAY_HOME:-var}/"
	@$(BIN)/slipway run $(PIPELINE)

.PHONY: install
install:  ## make .venv from the lock (Python 3.10 or 3.11 is all it needs)
	@$(INSTALL)

.PHONY: install-dev
install-dev:  ## add what tests and checks need
	@$(INSTALL) dev

.PHONY: install-parquet
install-parquet:  ## add what Parquet files need (pyarrow, 47 MB)
	@$(INSTALL) parquet

.PHONY: wheelhouse
wheelhouse: install  ## download every locked package to WHEELHOUSE, for a machine without a network
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
	  --dest $(WHEELHOUSE) $(foreach lock,$(wildcard requirements*.lock),--requirement $(lock))

.PHONY: test
test: check  ## check, then run the tests; those that need a Docker engine skip if none answers (a quarter of an hour)
	@$(PYTEST) -m "not extended"

.PHONY: test-all
test-all: check  ## the same with what is slow and rarely breaks: clusters, fault matrices, compose, benchmarks (an hour)
	@$(PYTEST)

.PHONY: test-fast
test-fast: install-dev  ## the tests of modules that run no flow: tests/selections.py lists them (about a minute)
	@$(PYTEST) -m "not docker and not slow and not extended" $$($(BIN)/python tests/selections.py)

.PHONY: test-avx2
test-avx2: install-dev  ## run two nights and the comparison of answers as on a processor without AVX-512
	@TF_ENABLE_ONEDNN_OPTS=0 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) \
	  tests/test_whole_flow.py::TestFirstRun tests/test_whole_flow.py::TestSecondRun \
	  tests/test_served_answers.py tests/test_validation.py tests/test_comparison.py tests/test_exporting.py

.PHONY: test-flaky
test-flaky: install-dev  ## run the tests whose names match NAME 20 times, up to the first failure
	@test -n "$(NAME)" || { echo 'test-flaky: NAME is not set. Run make test-flaky NAME=a_test' >&2; exit 2; }
	@$(BIN)/python -m pytest -q -x --count=20 --repeat-scope=session \
	  -k '$(NAME)' $$(grep -l -- '$(NAME)' tests/test_*.py)

.PHONY: faults
faults: install-dev  ## kill, fill, cut and race deploys and nights under a client; prints what each fault came to (minutes)
	@$(BIN)/python -m pytest -q tests/test_faults.py tests/test_night_faults.py tests/test_docker_faults.py

.PHONY: chaos
chaos: install-dev  ## kill -9 deploys and rollbacks at 200 random points (SEED=N begins with another; KILLS=…; minutes)
	@SLIPWAY_CHAOS_SEED=$(or $(SEED),0) SLIPWAY_CHAOS_KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -q tests/test_chaos.py

.PHONY: fuzz
fuzz: install  ## send the model server 10^5 changed messages and bodies, and 10^4 HTTP/2 connections (an hour)
	@SLIPWAY_FUZZ_EXAMPLES=$(or $(EXAMPLES),10000) $(BIN)/python -m pytest -q --timeout=0 tests/test_model_server_fuzz.py

.PHONY: soak
soak: install  ## swap a version every 20 s for 15 minutes, with 30% malformed requests (DURATION=… seconds)
	@SLIPWAY_SOAK_SECONDS=$(or $(DURATION),900) SLIPWAY_SOAK_SWAP_SECONDS=20 $(BIN)/python -m pytest -q --timeout=0 tests/test_model_server_soak.py

.PHONY: check
check: install-dev  ## ruff, mypy --strict, import-linter, that generated docs are current, known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python .ci/audit.py

.PHONY: audit
audit: install-dev  ## ask the package index for known vulnerabilities of the locked packages
	@$(BIN)/python .ci/audit.py

.PHONY: bench-training
bench-training: install-dev  ## measure training through Slipway beside the same Estimator called bare (minutes)
	@$(BIN)/python benchmarks/training.py

.PHONY: bench-server
bench-server: install-dev  ## measure the model server beside a plain grpcio server, and an official one if there is (minutes)
	@$(BIN)/python benchmarks/server.py

.PHONY: bench-relay
bench-relay: install-dev  ## measure a container behind the relay beside one without it (minutes; needs a Docker engine)
	@$(BIN)/python benchmarks/relay.py

.PHONY: format
format: install-dev  ## let ruff format and sort
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: docs
docs: install-dev  ## generate the reference from the schema and the command
	@$(BIN)/python docs/generate.py

.PHONY: screenshots
screenshots: install-dev  ## take docs/screenshots anew, of a run in the real Prefect UI (needs chromium)
	@SLIPWAY_REQUIRE_BROWSER=1 SLIPWAY_SCREENSHOTS=$(CURDIR)/docs/screenshots $(BIN)/python -m pytest -q -m browser

.PHONY: ui
ui: install  ## start the Prefect UI on 127.0.0.1 and print its address
	@$(BIN)/slipway ui

.PHONY: tensorboard
tensorboard: install  ## show the curves of every run in TensorBoard, on 127.0.0.1:6006
	@$(BIN)/tensorboard --logdir "$${SLIPWAY_HOME:-var}/runs" --host 127.0.0.1 --port 6006

.PHONY: alerts
alerts: install  ## have Prefect notify SLIPWAY_ALERT_WEBHOOK or SLIPWAY_ALERT_APPRISE of bad nights
	@$(BIN)/slipway alerts $(PIPELINE)

.PHONY: stop
stop: install  ## stop the server that the demo started
	@$(BIN)/slipway stop $(PIPELINE)

.PHONY: base-image
base-image:  ## make a Docker base image from Debian packages, where no image registry can be reached
	@containers/base/build.sh

.PHONY: lock
lock: install  ## resolve the dependencies anew: pyproject.toml -> requirements.lock, with hashes
	@.ci/lock

.PHONY: clean
clean:  ## remove .venv and caches; what is under var/ stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
