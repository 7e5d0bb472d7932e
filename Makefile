# Set-up, build, tests. `make help` lists what there is; scripts/setup.sh does the set-up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
EXTENSION := python/torchtpu_dynamo/_torchtpu.abi3.so
WHEEL := dist/.built
WORKERS ?= 2
SUITES ?= hops modules opinfo
DTYPES ?= float32,bfloat16,float16,int64,int32,bool,float64
TRAIN ?= float32
FUZZ ?= 3600
SEED ?= 1
# Of each entry, spread evenly; 0: all.
SAMPLES ?= 0
SHARD ?= 0/1
# One profile everywhere, so that MLIR's bindings are built once.
CARGO_FLAGS := --release --workspace

export PATH := $(PATH):$(HOME)/.cargo/bin:$(CURDIR)/$(BIN)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# The same in every cargo call, so that pyo3 and the PJRT bindings are not built twice with the same sources.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export PYO3_BUILD_EXTENSION_MODULE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1

RUST_SOURCES := Cargo.toml Cargo.lock .cargo/config.toml pyproject.toml \
	$(shell find compiler passes -type f \( -name '*.rs' -o -name '*.c' -o -name Cargo.toml \))
PYTHON_SOURCES := $(shell find python -type f \( -name '*.py' -o -name '*.pyi' -o -name py.typed \)) $(wildcard README.md) LICENSE

.PHONY: help setup setup-demo setup-test demo test lint test-rust test-python test-full wheel test-wheel fuzz test-torch bench judge judge-variants conformance architectures clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup-demo:
	@scripts/setup.sh demo

setup-test:
	@scripts/setup.sh test

setup: setup-test $(EXTENSION) ## install what `make test` needs and build the extension

# An editable install: Python sources are live, and only Rust changes rebuild the extension.
$(EXTENSION): $(RUST_SOURCES) $(VENV)/.stamps/venv
	@echo "==> Building the Rust extension into $(VENV) with maturin (a minute or two the first time: MLIR is linked in)"
	@$(BIN)/maturin develop --release --quiet
	@touch $@

# Made by either set-up target; which one ran has no say in whether the extension is current.
$(VENV)/.stamps/venv: | setup-demo

demo: setup-demo $(EXTENSION) ## set up, then run the demonstration
	@$(BIN)/python -m examples.demo

test: lint test-rust test-python ## set up, then linters, Rust tests and Python tests

lint: setup-test
	@echo "==> cargo fmt, ruff, mypy, clippy"
	@cargo fmt --all --check
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@cargo clippy --quiet --locked $(CARGO_FLAGS) --all-targets -- -D warnings

# The extension's crate is left out: it has only Python callers, and cannot be linked without an interpreter.
test-rust: setup-test ## the Rust tests alone
	@echo "==> cargo test"
	@cargo test --quiet $(CARGO_FLAGS) --exclude torchtpu-pymodule
	@$(MAKE) fuzz FUZZ=10

test-python: setup-test $(EXTENSION) $(WHEEL) ## the Python tests alone (PYTEST="-k name" to choose)
	@echo "==> pytest"
	@$(BIN)/python -m pytest tests/python -n $(WORKERS) -m "not slow" -q $(PYTEST)

test-full: lint test-rust $(EXTENSION) $(WHEEL) ## everything that `make test` runs, and the slow tests
	@$(BIN)/python -m pytest tests/python -n $(WORKERS) -q $(PYTEST)

fuzz: setup-test ## mutated artifacts against all that reads one (FUZZ=3600 seconds, SEED=1)
	@cargo run --release --quiet --package torchtpu-driver --example fuzz_artifact -- tests/fuzz/artifacts $(FUZZ) $(SEED)

wheel: $(WHEEL) ## the wheel that users install, checked with auditwheel, in dist/

$(WHEEL): $(RUST_SOURCES) $(PYTHON_SOURCES) scripts/check_wheel.py $(VENV)/.stamps/venv
	@echo "==> Building the wheel into dist/ and checking that it loads on glibc 2.35"
	@rm -rf dist
	@$(BIN)/maturin build --release --quiet --compatibility manylinux_2_35 --auditwheel check --out dist
	@$(BIN)/python scripts/check_wheel.py dist/*.whl
	@touch $@

test-wheel: setup-test $(EXTENSION) $(WHEEL) ## install the wheel into an empty environment and run a model there
	@$(BIN)/python -m pytest tests/python/test_wheel.py -q

test-torch: $(WHEEL) ## a sample of the tests against an older torch: make test-torch TORCH=2.11
	@scripts/test_torch.sh "$(TORCH)"

bench: setup-test $(EXTENSION) ## the benchmarks
	@$(BIN)/python scripts/bench.py

judge: setup-test $(EXTENSION) ## what libtpu estimates for the programs of docs/passes.md and docs/overlap.md
	@$(BIN)/python scripts/judge.py --jobs $(WORKERS)
	@$(BIN)/python scripts/judge_sharded.py --jobs $(WORKERS)

judge-variants: setup-test $(EXTENSION) ## the table of docs/variants.md: layers of many models and sizes, with our passes and without (an hour)
	@$(BIN)/python scripts/judge_variants.py --chip v5e

conformance: setup-test $(EXTENSION) ## PyTorch's OpInfo, module_db, hop_db (SUITES, DTYPES, TRAIN, SAMPLES; SHARD=0/4), then docs/conformance.md
	@mkdir -p build/conformance
	@for suite in $(SUITES); do \
		$(BIN)/python -m tests.conformance --suite $$suite --dtypes $(DTYPES) --workers $(WORKERS) --shard $(SHARD) --max-samples $(SAMPLES) \
			--out build/conformance/$$suite-$(subst /,of,$(SHARD)).jsonl; \
		$(BIN)/python -m tests.conformance --suite $$suite --dtypes $(TRAIN) --train --workers $(WORKERS) --shard $(SHARD) --max-samples $(SAMPLES) \
			--out build/conformance/$$suite-train-$(subst /,of,$(SHARD)).jsonl; \
	done
	@$(BIN)/python -m tests.conformance --suite hops --dtypes $(TRAIN) --fallback --workers $(WORKERS) --shard $(SHARD) \
		--out build/conformance/hops-fallback-$(subst /,of,$(SHARD)).jsonl
	@for train in "" --train; do \
		$(BIN)/python -m tests.conformance --dtypes $(TRAIN) --dynamic $$train --workers $(WORKERS) --shard $(SHARD) --max-samples $(SAMPLES) \
			--out build/conformance/opinfo-dynamic$$train-$(subst /,of,$(SHARD)).jsonl; \
	done
	@$(BIN)/python scripts/conformance_table.py build/conformance/*.jsonl

architectures: setup-test $(EXTENSION) ## the models of timm, diffusers and transformers, one JSON line each in build/architectures (hours)
	@$(BIN)/python -m tests.architectures --workers $(WORKERS) --resume --out build/architectures/results.jsonl
	@$(BIN)/python -m tests.architectures.report build/architectures/results.jsonl

clean: ## remove everything that these targets made
	rm -rf $(VENV) build dist target $(EXTENSION) .mypy_cache .ruff_cache .pytest_cache
