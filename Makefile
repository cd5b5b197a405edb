# Two doors: `make demo` and `make test`.  Each makes .venv and installs the lock when they are not there.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test soak install clean

demo: $(READY)
	$(BIN)/python -m stages.demo

test: $(READY)
	$(BIN)/ruff check pipeline stages tests benchmarks
	$(BIN)/ruff format --check -q pipeline stages tests benchmarks
	$(BIN)/mypy
	# Two processes of one thread each: on tiny tensors a second thread waits more than it works.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

# SIGKILL at twenty seeded moments where `make test` has three, also inside a save.  Four minutes.
soak: $(READY)
	OMP_NUM_THREADS=1 TWODRCL_KILLS=20 $(BIN)/python -m pytest tests/test_hooks.py tests/test_checkpoint.py -k kill
	@echo "20 seeded runs, killed 3 times each (drawing a batch, inside a file operation, after a step), ended with"
	@echo "every tensor and every byte of the history of an undisturbed one; 20 saves killed in the middle, and saves"
	@echo "killed before each of their file operations, left a checkpoint that is whole: the newest, or the one before."

install: $(READY)

# The lock is complete, hence --no-deps; pip compiles bytecode, which saves ten seconds at every start of mmdet.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf artifacts/.work artifacts/*/ .dvc/tmp .dvc/cache dvc.lock
