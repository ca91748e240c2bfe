# make -C examples -f claims.mk     writes results/claims.csv and ../docs/papers.png: findings of both papers and results on the embedded models
#
# The input is the tables of results/. Make missing tables first (make -C examples papers, or results).
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk

.PHONY: all
all: $(RESULTS)/claims.csv $(ROOT)/docs/papers.png

$(RESULTS)/claims.csv: claims.py $(wildcard $(RESULTS)/*[!s].csv)
	$(PYTHON) $< $(RESULTS) > $@

# The picture of docs/results.md.
$(ROOT)/docs/papers.png: papers_picture.py curves.py $(addprefix $(RESULTS)/,ablation.csv reconstruction.csv sparsity.csv pair-words.csv)
	$(PYTHON) $< $(RESULTS) $@
