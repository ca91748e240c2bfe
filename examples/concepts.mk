# make -C examples -f concepts.mk     writes results/concepts.csv and ../docs/concepts.webp
#
# The study tests whether the words of active neurons name the objects of a scene. It uses 1,000 scenes of two or three emoji that are
# neither in the training nor in the bundle, and measures the recall of their names (or synonyms) among ten words, with a 95 %
# interval over scenes. clip-effects measures the neurons of emoji-vit2 on 5,000 other scenes, the number of images in the paper.
SHELL := /bin/bash -e -o pipefail
BIN    ?= ../bin
PYTHON ?= $(firstword $(wildcard ../.venv/bin/python) python3)
WORK   ?= work/concepts

export PYTHONPATH := ..

SCENES   := $(WORK)/scenes/scenes.jsonl
CONCEPTS := $(BIN)/clip-concepts $(WORK)/scenes/images --truth $(SCENES) --evaluate -q -f jsonl --bundle $(WORK)
BUNDLES  := $(foreach name,4 8 32 64 8-q90 32-q90,$(WORK)/neurons-$(name).safetensors)

# jq program: one line with the names of the columns, then one line per record; its settings are columns too.
TABLE = ["by", "score", "neurons", "m", "quantile", "active", "images", "names", "found", "recall", "low", "high"] as $$columns | \
	$$columns, (.[] | .settings + . | [.[$$columns[]]]) | @csv

.DELETE_ON_ERROR:
.PHONY: all
all: results/concepts.csv ../docs/concepts.webp

results/concepts.csv: $(WORK)/recall.jsonl
	@mkdir -p $(@D)
	{ echo "# make -C examples -f concepts.mk"; jq -rs '$(TABLE)' $< | tr -d '"'; } > $@

$(WORK)/recall.jsonl: $(SCENES) $(BUNDLES)
	{ \
	  $(CONCEPTS)/neurons-32.safetensors; \
	  $(CONCEPTS)/neurons-32.safetensors --score signed; \
	  $(CONCEPTS)/neurons-32.safetensors --neurons all; \
	  $(CONCEPTS)/neurons-32.safetensors --neurons all --score signed; \
	  $(CONCEPTS)/neurons-32.safetensors --neurons random; \
	  $(CONCEPTS)/neurons-32.safetensors --neurons random --score signed; \
	  $(CONCEPTS)/neurons-32.safetensors --by text; \
	  $(CONCEPTS)/neurons-4.safetensors; \
	  $(CONCEPTS)/neurons-8.safetensors; \
	  $(CONCEPTS)/neurons-64.safetensors; \
	  $(CONCEPTS)/neurons-8-q90.safetensors; \
	  $(CONCEPTS)/neurons-32-q90.safetensors; \
	  $(CONCEPTS)/neurons-32.safetensors --by directions; \
	  $(CONCEPTS)/neurons-32-q90.safetensors --by directions; \
	  $(CONCEPTS)/neurons-32.safetensors --by directions --neurons all --score signed; \
	} > $@

# The first four scenes with their words from the active neurons' words, from all neurons' directions, and from CLIP's own ranking.
../docs/concepts.webp: concepts_picture.py $(SCENES) $(WORK)/neurons-8.safetensors
	for by in words "directions --neurons all --score signed" text; do \
	  $(BIN)/clip-concepts $(WORK)/scenes/images --limit 4 --truth $(SCENES) --by $$by -q -f jsonl \
	    --bundle $(WORK)/neurons-8.safetensors; \
	done | $(PYTHON) concepts_picture.py $(WORK)/scenes/images $@

$(SCENES):
	rm -rf $(@D)
	$(BIN)/clip-scenes --count 1000 --emoji 2-3 --seed 7000001 --out-dir $(@D)

$(WORK)/effects.safetensors: | $(WORK)
	$(BIN)/clip-effects --limit 5000 --seed 11 -o $@

$(WORK)/effects-q90.safetensors: | $(WORK)
	$(BIN)/clip-effects --limit 5000 --seed 11 --quantile 0.9 -o $@

$(WORK)/neurons-%-q90.safetensors: $(WORK)/effects-q90.safetensors
	$(BIN)/clip-decompose --m $* -o $@ $<

$(WORK)/neurons-%.safetensors: $(WORK)/effects.safetensors
	$(BIN)/clip-decompose --m $* -o $@ $<

$(WORK):
	mkdir -p $@
