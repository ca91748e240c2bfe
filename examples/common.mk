# What the studies share: where the project is, its commands and modules before any others, and a shell in which a pipe fails with its
# first command.
ROOT    := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
PYTHON  ?= $(firstword $(wildcard $(ROOT)/.venv/bin/python) python3)
RESULTS := $(ROOT)/examples/results
comma   := ,

export PATH := $(ROOT)/bin:$(PATH)
export PYTHONPATH := $(ROOT)
export SHELLOPTS := pipefail
SHELL := bash
.DELETE_ON_ERROR:
.SECONDARY:
