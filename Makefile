# Everything happens in .venv, installed with constraints.txt so that every machine gets the same packages.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Python compiles the modules that it imports; to compile all of them takes a third of an installation.
INSTALL := -m pip install --quiet --no-compile --constraint constraints.txt
WHEEL := build/wheel-check/.installed
DEMO := runs/demo
# A trained density of images, for make bench to invert.
RUN ?= $(DEMO)

# Models of this size are fastest with one thread a process.
export OMP_NUM_THREADS ?= 1

# Where make gpu-test runs.
DEVICE ?= cuda

# Where make visdom starts its server.
PORT ?= 8097

.PHONY: help demo test slow-test docs gpu-test visdom bench scaling mutation-test fault-test lint types wheel wheel-check install clean

help:
	@echo "make demo   install, train a density of digits, evaluate, sample, invert, certify and report it (4 minutes)"
	@echo "make test   install and run the tests"
	@echo "make slow-test   the tests that make test leaves out: further variants of what it shows (15 minutes)"
	@echo "make docs   build the documentation site into build/site; a broken link fails it (10 seconds)"
	@echo "make gpu-test [PYTHON=...]   on a machine with a GPU: the laws there, and a table of what is promised (8 minutes)"
	@echo "make visdom [PORT=...]   start a visdom server on this machine; needs npm, but no other network"
	@echo "make bench [RUN=...]   time iresnet and other methods side by side, and invert a trained run (an hour)"
	@echo "make scaling   time and memory against every size of a step, one process and two, predictions (half an hour)"
	@echo "make mutation-test [ONLY=krylov] [TENTH=3]   break the numerics in many small ways: the tests must notice (an hour or more)"
	@echo "make fault-test   kill training processes, fill their disks, damage their checkpoints: nothing is lost (20 minutes)"
	@echo "make lint types wheel-check   the other checks"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
# visdom comes as source, and is built by the setuptools that is there: a new one lacks pkg_resources.
	$(BIN)/python $(INSTALL) setuptools wheel
	$(BIN)/python $(INSTALL) --no-build-isolation visdom
	$(BIN)/python $(INSTALL) --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/iresnet train digits-density --out $(DEMO)
	$(BIN)/iresnet evaluate $(DEMO)
	$(BIN)/iresnet sample $(DEMO) -n 64 --temperature 0.7
	$(BIN)/iresnet reconstruct $(DEMO)
	$(BIN)/iresnet interpolate $(DEMO)
	$(BIN)/iresnet certify $(DEMO)
	$(BIN)/iresnet analyze logdet $(DEMO)
	$(BIN)/iresnet report $(DEMO)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow-test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# The variable silences a banner about other versions of mkdocs.
docs: $(INSTALLED)
	$(BIN)/python $(INSTALL) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# With the Python that is there, in which iresnet is installed: such machines may have no network.
gpu-test:
	$(PYTHON) tests/gpu.py --device $(DEVICE)

# The files of its page come from npm; visdom itself would fetch them from several web sites.
visdom: $(INSTALLED)
	$(BIN)/python tools/visdom_page.py
	$(BIN)/visdom -bind_local -port $(PORT)

bench: $(INSTALLED)
	$(BIN)/python $(INSTALL) --editable '.[bench]'
	test -d $(RUN) || $(BIN)/iresnet train digits-density --out $(RUN)
	$(BIN)/python benchmarks/speed.py --run $(RUN) --full

scaling: $(INSTALLED)
	$(BIN)/python $(INSTALL) --editable '.[bench]'
	$(BIN)/python benchmarks/scaling.py

mutation-test: $(INSTALLED)
	$(BIN)/python $(INSTALL) --editable '.[mutation]'
	$(BIN)/python tests/mutation/run.py $(if $(ONLY),--only $(ONLY)) $(if $(TENTH),--tenth $(TENTH))

fault-test: $(INSTALLED)
	$(BIN)/python tests/faults/interruptions.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/pyright

$(WHEEL): $(INSTALLED) README.md LICENSE $(shell find iresnet -type f ! -name '*.pyc')
	rm -rf dist build/wheel-check
	$(BIN)/python -m build --quiet --wheel
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python $(INSTALL) "$$(ls dist/*.whl)[sklearn]" ipykernel nbclient nbformat
	touch $@

wheel: $(WHEEL)

# A wheel, installed elsewhere, must find its recipes and its data. The notebooks run in small with it, and without the
# files of this folder.
wheel-check: $(WHEEL)
	rm -rf build/wheel-check/run
	cd build/wheel-check && bin/iresnet recipes && bin/iresnet train digits-classify --train.epochs 1 --out run && bin/iresnet certify run && bin/iresnet report run
	env -u PYTHONPATH build/wheel-check/bin/python tools/run_notebooks.py

clean:
	rm -rf .venv build dist runs .pytest_cache .ruff_cache
