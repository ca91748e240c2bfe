# make -C examples -f heads.mk     writes results/heads.csv
#
# The study tests whether TextSpan's words describe the outputs of emoji-vit2's heads: heads of the last four layers, eight words each
# from 2,000 scenes, measured on 1,500 other scenes. heads_words.py describes the columns.
SHELL := /bin/bash -e -o pipefail
BIN    ?= ../bin
PYTHON ?= $(firstword $(wildcard ../.venv/bin/python) python3)
WORK   ?= work/heads
export PYTHONPATH := ..

results/heads.csv: heads_words.py $(WORK)/words.safetensors
	@mkdir -p $(@D)
	$(PYTHON) $^ > $@.part
	mv $@.part $@

$(WORK)/words.safetensors: | $(WORK)
	$(BIN)/clip-effects --units heads | $(BIN)/clip-decompose --method textspan --m 8 --pool emoji -o $@

$(WORK):
	mkdir -p $@
