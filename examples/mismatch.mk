# make -C examples -f mismatch.mk     writes results/mismatch.csv
#
# The study tests whether clip-spurious --mismatch and --cue name the cues planted in training. A plant (violin, mountain) means that the
# model takes a mountain for a sign of a violin; both embedded models have the same 18 plants. No scene of the study contains one.
# Things are the 526 concepts, which have 276,150 ordered pairs. mismatch.py describes the columns.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/mismatch
SCENES ?= 2000
SEEDS  ?= 0 1 2
MODELS ?= emoji-vit2 emoji-rn2
KEEP_emoji-rn2 := --keep 100%

BUNDLES := $(foreach model,$(MODELS),$(foreach seed,$(SEEDS),$(WORK)/$(model)-$(seed).safetensors))

.PHONY: table
table: $(RESULTS)/mismatch.csv

$(RESULTS)/mismatch.csv: mismatch.py $(BUNDLES)
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f mismatch.mk"; $(PYTHON) $^; } > $@

define bundle
$(WORK)/$(1)-%.safetensors:
	mkdir -p $(WORK)
	clip-effects --model $(1) --limit $(SCENES) --seed $$* $(KEEP_$(1)) -o $$@
endef
$(foreach model,$(MODELS),$(eval $(call bundle,$(model))))
