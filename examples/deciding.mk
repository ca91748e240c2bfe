# make -C examples -f deciding.mk        writes results/few-vit.csv, results/few-rn.csv and results/deciding.csv
#
# Findings that the embedded models confirm in part or not: one thing is varied at a time, and deciding.py says whether the finding moves.
# What is varied: the terms for sparsity (the tables of results/dense/, from control.mk), the number of concepts (few-*.csv: accuracy
# among every tenth concept only), and what the tables of the studies vary anyway, such as the depth of the layers.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK  ?= work/deciding
COUNT ?= 12000
STEP  := 10
FIRST := work/emoji-vit2/layers.safetensors
PAIRS := $(addprefix work/emoji-rn2/,pairs.safetensors neurons.safetensors pairs-words.safetensors neurons-words.safetensors)
DENSE := $(wildcard $(RESULTS)/dense/*.csv)
SIZE_vit := 64
SIZE_rn  := 128
ablate = clip-ablate $(WORK)/$(1)/images --classes $(WORK)/$(1)/classes.txt

.PHONY: all few
all: $(RESULTS)/deciding.csv
few: $(RESULTS)/few-vit.csv $(RESULTS)/few-rn.csv

$(RESULTS)/deciding.csv: deciding.py result_tables.py $(RESULTS)/few-vit.csv $(RESULTS)/few-rn.csv $(RESULTS)/claims.csv $(DENSE)
	$(PYTHON) $< $(RESULTS) > $@

# Bundles of the studies of both papers, made by these studies.
$(FIRST):
	test -e $@ || make -f second-order.mk $@
$(PAIRS):
	test -e $@ || make -f neuron-attention.mk $@

# Scenes of one emoji each, in a folder for each concept, of which every tenth stays; classes.txt names these.
$(WORK)/%/scenes.jsonl:
	rm -rf $(@D)
	mkdir -p $(WORK)
	clip-scenes --single --count $(COUNT) --size $(SIZE_$*) --seed 7000000 --out-dir $(@D)
	cd $(@D)/images && printf '%s\n' * | awk 'NR % $(STEP) != 1' | tr '\n' '\0' | xargs -0 rm -r
	cd $(@D) && jq -r '[.image, .names[0]] | @tsv' scenes.jsonl | while IFS=$$'\t' read -r image name; do \
	  if [ -e "$$image" ]; then printf '%s\n' "$$name"; fi; \
	done | sort -u > classes.txt

$(RESULTS)/few-vit.csv: $(FIRST) $(WORK)/vit/scenes.jsonl
	$(call ablate,vit) --layers 5-6 --ablate all,large,small --reconstruct pc --bundle $< -f jsonl > $(WORK)/vit.jsonl
	$(call table,deciding.mk,$(WORK)/vit.jsonl)

$(RESULTS)/few-rn.csv: $(PAIRS) $(WORK)/rn/scenes.jsonl
	$(call ablate,rn) --keep 20% $(foreach bundle,$(wordlist 1,2,$^),--bundle $(bundle)) -f jsonl > $(WORK)/rn.jsonl
	$(call ablate,rn) --reconstruct pc --components 1 --bundle $(word 2,$^) -f jsonl >> $(WORK)/rn.jsonl
	$(call ablate,rn) --reconstruct words --words-along direction --m 1,64 \
		$(foreach bundle,$(wordlist 3,4,$^),--bundle $(bundle)) -f jsonl >> $(WORK)/rn.jsonl
	$(call table,deciding.mk,$(WORK)/rn.jsonl)
