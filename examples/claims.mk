# make -C examples -f claims.mk          writes results/claims.csv and ../docs/papers.png: findings of both papers and results on the
#                                        embedded models; then ../docs/results.md, the page of results
# make -C examples -f claims.mk page     writes the page only
#
# The input is the tables of results/. A table that lacks a row ends the run with its name. Make missing tables first (make -C examples results).
include $(dir $(lastword $(MAKEFILE_LIST)))common.mk

.PHONY: all page
all: $(RESULTS)/claims.csv $(ROOT)/docs/papers.png page

# The template is docs/source/results.md.
page: $(RESULTS)/claims.csv
	$(PYTHON) -m tools.results_page $(ROOT)

$(RESULTS)/claims.csv: claims.py result_tables.py $(wildcard $(RESULTS)/*[!s].csv)
	$(PYTHON) $< $(RESULTS) > $@

# The picture of docs/results.md.
$(ROOT)/docs/papers.png: papers_picture.py curves.py $(addprefix $(RESULTS)/,ablation.csv reconstruction.csv sparsity.csv pair-words.csv)
	$(PYTHON) $< $(RESULTS) $@
