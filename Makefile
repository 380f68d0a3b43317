# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set up everything they need in .venv; `make install` does only that.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint types unit sanitize thorough clean

install: $(VENV)/.installed

# --no-compile: Python compiles what is imported; compiling all 27,000 files of the development tools takes 100 seconds.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[build,dev]'
	@touch $@

demo: install
	$(BIN)/python examples/snips/demo.py

test: lint types unit

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: install
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# The engine under the sanitizers and emulated on ARM, to be run where csrc/ was changed: see tests/native/test_cpp.py.
sanitize: install
	OPEN_AUTOGLM_SANITIZE=1 $(BIN)/python -m pytest tests/native/test_cpp.py

# The suite with the tests that take long, and with as many random cases as before a release.
thorough: install
	OPEN_AUTOGLM_THOROUGH=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .hypothesis
