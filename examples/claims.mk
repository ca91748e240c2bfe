# make -C examples -f claims.mk     writes results/claims.csv and ../docs/papers.png: what both papers find beside what the embedded models show
#
# From the tables of results/; those that are missing are to be made first (make -C examples papers, or results).
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk

.PHONY: all
all: $(RESULTS)/claims.csv $(ROOT)/docs/papers.png

$(RESULTS)/claims.csv: claims.py $(wildcard $(RESULTS)/*[!s].csv)
	$(PYTHON) $< $(RESULTS) > $@

# The README's picture.
$(ROOT)/docs/papers.png: papers_picture.py curves.py $(addprefix $(RESULTS)/,ablation.csv reconstruction.csv sparsity.csv pair-words.csv)
	$(PYTHON) $< $(RESULTS) $@
