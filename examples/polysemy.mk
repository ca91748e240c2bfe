# make -C examples -f polysemy.mk     writes results/polysemy.csv, ../docs/polysemy.png and ../docs/top.webp
#
# The study tests whether a neuron-head pair has fewer meanings than a neuron (arXiv 2509.19943). It measures the inertia of the embeddings
# of the ten scenes on which a unit acts most, and the share of units below a threshold: for all pairs of emoji-rn2, all its neurons, each
# neuron's strongest pair, and ten random scenes. 3,000 scenes.
SHELL := /bin/bash -e -o pipefail
BIN    ?= ../bin
PYTHON ?= $(firstword $(wildcard ../.venv/bin/python) python3)
WORK   ?= work/polysemy
SCENES ?= 3000
MODEL  ?= emoji-rn2
SEED   ?= 21
export PYTHONPATH := ..
TOP     = $(BIN)/clip-top -q -f jsonl --sort index --head 1000000 --images-per-unit 1

.PHONY: all
all: results/polysemy.csv ../docs/polysemy.png ../docs/top.webp

results/polysemy.csv ../docs/polysemy.png &: polysemy_curves.py $(WORK)/pairs.jsonl $(WORK)/neurons.jsonl
	@mkdir -p results
	cat $(filter %.jsonl,$^) | $(PYTHON) $< results/polysemy.csv ../docs/polysemy.png $(MODEL) $(SCENES) $(SEED)

# Three neurons of high inertia, each above three of its pairs of low inertia: of the stronger half of the neurons, the neurons
# whose three clearest strong pairs have an inertia furthest below their own.
../docs/top.webp: polysemy_neurons.py $(WORK)/pairs.jsonl $(WORK)/neurons.jsonl $(WORK)/neurons-words.safetensors $(WORK)/pairs-words.safetensors
	$(BIN)/clip-top -q --units "$$(cat $(filter %.jsonl,$^) | $(PYTHON) $<)" --images-per-unit 8 --sheet $(WORK)/top.png -f table \
	  --beside $(WORK)/neurons-words.safetensors --bundle $(WORK)/pairs-words.safetensors
	$(PYTHON) -c "from PIL import Image; Image.open('$(WORK)/top.png').save('$@', quality=80, method=6)"

$(WORK)/%.jsonl: $(WORK)/%.safetensors
	$(TOP) -o $@ --bundle $<

$(WORK)/%-words.safetensors: $(WORK)/%.safetensors
	$(BIN)/clip-decompose --m 8 -o $@ $<

$(WORK)/%.safetensors: | $(WORK)
	$(BIN)/clip-effects --model $(MODEL) --units $* --limit $(SCENES) --seed $(SEED) --top-images 10 -o $@

$(WORK):
	mkdir -p $@

.SECONDARY:
