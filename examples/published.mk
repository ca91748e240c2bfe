# make -C examples published MODEL=ViT-B-32-quickgelu PRETRAINED=openai IMAGES="imagenet/train --sample 5000" LABELLED=imagenet/val \
#   CLASSES=imagenet POOL=30k.txt OPTIONS="--device cuda"
# make -C examples published MODEL=RN50x16 PRETRAINED=openai IMAGES="imagenet/test --sample 1000" LABELLED=imagenet/val CLASSES=imagenet \
#   OPTIONS="--device cuda"
#
# These commands make the papers' figures with the papers' settings, and hold them line by line against the published ones: reproduced, off
# by how much, or not; published.py has the rules. POOL is text_descriptions/30k.txt of paper 1's public code; without it, the words come from
# words30k, which lacks four of the sixteen published ones. A figure that cannot be made, as where the model is at chance, does not end the run.
# Nothing is published of other models; PAPER=1 (ViT) or 2 (ResNet) holds them against the figures nevertheless.
PAPER   ?= $(if $(filter RN%,$(MODEL)),2,1)
include $(dir $(lastword $(MAKEFILE_LIST)))papers.mk

POOL       ?= words30k
READ       ?= --units 9:4,9:391,9:2137,9:2914
FIGURES.1  := second-order.mk ablation indirect neurons
SETTINGS.1 := LAYERS=0-10 DEFAULT=8-10 MIDDLE=9 READ="$(READ)" READ_M=128 POOL=$(POOL) OPTIONS="$(OPTIONS)"
FIGURES.2  := neuron-attention.mk pcs sparsity
SETTINGS.2 := OPTIONS="$(OPTIONS)"

.PHONY: published
all: published
published:
	mkdir -p $(RESULTS)
	-$(MAKE) -k -f $(ROOT)/examples/$(FIGURES.$(PAPER)) $(SETTINGS.$(PAPER))
	$(PYTHON) $(ROOT)/examples/published.py $(RESULTS) $(PAPER) | tee $(RESULTS)/published.csv
