# make -f examples/segmentation.mk             heat maps compared with exact masks on emoji-vit2: examples/results/segmentation.csv
# make -f examples/segmentation.mk study       reasons for the differences: examples/results/segmentation-study.csv
# make -f examples/segmentation.mk picture     docs/segment.webp
# Eight methods on 1,052 scenes of one emoji (each of 526 twice) and on scenes of two, where each emoji is a query; at twice the
# resolution of training, and (METHODS_64) at the resolution of training. Neither training nor the bundle uses these seeds.
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
WORK    ?= $(ROOT)/examples/work/segmentation
ONE     ?= 526
TWO     ?= 300
METHODS    := neurons rollout chefer textspan effects attention gradcam signed
METHODS_64 := neurons rollout chefer textspan

# The study chooses each method's threshold on 176 and 120 separate scenes, and measures on the same number of other scenes.
.PHONY: table study picture

table: $(RESULTS)/segmentation.csv

$(WORK)/neurons.safetensors:
	mkdir -p $(WORK)
	clip-effects --limit 2000 > $@

one-64  := clip-scenes --single --count $(ONE) --seed 5000000 --size 64
one-128 := clip-scenes --single --count $(ONE) --seed 5000000 --size 128
two-64  := clip-scenes --emoji 2 --count $(TWO) --seed 5000000 --size 64
two-128 := clip-scenes --emoji 2 --count $(TWO) --seed 5000000 --size 128
segment  = clip-segment-eval - --method $(2) --size $(1) --threshold 0.5 --threshold mean --bundle $(3)/neurons.safetensors

# $(1): one or two emoji, $(2): pixels, $(3): method. Each row also has its command line, with the default WORK.
define row
$(WORK)/$(1)-$(2)-$(3).jsonl: $(WORK)/neurons.safetensors
	$($(1)-$(2)) | $(call segment,$(2),$(3),$(WORK)) -f jsonl \
	| tail -n 2 | jq -c '. + {scenes: "$(1)", command: "$($(1)-$(2)) | $(call segment,$(2),$(3),segmentation)"}' > $$@
rows += $(WORK)/$(1)-$(2)-$(3).jsonl
endef
$(foreach method,$(METHODS),$(eval $(call row,one,128,$(method))))
$(foreach method,$(METHODS),$(eval $(call row,two,128,$(method))))
$(foreach method,$(METHODS_64),$(eval $(call row,one,64,$(method))))
$(foreach method,$(METHODS_64),$(eval $(call row,two,64,$(method))))

$(RESULTS)/segmentation.csv: $(rows)
	mkdir -p $(RESULTS)
	(echo scenes,size,method,threshold,masks,accuracy,miou,map,object_map,command; \
	jq -r '[.scenes, .size, .method, .threshold, .count, .accuracy, .miou, .map, .object_map, .command] | @csv' $(rows)) > $@

study: $(WORK)/neurons.safetensors
	$(PYTHON) $(ROOT)/examples/segmentation_study.py $< > $(RESULTS)/segmentation-study.csv

picture: $(WORK)/neurons.safetensors
	rm -rf $(WORK)/scenes $(WORK)/maps
	clip-scenes --caption "a pizza and a violin" --count 4 --seed 12 --size 128 --out-dir $(WORK)/scenes
	$(foreach method,neurons rollout chefer,clip-segment $(WORK)/scenes/images --text pizza --text violin --size 128 \
	--method $(method) --out-dir $(WORK)/maps/$(method) < $< > /dev/null;)
	$(PYTHON) $(ROOT)/examples/segmentation_picture.py $(WORK)/scenes $(WORK)/maps $(ROOT)/docs/segment.webp
