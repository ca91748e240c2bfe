# make -C examples -f normalization.mk          writes results/normalization.csv
# make -C examples -f normalization.mk pools    how long the pools of common words are, and how they begin
#
# The paper subtracts the pool's mean from its texts and scales them to unit length again (--normalize texts); its public code
# divides each dimension by its length over the pool instead (--normalize dimensions), which changes what pursuit picks. How
# far do their words agree, how near do they come to the directions, and how much accuracy do they keep in place of them?
# Neurons of emoji-vit's layers 5 and 6, and of emoji-rn. See normalization.py for the columns.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/normalization
SCENES ?= 2000
COUNT  ?= 1052
M      ?= 4,8,16,32,64
POOLS  ?= emoji words30k
MODELS ?= emoji-vit emoji-rn
most   := $(lastword $(subst $(comma), ,$(M)))

.PHONY: table pools
table: $(RESULTS)/normalization.csv

emoji-vit := clip-effects --layers 5-6
emoji-rn  := clip-effects --model emoji-rn --units neurons --top-images 50

$(WORK)/%.safetensors:
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

# wordfreq's list of English words by frequency (its "best" one), without words that hold anything but the letters a to z, and
# without single letters: cliptools/text/vocabularies.py.
pools:
	@$(PYTHON) -c "from cliptools.text.vocabularies import load_pool; \
	[print(pool.name, len(pool.texts), 'words:', *pool.texts[:5], '...', *pool.texts[-5:], pool.digest[:12]) \
	for pool in map(load_pool, ['words10k', 'words30k'])]"
