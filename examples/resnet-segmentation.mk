# make -f examples/resnet-segmentation.mk             label maps by emoji-rn2 against exact masks: examples/results/resnet-segmentation.csv
# make -f examples/resnet-segmentation.mk picture     docs/resnet-segment.png
# make -f examples/resnet-segmentation.mk ground      scores that separate objects from background: examples/results/resnet-ground.csv
# Five methods, and `values` as a control, on 500 scenes of two or three emoji and on 526 of one. Every name that is shown is a class (without background, as in
# PASCAL Context-59). A second row has the background as an additional class, where the softmax is below a probability that is chosen for each method on other scenes.
# The size of the scenes was chosen on these other scenes too (rows with `choosing`; there all 526 names are classes).
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK    ?= $(ROOT)/examples/work/resnet-segmentation
SEVERAL ?= 500
ONE     ?= 526
FEW     ?= 80
METHODS := pairs neurons heads maskclip qqkk values
SIZES   := 128 160 192 256
SIZE    ?= 128
CUTS    := 0.0022 0.0025 0.003 0.004 0.006 0.01 0.02 0.04 0.08 0.15 0.25 0.4 0.6 0.8

.PHONY: table picture ground

table: $(RESULTS)/resnet-segmentation.csv

# Neither training nor the bundle uses these seeds. The scenes for choosing are not the reported scenes.
choosing = clip-scenes --emoji 2-3 --count $(FEW) --seed 6000000 --size $(1)
several  = clip-scenes --emoji 2-3 --count $(SEVERAL) --seed 5000000 --size $(1)
one      = clip-scenes --single --count $(ONE) --seed 5000000 --size $(1)
segment  = clip-segment-eval - --size $(1) --method $(2) $(3) --bundle $(WORK)/pairs.safetensors -f jsonl

$(WORK)/pairs.safetensors:
	mkdir -p $(WORK)
	clip-scenes --count 2000 --size 128 | clip-effects - --model emoji-rn2 --top-images 50 > $@

$(WORK)/classes.txt:
	mkdir -p $(WORK)
	$(PYTHON) -c "from cliptools.text.emoji_concepts import concepts; print(*(c.name for c in concepts()), sep='\n')" > $@

# $(1): scenes, $(2): size, $(3): method. The last lines of clip-segment-eval, one for each --background, with the command that made them.
define row
$(WORK)/$(1)-$(2)-$(3).jsonl: $(WORK)/pairs.safetensors $(4)
	options="$(5)"; $(call $(1),$(2)) | $(call segment,$(2),$(3),$$$$options) | grep '^{"all": true' \
	| jq -c --arg options "$$$$options" 'del(.iou) + {scenes: "$(1)", command: ("$(call $(1),$(2)) | $(call segment,$(2),$(3)) " + $$$$options | gsub("$(WORK)/"; ""))}' > $$@
rows += $(WORK)/$(1)-$(2)-$(3).jsonl
endef
every-cut := --classes $(WORK)/classes.txt --background none $(addprefix --background ,$(CUTS))
chosen-cut = --background none --background $$$$(jq -s 'map(select(.background != null)) | max_by(.miou_true).background' $(WORK)/choosing-$(SIZE)-$(1).jsonl)
$(foreach method,$(METHODS),$(eval $(call row,choosing,$(SIZE),$(method),$(WORK)/classes.txt,$(every-cut))))
$(foreach size,$(filter-out $(SIZE),$(SIZES)),$(foreach method,pairs maskclip,$(eval $(call row,choosing,$(size),$(method),$(WORK)/classes.txt,--classes $(WORK)/classes.txt))))
$(foreach scenes,several one,$(foreach method,$(METHODS),$(eval $(call \
	row,$(scenes),$(SIZE),$(method),$(WORK)/choosing-$(SIZE)-$(method).jsonl,$(call chosen-cut,$(method))))))

$(RESULTS)/resnet-segmentation.csv: $(rows)
	mkdir -p $(RESULTS)
	(echo scenes,size,method,background,images,true_classes,top_pairs,miou,miou_true,accuracy,command; \
	jq -r '[.scenes, .size, .method, (.background // "left out"), .count, .true_classes, .top_pairs, .miou, .miou_true, .accuracy, .command] | @csv' \
	$(rows)) > $@

picture: $(WORK)/pairs.safetensors $(WORK)/classes.txt
	rm -rf $(WORK)/scenes $(WORK)/maps
	clip-scenes --emoji 2-3 --count 5 --seed 12 --size $(SIZE) --out-dir $(WORK)/scenes
	$(foreach method,$(METHODS),clip-segment $(WORK)/scenes/images --classes $(WORK)/classes.txt --size $(SIZE) --method $(method) \
	--out-dir $(WORK)/maps/$(method) < $< > /dev/null;)
	$(PYTHON) $(ROOT)/examples/resnet_segmentation_picture.py $(WORK) $(ROOT)/docs/resnet-segment.png $(METHODS)

# On 120 scenes of a separate seed.
ground: $(RESULTS)/resnet-ground.csv

$(RESULTS)/resnet-ground.csv: $(WORK)/pairs.safetensors
	$(PYTHON) $(ROOT)/examples/resnet_ground_study.py $< $(METHODS) > $@
