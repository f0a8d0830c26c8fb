# Everything is run from here: `make help` lists it. Installing is part of each target and happens once.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
# The environment itself has no network-fetched build tools: they come from requirements-build.lock, hashes checked.
INSTALL := $(PIP) install --require-hashes --no-build-isolation
SELF := $(PIP) install --no-deps --no-build-isolation --editable .
# anvil's package is for x86-64 Linux; elsewhere npm takes the rest only when told not to mind.
NPM := npm ci --ignore-scripts --no-audit --no-fund --loglevel=error $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),,--force)
# anvil as npm brings it, after any anvil that is on PATH already.
WITH_ANVIL = PATH="$$PATH:$$(echo '$(CURDIR)'/tests/js/node_modules/@foundry-rs/anvil-*/bin)"
FAST := tests/consensus tests/test_repository.py

# Processes for pytest, and what `make devnet`, `make test`, `make bench` and `make soak` pass on.
JOBS ?= 2
ARGS ?=

.PHONY: help devnet test check lint types imports format bench chaos soak lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

devnet: $(VENV)/.runtime ## the whole network on this machine, with a demo job (ARGS="--no-demo --keepers 7")
	@$(BIN)/triggerx devnet $(ARGS)

test: $(VENV)/.dev tests/js/node_modules/.ready tests/kubo/build/.ready ## every test but the soak (ARGS="tests/p2p -k gossip")
	@$(WITH_ANVIL) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: lint types imports ## ruff, mypy, import-linter and the tests that need no process and no network
	@$(BIN)/python -m pytest -q -n $(JOBS) $(FAST)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

imports: $(VENV)/.dev
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## let ruff write the format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.dev tests/js/node_modules/.ready ## every benchmark, some ten minutes (ARGS="scheduler --seconds 5" for one)
	@$(WITH_ANVIL) $(BIN)/python -m benchmarks $(ARGS)

chaos: $(VENV)/.dev tests/js/node_modules/.ready ## two coordinators, Redis and chain killed at random (ARGS="--seed 7 --seconds 600 --jobs 200")
	@$(WITH_ANVIL) $(BIN)/python -m tests.chaos $(ARGS)

soak: $(VENV)/.dev tests/js/node_modules/.ready tests/kubo/build/.ready ## what is too long for every change: soak tests, and 20 times the generated cases
	@$(WITH_ANVIL) $(BIN)/python -m pytest -n $(JOBS) -m "soak or hypothesis" --hypothesis-profile=soak $(ARGS)

lock: $(VENV)/.dev ## write the lock files anew (UPGRADE=1 takes newer versions)
	@$(PIP) install 'uv>=0.9,<1'
	@set -e; lock() { $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) "$$@"; }; \
	lock --all-extras pyproject.toml --output-file requirements-dev.lock; \
	lock --extra devnet --constraint requirements-dev.lock --no-annotate pyproject.toml --output-file requirements.lock; \
	lock --constraint requirements-dev.lock --no-annotate --group pyproject.toml:build --output-file requirements-build.lock
	@cd tests/js && npm install --package-lock-only --ignore-scripts --no-audit --no-fund --loglevel=error

clean: ## remove what make and the tests have written
	rm -rf $(VENV) .devnet dist build tests/js/node_modules tests/kubo/build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.build: requirements-build.lock scripts/system-packages scripts/find-python
	@scripts/system-packages
	@$(BIN)/python -c 'import pip' 2>/dev/null || { echo "creating $(VENV)"; rm -rf $(VENV); "$$(scripts/find-python)" -m venv $(VENV); }
	@$(INSTALL) -r requirements-build.lock
	@touch $@

$(VENV)/.runtime: $(VENV)/.build requirements.lock pyproject.toml
	@echo "installing what triggerx needs (a minute or two, once)"
	@$(INSTALL) -r requirements.lock
	@$(SELF)
	@touch $@

# The dev lock holds the runtime's pins too; both stamps, so that `make devnet` after `make test` installs nothing.
$(VENV)/.dev: $(VENV)/.build requirements-dev.lock requirements.lock pyproject.toml
	@echo "installing what triggerx and its tests need (a minute or two, once)"
	@$(INSTALL) -r requirements-dev.lock
	@$(SELF)
	@touch $(VENV)/.runtime $@

# Without npm the tests that need it skip, each saying so; where CI=true they fail.
tests/js/node_modules/.ready: tests/js/package.json tests/js/package-lock.json
	@if command -v npm >/dev/null; then cd tests/js && $(NPM) && touch node_modules/.ready; \
	else echo "npm is missing: tests with the TriggerX SDK, and with anvil unless it is on PATH, will be skipped" >&2; fi

# An IPFS daemon for the tests, by its module's hashes in go.sum: some minutes the first time, seconds from Go's own cache.
tests/kubo/build/.ready: tests/kubo/go.mod tests/kubo/go.sum
	@export PATH="$$PATH:/usr/local/go/bin"; if command -v go >/dev/null; then echo "building Kubo (some minutes, once)"; \
	cd tests/kubo && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o build/ipfs github.com/ipfs/kubo/cmd/ipfs && touch build/.ready \
	|| echo "Kubo cannot be built: tests with an IPFS daemon will be skipped, unless ipfs is on PATH" >&2; \
	else echo "Go is missing: tests with an IPFS daemon will be skipped, unless ipfs is on PATH" >&2; fi
