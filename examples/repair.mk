# make -C examples -f repair.mk              writes results/repair.csv and results/repair-unnamed.csv, then ../docs/repair.png
#                                            table, unnamed, picture: one of them; picture draws the table that is there
# make -C examples -f repair.mk waterbirds   writes work/repair/waterbirds.jsonl; also celeba: see below
#
# The study repairs the 18 planted pairs of the embedded models with the edits of clip-edit, beside controls of as many units.
# repair.py describes the columns. The number of units is chosen on validation scenes; all figures are of test scenes.
#
# unnamed: one edit of all that clip-spurious --mismatch finds, on scenes without plants, with nothing named and nothing chosen.
# unnamed_repair.py counts by kind how many of the planted pairs and facts it repairs.
PARALLEL := yes
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK   ?= work/repair
SCENES ?= 3000
# scenes of each group, pair and split; those of a model and a seed, with the facts, take 340 MB in WORK
COUNT  ?= 200
SEEDS  ?= 0 1 2
MODELS ?= emoji-vit2 emoji-rn2
SIZE_emoji-vit2 := 64
SIZE_emoji-rn2  := 128
KEEP_emoji-rn2  := --keep 100%
# findings to be repaired, and units of each, few because the edits of all findings add up; pairs stand at the means in their bundle
FINDINGS ?= 60
UNITS_emoji-vit2 ?= 10
UNITS_emoji-rn2  ?= 50
MEANS_emoji-rn2 = --means $(1)

RUNS    := $(foreach model,$(MODELS),$(foreach seed,$(SEEDS),$(WORK)/$(model)-$(seed)))
TABLES  := $(RUNS:=.csv)
UNNAMED := $(RUNS:=-unnamed.csv)

PICTURE ?= $(ROOT)/docs/repair.png
draw     = $(PYTHON) repair_picture.py $(RESULTS)/repair.csv $(PICTURE)

.PHONY: all table unnamed picture waterbirds celeba
all: table unnamed
	$(draw)
picture:
	$(draw)
table: $(RESULTS)/repair.csv
unnamed: $(RESULTS)/repair-unnamed.csv

$(RESULTS)/repair.csv: $(TABLES)
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f repair.mk: $(COUNT) scenes (of each group, pair and split)"; head -n 1 $(firstword $(TABLES)); tail -q -n +2 $(TABLES); } > $@

$(RESULTS)/repair-unnamed.csv: $(UNNAMED)
	mkdir -p $(RESULTS)
	{ echo "# make -C examples -f repair.mk unnamed"; head -n 1 $(firstword $(UNNAMED)); tail -q -n +2 $(UNNAMED); } > $@

define tables
$(WORK)/$(1)-%-groups/scenes.jsonl:
	rm -rf $$(@D)
	mkdir -p $(WORK)
	clip-scenes --groups --count $(COUNT) --size $(SIZE_$(1)) --seed $$* --out-dir $$(@D)
$(WORK)/$(1)-%-planted/scenes.jsonl:
	rm -rf $$(@D)
	mkdir -p $(WORK)
	clip-scenes --groups --kind pair --kind ground --kind word --kind style --split test --count $(COUNT) --size $(SIZE_$(1)) --seed $$* --out-dir $$(@D)
$(WORK)/$(1)-%-effects.safetensors:
	mkdir -p $(WORK)
	clip-effects --model $(1) --limit $(SCENES) --seed $$* $(KEEP_$(1)) -o $$@
$(WORK)/$(1)-%.csv: repair.py $(WORK)/$(1)-%-groups/scenes.jsonl $(WORK)/$(1)-%-effects.safetensors repair_heads.py
	$(PYTHON) $$< $$(dir $$(word 2,$$^)) $$(word 3,$$^) $$@
$(WORK)/$(1)-%-findings.jsonl: $(WORK)/$(1)-%-effects.safetensors
	clip-spurious --mismatch --head $(FINDINGS) --neurons $(UNITS_$(1)) $$< > $$@
$(WORK)/$(1)-%-unnamed.safetensors: $(WORK)/$(1)-%-findings.jsonl $(WORK)/$(1)-%-effects.safetensors
	clip-edit $$(call MEANS_$(1),$$(word 2,$$^)) -o $$@ < $$< > $$(@:.safetensors=.jsonl)
$(WORK)/$(1)-%-unnamed.csv: unnamed_repair.py $(WORK)/$(1)-%-planted/scenes.jsonl $(WORK)/$(1)-%-effects.safetensors \
		$(WORK)/$(1)-%-findings.jsonl $(WORK)/$(1)-%-unnamed.safetensors
	$(PYTHON) $$< $$(dir $$(word 2,$$^)) $$(wordlist 3,5,$$^) > $$@
endef
$(foreach model,$(MODELS),$(eval $(call tables,$(model))))

# Real data, with a real CLIP: what units see comes from images of the split train, the number of units from validation, the figures
# from test. Each record has the accuracy per group, worst, average, average weighted by training sizes and gap, with intervals, of
# the model before and after the edit, as means over the prompt templates. The layouts are those of the distributions:
#
#   WATERBIRDS/metadata.csv                              img_id,img_filename,y,split,place,place_filename
#   WATERBIRDS/001.Black_footed_Albatross/….jpg          (waterbird_complete95_forest2water2.tar.gz)
#   CELEBA/list_attr_celeba.csv, list_eval_partition.csv (Kaggle's; or .txt, the authors')
#   CELEBA/img_align_celeba/000001.jpg                   or img_align_celeba/img_align_celeba/000001.jpg
#
# A model takes the CUE for the CLASS: forest for landbird, a man for dark hair. Where it is the other way about, name the other
# cue: make -f repair.mk waterbirds CUE=water CLASS=waterbird. clip-edit ends with an error if no number of units raises the worst
# group on validation while the others lose at most LOSS. CLASSES is a file with other names of the two classes, a line each. For
# a CLIP-ResNet: MODEL=RN50 KEEP="--keep 20%".
WATERBIRDS ?= data/waterbird_complete95_forest2water2
CELEBA     ?= data/celeba
MODEL      ?= ViT-B-32-quickgelu
PRETRAINED ?= openai
IMAGES     ?= 5000
LOSS       ?= 0.05
TEMPLATES  ?= --template "a photo of a {}" --template "a picture of a {}" --template "an image of a {}" --template "{}"
REAL       := waterbirds celeba
real        = $(REAL:%=$(WORK)/%$(1))
named       = --groups $(TABLE) $(if $(CLASSES),--classes $(CLASSES))

$(WORK)/waterbirds%: CUE = forest
$(WORK)/waterbirds%: CLASS = landbird
$(WORK)/waterbirds%: TABLE = $(WATERBIRDS)/metadata.csv
$(WORK)/waterbirds%: FOLDER = $(WATERBIRDS)
$(WORK)/celeba%: CUE = man
$(WORK)/celeba%: CLASS = person with dark hair
$(WORK)/celeba%: TABLE = $(firstword $(wildcard $(CELEBA)/list_attr_celeba.csv) $(CELEBA)/list_attr_celeba.txt)
$(WORK)/celeba%: FOLDER = $(firstword $(wildcard $(CELEBA)/img_align_celeba/img_align_celeba) $(CELEBA)/img_align_celeba)

# The names of the training images, relative to FOLDER.
train_waterbirds = awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$$i] = i; next } $$at["split"] == 0 { print $$at["img_filename"] }' $(TABLE)
train_celeba     = awk -F '[, ]+' '$$2 ~ /^0/ { print $$1 }' $(firstword $(wildcard $(CELEBA)/list_eval_partition.*))

$(REAL): %: $(WORK)/%.jsonl

$(call real,-effects.safetensors): $(WORK)/%-effects.safetensors:
	@test -f $(TABLE) || { echo "$(TABLE): no such file; name the folder with $(if $(findstring celeba,$*),CELEBA,WATERBIRDS)=FOLDER" >&2; exit 1; }
	mkdir -p $(WORK)
	$(train_$*) | tr -d '\r' | tar -cf - -C $(FOLDER) -T - | \
		clip-effects - --model $(MODEL) $(if $(PRETRAINED),--pretrained $(PRETRAINED)) --sample $(IMAGES) $(KEEP) -o $@

$(call real,-repaired.safetensors): $(WORK)/%-repaired.safetensors: $(WORK)/%-effects.safetensors
	clip-edit --bundle $< --sees "$(CUE)" --writes "$(CLASS)" --choose $(FOLDER) --test $(FOLDER) $(named) --loss $(LOSS) -o $@ \
		> $(@:.safetensors=.jsonl)

$(call real,.jsonl): $(WORK)/%.jsonl: $(WORK)/%-effects.safetensors $(WORK)/%-repaired.safetensors
	clip-ablate --bundle $< $(named) --train-sizes table --each-template $(TEMPLATES) --against $(word 2,$^) -f jsonl -o $@
	jq -r '[.against.pretrained // "before", .worst.group, .worst.value, .average.value, .weighted.value] | @tsv' $@
