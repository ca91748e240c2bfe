# make -C examples -f shift.mk     writes results/shift.csv, results/shift-alarms.csv and ../docs/shift.png
#
# The study tests whether the share of a concept's five units follows the frequency of the concept. For each of twelve concepts, drawn with
# a seed, there is a stream of twelve groups of forty scenes in which its frequency rises from 5 % to 60 % (drifting_scenes.py; neither training
# nor bundles use these scenes). The tables have the correlations of clip-shift for each embedded model, each concept and each
# measure, and the rate of alarms with --alarm on groups resampled from these scenes at an unchanged frequency.
SHELL := /bin/bash -e -o pipefail
BIN    ?= ../bin
PYTHON ?= $(firstword $(wildcard ../.venv/bin/python) python3)
WORK   ?= work/shift
MODELS ?= emoji-vit2 emoji-rn2
WAYS   ?= norm signed text norm-50 seen
OPTIONS.norm    := --by norm --choose overlap
OPTIONS.signed  := --by signed --choose overlap
OPTIONS.text    := --by text
OPTIONS.norm-50 := --by norm --choose overlap --units-per-concept 50
OPTIONS.seen    := --by norm --choose seen

SIZE.emoji-vit2 := 64
SIZE.emoji-rn2  := 128
TOP.emoji-rn2   := --top-images 50
SHARES = $(foreach model,$(MODELS),$(foreach by,$(WAYS),$(WORK)/$(model).$(by).jsonl))
NORMS  = $(foreach model,$(MODELS),$(WORK)/$(model).norm.jsonl)

ROWS = select(has("group") | not) | .correlation as $$i | .group_correlation as $$g | [.model.name, .settings.by, \
	.settings.choose, .settings.units_per_concept, .concept, $$i.count, $$i.value, $$i.low, $$i.high, $$g.count, $$g.value, $$g.low, $$g.high] | @csv

export PYTHONPATH := ..$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: all
.SECONDARY:
.DELETE_ON_ERROR:
all: results/shift.csv results/shift-alarms.csv ../docs/shift.png

results/shift.csv: $(SHARES)
	@mkdir -p $(@D)
	{ echo "# make -C examples -f shift.mk"; \
	  echo "model,by,choose,units,concept,images,correlation,low,high,groups,group_correlation,group_low,group_high"; \
	  jq -r '$(ROWS)' $^ | tr -d '"'; } > $@

results/shift-alarms.csv: false_alarms.py $(NORMS)
	$(PYTHON) $^ > $@

../docs/shift.png: shift_picture.py $(NORMS)
	$(PYTHON) $^ $@

# One stream at a time: the images of a stream contain no information about the concepts of the other streams.
.SECONDEXPANSION:
$(WORK)/%.jsonl: $(WORK)/$$(basename $$*).safetensors $(WORK)/streams-$$(SIZE.$$(basename $$*))/concepts.txt
	while read -r concept; do \
	  $(BIN)/clip-shift $(WORK)/streams-$(SIZE.$(basename $*))/$${concept// /-}/*.tar --concept "$$concept" --truth scenes \
	    $(OPTIONS$(suffix $*)) --per-image -f jsonl -q --bundle $< < /dev/null; \
	done < $(WORK)/streams-$(SIZE.$(basename $*))/concepts.txt > $@

$(WORK)/%.safetensors:
	@mkdir -p $(@D)
	$(BIN)/clip-effects --model $* $(TOP.$*) --limit 3000 --seed 11 -o $@

$(WORK)/streams-%/concepts.txt: drifting_scenes.py
	$(PYTHON) $< $(@D) $*
