# Every target sets itself up: .venv gets the package (editable: Python edits need no new install)
# with the versions of constraints.txt, and the C++ part is rebuilt when its sources change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
OLDEST_TRITON := 3.6.0
JOBS ?= $(shell nproc)

GAME ?= mspacman
STEPS ?=
SEED ?=
PRESET ?=
ARGS ?=
FUZZ_SECONDS ?= 60
CLANG ?= $(shell command -v clang++ || command -v clang++-14 || echo clang++)

BIN := $(VENV)/bin
RIVALS := build/rivals
KERNEL_RIVALS := build/rivals-kernels
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard $(CONSTRAINTS)) \
	$(shell find csrc -type f -not -path 'csrc/tests/*')
# Both, for pip before and from 25.3: the build's own environment is pinned too.
export PIP_CONSTRAINT := $(abspath $(CONSTRAINTS))
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test test-cpp fuzz libfuzzer bench bench-replay bench-kernels lint lint-triton types fmt

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: GAME STEPS SEED PRESET (train), ARGS (train, test, bench), PYTHON, VENV"

train: $(VENV)/.runtime  ## Train on a game: make train GAME=breakout STEPS=100000 SEED=1 PRESET=cpu
	$(BIN)/wmfast-train --game "$(GAME)" $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(PRESET),--preset $(PRESET)) $(ARGS)

test: $(VENV)/.dev  ## The Python tests, on every core (ARGS="-n 0 --pdb": in one process)
	$(BIN)/pytest -n $(JOBS) --dist worksteal -p no:benchmark $(ARGS)

test-cpp: $(VENV)/.dev  ## The C++ tests: plain, under ASan + UBSan, under TSan
	$(call cpp_tests,plain,,)
	$(call cpp_tests,asan,address$(comma)undefined,)
	$(call cpp_tests,tsan,thread,$(NO_ASLR))

fuzz: libfuzzer $(VENV)/.dev  ## The replay buffer under libFuzzer for FUZZ_SECONDS (60); inputs stay in build/fuzz
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/cpp-fuzz -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O2 -g" -DWMFAST_BUILD_PYTHON=OFF -DWMFAST_BUILD_TESTS=ON \
		-DWMFAST_LIBFUZZER=ON -DWMFAST_SANITIZE=address,undefined
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/cpp-fuzz --target fuzz_token_replay
	mkdir -p build/fuzz
	build/cpp-fuzz/csrc/tests/fuzz_token_replay -max_total_time=$(FUZZ_SECONDS) -max_len=400 -len_control=0 \
		-artifact_prefix=build/fuzz- -print_final_stats=1 build/fuzz

libfuzzer:
	@echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }' | $(CLANG) -x c++ \
		-fsanitize=fuzzer,address,undefined -o /dev/null - 2>/dev/null || { echo "make fuzz needs clang with libFuzzer, \
	$(CLANG) is not (Debian: apt-get install clang libclang-rt-14-dev; CLANG=... names another)" >&2; exit 2; }

bench: $(VENV)/.dev  ## The benchmarks, answers compared before times (ARGS=--benchmark-disable: no timing)
	$(BIN)/pytest bench $(ARGS)

bench-replay: $(RIVALS)/.installed  ## TokenReplay beside other libraries: table and plot in bench/results/cpu
	$(RIVALS)/bin/python bench/replay_report.py $(ARGS)

bench-kernels: $(KERNEL_RIVALS)/.installed  ## The kernels beside other libraries, on a CPU: table in bench/results/cpu
	WMFAST_BENCH_COMPILE=1 $(KERNEL_RIVALS)/bin/python bench/kernels_report.py $(ARGS)

lint: $(VENV)/.dev  ## ruff and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -name '*.[ch]pp' -exec $(BIN)/clang-format --dry-run -Werror {} +

lint-triton: $(VENV)/.dev build/triton-$(OLDEST_TRITON)/.done  ## Compile the GPU kernels, under two versions of triton
	$(BIN)/python -m wmfast.kernels.lint
	PYTHONPATH=build/triton-$(OLDEST_TRITON) $(BIN)/python -m wmfast.kernels.lint

# Unpacked beside the environment, not into it: 640 MB that only the lint reads.
build/triton-$(OLDEST_TRITON)/.done: | $(BIN)/python
	PIP_CONSTRAINT= $(BIN)/pip install -q --no-deps --target $(@D) triton==$(OLDEST_TRITON)
	touch $@

types: $(VENV)/.dev  ## mypy --strict; kernels/ is wmfast.kernels only in a farm of links
	rm -rf build/types
	mkdir -p build/types/wmfast
	ln -s $(CURDIR)/wmfast/* $(CURDIR)/kernels build/types/wmfast/
	$(BIN)/mypy

fmt: $(VENV)/.dev  ## Format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.[ch]pp' -exec $(BIN)/clang-format -i {} +

# TSan's shadow memory collides with the address randomisation of some kernels.
NO_ASLR := $(shell setarch -R true 2>/dev/null && echo setarch -R)
comma := ,
# $(1) name, $(2) sanitizers, $(3) wrapper. The flags lack -DNDEBUG: asserts are on.
define cpp_tests
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/cpp-$(1) -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O2 -g" -DWMFAST_BUILD_PYTHON=OFF -DWMFAST_BUILD_TESTS=ON -DWMFAST_SANITIZE="$(2)"
	PATH="$(abspath $(BIN)):$$PATH" MAKEFLAGS=--no-print-directory cmake --build build/cpp-$(1)
	cd build/cpp-$(1) && PATH="$(abspath $(BIN)):$$PATH" $(3) ctest --output-on-failure --no-tests=error
endef

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "cannot make $(VENV): \
	needs Python 3.10 or later with venv (Debian: apt-get install python3-venv)" >&2; exit 1; }

# What training needs.
$(VENV)/.runtime: $(BUILD_INPUTS) | $(BIN)/python
	$(BIN)/pip install -q -e .
	touch $@

# And the tools of the house; the package itself is already there and is not built twice.
$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install -q "wmfast[dev]"
	touch $@

# Other libraries' replay buffers, in an environment of their own; TokenReplay needs numpy alone.
$(RIVALS)/.installed: bench/rivals/requirements.txt bench/rivals/requirements-no-deps.txt $(BUILD_INPUTS)
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/pip install -q -r bench/rivals/requirements.txt
	$(RIVALS)/bin/pip install -q --no-deps -r bench/rivals/requirements-no-deps.txt -e .
	touch $@

# And the rivals of the kernels.
$(KERNEL_RIVALS)/.installed: bench/rivals/requirements-kernels.txt $(BUILD_INPUTS)
	$(PYTHON) -m venv $(KERNEL_RIVALS)
	$(KERNEL_RIVALS)/bin/pip install -q -r bench/rivals/requirements-kernels.txt
	$(KERNEL_RIVALS)/bin/pip install -q --no-deps -e .
	touch $@
