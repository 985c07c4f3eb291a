# `make` lists the targets. Every target that needs Python creates .venv on its first use.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?= bundled
# Processes that run tests; each computes with one thread.
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
QUICKSTART := runs/quickstart

# Test tensors are tiny: more threads cost more than they give. No test may ask a model hub for anything.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False

.DEFAULT_GOAL := help
.PHONY: help setup run smoke test test-all test-browser screenshots check format quickstart bench docs docs-serve audit clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  run takes HOST=$(HOST) PORT=$(PORT) MODEL=$(MODEL)"

setup: $(INSTALLED)  ## create .venv and install everything that the other targets need

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("digpt needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), once: this takes minutes"
	@$(PY) -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(INSTALLED)  ## serve a model over HTTP, with the demo at /demo
	$(PY) -m serve --model $(MODEL) --host $(HOST) --port $(PORT)

smoke: $(INSTALLED)  ## start a server on a free port, send the README's requests, stop it
	$(PY) scripts/smoke.py

test: $(INSTALLED)  ## the tests, without the slow ones and those in a browser
	$(TEST_ENV) $(PY) -m pytest -m "not slow and not browser" -n $(JOBS) --dist loadfile

test-all: $(INSTALLED)  ## every test, without those in a browser
	$(TEST_ENV) $(PY) -m pytest -m "not browser" -n $(JOBS) --dist loadfile

test-browser: $(INSTALLED)  ## the demo in Chromium (scripts/system-packages.sh installs it); pictures into runs/browser
	$(TEST_ENV) $(PY) -m pytest -m browser tests/browser

screenshots: $(INSTALLED)  ## renew the README's pictures of the demo
	$(PY) scripts/demo_pictures.py

check: $(INSTALLED)  ## ruff, mypy and the import rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(TEST_ENV) $(PY) -m pytest -q tests/test_architecture.py

format: $(INSTALLED)  ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

quickstart: $(INSTALLED)  ## pretrain, tune, evaluate and export in miniature, into runs/quickstart
	$(PY) -m train.pretrain --output $(QUICKSTART)/pretrain --steps 20 --overwrite
	$(PY) -m train.zeroshot --encoder $(QUICKSTART)/pretrain/ckpt.pt --output $(QUICKSTART)/zeroshot --steps 20 --overwrite
	$(PY) -m evaluate.robustness $(QUICKSTART)/zeroshot/ckpt.pt --output $(QUICKSTART)/robustness --limit 200
	$(PY) -m export $(QUICKSTART)/zeroshot/ckpt.pt --to onnx --output $(QUICKSTART)/onnx --overwrite

bench: $(INSTALLED)  ## measure this machine, and what the class set and pretraining are worth
	$(PY) -m benchmarks.matmul
	$(PY) -m benchmarks.fewer_names
	$(PY) -m benchmarks.loader
	@echo "longer ones: python -m benchmarks.train_step, python -m benchmarks.tuning_gain, python -m benchmarks.knn_gain (docs/results.md)"

docs: $(INSTALLED)  ## build the documentation site into runs/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "open runs/site/index.html, or: make docs-serve"

docs-serve: $(INSTALLED)  ## the site on loopback, built again whenever a page changes: PORT=8000
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve --dev-addr 127.0.0.1:$(PORT)

audit: $(INSTALLED)  ## look the installed packages up in the vulnerability database (needs the network)
	$(PY) -m pip install --quiet --disable-pip-version-check pip-audit
	$(PY) -m pip_audit --skip-editable

clean:  ## remove caches and runs/quickstart; keeps .venv and every other run
	rm -rf $(QUICKSTART) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
