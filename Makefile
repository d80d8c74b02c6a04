VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes

.PHONY: help setup serve fmt lint type test test-all test-gevent mutants test-airflow bench bench-against lock site site-serve release-check check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.installed ## create or update the virtual environment

$(VENV)/.installed: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@

serve: setup ## serve with an embedded store
	$(BIN)/python app.py

fmt: setup ## format, and apply ruff's fixes
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

lint: setup ## check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

type: setup ## check types
	$(BIN)/mypy

test: setup ## run the tests, except long ones
	$(BIN)/python -m pytest

test-all: setup ## run all tests with all parameters
	$(BIN)/python -m pytest -m "" --hypothesis-profile=full

test-gevent: setup ## run the concurrency tests, monkey-patched by gevent like the service
	$(BIN)/python tests/gevented.py

bench: setup .bench/.installed ## compare with peers (docs/benchmarks): SCENARIOS="burst paced", BENCH="--quick"
	$(BIN)/python -m bench $(SCENARIOS) $(BENCH)

bench-against: setup ## compare with another commit: REV=v1.2.3, SCENARIOS="replay publish", BENCH="--quick"
	$(BIN)/python -m bench.against $(REV) $(SCENARIOS) $(BENCH)

.bench/.installed: bench/requirements.txt
	$(PYTHON) -m venv .bench
	.bench/bin/pip install -q -r bench/requirements.txt
	touch $@

mutants: setup .mutants/.installed ## plant random defects, and report which the tests find: SEED=1, SAMPLE=120
	.mutants/bin/python bench/mutants.py --seed $(or $(SEED),1) --sample $(or $(SAMPLE),120) $(MUTANTS)

.mutants/.installed:
	$(PYTHON) -m venv .mutants
	.mutants/bin/pip install -q 'cosmic-ray>=8.7,<9'
	touch $@

test-airflow: setup .airflow/.installed ## test the Airflow integration with a real Airflow
	$(BIN)/python -m pytest -m "" tests/integrations/real_airflow.py

.airflow/.installed: pyproject.toml
	$(PYTHON) -m venv .airflow
	$(BIN)/uv pip install --quiet --python .airflow --editable '.[airflow]' 'apache-airflow>=3.3,<4'
	touch $@

lock: setup ## update requirements*.txt after a change of pyproject.toml: UPGRADE=--upgrade for new releases
	$(UV_COMPILE) $(UPGRADE) --output-file requirements.txt pyproject.toml
	$(UV_COMPILE) $(UPGRADE) --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
	$(UV_COMPILE) $(UPGRADE) --extra otel --extra otlp --extra s3 --constraint requirements-dev.txt --output-file requirements-image.txt pyproject.toml
	$(UV_COMPILE) $(UPGRADE) --group build --constraint requirements-dev.txt --output-file requirements-build.txt
	$(UV_COMPILE) $(UPGRADE) --output-file bench/requirements.txt bench/requirements.in

site: setup ## build the site from docs/ into build/site; fails on broken links
	PYTHONPATH=. $(BIN)/python -m mkdocs build --strict

site-serve: setup ## serve the site, and rebuild it on changes
	PYTHONPATH=. $(BIN)/python -m mkdocs serve

release-check: setup ## build a release into dist, and test it without the checkout: TAG=v1.2.3
	$(BIN)/python -m tests.deploy.release $(TAG)

check: ## run all CI checks in a fresh virtual environment
	PYTHON=$(PYTHON) bash .ci/run
