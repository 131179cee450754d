# make demo   the whole path: water is simulated with the bundled model and judged; ends with where the report is
# make test   lint, type checks and the tests
# make lib    build the native library into the source tree, without installing (for work on csrc/)
#
# Both set up everything in .venv by themselves; a second call only does what changed.
# Python: `make test PYTHON=/path/to/python3.12`. Another torch: `make demo TORCH='torch==2.12.0'`.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.14,$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
CXX ?= c++
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test lint pytest lib wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	@mkdir -p demo
	cd demo && ../$(BIN)/dpsim run ../examples/water/demo.yaml --directory water
	@echo "The report: $(CURDIR)/demo/water/report.html"

test: lint
	@$(MAKE) --no-print-directory pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

pytest: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto -m "not slow"
	$(BIN)/python -m pytest -m slow

# ---- installation: torch first, then dpsim in place (a change of Python code needs no new installation) -------------
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "dpsim needs Python >= 3.11, and found none on PATH. Install one (e.g. apt install python3 python3-venv, or https://www.python.org/downloads) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python >= 3.11. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(CXX) --version >/dev/null 2>&1 || { echo "dpsim needs a C++17 compiler, and '$(CXX)' does not run. Install one (e.g. apt install g++, dnf install gcc-c++, xcode-select --install) or name it: make $(MAKECMDGOALS) CXX=/path/to/c++" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments. Install its venv package (e.g. apt install python3-venv)." >&2; exit 1; }

$(VENV)/torch: | $(VENV)/bin/python
	@echo "installing $(TORCH) (the largest part; minutes on a slow line)"
	@$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/installed: $(VENV)/torch $(NATIVE)
	@echo "building and installing dpsim"
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[dev]'
	@touch $@

# ---- for developers --------------------------------------------------------------------------------------------------
lib:
	cmake -S . -B build/lib -DCMAKE_BUILD_TYPE=Release -DDPSIM_INPLACE=ON
	cmake --build build/lib --parallel 2

wheel: | $(VENV)/bin/python
	$(BIN)/python -m pip --disable-pip-version-check wheel --no-deps --wheel-dir dist .

clean:
	rm -rf build dist demo dpsim/_lib $(VENV)
