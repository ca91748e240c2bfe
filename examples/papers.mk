# Shared by the files of both papers: the model, the images, and the rules that make tables and plots.
#
#   MODEL=, PRETRAINED=   any model of open_clip, by name and tag or weights file. Default: an embedded model.
#   IMAGES=               images on which effects are measured. Default: SCENES rendered scenes.
#   LABELLED=, LABELS=, CLASSES=   labelled images on which accuracy is measured, as for clip-ablate. Default: COUNT rendered scenes of one emoji each.
#   POOL=                 vocabulary of the words: the name of a pool, or a file such as the papers' vocabulary (docs/quickstart.md, Text pools).
#   OPTIONS=              further options of every command that runs the model: --device cuda --batch-size 64
#
# ImageNet is never downloaded. Unpacked, its validation set is 50,000 JPEG files, 6.3 GB; the 5,000 pictures for effects are any pictures of
# the training set. Tables of models that are not embedded are written to results-MODEL/, so that the committed tables stay unchanged.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
EMBEDDED := emoji-vit2 emoji-rn2
WORK     ?= work/$(MODEL)
SCENES   ?= 2000
COUNT    ?= 2104
OWN      := $(if $(filter $(MODEL),$(EMBEDDED)),,yes)
RESULTS  := $(if $(OWN),results-$(MODEL),$(RESULTS))

EFFECTS = clip-effects $(if $(IMAGES),$(IMAGES),--limit $(SCENES)) --model $(MODEL) $(PRETRAINED:%=--pretrained %) $(OPTIONS)
ABLATE  = clip-ablate $(if $(LABELLED),$(LABELLED),--limit $(COUNT)) $(LABELS:%=--labels %) $(CLASSES:%=--classes %) $(OPTIONS) -f jsonl
CURVES  = $(PYTHON) $(ROOT)/examples/curves.py

.PHONY: all
