# `make demo` and `make test` need Python 3.11 to 3.13 and nothing else: they make .venv themselves.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for v in 3.11 3.12 3.13; do command -v python$$v >/dev/null && python$$v -c 'import venv, ensurepip' 2>/dev/null && echo python$$v && break; done || true)
BIN := .venv/bin
INPUTS := pyproject.toml constraints.txt

.PHONY: help demo test test-slow lint format types contracts unit protos samples weights lock clean

help: ## Say what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: .venv/all.stamp ## Export, serve, predict and bench the course models; writes demo/report.html
	@echo "== demo: three course models from Keras to gRPC, REST and the device"
	$(BIN)/servable demo --output demo

test: lint types contracts unit ## Linters, type checks, import contracts and all tests
	@echo "== all checks passed"

test-slow: .venv/dev.stamp ## pytest, the tests that take a minute or more
	@echo "== pytest, slow tests"
	$(BIN)/pytest -m slow

lint: .venv/dev.stamp ## ruff, check and format
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp .types/servable ## mypy, strict
	@echo "== mypy"
	MYPYPATH=.types $(BIN)/mypy -p servable

contracts: .venv/dev.stamp ## import-linter: the floors of the house
	@echo "== import contracts"
	$(BIN)/lint-imports

unit: .venv/dev.stamp ## pytest
	@echo "== pytest"
	$(BIN)/pytest

format: .venv/dev.stamp ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: .venv/dev.stamp ## Compile wire/protos to wire/descriptors.binpb
	cd wire/protos && ../../$(BIN)/python -m grpc_tools.protoc -I . --include_imports \
		--descriptor_set_out=../descriptors.binpb config.proto error.proto onnx.proto serving.proto tensorflow.proto

samples: .venv/all.stamp ## Draw the shipped samples from Fashion-MNIST anew
	$(BIN)/python -m servable.models.samples

weights: .venv/all.stamp ## Train the shipped weights anew (about 11 minutes on two cores)
	for name in celsius mlp cnn; do $(BIN)/servable train $$name --output models/weights; done

lock: .venv/dev.stamp ## Resolve constraints.txt anew, for every Python and platform at once
	$(BIN)/uv pip compile -q --universal --upgrade --python-version 3.11 --all-extras \
		--no-annotate --no-header pyproject.toml -o constraints.txt

clean: ## Remove what make has made
	rm -rf .venv .types build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# mypy cannot follow the editable install, and needs a folder that is called as the package is.
.types/servable:
	mkdir -p .types && ln -sfn .. $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv found; install one, or run: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	@echo "== creating .venv with $$($(PYTHON) --version)"
	$(PYTHON) -m venv .venv

.venv/all.stamp: .venv/bin/python $(INPUTS)
	@echo "== installing servable with the versions of constraints.txt (about 2 GB, most of it TensorFlow)"
	$(BIN)/python -m pip install -q --disable-pip-version-check --prefer-binary -c constraints.txt -e '.[all]'
	@touch $@

.venv/dev.stamp: .venv/all.stamp $(INPUTS)
	@echo "== installing the tools for tests"
	$(BIN)/python -m pip install -q --disable-pip-version-check --prefer-binary -c constraints.txt -e '.[all,dev]'
	@touch $@
