# make -C examples -f typographic.mk     writes results/typographic.csv and results/typographic-parts.csv, then ../docs/typographic.png
#                                        picture draws the table that is there
#
# The study writes words onto scenes of one thing: what the embedded models then read, by which units, and the repair of it.
# typographic.py describes the columns. The bundles are of scenes of which half have a word.
PARALLEL := yes
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/typographic
SCENES ?= 2000
SEEDS  ?= 0 1 2
MODELS ?= emoji-vit2 emoji-rn2
SIZE_emoji-vit2 := 64
SIZE_emoji-rn2  := 128
KEEP_emoji-rn2  := --keep 100%

RUNS    := $(foreach model,$(MODELS),$(foreach seed,$(SEEDS),$(WORK)/$(model)-$(seed)))
PICTURE ?= $(ROOT)/docs/typographic.png
draw     = $(PYTHON) typographic_picture.py $(RESULTS)/typographic.csv $(PICTURE)
joined   = { echo "\# make -C examples -f typographic.mk"; head -n 1 $(firstword $^); tail -q -n +2 $^; } > $@

.PHONY: all table picture
all: table
	$(draw)
picture:
	$(draw)
table: $(RESULTS)/typographic.csv $(RESULTS)/typographic-parts.csv

$(RESULTS)/typographic.csv: $(RUNS:=.csv)
	mkdir -p $(RESULTS)
	$(joined)
$(RESULTS)/typographic-parts.csv: $(RUNS:=-parts.csv)
	mkdir -p $(RESULTS)
	$(joined)

define run
$(WORK)/$(1)-%.safetensors:
	mkdir -p $(WORK)
	clip-scenes --written --count $(SCENES) --seed $$* --size $(SIZE_$(1)) | clip-effects - --model $(1) $(KEEP_$(1)) -o $$@
$(WORK)/$(1)-%.csv $(WORK)/$(1)-%-parts.csv &: typographic.py typographic_parts.py typographic_scenes.py $(WORK)/$(1)-%.safetensors
	$(PYTHON) $$< $(WORK)/$(1)-$$*-parts.csv $(WORK)/$(1)-$$*.safetensors > $(WORK)/$(1)-$$*.csv
endef
$(foreach model,$(MODELS),$(eval $(call run,$(model))))
