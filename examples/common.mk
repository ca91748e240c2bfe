# Shared by the studies: the folder of the project, the search paths of its commands and modules, and a shell in which a pipe fails if
# any of its commands fails.
ROOT    := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
PYTHON  ?= $(firstword $(wildcard $(ROOT)/.venv/bin/python) python3)
RESULTS := $(ROOT)/examples/results
comma   := ,

# Records of clip-ablate as a table, below the command line that makes the table. $(1): end of this command line, $(2): the records.
table = { echo "\# make -C examples -f $(1)"; jq -rs -f $(ROOT)/examples/ablations.jq $(2) | tr -d '"'; } > $@

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
