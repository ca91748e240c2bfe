# make -C examples -f drift.mk     writes results/word-drift.csv
#
# The study tests clip-shift without a concept: how often a run alarms although nothing has changed, on independent scenes and on films
# (with and without --block), and how often the word of a concept whose frequency rises is found. The model reads each scene once;
# streams are drawn from what it measured. word_drift.py describes the scenes and the columns.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/drift
SCENES ?= 2000
MODEL  ?= emoji-vit2

.PHONY: table
table: $(RESULTS)/word-drift.csv

$(RESULTS)/word-drift.csv: $(WORK)/$(MODEL).npz
	mkdir -p $(RESULTS)
	$(PYTHON) word_drift.py $< > $@

$(WORK)/$(MODEL).npz: word_drift.py $(WORK)/$(MODEL).safetensors
	$(PYTHON) $< measure $(WORK)/$(MODEL).safetensors $@

$(WORK)/$(MODEL).safetensors:
	mkdir -p $(WORK)
	clip-effects --model $(MODEL) --limit $(SCENES) --seed 0 -o $@
