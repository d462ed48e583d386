# make demo   see it learn, with nothing installed but Python
# make test   the tests; make lint   style, types, layers; make faults   the long fault suites; make fuzz   other draws
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint conformance faults fuzz test-arm64 bench assets wheel-test mosquitto qemu postgres tflite clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(BIN)/edge-cl simulate --report report.html

test: $(VENV)/.dev mosquitto postgres tflite
	$(BIN)/python -m pytest -m "not slow and not arm64" -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:export:fleet:device $(BIN)/lint-imports
	@printf 'edge_cl: %s lines that are not blank\n' "$$(cat $$(git ls-files 'edge_cl/*.py') | grep -c '[^[:space:]]')"

# the protocol's rules, on edge-cl or on what EDGE_CL_DEVICE and EDGE_CL_SERVER start
conformance: $(VENV)/.dev mosquitto
	$(BIN)/python -m pytest tests/conformance

# power cuts, kills, damaged bytes, failing disks by the hundreds, and whatever else takes minutes
faults: $(VENV)/.dev mosquitto postgres
	$(BIN)/python -m pytest -m "slow and not arm64"

# the property tests on other draws than .ci/run's, which are always the same; ROUNDS=20 for longer
ROUNDS ?= 3
fuzz: $(VENV)/.dev mosquitto postgres
	for round in $$(seq $(ROUNDS)); do $(BIN)/python -m pytest -m "hypothesis and not slow" -n 2 || exit 1; done

# the wheel on an emulated Arm, with each runtime (or ONLY=onnx); where it cannot be emulated it skips and says why
test-arm64: $(VENV)/.dev mosquitto qemu
	$(BIN)/python -m pytest tests/arm64 -m arm64 -rs -k "$(ONLY)"

bench: $(VENV)/.dev
	$(BIN)/python -m bench.pipeline --json pipeline.json
	$(BIN)/python -m bench.heads --json heads.json
	$(BIN)/python -m bench.faults --json faults.json

# the bundle that comes with the package, from the simulator's source people (needs torch)
assets: $(VENV)/.dev
	$(BIN)/python -m edge_cl_export.default_bundle edge_cl/assets/wrist.ecl

# the wheel as a user gets it: a clean environment, no repository on the path
wheel-test: $(VENV)/.dev
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install -q "$$(echo dist/*.whl)[demo]"
	cd dist && ../$(VENV)-wheel/bin/python -I ../tests/wheel.py

# Mosquitto, where we may install it; tests that need it skip and say so where we may not
mosquitto:
	@if ! PATH="$$PATH:/usr/sbin" command -v mosquitto >/dev/null; then \
	  as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	  if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
	    $$as_root apt-get update -qq && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq mosquitto >/dev/null \
	      || echo "Mosquitto could not be installed: its tests will skip"; \
	  else echo "Mosquitto is missing and we may not install it: its tests will skip"; fi; fi

# the emulator that runs programs for Arm
qemu:
	@if [ ! -e /usr/bin/qemu-aarch64-static ]; then \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq qemu-user-static >/dev/null \
	      || echo "qemu-user-static could not be installed: the tests on Arm will skip"; \
	  else echo "qemu-user-static is missing and we may not install it: the tests on Arm will skip"; fi; fi

# PostgreSQL likewise; tests start one of their own, the one that Debian starts is left alone
postgres:
	@if ! command -v initdb >/dev/null && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then \
	  as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	  if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
	    $$as_root apt-get update -qq && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null \
	      || echo "PostgreSQL could not be installed: its tests will skip"; \
	  else echo "PostgreSQL is missing and we may not install it: its tests will skip"; fi; fi

# the one runtime that cannot live in the environment of the others
tflite: $(VENV)/.dev
	@$(BIN)/python -m tests.tflite

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "edge-cl needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -q -e ".[demo]"
	@touch $@

# torch comes first and pinned: a looser requirement would fetch gigabytes of CUDA
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q hatchling build editables
	$(BIN)/pip install -q -e ".[demo,litert,i2c,serial,gpio,audio,camera,export,fleet]" $(shell $(PYTHON) -c 'import tomllib; g = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; print(*(repr(d) for n in ("test", "lint") for d in g[n]))')
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(VENV)-* dist build report.html
