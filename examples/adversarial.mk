# make -f examples/adversarial.mk              fooling rates on emoji-vit2, as in paper 1's Table 3: examples/results/adversarial.csv
# make -f examples/adversarial.mk smollm2      one pair from start to end with the language model, including the pictures
# make -f examples/adversarial.mk sheet        the contact sheet of docs/adversarial.md
# Ten pairs, 100 pictures each (10 descriptions, 10 pictures of each), three repeats, six kinds of words.
ROOT    := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
PYTHON  ?= $(firstword $(wildcard $(ROOT)/.venv/bin/python) python3)
WORK    ?= $(ROOT)/examples/work/adversarial
RESULTS ?= $(ROOT)/examples/results
SCENES  ?= 2000
INDIRECT ?= --limit 100 --sample-neurons 150
PAIRS   := $(ROOT)/examples/adversarial-pairs.csv
REPEATS := 0 1 2
SPURIOUS := clip-spurious --pairs-file $(PAIRS) -f jsonl

export PATH := $(ROOT)/bin:$(PATH)
export PYTHONPATH := $(ROOT)$(if $(PYTHONPATH),:$(PYTHONPATH))
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: table smollm2 sheet

table: $(RESULTS)/adversarial.csv

$(WORK)/neurons.safetensors:
	mkdir -p $(WORK)
	clip-effects --limit $(SCENES) | clip-decompose --m 32 > $@

# The indirect effect needs a forward pass for each neuron, so it uses a sample of neurons and few scenes.
$(WORK)/indirect.safetensors:
	mkdir -p $(WORK)
	clip-effects --effect indirect $(INDIRECT) | clip-decompose --m 32 > $@

# Words that do not depend on a seed: the paper's Eq. 6, Eq. 6 with overlaps as coefficients, texts similar to v, indirect effects.
$(WORK)/words.jsonl: $(WORK)/neurons.safetensors $(WORK)/indirect.safetensors $(PAIRS)
	for by in effect overlap similar; do $(SPURIOUS) --by $$by $< || exit; done > $@
	$(SPURIOUS) --by effect $(WORK)/indirect.safetensors >> $@

# A repeat has new random neurons, a new selection of words, new sentences and new pictures.
$(WORK)/pictures-%.jsonl: $(WORK)/words.jsonl $(WORK)/neurons.safetensors
	{ cat $<; for by in random random-overlap; do $(SPURIOUS) --by $$by --seed $* $(WORK)/neurons.safetensors || exit; done; } | \
	  clip-advgen --llm template --painter emoji --batch-size 50 --seed $* -f jsonl > $@

$(RESULTS)/adversarial.csv: $(foreach repeat,$(REPEATS),$(WORK)/pictures-$(repeat).jsonl)
	mkdir -p $(RESULTS)
	$(PYTHON) $(ROOT)/examples/fooling_rates.py $^ > $@

smollm2: $(WORK)/neurons.safetensors
	mkdir -p $(RESULTS)
	clip-spurious --depict whale --predict shark -f jsonl $< | \
	  clip-advgen --llm smollm2 --painter emoji --out-dir $(WORK)/smollm2 --resume -f jsonl > $(WORK)/smollm2.jsonl

sheet: $(WORK)/neurons.safetensors
	$(SPURIOUS) $< | clip-advgen --llm template --images 4 --size 128 --out-dir $(WORK)/pictures --resume -f jsonl > $(WORK)/pictures.jsonl
	$(PYTHON) $(ROOT)/examples/fooling_sheet.py $(WORK)/pictures.jsonl $(ROOT)/docs/adversarial.webp
