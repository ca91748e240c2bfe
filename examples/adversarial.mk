# make -f examples/adversarial.mk              fooling rates on emoji-vit, as paper 1's Table 3: examples/results/adversarial.csv
# make -f examples/adversarial.mk smollm2      one pair end to end with the language model, pictures kept
# make -f examples/adversarial.mk sheet        the contact sheet of the README
# Fourteen pairs, 100 pictures each (10 descriptions, 10 pictures of each), three repeats, five kinds of words.
ROOT    := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
PYTHON  ?= $(firstword $(wildcard $(ROOT)/.venv/bin/python) python3)
WORK    ?= adversarial
SCENES  ?= 2000
INDIRECT_SCENES  ?= 200
INDIRECT_NEURONS ?= 400
SEEDS   := 0 1 2
KINDS   := second-order all-neurons random similar indirect
PAIRS   := $(ROOT)/examples/adversarial-pairs.csv
RESULTS := $(ROOT)/examples/results
comma   := ,
empty   :=
space   := $(empty) $(empty)

export PATH := $(ROOT)/bin:$(PATH)
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: table smollm2 sheet

table: $(RESULTS)/adversarial.csv

# The three baselines of the paper beside its method; `all-neurons` lets every neuron vote instead of the 100 of largest |<v, r>|.
second-order := --by effect
all-neurons  := --by effect --neurons 100000
random       := --by random
similar      := --by similar
indirect     := --by effect

$(WORK)/neurons.safetensors:
	mkdir -p $(WORK)
	clip-effects --limit $(SCENES) | clip-decompose --m 32 > $@

$(WORK)/indirect.safetensors:
	mkdir -p $(WORK)
	clip-effects --effect indirect --limit $(INDIRECT_SCENES) --sample-neurons $(INDIRECT_NEURONS) | clip-decompose --m 32 > $@

$(WORK)/indirect-%.jsonl: $(WORK)/indirect.safetensors
	clip-spurious --pairs-file $(PAIRS) $(indirect) --seed $* -f jsonl $< | clip-advgen --llm template --painter emoji --seed $* -f jsonl > $@

define kind
$(WORK)/$(1)-%.jsonl: $(WORK)/neurons.safetensors
	clip-spurious --pairs-file $(PAIRS) $($(1)) --seed $$* -f jsonl $$< | clip-advgen --llm template --painter emoji --seed $$* -f jsonl > $$@
endef
$(foreach each,$(filter-out indirect,$(KINDS)),$(eval $(call kind,$(each))))

files = $(foreach seed,$(SEEDS),$(WORK)/$(1)-$(seed).jsonl)

$(RESULTS)/adversarial.csv: $(foreach each,$(KINDS),$(call files,$(each)))
	mkdir -p $(RESULTS)
	$(PYTHON) $(ROOT)/examples/fooling_rates.py $(foreach each,$(KINDS),$(each)=$(subst $(space),$(comma),$(strip $(call files,$(each))))) > $@

smollm2: $(WORK)/neurons.safetensors
	clip-spurious --depict hammer --predict guitar -f jsonl $< | clip-advgen --llm smollm2 --painter emoji --out-dir $(WORK)/smollm2 --resume -f jsonl > $(RESULTS)/adversarial-smollm2.jsonl

sheet: $(WORK)/neurons.safetensors
	clip-spurious --pairs-file $(PAIRS) -f jsonl $< | clip-advgen --llm template --size 192 --out-dir $(WORK)/pictures --resume -f jsonl > $(WORK)/pictures.jsonl
	$(PYTHON) $(ROOT)/examples/fooling_sheet.py $(WORK)/pictures.jsonl $(ROOT)/docs/adversarial.png
