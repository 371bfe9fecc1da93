# From nothing but Python ≥ 3.11 (with its venv module): `make study` or `make test`.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
EXTRAS = samples,antialiased,attacks,corruptions,imagenet,transformers,lightning,docs,dev
ARGS ?=

# Where this is set, as in many images of containers, every process would compile all of torch anew: 19 s for
# a measurement of 7 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study reference test test-oldest test-shuffled docs lint clean

# First a network trained on ImageNet beside its conversions, then the small networks of this project.
study: $(VENV)/installed
	$(VENV)/bin/spectral study --preset imagenet --out results/imagenet
	$(VENV)/bin/spectral study $(ARGS)

# The committed tables and figures anew: git shows what has changed in them. ARGS="6 --data cifar10" for others.
reference: $(VENV)/installed
	$(VENV)/bin/spectral study --out results/reference $(ARGS)

# One thread per worker: torch's own threads would fight the workers for the cores.
# Each worker takes neighbouring tests, so that what a module sets up is set up once.
test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n auto --dist worksteal $(ARGS)

# The same in another order each time; the seed is printed, and ARGS=--randomly-seed=… repeats it.
test-shuffled: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n auto --dist worksteal -p randomly $(ARGS)

# The same on the lowest versions that pyproject.toml promises.
test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n auto --dist worksteal $(ARGS)

# Into docs/_build/html. Examples are executed; a warning or a failing example is an error.
docs: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/sphinx-build -q -W --keep-going -b html $(ARGS) docs docs/_build/html

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# uv takes a sixth of pip's time; pip knows indexes that are configured for pip alone. What is imported is
# compiled then: all 20,000 files would take longer than the rest.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install uv
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --upgrade --editable '.[$(EXTRAS)]' || \
		$(VENV)/bin/python -m pip install --no-compile --upgrade --editable '.[$(EXTRAS)]'
	touch $@

$(OLDEST)/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install uv
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct \
		--editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) results/measurements results/reference/measurements docs/_build docs/api docs/gallery
