# make -C examples -f quickstart.mk      each command once, on the embedded model or your own: a few minutes, nothing downloaded
#
#   make -C examples -f quickstart.mk MODEL=ViT-B-32-quickgelu PRETRAINED=openai IMAGES=photos/ LABELLED=imagenet/val LOOK=holiday.jpg TEXT=dog
# LOOK: a few images, described and cut out.
MODEL ?= emoji-vit
SCENES ?= 1000
COUNT ?= 526
include $(dir $(lastword $(MAKEFILE_LIST)))papers.mk
WORK := work/quickstart
LOOK ?= $(if $(IMAGES),$(IMAGES),$(WORK)/scenes/images)
TEXT ?= pizza
PAIR ?= --depict cat --predict dog

all: $(addprefix $(WORK)/,neurons.txt accuracy.txt concepts.jsonl words.jsonl masks.jsonl top.png sheet.png)
	@cat $(WORK)/neurons.txt $(WORK)/accuracy.txt
	@echo "Pictures: $(WORK)/sheet.png, $(WORK)/top.png, $(WORK)/masks/"

# What neurons of the later layers write, in words.
$(WORK)/neurons.safetensors:
	mkdir -p $(@D)
	$(EFFECTS) --thumbnails 96 | clip-decompose --m 32 -o $@

$(WORK)/neurons.txt: $(WORK)/neurons.safetensors
	clip-view --sort clear --head 12 -f table $< > $@

$(WORK)/sheet.png: $(WORK)/neurons.safetensors
	clip-sheet --head 12 -o $@ $<

# On which images they act most.
$(WORK)/top.png: $(WORK)/neurons.safetensors
	clip-top $(IMAGES) --head 6 --sheet $@ -f jsonl --bundle $< > $(WORK)/top.jsonl

# What the model loses without them, and what one direction each brings back.
$(WORK)/accuracy.txt: $(WORK)/neurons.safetensors
	clip-ablate $(if $(LABELLED),$(LABELLED),--limit $(COUNT)) --ablate all --reconstruct pc,words --m 8,32 $(OPTIONS) -f table --bundle $< > $@

# Images described, cut out, and fooled by what the neurons say.
$(WORK)/scenes/images:
	clip-scenes --count 8 --emoji 2 --seed 12 --out-dir $(@D)

$(WORK)/concepts.jsonl: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-concepts $(LOOK) $(OPTIONS) -f jsonl --bundle $< > $@

$(WORK)/masks.jsonl: $(WORK)/neurons.safetensors | $(WORK)/scenes/images
	clip-segment $(LOOK) --text $(TEXT) --out-dir $(WORK)/masks -f jsonl --bundle $< > $@

$(WORK)/words.jsonl: $(WORK)/neurons.safetensors
	clip-spurious $(PAIR) -f jsonl -o $@ $<
