# make -C examples -f dictionary.mk     writes results/dictionary.csv
#
# The study asks whether the words of a sparse autoencoder's latents are truer than those of the neurons of the same layer: an
# autoencoder of emoji-vit2's residual stream is trained on rendered scenes, and clip-judge holds the words of both against what
# other scenes show. dictionary.py describes the columns.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/dictionary
LAYER  ?= 5
# images from which units and words are measured, and scenes by which words are judged
SCENES ?= 2000
JUDGED ?= 1000
SEEDS  ?= 0
KINDS  := neurons latents

.PHONY: table
table: $(RESULTS)/dictionary.csv

$(RESULTS)/dictionary.csv: dictionary.py $(foreach seed,$(SEEDS),$(foreach kind,$(KINDS),$(WORK)/$(kind)-$(seed).jsonl))
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f dictionary.mk"; $(PYTHON) $< $(filter %.jsonl,$^); } > $@

$(WORK)/sae-%.safetensors:
	mkdir -p $(WORK)
	$(PYTHON) -m training.sae emoji-vit2 --layer $(LAYER) --seed $* -o $@

$(WORK)/latents-%.safetensors: $(WORK)/sae-%.safetensors
	clip-effects --units sae:$< --limit $(SCENES) --seed $* | clip-decompose --m 8 -o $@

$(WORK)/neurons-%.safetensors:
	mkdir -p $(WORK)
	clip-effects --layers $(LAYER) --limit $(SCENES) --seed $* | clip-decompose --m 8 -o $@

$(WORK)/%.jsonl: $(WORK)/%.safetensors
	clip-judge --truth scenes --limit $(JUDGED) --bundle $< -f jsonl > $@
