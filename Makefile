# make demo    set up .venv, train a small byte model on Python's own standard library, evaluate it, write code with it
# make test    set up .venv and run the tests on the CPU
# make help    the rest

PYTHON ?= python3
CONSTRAINTS ?=
READY := .venv/.ready
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-random test-gpu lint format bench clean

help:
	@echo "make demo      train, evaluate and generate in about five minutes"
	@echo "make test      the tests that need no GPU"
	@echo "make test-random  the property tests on examples of their own, other ones in every run"
	@echo "make test-gpu  the tests that need one"
	@echo "make lint      ruff and mypy"
	@echo "make format    ruff's formatter"
	@echo "make bench     the CPU benchmarks that the README quotes"
	@echo "make setup     .venv only; PYTHON=... chooses the interpreter, and its torch is used if it has one"
	@echo "make clean     remove .venv and caches"

setup: $(READY)

$(READY): pyproject.toml tools/setup.sh
	sh tools/setup.sh "$(PYTHON)" $(CONSTRAINTS)
	touch $@

demo: $(READY)
	$(RUN) -m mambabyte demo --out runs/demo

# one torch thread a worker: two workers with two threads each would fight for the cores
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2

test-random: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --hypothesis-profile random -m "hypothesis and not gpu"

test-gpu: $(READY)
	$(RUN) -m pytest -q -m gpu

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(READY)
	.venv/bin/python -m pip --version >/dev/null 2>&1 || $(RUN) -m ensurepip
	$(RUN) -m pip install --quiet -e ".[bench]"
	$(RUN) benchmarks/scan_cpu.py
	$(RUN) benchmarks/train_step_cpu.py
	$(RUN) benchmarks/decode_cpu.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
