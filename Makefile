# make demo · make demo-maskfeat · make test · make test-slow · make test-gpu · make bench · make bench-gpu · make lint      (each sets up .venv by itself)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-maskfeat test test-slow test-gpu bench bench-gpu lint

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

test: lint
	$(BIN)/python -m pytest -q

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
	$(BIN)/uv pip install -q --python .venv -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt | .venv/bin/uv
	$(BIN)/uv pip install -q --python .venv -r requirements-dev.txt
	touch $@ .venv/runtime
