# make -C examples -f second-order.mk              "Interpreting the Second-Order Effects of Neurons in CLIP" (arXiv 2406.04341), on emoji-vit2
# make -C examples -f second-order.mk ablation     one of its figures (add -B to replace the committed table):
#
#   ablation        accuracy with each layer's effects ablated or replaced by PC 1         Figures 3, 9, 10    results/ablation.csv
#   indirect        second-order and indirect effects                                      Table 1             results/indirect.csv
#   reconstruction  accuracy from sparse words, by m and pool                              Figure 4            results/reconstruction.csv
#   neurons         words of neurons                                                       Table 2             results/neurons.csv
#   top             images on which neurons act most                                       Figure 5            results/top-images.csv
#   adversarial     fooling rates                                                          Table 3             adversarial.mk
#   concepts        concepts of an image                                                   Figures 8, 11       concepts.mk
#   segmentation    zero-shot segmentation                                                 Table 4             segmentation.mk
#
# The following command uses the paper's settings (5,000 pictures; each bundle takes one pass over them, each table one pass over ImageNet's
# validation set). POOL is the file of its vocabulary, text_descriptions/30k.txt in its public code, which POOLS calls `papers`: four of the
# sixteen words that the paper prints are not in wordfreq's words30k. ALONG=texts evaluates words by the formula of this code (docs/differences.md).
#   make -C examples -f second-order.mk ablation MODEL=ViT-B-32-quickgelu PRETRAINED=openai IMAGES="imagenet/train --sample 5000" \
#     LABELLED=imagenet/val CLASSES=imagenet LAYERS=0-10 MIDDLE=9 DEFAULT=8-10 POOLS="papers words10k words30k" POOL=30k.txt ALONG=texts OPTIONS="--device cuda"
MODEL    ?= emoji-vit2
LAYERS   ?= 0-6
DEFAULT  ?= 5-6
# The layer of Table 1, of `neurons` and of the study of m: in the paper, the third from the end.
MIDDLE   ?= 5
POOLS    ?= scenes words10k words30k
POOL     ?= $(firstword $(POOLS))
ALONG    ?= direction
M        ?= 1,2,4,8,16,32,64,128
# Number of words per neuron in the table of words; it is small because the joint space has few dimensions.
READ_M   ?= 32
# Number of images for the indirect effect, which needs a pass through the later layers for each image and each neuron.
INDIRECT       ?= --limit 500
include $(dir $(lastword $(MAKEFILE_LIST)))papers.mk

.PHONY: ablation indirect reconstruction neurons top adversarial concepts segmentation
all: ablation indirect reconstruction neurons top
ablation: $(RESULTS)/ablation.csv $(RESULTS)/ablation.png
indirect: $(RESULTS)/indirect.csv
reconstruction: $(RESULTS)/reconstruction.csv $(RESULTS)/reconstruction.png
neurons: $(RESULTS)/neurons.csv
top: $(RESULTS)/top-images.csv
adversarial concepts segmentation:
	$(MAKE) -f $(ROOT)/examples/$@.mk

$(WORK) $(RESULTS):
	mkdir -p $@

# Figure 3: every single layer, and the default layers together.
$(RESULTS)/ablation.csv: $(WORK)/layers.safetensors | $(RESULTS)
	$(ABLATE) --layers $(DEFAULT) --layers $(LAYERS) --each-layer --ablate all,large,small --reconstruct pc --bundle $< > $(WORK)/ablation.jsonl
	$(call table,second-order.mk ablation,$(WORK)/ablation.jsonl)

$(RESULTS)/ablation.png: $(RESULTS)/ablation.csv
	$(CURVES) $< $@ --x layers --by change --order all,large,small,pc --label "layer whose effects are replaced"

$(WORK)/layers.safetensors: | $(WORK)
	$(EFFECTS) --layers $(LAYERS) --thumbnails 64 -o $@

# Table 1: the neurons of one layer by both effects. The sum of indirect effects is approximated by setting all activations to their means at once.
$(RESULTS)/indirect.csv: $(WORK)/second-middle.safetensors $(WORK)/indirect.safetensors | $(RESULTS)
	$(ABLATE) --ablate all --bundle $< $(call explained,$<) > $(WORK)/indirect.jsonl
	$(ABLATE) --ablate joint --bundle $(word 2,$^) $(call explained,$(word 2,$^)) >> $(WORK)/indirect.jsonl
	$(call table,second-order.mk indirect,$(WORK)/indirect.jsonl)

# The share of the top images' variance that PC 1 explains, mean over neurons.
explained = | jq -c --argjson explained $$(clip-view -f jsonl $(1) | jq -s 'map(.explained) | add / length * 1000 | round / 1000') '. + {explained: $$explained}'

$(WORK)/indirect.safetensors: | $(WORK)
	$(EFFECTS) $(INDIRECT) --effect indirect --layers $(MIDDLE) -o $@

$(WORK)/second-middle.safetensors: | $(WORK)
	$(EFFECTS) $(INDIRECT) --layers $(MIDDLE) -o $@

# Figure 4: PC 1 replaced by its sparse words, for each pool, prefixes of one pursuit.
$(RESULTS)/reconstruction.csv: $(POOLS:%=$(WORK)/reconstruction-%.jsonl) | $(RESULTS)
	$(call table,second-order.mk reconstruction,$^)

$(WORK)/reconstruction-%.jsonl: $(WORK)/words-%.safetensors
	$(ABLATE) --reconstruct pc,words --words-along $(ALONG) --m $(M) --bundle $< | jq -c '. + {pool: "$*"}' > $@

$(WORK)/words-%.safetensors: $(WORK)/layers.safetensors
	clip-view --layers $(DEFAULT) $< | clip-decompose --m $(lastword $(subst $(comma), ,$(M))) --pool $(if $(filter papers,$*),$(POOL),$*) -o $@

$(RESULTS)/reconstruction.png: $(RESULTS)/reconstruction.csv
	$(CURVES) $< $@ --x m --by pool --log --label "words a neuron"

# Table 2: the clearest neurons. The paper's, of ViT-B-32 by OpenAI: 9:4 +snowy +frost -closings +advent; 9:391 +woodworking -swelling
# +cedar +heirloom; 9:2137 +refreshments +gelatin -sour +cosmopolitan; 9:2914 +motorhome +yacht +cirrus +cabriolet (READ=--units 9:4,9:391,…).
READ     ?= --sort clear --head 20
$(WORK)/neurons.safetensors: $(WORK)/layers.safetensors
	clip-view --layers $(DEFAULT) $< | clip-decompose --m $(READ_M) --pool $(POOL) -o $@

$(RESULTS)/neurons.csv: $(WORK)/neurons.safetensors | $(RESULTS)
	{ echo "# make -C examples -f second-order.mk neurons"; echo "layer,neuron,explained,words"; \
	clip-view $(READ) -f jsonl $< | jq -r '[.layer, .neuron, .explained, ([.words[:4][] | "\(if .coefficient < 0 then "-" else "+" end)\(.word)"] | join(" "))] | @csv' | tr -d '"'; } > $@

$(RESULTS)/top-images.csv: $(WORK)/neurons.safetensors | $(RESULTS)
	clip-sheet --head 12 $< -o $(WORK)/top-images.png
	{ echo "# make -C examples -f second-order.mk top"; echo "layer,neuron,rank,image,norm,inertia"; \
	clip-top $(IMAGES) --head 20 --images-per-unit 10 -q -f jsonl --bundle $< | jq -r '[.layer, .neuron, .rank, .image, .norm, .inertia] | @csv' | tr -d '"'; } > $@
