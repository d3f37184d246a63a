# SPDX-License-Identifier: Apache-2.0
# Variables on the command line reach the programs as environment variables: `make demo KUBECONTEXT=my-cluster REGISTRY=…`.
# ARGS goes to pytest: `make test-unit ARGS="-k judge"`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/.installed
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
UNIT := not cluster and not e2e and not slow

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- the way of a newcomer ---------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV) ## a model's whole way, from policy to production and back, on a real cluster (KUBECONTEXT=, REGISTRY=)
	$(BIN)/python -m examples.demo

.PHONY: test
test: check ## everything: checks, unit tests, then the slow ones and those on the local cluster
	$(BIN)/pytest $(ARGS)

# --- a developer's parts of it -----------------------------------------------------------------------------------------

.PHONY: test-unit
test-unit: $(VENV) ## only the tests that need no cluster and no minutes
	$(BIN)/pytest -m "$(UNIT)" --numprocesses auto $(ARGS)

.PHONY: test-e2e
test-e2e: $(VENV) ## only the tests on the local cluster (KUBECONTEXT=)
	$(BIN)/pytest -m "cluster or e2e" $(ARGS)

.PHONY: check
check: $(VENV) ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV) ## mend what lint and format can mend by themselves
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: venv
venv: $(VENV) ## the pinned virtual environment, .venv

# --- what is generated, packed and shipped -----------------------------------------------------------------------------

.PHONY: crds
crds: $(VENV) ## write the CRDs from the models, in crds/ and in the chart
	$(BIN)/python -m kompakt.api.crd_cli crds charts/kompakt/files/crds

.PHONY: chart
chart: $(VENV) ## lint the Helm chart and pack it into build/
	$(BIN)/helm lint --strict charts/kompakt
	$(BIN)/helm package --destination build charts/kompakt

.PHONY: docs
docs: $(VENV) ## write the API reference from the CRDs
	$(BIN)/python docs/generate.py

.PHONY: images
images: ## build the three images and push them (REGISTRY=registry.example.com/team)
	@[ -n "$${REGISTRY:-}" ] || { echo "make images: REGISTRY is empty; say where the images go, for example" \
	  "make images REGISTRY=registry.example.com/team" >&2; exit 2; }; \
	for engine in buildah podman docker; do "$$engine" info >/dev/null 2>&1 && break; engine=; done; \
	[ -n "$$engine" ] || { echo "make images: no image builder works here; install buildah or podman," \
	  "or start the Docker daemon" >&2; exit 1; }; \
	for image in operator jobs serving; do \
	  "$$engine" build --target "$$image" --tag "$$REGISTRY/kompakt-$$image:$(VERSION)" . ; \
	  "$$engine" push "$$REGISTRY/kompakt-$$image:$(VERSION)"; \
	done

bench-%: bench/%.py $(VENV)
	PYTHONPATH=. $(BIN)/python $< $(ARGS)

# The lock keeps what it has: `make lock ARGS=--upgrade` takes newer releases. It names no index: pip's own settings decide.
LOCK = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --generate-hashes --annotation-style line \
	--no-emit-index-url --no-emit-find-links --python-version 3.11 --python-platform x86_64-manylinux_2_31
PARTS := operator jobs serving
EXTRAS_jobs := --extra openvino --extra nncf
EXTRAS_serving := --extra openvino

.PHONY: lock
lock: $(VENV) ## pin the dependencies of pyproject.toml anew, with hashes
	$(LOCK) pyproject.toml --all-extras --group dev $(ARGS) --output-file requirements/dev.txt >/dev/null
	$(foreach part,$(PARTS),$(LOCK) pyproject.toml --extra $(part) $(EXTRAS_$(part)) --constraints requirements/dev.txt \
	  --output-file requirements/$(part).txt >/dev/null;)
	$(LOCK) --group build --constraints requirements/dev.txt --output-file requirements/build.txt >/dev/null

.PHONY: clean
clean: ## remove what was built and cached here (not .venv, and not the local cluster: kompakt-localcluster down)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# --- the environment ---------------------------------------------------------------------------------------------------

# An environment is used again if it is new enough and whole: an interrupted `python -m venv` leaves one without pip.
$(VENV): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "kompakt: $(PYTHON) is missing or older than 3.11; install Python 3.11 or later," \
	  "or name one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "kompakt: $(PYTHON) cannot make virtual environments; install them, on Debian:" \
	  "apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  $(PYTHON) -m venv --clear .venv
	@echo "kompakt: installing the pinned packages into .venv (some 3 GB at the first time, most of it torch)"
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --requirement requirements/dev.txt \
	  | sed -u '/^Requirement already satisfied/d'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
