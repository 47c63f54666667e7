PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: search model test gpu test-slow test-matrix conformance lint docs nas-bench rank-fidelity search-efficiency search-speed scaling pretraining-speed

# The environment, updated when its specification changes.
.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . --group dev
	touch $@

search: .venv/installed
	$(BIN)/accelerate launch -m autobert_zero.search --output_dir runs/demo

test: .venv/installed lint
	$(PYTEST) -n 2

test-slow: .venv/installed
	$(PYTEST) -n 2 -m slow

# transformers' own common tests, on our classes and on BERT's (tests/conformance/README.md).
conformance: .venv/installed
	$(BIN)/python -m tests.conformance.fetch
	$(PYTEST) -c tests/conformance/pytest.ini --rootdir . -q -W ignore -n 2 --junitxml .cache/conformance.xml tests/conformance
	$(BIN)/python -m tests.conformance.report .cache/conformance.xml results/conformance.json

# The tests of the model with the oldest supported transformers, one in between, and the newest.
MATRIX ?= 5.4.0 5.17.0 5.24.0
test-matrix: .venv/installed
	for version in $(MATRIX); do \
	    site=.cache/matrix/$$version; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --target $$site transformers==$$version && \
	    PYTHONPATH=$$site $(BIN)/python -c 'import transformers; print("transformers", transformers.__version__)' && \
	    PYTHONPATH=$$site $(PYTEST) -q -n 2 -m 'model and not slow' || exit 1; \
	done

# On a machine with a GPU, in half an hour: its tests, benchmarks, a search, and the comparison of backbones as far as it gets.
gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The notebook from the tutorial, and the documentation as a site, with the reference from docstrings; links are checked.
docs: .venv/installed
	$(BIN)/python docs/notebook.py
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/site
	@echo build/site/README.html

# The model of this checkout: a search, the pre-training of what it found beside its rival, more pre-training of what it found,
# and the files in the root. Hours on two cores, and more on a CPU without bfloat16 units, where the scale should say
# `bf16: false` and the third command `--bf16 false`. The texts are described in results/README.md; `make model BLIMP=FOLDER`
# measures BLiMP, too, of which the folder has the sets.
BLIMP ?=
MODEL_TEXTS := --train_file $(addprefix runs/texts/,$(addsuffix .txt.xz,english_novels_100 eltec_eng babylm_3m us_presidential_speeches)) \
    --validation_file runs/texts/babylm_dev.txt.xz runs/texts/wikitext2_valid.txt.xz
model: .venv/installed
	$(BIN)/torchrun --nproc_per_node 2 -m autobert_zero.search --config examples/reproduce/model/search.yaml --output_dir runs/model/search
	$(BIN)/python examples/reproduce/compare.py --scale model --rows examples/reproduce/model/found.yaml bert_rotary --jobs 2 \
	    $(MODEL_TEXTS) $(if $(BLIMP),--blimp_dir $(BLIMP)) --output_dir runs/model/compare
	$(BIN)/python examples/run_pretraining.py --model_name_or_path runs/model/compare/found/seed-0 --output_dir runs/model/continued \
	    $(MODEL_TEXTS) \
	    --validation_fraction 0.03 --test_fraction 0.03 --max_seq_length 128 --per_device_train_batch_size 16 --max_steps 12000 \
	    --learning_rate 2e-3 --warmup_steps 0.05 --weight_decay 0.01 --muon --mlm_probability 0.3 --final_mlm_probability 0.15 \
	    --max_eval_sequences 2048 --save_steps 500 --use_cpu --bf16 --attn_implementation eager --seed 1
	$(if $(BLIMP),$(BIN)/python examples/run_blimp.py --model_name_or_path runs/model/continued --trust_remote_code --fraction 0.1 \
	    --data_dir $(BLIMP) --output_dir runs/model/continued/blimp)
	$(BIN)/python examples/reproduce/publish.py runs/model/continued . --model_max_length 512

# Benchmarks of the search: minutes to hours each, resumed if interrupted. The results are in results/README.md.
NAS_BENCH ?= runs/nas_bench
TEXT ?= runs/texts/eltec_eng.txt.xz
SCALE := --train_file $(TEXT) --vocab_size 4096 --eval_sequences 1024 --batch_size 32
LAUNCH := $(BIN)/accelerate launch

nas-bench: .venv/installed
	$(BIN)/python benchmarks/nas_bench.py --data $(NAS_BENCH) --output results/nas_bench.json

rank-fidelity: .venv/installed
	$(LAUNCH) benchmarks/rank_fidelity.py --output_dir runs/rank $(SCALE) --final_steps 1500 --supernet_steps 1500 --learning_rate 4e-3 --seed_genomes none \
	    --results runs/rank/results.json

search-efficiency: .venv/installed
	$(LAUNCH) benchmarks/search_efficiency.py --output_dir runs/efficiency $(SCALE) --supernet_steps 1500 \
	    --candidate_steps 20 --max_evaluations 60 --seed_genomes none --results runs/efficiency/results.json

pretraining-speed: .venv/installed
	$(BIN)/python benchmarks/pretraining.py --genome autobert-zero-small --train_file $(TEXT) --max_seq_length 128 \
	    --config_overrides hidden_size=128,num_attention_heads=4,intermediate_size=512 --vocab_size 8192 \
	    --max_steps 30 --per_device_train_batch_size 16 --prepared_dir runs/speed/text --output_dir runs/speed --results results/pretraining_speed.json

search-speed: .venv/installed
	$(BIN)/python benchmarks/search_speed.py --output results/search_speed.json

scaling: .venv/installed
	$(BIN)/python benchmarks/scaling.py driver --output results/scaling/driver.json
	$(BIN)/python benchmarks/scaling.py processes --output results/scaling/processes.json \
	    --supernet_steps 10 --final_steps 1 --max_evaluations 40
	$(BIN)/python benchmarks/scaling.py simulation --history results/first-light/eltec-history.jsonl \
	    --output results/scaling/simulation.json
