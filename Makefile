PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo up test lint check bench chaos clean

help:
	@echo "make demo    the whole way on sample data: load, capture, index, change rows, find them"
	@echo "make up      Dagster UI, daemon, capture, indexer and console together"
	@echo "make test    everything that can be tested on this machine"
	@echo "make lint    ruff and mypy --strict"
	@echo "make bench   the benchmarks; tables on screen, JSON in benchmarks/results"
	@echo "make chaos   random SQL and random kills until enough; resumes; table in benchmarks/results/chaos.md"
	@echo "make clean   remove the virtual environment and all local state"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt deploy/install
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash deploy/install
	@touch $(STAMP)

demo: install
	$(BIN)/sophia demo

up: install
	$(BIN)/sophia up

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A file's tests stay together, so that they share what is slow to start. In the order of the folders: what is quick
# comes last, so that no worker is left alone with a slow file.
test: install lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: install
	$(BIN)/python -m benchmarks.graph_load
	$(BIN)/python -m benchmarks.hot_path
	$(BIN)/python -m benchmarks.hot_path --beside-backfill
	$(BIN)/python -m benchmarks.changes
	$(BIN)/python -m benchmarks.initial_load
	$(BIN)/python -m benchmarks.initial_load --overhead
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.search_scale
	$(BIN)/python -m benchmarks.intake
	$(BIN)/python -m benchmarks.intake --webhook-to-searchable
	test -z "$$SOPHIA_TEST_WEAVIATE_URL" || $(BIN)/python -m benchmarks.weaviate
	$(BIN)/python -m benchmarks.embedding
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.inference --precision fast

# Resumes where it was interrupted; `make chaos ARGS=--fresh` starts over.
chaos: install
	$(BIN)/python -m tests.chaos $(ARGS)

clean:
	rm -rf $(VENV) .sophia
