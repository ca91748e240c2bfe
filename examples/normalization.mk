# make -C examples -f normalization.mk          writes results/normalization.csv
# make -C examples -f normalization.mk pools    prints the lengths and the first words of the pools of common words
#
# The paper subtracts the pool's mean from its texts and scales them to unit length again (--normalize texts). Its public code
# divides each dimension by its length over the pool instead (--normalize dimensions), which changes the texts that pursuit chooses.
# The study compares the words, their distance to the directions, and the accuracy with words in place of directions, for the
# neurons of emoji-vit2's layers 5 and 6 and of emoji-rn2. normalization.py describes the columns.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/normalization
SCENES ?= 2000
COUNT  ?= 1052
M      ?= 4,8,16,32,64
POOLS  ?= scenes words30k
MODELS ?= emoji-vit2 emoji-rn2
most   := $(lastword $(subst $(comma), ,$(M)))

.PHONY: table pools
table: $(RESULTS)/normalization.csv

emoji-vit2 := clip-effects --layers 5-6
emoji-rn2  := clip-effects --model emoji-rn2 --units neurons --top-images 50

$(MODELS:%=$(WORK)/%.safetensors): $(WORK)/%.safetensors:
	mkdir -p $(WORK)
	$($*) --limit $(SCENES) -o $@

# $(1): model, $(2): pool
define row
$(WORK)/$(1)-$(2)-%.safetensors: $(WORK)/$(1).safetensors
	clip-decompose --m $(most) --prefix $(M) --normalize $$* --pool $(2) -o $$@ $$<

$(WORK)/$(1)-$(2).csv: normalization.py $(WORK)/$(1)-$(2)-texts.safetensors $(WORK)/$(1)-$(2)-dimensions.safetensors
	clip-ablate --limit $(COUNT) --reconstruct words --m $(M) $$(patsubst %,--bundle %,$$(filter %.safetensors,$$^)) -f jsonl \
	| $(PYTHON) $$^ $(if $(rows),,--titles) > $$@
rows += $(WORK)/$(1)-$(2).csv
endef
$(foreach model,$(MODELS),$(foreach pool,$(POOLS),$(eval $(call row,$(model),$(pool)))))

$(RESULTS)/normalization.csv: $(rows)
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f normalization.mk"; cat $(rows); } > $@

# The pools are wordfreq's list of English words by frequency (the list "best"), without single letters and without words that contain
# characters other than a to z: cliptools/text/vocabularies.py.
pools:
	@$(PYTHON) -c "from cliptools.text.vocabularies import load_pool; \
	[print(pool.name, len(pool.texts), 'words:', *pool.texts[:5], '...', *pool.texts[-5:], pool.digest[:12]) \
	for pool in map(load_pool, ['words10k', 'words30k'])]"
