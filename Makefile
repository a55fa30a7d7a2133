# `make` lists the targets. From a fresh clone, `make demo` and `make test` do everything they need.
#
# Three builds share target/: profile `ci` for tests and the develop install, its check twin for clippy, and `release`
# for what users get (`make packages`, `make demo`, `make bench`).

PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
STAMPS := .make
PHASE  := tools/phase.sh

RUST_SOURCES := $(shell find rust proto -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.proto' \) 2>/dev/null) \
                Cargo.toml Cargo.lock pyproject.toml
MARKDOWN     := $(wildcard *.md docs tests python rust examples)

export PYO3_PYTHON := $(BIN)/python
export CARGO_TARGET_DIR := $(CURDIR)/target

# A stamp whose product was deleted by hand is worth nothing.
ifeq ($(wildcard $(VENV)/bin/python),)
$(shell rm -f $(STAMPS)/python $(STAMPS)/installed-* $(STAMPS)/bench)
endif
ifeq ($(wildcard python/engram/_core*.so),)
$(shell rm -f $(STAMPS)/installed-*)
endif

MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## "; print "make TARGET, where TARGET is one of:\n" } \
	      /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

# ---- what users run ----------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMPS)/installed-release ## build, stream the bundled texts in, recall, print the rates (ARGS="…" passes options)
	$(BIN)/python -m engram.demo $(ARGS)

.PHONY: test
test: ## everything that must pass: quality, Rust tests, Python tests, packages
	@rm -f $(STAMPS)/timings
	@$(MAKE) quality test-rust test-python packages; status=$$?; $(PHASE) --table; exit $$status

# ---- parts of `make test` ----------------------------------------------------------------------------------------

.PHONY: quality
quality: $(STAMPS)/python | check-rust ## tidy, formats, lints, types, stubs, Markdown
	@$(PHASE) tidy $(BIN)/python -m pytest -q tests/test_tidy.py
	@$(PHASE) cargo-fmt cargo fmt --all --check
	@$(PHASE) protos $(BIN)/python tools/protos.py --check
	@$(PHASE) ruff-check $(BIN)/ruff check .
	@$(PHASE) ruff-format $(BIN)/ruff format --check .
	@$(PHASE) markdown $(BIN)/pymarkdown --strict-config scan --recurse $(MARKDOWN)
	@$(PHASE) clippy cargo clippy --workspace --all-targets --locked --profile ci --features engram-core/chaos,engram-py/chaos -- -D warnings
	@$(MAKE) $(STAMPS)/installed-ci
	@$(PHASE) mypy $(BIN)/mypy
	@$(PHASE) stubtest $(BIN)/python -m mypy.stubtest engram._core --mypy-config-file pyproject.toml

.PHONY: test-rust
test-rust: $(STAMPS)/python | check-rust ## cargo test over the workspace, with the fault hooks; small parts under loom
	@$(PHASE) cargo-test cargo test --workspace --locked --profile ci --features engram-core/chaos
	@RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-3} CARGO_TARGET_DIR=target/loom \
	$(PHASE) loom cargo test --package engram-core --locked --profile ci --test loom

.PHONY: test-python
test-python: $(STAMPS)/installed-ci | check-debian ## pytest, documentation snippets included (ARGS="-k name" passes options)
	@$(PHASE) pytest $(BIN)/python -m pytest $(ARGS)

.PHONY: packages
packages: $(STAMPS)/python | check-rust ## sdist; wheel from the sdist; wheel into an empty environment; smoke test there
	@$(PHASE) packages tools/packages.sh "$(PYTHON)" "$(BIN)" "$(STAMPS)/packages"

# ---- daily work --------------------------------------------------------------------------------------------------

.PHONY: dev
dev: $(STAMPS)/installed-ci ## quick develop install into .venv, with the fault hooks

.PHONY: format
format: $(STAMPS)/python | check-rust ## write the formats that `quality` checks
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMPS)/bench $(STAMPS)/installed-release ## quick run of the asv suite on a release build, and its table
	cd asv_bench && $(BIN)/asv machine --yes >/dev/null && $(BIN)/asv run --quick --show-stderr -E existing:$(BIN)/python $(ARGS)

.PHONY: campaign
campaign: export ENGRAM_CAMPAIGN := 1
campaign: $(STAMPS)/installed-ci | check-debian ## the long forms of the same tests (hours)
	cargo test --workspace --locked --profile ci --features engram-core/chaos
	$(BIN)/python -m pytest --timeout=0 $(ARGS)

.PHONY: safety
safety: $(STAMPS)/installed-ci | check-rust ## AVX-512 kernels under Miri, AddressSanitizer (nightly Rust); the Rust client
	@rm -f $(STAMPS)/timings
	@tools/safety.sh; status=$$?; $(PHASE) --table; exit $$status

.PHONY: lock
lock: | check-python ## resolve the dev dependencies anew into requirements-dev.lock
	tools/lock.sh "$(PYTHON)"

.PHONY: protos
protos: $(STAMPS)/python ## generate python/engram/v1 from proto/
	$(BIN)/python tools/protos.py

.PHONY: clean
clean: ## remove what the targets above made
	rm -rf $(VENV) $(STAMPS) target dist .mypy_cache .pytest_cache .ruff_cache .hypothesis asv_bench/env asv_bench/results asv_bench/html
	find python -name '*.so' -delete

# ---- machinery ---------------------------------------------------------------------------------------------------

.PHONY: check-rust check-python check-debian
check-rust:
	@tools/check.sh rust
check-python:
	@tools/check.sh python "$(PYTHON)"
check-debian:
	@tools/debian-packages.sh

$(STAMPS)/python: requirements-dev.lock | check-python
	@mkdir -p $(STAMPS)
	@$(PHASE) venv sh -c 'rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV) && $(BIN)/python -m pip install --quiet -r requirements-dev.lock'
	@rm -f $(STAMPS)/installed-* $(STAMPS)/bench
	@touch $@

# The develop install links python/engram; only the native module is built. One of the two stamps exists at a time.
$(STAMPS)/installed-ci: $(STAMPS)/python $(RUST_SOURCES) | check-rust
	@rm -f $(STAMPS)/installed-release
	@PIP_QUIET=1 $(PHASE) develop $(BIN)/maturin develop --locked --profile ci --features chaos
	@touch $@

$(STAMPS)/installed-release: $(STAMPS)/python $(RUST_SOURCES) | check-rust
	@rm -f $(STAMPS)/installed-ci
	@PIP_QUIET=1 $(PHASE) release-build $(BIN)/maturin develop --locked --release
	@touch $@

$(STAMPS)/bench: $(STAMPS)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@
