# One command each, from a bare machine: all the set-up that a target needs is done by it, once.
#   make train     the same language model learns real text on 2 ranks, in PyTorch and in TensorFlow
#   make test      every test        make check     lint and types        make doctor    what works here
#   make test-cluster   elastic jobs, whose workers are killed and come, for a quarter of an hour
#   make test-faults   what a job does when something fails: takes half an hour, and root for a part of it
#   make docker    an image, with docker or buildah: TARGET=cpu, or TARGET=gpu FRAMEWORK=torch (or tensorflow); docs/docker.md
# FRAMEWORKS=torch (or tensorflow) leaves the other one out. PYTHON and VENV choose interpreter and place.
# As root on Debian or Ubuntu a compiler and OpenMPI come from apt-get if they are missing; SYSTEM_PACKAGES= leaves the system alone.

PYTHON     ?= python3.11
VENV       ?= .venv
FRAMEWORKS ?= torch,tensorflow
RANKS      ?= 2
# Of make test: so many tests side by side, those of a framework in turn (tests/conftest.py). 0: all in turn.
JOBS       ?= 2
SYSTEM_PACKAGES ?= --install-system-packages

BIN    := $(VENV)/bin
comma  := ,
READY  := $(VENV)/.ready-$(subst $(comma),-,$(FRAMEWORKS))
export PATH := $(abspath $(BIN)):$(PATH)
# OpenMPI asks root, which containers often are, to say twice that it means it.
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1

# Of an image. IMAGE_FLAGS go to docker or buildah as they are.
TARGET      ?= cpu
FRAMEWORK   ?= $(if $(filter gpu,$(TARGET)),torch,$(FRAMEWORKS))
IMAGE       ?= hvd_lm:$(TARGET)-$(subst $(comma),-,$(FRAMEWORK))
IMAGE_FLAGS ?=

.PHONY: setup train test test-cluster test-faults check doctor docker clean

setup: $(READY)

# The recipe decides by itself whether the installed Horovod, or the cached wheel, still fits.
$(READY): setup.py pyproject.toml docker/constraints.txt hvd_lm/job/build_horovod.py $(wildcard hvd_lm/job/horovod_patches/*.*)
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not found: install Python 3.11 or say make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: Debian and Ubuntu need python3-venv"; exit 1; }
	@echo "installing hvd_lm with $(FRAMEWORKS) into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c docker/constraints.txt -e '.[$(FRAMEWORKS),dev]'
	@$(BIN)/python hvd_lm/job/build_horovod.py $(SYSTEM_PACKAGES)
	@rm -f $(VENV)/.ready-* && touch $@

train: setup
	RANKS=$(RANKS) FRAMEWORKS=$(FRAMEWORKS) jobs/first_run.sh

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope

test-cluster: setup
	$(BIN)/python -m pytest -m cluster

test-faults: setup
	$(BIN)/python -m pytest -m faults tests/faults

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck jobs/*.sh jobs/*.sbatch jobs/*.bsub
	$(BIN)/yamllint --strict --config-file .yamllint.yaml jobs

doctor: setup
	$(BIN)/hvd-lm doctor

docker:
	@if docker info >/dev/null 2>&1; then build="docker build"; \
	elif command -v buildah >/dev/null; then build="buildah build --layers"; \
	else echo "make: an image needs docker that runs (docker info), or buildah 1.29 or later: install one of them"; exit 1; fi; \
	$$build -f docker/Dockerfile --target $(TARGET) --build-arg FRAMEWORK=$(FRAMEWORK) \
	    --build-arg CREATED="$$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
	    --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
	    -t $(IMAGE) $(IMAGE_FLAGS) .

clean:
	rm -rf $(VENV) build dist *.egg-info runs
