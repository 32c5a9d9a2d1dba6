# make help lists the targets. Everything here is a thin front of setup.sh,
# cmake --preset and ctest; use those directly if you prefer.
.DEFAULT_GOAL := help
SHELL := /bin/bash

BUILD := build/release
PYTHON := .venv/bin/python
NFOLD := $(BUILD)/src/train/nfold
# Processes of `make train`, its configuration, and where the run goes.
NPROC ?= 2
CONFIG ?= examples/train.json
RUN_DIR ?= runs/$(shell date +%Y%m%d-%H%M%S)
ARGS ?=
# Compile jobs, and tests at a time (distributed tests use several ranks).
JOBS ?= $(shell scripts/jobs.sh)
TEST_JOBS ?= $(shell nproc)

.PHONY: help setup configure build train test bench bench-hosts \
        bench-interception format lint asan tsan clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-18s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

setup: ## system packages, .venv with torch
	@scripts/setup.sh

# An existing build folder configures itself again when a CMake file changed.
$(BUILD)/build.ninja: | setup
	cmake --preset release

train: setup $(BUILD)/build.ninja ## train the example on NPROC=2 local processes
	@cmake --build $(BUILD) -j $(JOBS) --target nfold
	$(NFOLD) train $(CONFIG) --nproc $(NPROC) --run-dir $(RUN_DIR) $(ARGS)

build: setup $(BUILD)/build.ninja ## everything
	@cmake --build $(BUILD) -j $(JOBS)

test: build ## every test
	@ctest --test-dir $(BUILD) -j $(TEST_JOBS) --output-on-failure $(ARGS)

bench: $(BUILD)/build.ninja ## nfold and its peers, turn by turn
	@cmake --build $(BUILD) -j $(JOBS) --target nfold
	@bench/peers/run.sh $(ARGS)

bench-hosts: $(BUILD)/build.ninja ## stage 3, hpZ and MiCS on test hosts with a slow network; takes root
	@cmake --build $(BUILD) -j $(JOBS) --target nfold
	@bench/hosts/run.sh $(ARGS)

bench-interception: $(BUILD)/build.ninja ## cost of noticing every use of a parameter
	@cmake --build $(BUILD) -j $(JOBS) --target nfold_interception_bench
	@$(BUILD)/bench/interception/nfold_interception_bench

format: ## clang-format every source
	@scripts/setup.sh lint
	@scripts/format.sh

lint: setup ## layers, sizes, format, clang-tidy
	@scripts/setup.sh lint
	@python3 scripts/check_layers.py
	@scripts/format.sh --check
	@scripts/tidy.sh

asan: setup ## unit tests with address and undefined-behaviour sanitizers
	@scripts/sanitize.sh asan $(JOBS) $(ARGS)

tsan: setup ## unit tests with the thread sanitizer
	@scripts/sanitize.sh tsan $(JOBS) $(ARGS)

clean: ## remove the build folders; .venv, data and runs stay
	rm -rf build
