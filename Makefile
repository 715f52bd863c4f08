# `make help` lists the targets. Everything is installed by what needs it; nothing is installed twice.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := core
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
UV_VERSION := 0.13.9
RUST_SOURCES := $(shell find crates -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
STAMPS := $(VENV)/.stamps

export UV_PROJECT_ENVIRONMENT := $(CURDIR)/$(VENV)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help deps venv core demo demo-down test test-rust test-python test-vtx explore lint fmt bench fuzz wheel man docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

deps: ## Debian packages (as root; otherwise says which are missing)
	@scripts/install-packages

$(STAMPS)/venv: pyproject.toml uv.lock | deps
	@echo "==> Python environment in $(VENV)"
	@test -x $(PY) || python3 -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@uv sync --locked --inexact --quiet
	@touch $@

venv: $(STAMPS)/venv ## the Python environment, as locked

$(STAMPS)/core: $(RUST_SOURCES) pyproject.toml $(STAMPS)/venv
	@scripts/require-cargo
	@echo "==> Rust core (the first build takes a few minutes)"
	@maturin develop --release --locked --uv
	@touch $@

core: $(STAMPS)/core ## the Rust core, compiled into the Python environment

demo: core ## three machines on this host, left running
	@scripts/demo up

demo-down: ## remove what `make demo` made
	@scripts/demo down

lint: core ## ruff, mypy --strict, cargo fmt, clippy
	ruff check src tests benches scripts
	ruff format --check src tests benches scripts
	mypy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings

fmt: core ## format everything
	ruff check --fix-only src tests benches scripts
	ruff format src tests benches scripts
	cargo fmt --all

test-rust: core ## the Rust tests
	cargo test --locked --release --workspace --quiet

test-python: core ## the Python tests: unit, abi, guest, system
	$(PY) -m pytest

test: lint test-rust test-python ## everything that can be tested on this host; prints what was skipped and why

test-vtx: core ## the tests that need VT-x or AMD-V
	$(PY) -m pytest -m vt-x

explore: core ## the property tests with new, random examples, twenty times as many
	NAGAYA_PROPERTIES=explore $(PY) -m pytest tests/unit

bench: core ## every figure, ours beside the peer's; docs/benchmarks.md holds the last table
	$(PY) -m benches

fuzz: ## fuzz what a guest can send, a minute a target (needs a nightly toolchain and cargo-fuzz)
	scripts/fuzz

man: core ## man pages into docs/man
	$(PY) -m nagaya.cli.man docs/man

wheel: $(STAMPS)/venv ## an abi3 manylinux wheel in dist/
	@scripts/require-cargo
	scripts/build-wheel

clean: ## what was built in this checkout (not images, kernels or machines)
	rm -rf target dist $(VENV) src/nagaya/_core*.so
