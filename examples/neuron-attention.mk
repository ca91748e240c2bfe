# make -C examples -f neuron-attention.mk              "Interpreting ResNet-based CLIP via Neuron-Attention Decomposition" (arXiv 2509.19943), on emoji-rn2
# make -C examples -f neuron-attention.mk pcs          one of its figures (add -B to replace the committed table):
#
#   pcs             accuracy from the first components of pairs, neurons and heads         Figure 1        results/pcs.csv
#   sparsity        accuracy when all but the strongest units are mean-ablated             Section 3       results/sparsity.csv
#   words           accuracy from sparse words, by m                                       Figure 2        results/pair-words.csv
#   polysemy        inertia of top images; neurons and their pairs (sub-concepts)          Figure 4        polysemy.mk
#   segmentation    label maps                                                             Figure 3        resnet-segmentation.mk
#   shift           the share of a concept in a drifting stream                            Section 5       shift.mk
#
# The following command uses the paper's settings (1,000 pictures of ImageNet's test set; RN50x16 has 147,456 pairs). POOL is the file of its
# vocabulary, 30k.txt in its public code, which puts the texts into ImageNet's 80 templates (TEMPLATES) and evaluates words by sums of unit
# length (ALONG; docs/differences.md). Effects are raw, the default for a ResNet.
#   make -C examples -f neuron-attention.mk pcs MODEL=RN50x16 PRETRAINED=openai IMAGES="imagenet/test --sample 1000" \
#     LABELLED=imagenet/val CLASSES=imagenet POOL=30k.txt TEMPLATES="--template imagenet" ALONG=unit-texts M=1,2,4,8,16,32,64 OPTIONS="--device cuda"
MODEL   ?= emoji-rn2
POOL    ?= words30k
TEMPLATES ?=
ALONG   ?= direction
M       ?= 1,2,4,8,16,32,64
KEEP    ?= 1%,2%,5%,10%,20%,50%
COMPONENTS ?= 1,2,4
# The paper uses the 50 images of largest norm of each unit.
TOP     ?= --top-images 50
include $(dir $(lastword $(MAKEFILE_LIST)))papers.mk

.PHONY: pcs sparsity words polysemy segmentation shift
all: pcs sparsity words
pcs: $(RESULTS)/pcs.csv
sparsity: $(RESULTS)/sparsity.csv $(RESULTS)/sparsity.png
words: $(RESULTS)/pair-words.csv $(RESULTS)/pair-words.png
polysemy shift:
	$(MAKE) -f $(ROOT)/examples/$@.mk
segmentation:
	$(MAKE) -f $(ROOT)/examples/resnet-segmentation.mk

$(WORK) $(RESULTS):
	mkdir -p $@

$(WORK)/pairs.safetensors: | $(WORK)
	$(EFFECTS) $(TOP) --units pairs -o $@

$(WORK)/neurons.safetensors $(WORK)/heads.safetensors: $(WORK)/%.safetensors: | $(WORK)
	$(EFFECTS) $(TOP) --units $* --components $(lastword $(subst $(comma), ,$(COMPONENTS))) -o $@

# A pair has exactly one component; its line shows the loss by rounding.
$(RESULTS)/pcs.csv: $(WORK)/pairs.safetensors $(WORK)/neurons.safetensors $(WORK)/heads.safetensors | $(RESULTS)
	$(ABLATE) --ablate all --reconstruct pc --bundle $< > $(WORK)/pcs.jsonl
	for units in neurons heads; do \
	  $(ABLATE) --reconstruct pc --components $(COMPONENTS) --bundle $(WORK)/$$units.safetensors || exit; \
	done | jq -c 'select(.reconstruct)' >> $(WORK)/pcs.jsonl
	$(call table,neuron-attention.mk pcs,$(WORK)/pcs.jsonl)

$(RESULTS)/sparsity.csv: $(WORK)/pairs.safetensors $(WORK)/neurons.safetensors | $(RESULTS)
	$(ABLATE) --keep $(KEEP) --bundle $(WORK)/pairs.safetensors --bundle $(WORK)/neurons.safetensors > $(WORK)/sparsity.jsonl
	$(call table,neuron-attention.mk sparsity,$(WORK)/sparsity.jsonl)

$(RESULTS)/sparsity.png: $(RESULTS)/sparsity.csv
	$(CURVES) $< $@ --x keep --by units --label "share of the units kept"

$(RESULTS)/pair-words.csv: $(WORK)/pairs-words.safetensors $(WORK)/neurons-words.safetensors | $(RESULTS)
	$(ABLATE) --reconstruct words --words-along $(ALONG) --m $(M) --bundle $(WORK)/pairs-words.safetensors --bundle $(WORK)/neurons-words.safetensors > $(WORK)/words.jsonl
	$(call table,neuron-attention.mk words,$(WORK)/words.jsonl)

$(RESULTS)/pair-words.png: $(RESULTS)/pair-words.csv
	$(CURVES) $< $@ --x m --by units --log --label "words a unit"

$(WORK)/%-words.safetensors: $(WORK)/%.safetensors
	clip-decompose --m $(lastword $(subst $(comma), ,$(M))) --pool $(POOL) $(TEMPLATES) -o $@ $<
