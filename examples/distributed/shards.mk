# clip-effects in shards by make alone, then clip-merge:
#   make -j 2 -f shards.mk SHARDS=8 IMAGES="photos/" OPTIONS="--layers 5-6" BUNDLE=effects.safetensors
# A partial that is there is done; an interrupted run goes on. Other images or options want another BUNDLE, or make -B.
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
