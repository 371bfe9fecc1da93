# From nothing but Python ≥ 3.11 (with its venv module): `make study` or `make test`.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: study test lint clean

study: $(VENV)/installed
	$(VENV)/bin/spectral study $(ARGS)

# One thread per worker: torch's own threads would fight the workers for the cores.
test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n auto $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --upgrade --editable '.[samples,antialiased,imagenet,attacks,corruptions,dev]'
	touch $@

clean:
	rm -rf $(VENV) results/measurements
