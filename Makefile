# Needs Python 3.11 or later with pip, and make; `make help` lists the targets.
# BNMLP_SCALE, BNMLP_DEVICE and BNMLP_DATA are passed on to every chapter.

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
INSTALLED := .venv/.installed
BOOK = PYTHONPATH=book/_ext$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m bnmlp_book

CHAPTERS := $(shell grep -rl --include='*.md' '^kernelspec:' book)
NOTEBOOKS := $(CHAPTERS:%.md=.notebooks/%.ipynb)
# One thread for each worker: kernels that compete for cores are many times slower.
PARALLEL := --numprocesses logical --maxprocesses 8
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book test coverage audit lint format check serve clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z]*\):.*## /  make \1: /p' Makefile

# The stamp is written last, so an interrupted installation is taken up again.
$(INSTALLED): requirements.txt pyproject.toml
	@echo "Installing into .venv, once: PyTorch and the tools of the book (on Linux about 3 GB to fetch, 6 GB installed)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

book: $(INSTALLED)  ## build the book into _build/html, and say what it found
	@$(BOOK) build

test: $(INSTALLED)  ## run unit tests, doctests and every chapter at smoke scale
	@$(BOOK) notebooks
	BNMLP_SCALE=smoke $(ONE_THREAD) $(BIN)/python -m pytest -m "not built" $(PARALLEL) --nbmake \
	  tests bnmlp $(NOTEBOOKS)

coverage: $(INSTALLED)  ## which lines and branches of the package the unit tests and doctests reach
	BNMLP_SCALE=smoke $(ONE_THREAD) $(BIN)/python -m pytest -m "not built" $(PARALLEL) \
	  --cov --cov-report=term tests bnmlp

check: $(INSTALLED)  ## be strict with the built book: claims, failures, warnings, links, every page in Chromium
	@$(BOOK) check
	$(BIN)/python -m pytest $(PARALLEL) tests/test_built_html.py tests/test_browser.py

audit: $(INSTALLED)  ## measure every claim under other seeds, threads, instruction sets (hours; goes on)
	@$(BOOK).audit $(if $(MUTATE),--mutate)

lint: $(INSTALLED)  ## check style, docstrings, types and British spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BOOK).spelling

format: $(INSTALLED)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: book  ## build the book and serve it at http://localhost:8000 (PORT=…)
	$(BIN)/python -m http.server --directory _build/html $(PORT)

clean:  ## remove everything built, execution cache included; .venv stays
	rm -rf _build .notebooks .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage dist build
