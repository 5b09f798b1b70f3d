# Only Python 3.11+, pip, make and git are needed; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONDONTWRITEBYTECODE :=
export UV_LINK_MODE := copy

.PHONY: help quickstart test fuzz lint types check env clean

help:
	@echo "make quickstart   set up .venv and compare dense, edge-popup and IteRand on real digits"
	@echo "make test         set up .venv and run the tests"
	@echo "make fuzz         the properties on random examples, MINUTES=10 by default"
	@echo "make check        lint, types and tests"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "== setting up $(VENV): PyTorch and friends, one to three minutes the first time"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Regraft needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP)
	@echo "== dense training, edge-popup and IteRand on 1,797 handwritten digits, 3 seeds each"
	@$(BIN)/regraft reproduce iterand --scale smoke

test: $(STAMP)
	@echo "== tests (data sets at REGRAFT_DATA are used where they are)"
	@$(BIN)/python -m pytest -n 2 --dist worksteal

MINUTES ?= 10
fuzz: $(STAMP)
	@end=$$(($$(date +%s) + 60 * $(MINUTES))); round=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	  round=$$((round + 1)); seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); \
	  echo "== properties on random examples, round $$round: --hypothesis-seed=$$seed"; \
	  REGRAFT_FUZZ=1 $(BIN)/python -m pytest -n 2 -q -m hypothesis --hypothesis-seed=$$seed || exit 1; \
	done

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/pyrefly check

check: lint types test

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
