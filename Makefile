# `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || echo python3)
BIN := .venv/bin
# Two at a time, each a whole module: tests/conftest.py says which belong together.
PYTEST := $(BIN)/python -m pytest -q --numprocesses $(or $(WORKERS),2) --dist loadscope --no-loadscope-reorder
PIPELINE ?= configs/digits

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: install  ## train, export, prove and serve real handwritten digits; again, to swap in a new version
	@$(BIN)/slipway run $(PIPELINE)

.PHONY: install
install: .venv/.installed  ## make .venv from the lock (Python 3.10 or 3.11 is all it needs)

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 11) else "Slipway needs Python 3.10 or 3.11 (TensorFlow 2.15 has no others), found " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@echo "making .venv from requirements.lock (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# -c too: pip 23 takes no pin of a package for one of its extras, such as sqlalchemy[asyncio]
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -c requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

.PHONY: test
test: check  ## check, then run all tests; those that need a Docker engine skip where none answers
	@$(PYTEST)

.PHONY: test-fast
test-fast: install  ## the tests that take seconds
	@$(PYTEST) -m "not docker and not slow"

.PHONY: faults
faults: install  ## kill, fill, cut and race deploys and nights under a client; prints what each fault came to (minutes)
	@$(BIN)/python -m pytest -q tests/test_faults.py tests/test_night_faults.py tests/test_docker_faults.py

.PHONY: check
check: install  ## ruff, mypy --strict, import-linter, that generated docs are current, known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python .ci/audit.py

.PHONY: audit
audit: install  ## ask the package index for known vulnerabilities of the locked packages
	@$(BIN)/python .ci/audit.py

.PHONY: bench-training
bench-training: install  ## measure training through Slipway beside the same Estimator called bare (minutes)
	@$(BIN)/python benchmarks/training.py

.PHONY: bench-server
bench-server: install  ## measure the model server beside a plain grpcio server, and an official one if there is (minutes)
	@$(BIN)/python benchmarks/server.py

.PHONY: bench-relay
bench-relay: install  ## measure a container behind the relay beside one without it (minutes; needs a Docker engine)
	@$(BIN)/python benchmarks/relay.py

.PHONY: format
format: install  ## let ruff format and sort
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: docs
docs: install  ## generate the reference from the schema and the command
	@$(BIN)/python docs/generate.py

.PHONY: screenshots
screenshots: install  ## take docs/screenshots anew, of a run in the real Prefect UI (needs chromium)
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
