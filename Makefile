# make demo | test | check: each makes .venv and installs what it needs; nothing else is required but Python >= 3.11.
# TORCH=cpu takes the tested torch version, TORCH=default whatever torch your index offers (e.g. a CUDA build).
PYTHON ?= python3
TORCH ?= cpu
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
THREADS = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

ifeq ($(TORCH),cpu)
TORCH_REQUIREMENT = torch==2.13.0
CONSTRAINTS = -c constraints.txt
else ifeq ($(TORCH),default)
TORCH_REQUIREMENT = torch
CONSTRAINTS = -c $(VENV)/constraints-without-torch.txt
else
$(error TORCH must be cpu or default, got $(TORCH))
endif

.PHONY: demo test slow check types docs clean

$(VENV)/torch-$(TORCH):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "offrl needs Python 3.11 or newer; pass PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints-without-torch.txt
	$(PIP) "$(TORCH_REQUIREMENT)"
	@rm -f $(VENV)/torch-* $(VENV)/has-* && touch $@

$(VENV)/has-demo: $(VENV)/torch-$(TORCH) pyproject.toml setup.py constraints.txt
	$(PIP) $(CONSTRAINTS) -e ".[mujoco,knn]"
	@touch $@

$(VENV)/has-test: $(VENV)/torch-$(TORCH) pyproject.toml setup.py constraints.txt
	$(PIP) $(CONSTRAINTS) -e ".[test]"
	@touch $@

$(VENV)/has-check: $(VENV)/has-test
	$(PIP) $(CONSTRAINTS) -e ".[docs]"
	@touch $@

# Trains PRDC on the bundled data with three seeds, evaluates in MuJoCo, writes curves, a report and a video.
demo: $(VENV)/has-demo
	@$(BIN)/python scripts/demo.py --out demo

# The whole fast suite, one thread a worker.
test: $(VENV)/has-test
	@$(BIN)/python -m pip check --disable-pip-version-check
	@$(THREADS) $(BIN)/python -m pytest -q -n auto --dist loadgroup

slow: $(VENV)/has-test
	@$(THREADS) $(BIN)/python -m pytest -q -m slow

# Style, types and docs.
check: $(VENV)/has-check
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

# On a plain install, because type checkers do not follow editable ones.
types: $(VENV)/has-test
	@rm -rf $(VENV)/types && $(PIP) --no-deps --no-build-isolation --target $(VENV)/types .
	@root=$$(pwd) && cd $(VENV)/types && MYPYPATH=. $$root/$(BIN)/mypy --python-executable $$root/$(BIN)/python --config-file $$root/pyproject.toml --cache-dir $$root/.mypy_cache -p offrl

docs: $(VENV)/has-check
	@$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) build site demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
