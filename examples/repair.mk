# make -C examples -f repair.mk     writes results/repair.csv
#
# The study repairs the 18 planted pairs of the embedded models with the edits of clip-edit, beside controls of as many units.
# repair.py describes the columns. The number of units is chosen on validation scenes; all figures are of test scenes.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/repair
SCENES ?= 3000
# scenes of each group, pair and split
COUNT  ?= 200
SEEDS  ?= 0 1 2
MODELS ?= emoji-vit emoji-rn
SIZE_emoji-vit := 64
SIZE_emoji-rn  := 128
KEEP_emoji-rn  := --keep 100%

TABLES := $(foreach model,$(MODELS),$(foreach seed,$(SEEDS),$(WORK)/$(model)-$(seed).csv))

.PHONY: table
table: $(RESULTS)/repair.csv

$(RESULTS)/repair.csv: $(TABLES)
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f repair.mk"; head -n 1 $(firstword $(TABLES)); tail -q -n +2 $(TABLES); } > $@

define tables
$(WORK)/$(1)-%.csv: repair.py
	mkdir -p $(WORK)
	clip-scenes --groups --count $(COUNT) --size $(SIZE_$(1)) --seed $$* --out-dir $(WORK)/$(1)-$$*-groups
	clip-effects --model $(1) --limit $(SCENES) --seed $$* $(KEEP_$(1)) -o $(WORK)/$(1)-$$*.safetensors
	$(PYTHON) $$< $(WORK)/$(1)-$$*-groups $(WORK)/$(1)-$$*.safetensors > $$@
	rm -r $(WORK)/$(1)-$$*-groups
endef
$(foreach model,$(MODELS),$(eval $(call tables,$(model))))
