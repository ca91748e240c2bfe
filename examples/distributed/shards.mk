# Run clip-effects in shards by make, then clip-merge:
#   make -j 2 -f shards.mk SHARDS=8 IMAGES="photos/" OPTIONS="--layers 5-6" BUNDLE=effects.safetensors
# Existing partials are not made again, so an interrupted run continues. For other images or options, use another BUNDLE, or make -B.
SHARDS  ?= 8
IMAGES  ?=
OPTIONS ?=
MERGE   ?=
BUNDLE  ?= effects.safetensors
PARTS   := $(BUNDLE:.safetensors=).parts
partials := $(patsubst %,$(PARTS)/part-%-of-$(SHARDS).safetensors,$(shell seq $(SHARDS)))

.DELETE_ON_ERROR:
.SECONDARY:
$(BUNDLE): $(partials)
	clip-merge $^ $(MERGE) -o $@

$(PARTS)/part-%-of-$(SHARDS).safetensors: | $(PARTS)
	clip-effects $(IMAGES) $(OPTIONS) --shard $*/$(SHARDS) -o $@

$(PARTS):
	mkdir -p $@
