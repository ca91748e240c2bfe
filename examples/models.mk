# make -C examples -f models.mk     writes results/models.csv
#
# The study measures the embedded models: accuracy, also in styles that they never saw, and whether the words of their neurons are
# true, by what fresh scenes show. models.py describes the measures.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/models
SCENES ?= 2000
# ten drawings for each of 526 words
DRAWINGS ?= 5260
SEEDS  ?= 0 1 2
MODELS ?= emoji-vit2 emoji-rn2
UNITS_emoji-rn2 ?= --units neurons --top-images 50

BUNDLES := $(foreach model,$(MODELS),$(foreach seed,$(SEEDS),$(WORK)/$(model)-$(seed).safetensors))

.PHONY: table
table: $(RESULTS)/models.csv

$(WORK)/drawings:
	clip-scenes --single --count $(DRAWINGS) --seed 7000 --out-dir $@

$(RESULTS)/models.csv: models.py $(WORK)/drawings $(BUNDLES)
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f models.mk"; PYTHONPATH=$(ROOT) $(PYTHON) $< $(WORK)/drawings/images $(BUNDLES); } > $@

define bundle
$(WORK)/$(1)-%.safetensors:
	mkdir -p $(WORK)
	clip-effects --model $(1) --limit $(SCENES) --seed $$* $(UNITS_$(1)) | clip-decompose --m 8 -o $$@
endef
$(foreach model,$(MODELS),$(eval $(call bundle,$(model))))
