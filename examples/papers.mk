# What the two papers' files share: whose neurons, on which images, and how figures become tables and plots.
#
#   MODEL=, PRETRAINED=   any model of open_clip's, by name and tag or weights file. Default: an embedded one.
#   IMAGES=               what effects are measured on. Default: rendered scenes, SCENES of them.
#   LABELLED=, LABELS=, CLASSES=   what accuracy is measured on, as clip-ablate takes them. Default: COUNT rendered scenes of one emoji each.
#   POOL=                 what words are taken from: a pool's name, or a file, as the papers' vocabulary is (README, Commands).
#   OPTIONS=              more for every command that runs the model: --device cuda --batch-size 64
#
# ImageNet is never downloaded. Unpacked, its validation set is 50,000 JPEG files, 6.3 GB; 5,000 pictures for effects are any of the
# training set's. Tables of other models than the embedded ones go to results-MODEL/, so that the committed ones stay.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
EMBEDDED := emoji-vit emoji-rn
WORK     ?= work/$(MODEL)
SCENES   ?= 2000
COUNT    ?= 2104
OWN      := $(if $(filter $(MODEL),$(EMBEDDED)),,yes)
RESULTS  := $(if $(OWN),results-$(MODEL),$(RESULTS))

EFFECTS = clip-effects $(if $(IMAGES),$(IMAGES),--limit $(SCENES)) --model $(MODEL) $(PRETRAINED:%=--pretrained %) $(OPTIONS)
ABLATE  = clip-ablate $(if $(LABELLED),$(LABELLED),--limit $(COUNT)) $(LABELS:%=--labels %) $(CLASSES:%=--classes %) $(OPTIONS) -f jsonl
CURVES  = $(PYTHON) $(ROOT)/examples/curves.py

# Records of clip-ablate as a table, below the command line that makes it. $(1): that line's end, $(2): the records.
table = { echo "\# make -C examples -f $(1)"; jq -rs -f $(ROOT)/examples/ablations.jq $(2) | tr -d '"'; } > $@

.PHONY: all
