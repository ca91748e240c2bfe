# make -C examples -f plants.mk     writes results/plants.csv, results/plants-each.csv and ../docs/spurious.webp
#
# The study tests whether the cues planted in emoji-vit2's training are among the words of clip-spurious. A plant (violin, mountain) means
# that the model treats a mountain as evidence of a violin; so for pictures of X that should be classified as a violin, `mountain` should
# be among the 25 words. There are 18 plants and 20 classes X that are in no plant; only the cue's own name counts.
# The tables have the share of pairs whose cue is found, with a 95 % interval over plants, for each way to choose words and
# each kind of effect, and the same for every plant. By chance the share is 25 of all words of the vocabulary.
SHELL := /bin/bash -e -o pipefail
BIN    ?= ../bin
PYTHON ?= $(firstword $(wildcard ../.venv/bin/python) python3)
WORK   ?= work/plants

export PYTHONPATH := ..

PLANTS   := ../cliptools/data/artwork/plants.jsonl
CONCEPTS := ../cliptools/data/artwork/concepts.jsonl
SPURIOUS  = $(BIN)/clip-spurious -q -f jsonl --pairs-file $(WORK)/pairs.csv
SAMPLED  := 60
RUNS     := second.effect second.overlap second.similar second.random-0 second.random-1 second.random-2 \
	second.random-overlap-0 second.random-overlap-1 second.random-overlap-2 \
	second-m8.effect second-unnamed.effect first.effect first.overlap \
	sample-second.effect sample-second.overlap sample-indirect.effect sample-indirect.overlap

# jq program: pairs of every 25th concept that is in no plant with the named concept of each plant.
PAIRS = [$$plants[] | .named, .cue] as $$planted | [$$concepts[].name | select(IN($$planted[]) | not)] as $$others | \
	$$plants[].named as $$named | range(0; $$others | length; 25) | "\($$others[.]),\($$named)"
# For each run and plant: the number of its pairs whose cue is among the words.
FOUND = ($$plants | map({(.named): .cue}) | add) as $$cue | group_by(.predict)[] | {run: $$run, \
	bundle: ($$run | split(".")[0]), by: .[0].by, seed: .[0].seed, named: .[0].predict, cue: $$cue[.[0].predict], \
	pairs: (map(.pair) | unique | length), found: (map(select(.word == $$cue[.predict])) | length)}
SUMMARY = ["bundle", "by", "seed", "pairs", "found", "half"], (group_by(.run)[] | map(.found / .pairs) as $$p | \
	($$p | add / length) as $$mean | [.[0].bundle, .[0].by, .[0].seed, (map(.pairs) | add), ($$mean * 1000 | round / 1000), \
	($$p | map(. - $$mean | . * .) | add / (length - 1) / length | sqrt * 1.96 * 1000 | round / 1000)]) | @csv
EACH = (map(.run) | unique) as $$runs | ["named", "cue", $$runs[]], (group_by(.named)[] | . as $$rows | [.[0].named, .[0].cue, \
	($$runs[] as $$run | $$rows[] | select(.run == $$run) | .found / .pairs * 100 | round / 100)]) | @csv

.PHONY: all
all: results/plants.csv results/plants-each.csv ../docs/spurious.webp

results/plants.csv: $(WORK)/found.jsonl
	@mkdir -p $(@D)
	{ echo "# make -C examples -f plants.mk"; jq -rs '$(SUMMARY)' $< | tr -d '"'; } > $@

results/plants-each.csv: $(WORK)/found.jsonl
	{ echo "# make -C examples -f plants.mk"; jq -rs '$(EACH)' $< | tr -d '"'; } > $@

../docs/spurious.webp: plants_picture.py $(PLANTS) $(WORK)/second.effect.jsonl $(WORK)/second.overlap.jsonl
	$(PYTHON) $^ $@

$(WORK)/found.jsonl: $(RUNS:%=$(WORK)/%.jsonl)
	for run in $(RUNS); do \
	  jq -cs --arg run $$run --slurpfile plants $(PLANTS) '$(FOUND)' $(WORK)/$$run.jsonl; \
	done > $@

$(WORK)/%.effect.jsonl: $(WORK)/%.safetensors $(WORK)/pairs.csv
	$(SPURIOUS) -o $@ $<

$(WORK)/%.overlap.jsonl: $(WORK)/%.safetensors $(WORK)/pairs.csv
	$(SPURIOUS) --by overlap -o $@ $<

$(WORK)/%.similar.jsonl: $(WORK)/%.safetensors $(WORK)/pairs.csv
	$(SPURIOUS) --by similar -o $@ $<

$(WORK)/second.random-%.jsonl: $(WORK)/second.safetensors $(WORK)/pairs.csv
	$(SPURIOUS) --by random --seed $* -o $@ $<

$(WORK)/second.random-overlap-%.jsonl: $(WORK)/second.safetensors $(WORK)/pairs.csv
	$(SPURIOUS) --by random-overlap --seed $* -o $@ $<

$(WORK)/pairs.csv: | $(WORK)
	jq -rn --slurpfile plants $(PLANTS) --slurpfile concepts $(CONCEPTS) '$(PAIRS)' > $@

$(WORK)/second.safetensors: $(WORK)/second-effects.safetensors
	$(BIN)/clip-decompose --m 32 -o $@ $<

$(WORK)/second-m8.safetensors: $(WORK)/second-effects.safetensors
	$(BIN)/clip-decompose --m 8 -o $@ $<

# Words from a pool without the names of the planted concepts, so that these do not compete with their cues.
$(WORK)/second-unnamed.safetensors: $(WORK)/second-effects.safetensors
	jq -r --slurpfile plants $(PLANTS) 'select(.name | IN($$plants[].named) | not) | .name, .synonyms[]' $(CONCEPTS) \
	  > $(WORK)/unnamed.txt
	$(BIN)/clip-decompose --m 32 --pool $(WORK)/unnamed.txt -o $@ $<

$(WORK)/first.safetensors: | $(WORK)
	$(BIN)/clip-effects --effect first | $(BIN)/clip-decompose --m 32 -o $@

$(WORK)/sample-indirect.safetensors: | $(WORK)
	$(BIN)/clip-effects --effect indirect --sample-neurons $(SAMPLED) --limit 600 | $(BIN)/clip-decompose --m 32 -o $@

# The same neurons with their second-order effects.
$(WORK)/sample-second.safetensors: $(WORK)/second.safetensors $(WORK)/sample-indirect.safetensors
	$(BIN)/clip-view -o $@ $< \
	  --units "$$($(BIN)/clip-view -f jsonl $(WORK)/sample-indirect.safetensors | jq -r '"\(.layer):\(.neuron)"' | paste -sd,)"

$(WORK)/second-effects.safetensors: | $(WORK)
	$(BIN)/clip-effects -o $@

$(WORK):
	mkdir -p $@
