# `make demo` and `make test` set everything up by themselves, in .venv.

PYTHON ?= python3
VENV ?= .venv
SCRIPTS = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP = $(VENV)/.installed
OUT ?= demo
SOAK_SCALE ?= 1
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: help demo test test-slow test-oldest test-newest soak lint bench clean

help:
	@echo "make demo                     train on rendered scenes in two to three minutes, caption unseen ones"
	@echo "make demo DATA=... BACKBONE=... the same on your photos (a Flickr8k folder, a COCO JSON, ...)"
	@echo "make test                     lint, types, import contracts and all tests but the slow ones"
	@echo "make test-slow                the long training runs too"
	@echo "make test-oldest              the core, the pipeline, decoding and the Hub on the oldest Transformers supported"
	@echo "make test-newest              the same on the newest there is; TESTS=... for other tests"
	@echo "make soak SOAK_SCALE=1        kills, load and endurance, for hours; SOAK_SCALE=0.1 is a tenth of it"
	@echo "make bench                    speed of training against a plain PyTorch loop (needs DATA and BACKBONE)"
	@echo "make clean                    remove the virtual environment and what the demo made"

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): the first time this takes some minutes."
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "nic_hf needs Python 3.11 or later; give one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(SCRIPTS)/python -m pip install --progress-bar on -c constraints.txt -e ".[test]"
	@touch $(STAMP)

demo: $(STAMP)
	$(SCRIPTS)/nic demo --output $(OUT) $(if $(DATA),--data "$(DATA)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(DEMO_ARGS)

lint: $(STAMP)
	$(SCRIPTS)/ruff check .
	$(SCRIPTS)/ruff format --check .
	$(SCRIPTS)/mypy
	$(SCRIPTS)/lint-imports --config setup.cfg

test: lint
	$(SCRIPTS)/python -m pytest -m "not slow and not soak" $(PYTEST_ARGS)
	@echo
	@echo "Tests passed. Next: make demo, or read docs/training.md to train on your own photos."

test-slow: lint
	$(SCRIPTS)/python -m pytest -m "not soak" $(PYTEST_ARGS)

test-oldest test-newest: test-%: $(STAMP)
	$(SCRIPTS)/python tests/with_transformers.py $* $(TESTS)

soak: $(STAMP)
	$(SCRIPTS)/python -m pytest -m soak -s --soak-scale $(SOAK_SCALE)

bench: $(STAMP)
	$(SCRIPTS)/python benchmarks/training_step.py --data "$(DATA)" --backbone "$(BACKBONE)"

clean:
	rm -rf $(VENV) .venv-transformers-* $(OUT)
