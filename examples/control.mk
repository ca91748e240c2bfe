# make -C examples -j2 -f control.mk DENSE=folder     writes the tables of results/dense/, in 48 minutes on two cores
#
# The control of the embedded models: the same training without the terms for sparsity. A claim that holds for sparse neurons only is
# one about this training, and one that holds for both is not. The studies that the claims need run in a copy of the project in which
# the control's weights stand in place of the embedded ones. DENSE has the folders emoji-vit2 and emoji-rn2, made in hours by the stages
# of the card with as many scenes, the last two with --sparse 0 and without training.dictionary; run-3 is the last stage without sparsity:
#
#   python -m training.image emoji-vit2 --start run-3/image.pt --scenes 260000 --rate 5e-4 --sparse 0 --out run-4
#   python -m training.joint emoji-vit2 --start run-4/image.pt --steps 2200 --scenes 96000 --sparse 0 --out run-4
#   python -m training.image emoji-rn2 --start run-3/image.pt --scenes 240000 --rate 5e-4 --sparse 0 --out run-4
#   python -m training.joint emoji-rn2 --start run-4/image.pt --steps 2200 --scenes 128000 --sparse 0 --out run-4
#   python -m training.export NAME --start run-4 --out dense/NAME
#
# results/claims-0.1.0.csv and models-0.1.0.csv are those of the models of cliptools 0.1.0, emoji-vit and emoji-rn, which this version
# does not contain.
PARALLEL := yes
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
COPY    := $(ROOT)/examples/work/control
TABLES  := claims models ablation indirect reconstruction pcs sparsity pair-words polysemy adversarial segmentation concepts resnet-segmentation shift
STUDIES ?= second-order neuron-attention concepts segmentation polysemy resnet-segmentation shift adversarial models

.PHONY: all copy
all: $(TABLES:%=$(RESULTS)/dense/%.csv)
copy: $(COPY)/.made

# The copy has this checkout's environment, so that its studies run as they do here; delete the folder to start again.
$(COPY)/.made:
	@test -d "$(DENSE)" || { echo "DENSE=$(DENSE): no such folder; name the folder of the control's models" >&2; exit 1; }
	rm -rf $(COPY)
	mkdir -p $(COPY)
	cd $(ROOT) && tar cf - --exclude work --exclude __pycache__ bin cliptools examples tools training docs | tar xf - -C $(COPY)
	rm $(COPY)/examples/results/*.csv
	if [ -d $(ROOT)/.venv ]; then ln -s $(ROOT)/.venv $(COPY)/.venv; fi
	for name in emoji-vit2 emoji-rn2; do \
	  cp $(DENSE)/$$name/open_clip_model.safetensors $(COPY)/cliptools/data/models/$$name/ || exit; \
	done
	touch $@

# What the findings need of a study that has more.
ONLY.shift := MODELS=emoji-rn2 WAYS="norm seen" results/shift.csv

# A stamp for each study, so that a run goes on where it stopped, and -j runs several at once.
$(STUDIES:%=$(COPY)/.%): $(COPY)/.%: $(COPY)/.made
	make -B -C $(COPY)/examples -f $*.mk $(ONLY.$*)
	touch $@

$(COPY)/examples/results/claims.csv: $(STUDIES:%=$(COPY)/.%)
	make -C $(COPY)/examples -f claims.mk $@

$(RESULTS)/dense/%.csv: $(COPY)/examples/results/claims.csv
	mkdir -p $(@D)
	cp $(COPY)/examples/results/$*.csv $@
