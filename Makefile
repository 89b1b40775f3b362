# From nothing but Python 3.10+ (with venv) and git: `make demo`, `make test`. Everything is installed into ./.venv.
#
#   make demo PYTHON=python3.12                        which Python .venv is made with (`make distclean` removes it)
#   make demo PIP_ARGS="--extra-index-url ADDRESS"     where pip looks, e.g. for PyTorch's much smaller CPU build
#   make demo VENV_ARGS=--system-site-packages         use the PyTorch that this Python has already

PYTHON ?= python3
PIP_ARGS ?=
VENV_ARGS ?=
ARGS ?=

PY := .venv/bin/python

# Packages from elsewhere, such as ROS puts on this path, must not mix with those of .venv.
unexport PYTHONPATH
unexport PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs wheel benchmark venv dev clean distclean

help:
	@echo "make demo       a synthetic street, coloured by what the network sees (clever3d-demo/)"
	@echo "make test       the tests; ARGS='-k zoo' chooses some"
	@echo "make test-all   the slow ones too"
	@echo "make lint       ruff, mypy, import contract;  make format  mends what ruff can"
	@echo "make docs       the documentation (site/);    make wheel   the package (dist/)"
	@echo "make benchmark  time and memory of scans of 10k to 1M voxels; ARGS=--layers, see benchmarks/engine.py"
	@echo "make clean      removes what was built;       make distclean  the .venv too"

demo: venv
	.venv/bin/clever3d demo $(ARGS)

test: venv
	$(PY) -m pytest $(ARGS)

test-all: venv
	$(PY) -m pytest -m "slow or not slow" $(ARGS)

lint: dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy clever3d
	.venv/bin/lint-imports

format: dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: dev
	.venv/bin/mkdocs build --strict

wheel: dev
	rm -rf dist
	$(PY) -m build

benchmark: venv
	$(PY) benchmarks/engine.py $(ARGS)

clean:
	rm -rf dist build site clever3d-demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

distclean: clean
	rm -rf .venv

# .venv holds clever3d (editable) with one extra of pyproject.toml. While the stamp agrees with pyproject.toml and with
# this folder nothing is done, so no network is needed. A .venv whose making was cut off, that was moved, or whose Python
# is gone is made anew; any other is brought up to date.
venv:
	$(call ready,test)

dev:
	$(call ready,dev)

define ready
@set -eu; stamp=.venv/.ready; busy=.venv/.unfinished; key='$(CURDIR) '"$$(cksum < pyproject.toml)"; \
if [ -f $$busy ] && kill -0 "$$(cat $$busy)" 2>/dev/null; then \
	echo "Another make (process $$(cat $$busy)) is setting up .venv: wait for it, or 'make distclean' if it is not." >&2; \
	exit 1; \
fi; \
whole=yes; \
if [ -f $$busy ] || ! $(PY) -c '$(OLD_ENOUGH)' 2>/dev/null; then whole=no; fi; \
if [ -f $$stamp ] && ! grep -qF '$(CURDIR) ' $$stamp; then whole=no; fi; \
if [ $$whole = yes ] && [ -f $$stamp ]; then \
	case "$$(cat $$stamp)" in "$$key $(1)" | "$$key dev") exit 0 ;; esac; \
fi; \
if [ $$whole = no ]; then \
	$(PYTHON) -c '$(OLD_ENOUGH)' 2>/dev/null || { \
		echo "clever3d needs Python 3.10 or newer with its venv module; '$(PYTHON)' is not that." >&2; \
		echo "Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12   (Debian, Ubuntu: apt install python3-venv)" >&2; \
		exit 1; }; \
	echo "Making .venv (once)."; \
	rm -rf .venv; mkdir .venv; echo $$$$ > $$busy; \
	$(PYTHON) -m venv $(VENV_ARGS) .venv; \
fi; \
trap 'exit 130' INT TERM HUP; \
echo $$$$ > $$busy; \
echo "Installing clever3d[$(1)] into .venv. The first time takes minutes: PyTorch is large (several GB on Linux)."; \
quiet=--quiet; if [ -t 1 ]; then quiet=; fi; \
$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip; \
$(PY) -m pip install $$quiet --disable-pip-version-check $(PIP_ARGS) -e '.[$(1)]' || { \
	if [ $$whole = yes ]; then rm -f $$busy; fi; exit 1; }; \
echo "$$key $(1)" > $$stamp; rm -f $$busy
endef

# Imports ensurepip too: without it (Debian without python3-venv) venv would make half an environment.
OLD_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
