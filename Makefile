# make install | demo | demo-maskfeat | demo-videomae | lint | test | test-fast | test-slow | test-gpu | bench | bench-gpu     (each sets up .venv by itself)
PYTHON ?= python3
BIN := .venv/bin
# A worker per core; each decodes and computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal
FAST_TESTS := $(addprefix tests/,test_imports.py configs/test_loading.py configs/test_loading_errors.py evaluation/test_scores.py \
	training/test_optimizers.py $(addprefix pipelines/,sampling/test_temporal.py sampling/test_spatial.py sampling/test_order.py \
	data/test_dataset.py data/test_annotations.py decode/test_color.py decode/test_nvdec.py))

.PHONY: install demo demo-maskfeat demo-videomae lint test test-fast test-slow test-gpu bench bench-gpu

install: .venv/runtime

demo: .venv/runtime
	$(BIN)/python -m pipelines.synthetic demo
	$(BIN)/python train.py configs/demo/demo.yaml
	$(BIN)/python eval.py runs/demo

demo-maskfeat: .venv/runtime
	$(BIN)/python -m pipelines.synthetic demo
	$(BIN)/python train.py configs/demo/demo_maskfeat.yaml
	$(BIN)/python eval.py runs/demo_maskfeat
	$(BIN)/python train.py configs/demo/demo_finetune.yaml
	$(BIN)/python eval.py runs/demo_finetune

demo-videomae: .venv/runtime
	$(BIN)/python -m pipelines.synthetic demo
	$(BIN)/python train.py configs/demo/demo_videomae.yaml
	$(BIN)/python eval.py runs/demo_videomae
	$(BIN)/python train.py configs/demo/demo_videomae_finetune.yaml
	$(BIN)/python eval.py runs/demo_videomae_finetune

test: lint
	$(PYTEST)

# Pure arithmetic: no video, no DALI, no network.
test-fast: .venv/dev
	$(PYTEST) $(FAST_TESTS)

test-slow: .venv/dev
	$(BIN)/python -m pytest -q -m slow

test-gpu: .venv/dev
	$(BIN)/python -m pytest -q -m gpu

bench: .venv/dev
	$(BIN)/python -m bench.epoch_time
	$(BIN)/python -m bench.loading
	$(BIN)/python -m bench.train_step
	$(BIN)/python -m bench.multi_view
	$(BIN)/python -m bench.bytes_read
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.index
	$(BIN)/python -m bench.hog
	$(BIN)/python -m bench.masking
	$(BIN)/python -m bench.report

bench-gpu: .venv/dev
	$(BIN)/python -m bench.gpu

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q uv

.venv/runtime: requirements.txt | .venv/bin/uv
	$(BIN)/uv pip install -q --compile-bytecode --python .venv -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt | .venv/bin/uv
	$(BIN)/uv pip install -q --compile-bytecode --python .venv -r requirements-dev.txt
	touch $@ .venv/runtime
