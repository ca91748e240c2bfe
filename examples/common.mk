# Shared by the studies: the folder of the project, the search paths of its commands and modules, and a shell in which a pipe fails if
# any of its commands fails.
ROOT    := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
PYTHON  ?= $(firstword $(wildcard $(ROOT)/.venv/bin/python) python3)
RESULTS := $(ROOT)/examples/results
comma   := ,

export PATH := $(ROOT)/bin:$(PATH)
export PYTHONPATH := $(ROOT)
export SHELLOPTS := pipefail
SHELL := bash
.DELETE_ON_ERROR:
# The steps of a study run one after the other, unless its file says PARALLEL; make -j runs several studies at a time.
ifndef PARALLEL
.NOTPARALLEL:
endif
.SECONDARY:
