# make -C examples -f words.mk     writes results/words.csv
#
# The study tests whether words are true: the words that units of the embedded models write and see, by what fresh scenes and single
# drawings of each word show.
# words.py describes the columns. Pairs of emoji-rn2 are the fifth of largest effect.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/words
SCENES ?= 2000
# ten drawings for each of 526 words
DRAWINGS ?= 5260
SEEDS  ?= 0 1 2
MODELS ?= emoji-vit2 emoji-rn2
KEEP_emoji-rn2 ?= --keep 20%

BUNDLES := $(foreach model,$(MODELS),$(foreach seed,$(SEEDS),$(WORK)/$(model)-$(seed).safetensors))

.PHONY: table
table: $(RESULTS)/words.csv

$(WORK)/drawings:
	clip-scenes --single --count $(DRAWINGS) --seed 7000 --out-dir $@

$(RESULTS)/words.csv: words.py $(WORK)/drawings $(BUNDLES)
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f words.mk"; $(PYTHON) $< $(WORK)/drawings/images $(BUNDLES); } > $@

define bundle
$(WORK)/$(1)-%.safetensors:
	mkdir -p $(WORK)
	clip-effects --model $(1) --limit $(SCENES) --seed $$* $(KEEP_$(1)) | clip-decompose --m 8 --verify scenes -o $$@
endef
$(foreach model,$(MODELS),$(eval $(call bundle,$(model))))
