# Every target sets up what it needs in .venv; the pins are in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
DATA ?=

# What needs torch, pytest and hypothesis alone.
FAST := mmgl_losses $(foreach name,choices contrast derivatives functional global_levels heads known_pairs laws native options plugins sampling taps unet,tests/test_$(name).py)

NATIVE := mmgl_losses/contrast/native/engine.so

.PHONY: help versions networks demo test test-fast test-examples native sanitize coverage lint docs notebooks bench clean

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 16

demo: native  ## deep supervision alone, MMGL, and MMGL with self-training, side by side; DATA=DIR takes your volumes
	$(BIN)/python -m examples.mmwhs demo $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.test native  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: .venv-fast/.done  ## the package alone, with torch, pytest and hypothesis: under two minutes
	.venv-fast/bin/python -m pytest -n 2 --dist worksteal $(FAST)

test-examples: $(VENV)/.test native  ## the tests of the example pipeline alone
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/examples

coverage: $(VENV)/.test native  ## lines and branches that no test of the package reaches
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --ignore tests/examples --ignore tests/test_benchmarks.py --ignore tests/test_gpu_benchmark.py

native: $(VENV)/.examples $(NATIVE)  ## the native engine, where there is a C++ compiler; says what there is
	@$(BIN)/python -m mmgl_losses

sanitize: $(VENV)/.test  ## the tests of the native engine under sanitizers for addresses, undefined behaviour and threads
	$(BIN)/python -m tests.sanitize

lint: $(VENV)/.lint  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

versions:  ## the tests of the package with other versions of Python and torch, in fresh environments
	$(PYTHON) -m tests.versions

networks: .venv-networks/.done  ## every network of the list, and the page about them
	.venv-networks/bin/python -m pytest -q tests/networks/elsewhere*.py
	.venv-networks/bin/python -m tests.networks --write docs/networks.md

docs: $(VENV)/.docs  ## the documentation as HTML in docs/_build/html
	$(BIN)/python -m sphinx -W -n -b html docs docs/_build/html

notebooks: $(VENV)/.docs  ## examples/notebooks from the tutorials of the documentation
	$(BIN)/python -m docs.notebooks

bench: $(VENV)/.test native  ## time, peak memory and error beside the peers, and the figures of the documentation
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks plots benchmarks/results/cpu.csv

$(VENV)/.examples: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(PIP) --editable . --group examples
	touch $@

$(NATIVE): $(VENV)/.examples hatch_build.py $(wildcard $(dir $(NATIVE))*.cpp $(dir $(NATIVE))*.h)
	@$(BIN)/python hatch_build.py

# The nnU-Net networks pin an older timm, which needs torchvision; the networks themselves need neither.
$(VENV)/.test: $(VENV)/.examples
	$(PIP) --group test
	$(PIP) --no-deps dynamic-network-architectures==0.4.4
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) --group lint
	touch $@

$(VENV)/.docs: $(VENV)/.examples
	$(PIP) --group docs
	touch $@

# Pins of these alone: others of constraints.txt are not for every Python that the package is for.
.venv-fast/.done: pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv .venv-fast
	.venv-fast/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	grep -E "^(torch|einops|hypothesis|pytest|pytest-xdist)==" constraints.txt > .venv-fast/constraints.txt
	.venv-fast/bin/python -m pip install --quiet --constraint .venv-fast/constraints.txt --editable . --group fast
	touch $@

# These libraries need torchvision, whose builds for CUDA break others where torch has none: an environment of their own.
.venv-networks/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-networks
	.venv-networks/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-networks/bin/python -m pip install --quiet --constraint constraints.txt --group networks
	touch $@

clean:  ## all that was made
	rm -rf $(NATIVE) $(VENV) .venv-networks .venv-fast build dist docs/_build .pytest_cache .ruff_cache .hypothesis
