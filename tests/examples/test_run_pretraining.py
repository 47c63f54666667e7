"""The pre-training script: killed and resumed, its evaluation, streams, several processes, bad input."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import run_pretraining
import time_budget
import torch
from run_pretraining import losses_by_fraction
from safetensors.torch import load_file
from training_scripts import CheckpointDigests, last_checkpoint
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer, BertConfig

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.text import prepared
from autobert_zero.search.text.corpus import Corpus
from autobert_zero.search.text.documents import count_bytes
from autobert_zero.search.text.tokens import POSITIONS_AFTER_PADDING, train_tokenizer
from tests.conftest import TINY_RUN, count_steps, run_without_package, write_corpus


SCRIPT = Path(run_pretraining.__file__)
SIZES = "hidden_size=12,num_attention_heads=3,intermediate_size=20"
CONVBERT = "hidden_size=12,num_attention_heads=2,intermediate_size=20,embedding_size=12,num_hidden_layers=1"


def command(folder, **arguments) -> list[str]:
    values = {
        "train_file": folder / "text.txt",
        "genome": "bert-small",
        "config_overrides": SIZES,
        "vocab_size": 150,
        "max_seq_length": 32,
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "save_steps": 4,
        "disable_tqdm": "true",
        "output_dir": folder / "out",
        "prepared_dir": folder / "prepared",
        **arguments,
    }
    given = [
        (f"--{name}", *(value if isinstance(value, list) else [value]))
        for name, value in values.items()
        if value is not None
    ]
    return [sys.executable, str(SCRIPT), *map(str, itertools.chain.from_iterable(given))]


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs the script in this process; returns its output, or the error message."""

    def run_script(code: int = 0, **arguments) -> str:
        monkeypatch.setattr(sys, "argv", command(folder, **arguments)[1:])
        if code:
            with pytest.raises(SystemExit, match=str(code)):
                run_pretraining.main()
            return capsys.readouterr().err
        run_pretraining.main()
        return capsys.readouterr().out

    return run_script


@pytest.fixture
def folder(tmp_path):
    write_corpus(tmp_path / "text.txt", documents=60)
    return tmp_path


def test_a_killed_run_resumes_exactly(folder, run, monkeypatch):
    """Killed after a checkpoint: the result has the same bits, and finished steps are not repeated."""
    genome = [
        {"kind": "convolution", "kernel_size": 5},
        {"kind": "attention", "expression": "matmul(softmax(q), matmul(transpose(k), v))"},
    ]
    (folder / "genome.json").write_text(json.dumps(genome))
    options = {
        "genome": folder / "genome.json",
        "objective": "sop",
        "short_seq_length": 16,
        "short_fraction": 0.5,
        "gradient_accumulation_steps": 2,
        "whole_word_masking": "true",
    }
    run(**options)
    process = subprocess.Popen(
        command(folder, **options, **{"output_dir": folder / "killed"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process
    )
    deadline = time.monotonic() + 120
    while not (folder / "killed" / "checkpoint-4" / CheckpointDigests.FILE).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "killed" / "results.json").exists()
    # A checkpoint without its last file, as if killed during writing, is ignored.
    (folder / "killed" / "checkpoint-99").mkdir()
    first_step = int(last_checkpoint(folder / "killed").rpartition("-")[2])
    assert first_step in (4, 8)
    steps = count_steps(monkeypatch)
    run(**options, output_dir=folder / "killed")
    assert steps == [step for step in range(first_step, 12) for _ in range(2)]  # none is repeated
    one, other = (load_file(folder / name / "model.safetensors") for name in ("out", "killed"))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    results = [json.loads((folder / name / "results.json").read_text()) for name in ("out", "killed")]
    assert results[0]["losses"] == results[1]["losses"]
    assert set(results[0]["losses"]) == {"validation", "test"}
    assert set(results[0]["losses"]["test"]) == {"0.25", "0.5", "0.75", "1"}
    assert results[0]["tokens"] == 12 * 4 * 32
    before = (folder / "out" / "model.safetensors").stat().st_mtime_ns
    assert "finished" in run(**options)
    assert (folder / "out" / "model.safetensors").stat().st_mtime_ns == before
    done = run(code=2, **{**options, "genome": "bert-small"})
    assert "holds a training that differs in config" in done

    for place in (folder / "out", last_checkpoint(folder / "out")):
        model = AutoModelForPreTraining.from_pretrained(place, trust_remote_code=True)
        assert [dict(gene) for gene in model.config.genome] == genome and not model.config.sparse_prediction
    output, _ = run_without_package(
        "import sys, transformers as t\n"
        "m = t.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(t.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True).decode(m.config.pad_token_id))",
        str(folder / "out"),
        cwd=folder,
    )
    assert output.strip() == "[PAD]"


def test_it_learns_and_other_architectures_train_on_the_same_batches(folder, run):
    """The loss is below that of token frequencies; transformers' BERT has the same text and the same masks."""
    (folder / "genome.json").write_text(json.dumps([{"kind": "convolution", "kernel_size": 5}] * 2))
    learning = {
        "genome": folder / "genome.json",
        "max_steps": 150,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
    }
    rows = [
        {"body": text.replace("\n", " ")} for text in (folder / "text.txt").read_text().split("\n\n") if text.strip()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [folder / "text.txt", folder / "rows.jsonl"]
    run(
        **learning,
        config_overrides=f"{SIZES},initializer_range=0.2",
        validation_file=files,
        text_column="body",
        prepared_dir=None,
    )
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["losses"]["test"]["1"] < results["unigram_losses"]["test"] - 0.3
    assert results["losses"]["text"]["1"] < results["unigram_losses"]["text"]
    model = AutoModelForMaskedLM.from_pretrained(folder / "out", trust_remote_code=True)
    importance = results["layer_importance"]
    assert len(importance) == model.config.num_hidden_layers and abs(importance[0]) > 0.01
    assert len(set(importance)) > 1
    # A model without what the mixer of the first layer gives, trained no further.
    for parameter in model.base_model.encoder.layer[0].mixer.dense.parameters():
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(folder / "without")
    AutoTokenizer.from_pretrained(folder / "out").save_pretrained(folder / "without")
    run(
        genome=None,
        model_name_or_path=folder / "without",
        config_overrides=None,
        vocab_size=None,
        prepared_dir=None,
        max_steps=1,
        learning_rate=1e-12,
        output_dir=folder / "evaluated",
    )
    without = json.loads((folder / "evaluated" / "results.json").read_text())["losses"]["test"]["1"]
    assert without - results["losses"]["test"]["1"] == pytest.approx(importance[0], abs=1e-3)
    run(
        max_steps=2,
        genome=None,
        model_type="bert",
        config_overrides=f"{SIZES},num_hidden_layers=2",
        output_dir=folder / "bert",
    )
    other = json.loads((folder / "bert" / "results.json").read_text())
    assert other["layer_importance"] is None
    assert other["unigram_losses"]["test"] == results["unigram_losses"]["test"]
    assert other["identity"]["text"] == results["identity"]["text"]
    model = AutoModelForMaskedLM.from_pretrained(folder / "bert")
    assert model.config.model_type == "bert" and model.config.vocab_size == len(
        AutoTokenizer.from_pretrained(folder / "bert")
    )


def test_the_tokens_of_a_search_are_used(folder, run, monkeypatch):
    text_of_search = {"train_file": [str(folder / "text.txt")], "vocab_size": 150}
    text_of_search["prepared_dir"] = str(folder / "prepared")
    settings = SearchSettings.from_dict({**TINY_RUN, **text_of_search, "seed": 42})
    Corpus.build(settings.text, settings.run.seed, settings.model.sequence_length)
    with monkeypatch.context() as reading:
        reading.setattr(prepared, "read_documents", lambda settings: pytest.fail("read again"))
        run(max_steps=1)
    assert AutoTokenizer.from_pretrained(folder / "out").model_max_length == 32 > settings.model.sequence_length
    run(max_steps=1, output_dir=folder / "fresh", prepared_dir=None)
    used, fresh = (json.loads((folder / name / "results.json").read_text()) for name in ("out", "fresh"))
    assert used["identity"] == fresh["identity"]
    write_corpus(folder / "text.txt", documents=61)
    assert "differs in content of train_file" in run(code=2, max_steps=1, output_dir=folder / "other")


def test_streaming(folder, run):
    run(max_steps=1)  # for its tokenizer
    rows = [text.replace("\n", " ") for text in (folder / "text.txt").read_text().split("\n\n") if text.strip()]
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    options = {
        "train_file": None,
        "dataset_name": folder / "data",
        "streaming": "true",
        "prepared_dir": None,
        "tokenizer_name": folder / "out",
        "streaming_test_documents": 10,
        "streaming_buffer": 20,
        "output_dir": folder / "streamed",
    }
    run(**options, save_total_limit=3)
    results = json.loads((folder / "streamed" / "results.json").read_text())
    assert results["losses"]["test"]["1"] > 0
    # Resumed in the middle of the stream, from its first checkpoint.
    model = load_file(folder / "streamed" / "model.safetensors")
    for name in ("results.json", "checkpoint-12/trainer_state.json", "checkpoint-8/trainer_state.json"):
        (folder / "streamed" / name).unlink()
    run(**options, save_total_limit=3)
    assert results["losses"] == json.loads((folder / "streamed" / "results.json").read_text())["losses"]
    again = load_file(folder / "streamed" / "model.safetensors")
    assert all((model[name] == again[name]).all() for name in model)
    assert "max_documents: expected more than streaming_test_documents=10" in run(
        code=2, **{**options, "max_documents": 10}
    )
    done = run(code=2, **{**options, "max_steps": -1})
    assert "max_steps: expected a number with streaming" in done
    assert "prepared_dir: expected none with streaming" in run(code=2, **{**options, "prepared_dir": folder / "kept"})


_BATCHES = """
import itertools, json, sys
sys.path.insert(0, sys.argv.pop(1))
import run_pretraining as script
from accelerate.utils import gather_object
from transformers import HfArgumentParser

parser = HfArgumentParser(
    (script.ModelArguments, script.TextSettings, script.PretrainingArguments, script.TrainingArguments)
)
trainer = script.Pretraining.set_up(*parser.parse_args_into_dataclasses()).trainer
batches = [batch["input_ids"].tolist() for batch in itertools.islice(trainer.get_train_dataloader(), 5)]
both = gather_object([batches])
if trainer.args.process_index == 0:
    expected = [[trainer.train_dataset[4 * k + i]["input_ids"].tolist() for i in range(4)] for k in range(5)]
    shared = [sorted(one + other) for one, other in zip(*both)]
    assert shared == [sorted(row for block in blocks for row in block) for blocks in expected]
    assert len({str(rows) for rows in shared}) == 5
    print("SHARED")
trainer.accelerator.wait_for_everyone()  # a process must not end while the other communicates
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes(folder):
    """They divide the blocks of every update, and train."""
    arguments = command(folder, use_cpu="true", ddp_backend="gloo")[1:]
    (folder / "batches.py").write_text(_BATCHES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for code in ([str(folder / "batches.py"), str(SCRIPT.parent)], arguments[:1]):
        done = subprocess.run(
            [*launch, *code, *arguments[1:]],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert ("SHARED" in done.stdout) == (code != arguments[:1])
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["processes"] == 2 and results["tokens"] == 12 * 2 * 2 * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"genome": "nonsense"}, "genome: expected a preset, a JSON file or a folder, got 'nonsense'"),
        ({"genome": None}, "genome: expected one of --genome, --model_type and --model"),
        ({"genome": None, "model_type": "berd"}, "model_type: expected a model type of transformers, got 'berd'"),
        ({"config_overrides": "hiden_size=3"}, "config_overrides: key hiden_size"),
        ({"config_overrides": "hidden_size=13"}, "num_attention_heads: expected a divisor of hidden_size=13"),
        (
            {"config_overrides": "max_position_embeddings=16"},
            "max_seq_length: expected at most 16, by max_position_embeddings, got 32",
        ),
        ({"validation_file": ["a/test.txt"]}, "validation_file: expected files of different names"),
        ({"validation_file": ["no.txt"]}, "validation_file: 'no.txt': train_file: expected a file"),
        ({"max_eval_sequences": 0}, "max_eval_sequences: expected at least 1, got 0"),
        ({"max_seq_length": 1}, "max_seq_length: expected at least 8, got 1"),
        ({"split_seed": -1}, "split_seed: expected at least 0, got -1"),
        ({"mlm_probability": 1.0}, "mlm_probability: expected a number between 0 and 1, got 1.0"),
        ({"final_mlm_probability": 0}, "final_mlm_probability: expected a number between 0 and 1, got 0.0"),
        ({"short_fraction": 1.5}, "short_fraction: expected a number from 0 to 1, got 1.5"),
        (
            {"config_overrides": f"{SIZES},hidden_act=foo"},
            "hidden_act: expected an activation of transformers, got 'foo'",
        ),
        ({"foo": 1}, "unrecognized arguments: --foo 1"),
        (
            {"genome": None, "model_type": "t5", "config_overrides": None},
            "model_type: expected an encoder with max_pos",
        ),
        (
            {"genome": None, "model_type": "albert", "objective": "sop"},
            "objective: expected mlm for AlbertForPreTraining, without sentence pairs, got 'sop'",
        ),
        ({"objective": "nap"}, "objective: expected one of"),
        ({"objective": "nsp", "genome": None, "model_type": "convbert"}, "model_type: |objective: "),
        ({"train_file": "no.txt", "prepared_dir": None}, "train_file: expected a file, got 'no.txt'"),
        ({"attn_implementation": "foo"}, "attn_implementation: "),
        (
            {"genome": None, "model_type": "convbert", "attn_implementation": "foo", "config_overrides": CONVBERT},
            "attn_implementation: expected .*, the only one of ConvBertForMaskedLM, got 'foo'",
        ),
        ({"muon": "true", "optim": "sgd"}, "optim: expected adamw_torch or adamw_torch_fused with muon, got sgd"),
        ({"max_seq_length": 4096}, "train_file the validation part: expected 4096 tokens or more, got"),
    ],
)
def test_bad_input_ends_the_script_before_anything_is_trained(folder, run, arguments, message):
    assert re.search(f"error: .*({message})", run(code=2, **arguments), re.DOTALL)
    assert not (folder / "out" / "training.json").exists()


def test_a_training_at_a_constant_rate_is_extended(folder, run):
    constant = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3}
    run(**constant, max_steps=12, output_dir=folder / "whole")
    run(**constant, max_steps=8)
    assert "contains this training, finished" in run(**constant, max_steps=8)
    assert "test: loss" in run(**constant, max_steps=12)
    one, other = (load_file(folder / name / "model.safetensors") for name in ("out", "whole"))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["steps"] == 12 and results["tokens"] == 12 * 2 * 32
    assert "max_steps: expected at least 12, those of" in run(code=2, **constant, max_steps=8)
    results["identity"]["max_steps"] = results.pop("steps")  # as an earlier version wrote it
    (folder / "out" / "results.json").write_text(json.dumps(results))
    assert "contains this training, finished" in run(**constant, max_steps=12)
    (folder / "out" / "results.json").write_text("{")
    assert "results.json: " in run(code=2, **constant, max_steps=12)
    (folder / "out" / "results.json").write_text("{}")
    assert "results.json: expected the results of a training" in run(code=2, **constant, max_steps=12)
    (folder / "out" / "results.json").unlink()  # as if killed before it was written
    assert "max_steps: expected at least 12, those of" in run(code=2, **constant, max_steps=8)
    error = run(code=2, max_steps=12)  # a schedule that depends on the number of steps
    assert "differs in lr_scheduler_type ('" in error and "--model_name_or_path to start from the weights" in error


def test_muon(folder, run):
    """Trains other weights than AdamW, and is resumed exactly, with the state of both optimizers."""
    options = {"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 1e-2, "muon": "true"}
    run(**options, output_dir=folder / "whole")
    run(**{**options, "muon": None}, output_dir=folder / "adamw")
    run(**options, max_steps=8)
    assert "differs in muon" in run(code=2, **{**options, "muon": None})
    run(**options)
    one, other, adamw = (load_file(folder / name / "model.safetensors") for name in ("out", "whole", "adamw"))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert any((one[name] != adamw[name]).any() for name in one)


def test_an_implementation_of_attention_changes_no_result(folder, run, monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    for name in ("eager", "sdpa"):
        assert not calls
        run(attn_implementation=name, output_dir=folder / name)
    assert calls
    losses = [
        json.loads((folder / name / "results.json").read_text())["losses"]["test"]["1"] for name in ("eager", "sdpa")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_falling_masking_rate(folder, run):
    run(max_steps=4, mlm_probability=0.6, final_mlm_probability=0.2)
    identity = json.loads((folder / "out" / "training.json").read_text())
    assert (identity["mlm_probability"], identity["final_mlm_probability"]) == (0.6, 0.2)
    assert "differs in final_mlm_probability (0.2, got 0.3)" in run(
        code=2, max_steps=4, mlm_probability=0.6, final_mlm_probability=0.3
    )
    run(max_steps=4, output_dir=folder / "constant")
    constant = json.loads((folder / "constant" / "training.json").read_text())
    assert not {"mlm_probability", "final_mlm_probability"} & set(constant)
    one, other = (json.loads((folder / name / "results.json").read_text()) for name in ("out", "constant"))
    assert one["losses"] != other["losses"] and one["identity"]["evaluated"] == other["identity"]["evaluated"]


@pytest.fixture
def clock(monkeypatch) -> None:
    """A second passes whenever the time is asked for."""
    seconds = itertools.count()
    monkeypatch.setattr(time_budget.time, "perf_counter", lambda: float(next(seconds)))


def test_a_training_of_a_given_time(folder, run, clock, monkeypatch):
    timed = {
        "max_steps": None,
        "max_seconds": 40,
        "mlm_probability": 0.3,
        "final_mlm_probability": 0.1,
        "logging_steps": 1,
    }
    timed |= {"save_steps": 8, "save_total_limit": 9, "warmup_steps": 0.2}
    run(**timed)
    results = json.loads((folder / "out" / "results.json").read_text())
    assert set(results["losses"]["test"]) == {"0.25", "0.5", "0.75", "1"} and 40 <= results["seconds"] <= 43
    steps = results["steps"]
    assert 30 < steps <= 40 and results["tokens"] == steps * 2 * 32  # some seconds are of evaluations
    assert results["tokens_per_second"] == pytest.approx(results["tokens"] / results["seconds"], rel=0.01)
    last = last_checkpoint(folder / "out")
    log = json.loads((Path(last) / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    peak = rates.index(max(rates))
    assert rates[0] == 0 and rates[-1] < 0.1 * max(rates) and peak == pytest.approx(0.2 * steps, abs=3)
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert "finished" in run(**timed)
    assert "differs in max_seconds (40.0, got 50.0)" in run(code=2, **{**timed, "max_seconds": 50})
    # As if killed after a checkpoint: the seconds until then count, and no step before it is repeated.
    (folder / "out" / "results.json").unlink()
    for path in folder.glob("out/checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > 16:
            shutil.rmtree(path)
    before = json.loads((folder / "out" / "checkpoint-16" / "seconds.json").read_text())["seconds"]
    repeated = count_steps(monkeypatch)
    run(**timed)
    again = json.loads((folder / "out" / "results.json").read_text())
    assert 40 <= again["seconds"] <= 43 and repeated[0] == 16 and len(repeated) <= 40 - before
    assert set(again["losses"]["test"]) == {"0.25", "0.5", "0.75", "1"}
    # As if killed after the last step.
    (folder / "out" / "results.json").unlink()
    run(**timed)
    late = json.loads((folder / "out" / "results.json").read_text())
    assert set(late["losses"]["test"]) == {"0.25", "0.5", "0.75", "1"} and late["steps"] <= again["steps"] + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 3}, "max_steps: expected none with max_seconds, got 3"),
        ({"max_steps": None, "warmup_steps": 3}, "warmup_steps: expected a fraction below 1 with max_seconds, got 3"),
        ({"max_steps": None, "short_seq_length": 16}, "short_seq_length: expected none with max_seconds, got 16"),
        ({"max_steps": None, "max_seconds": -1}, "max_seconds: expected a positive number, got -1"),
        (
            {"max_steps": None, "lr_scheduler_type": "reduce_lr_on_plateau"},
            "lr_scheduler_type: expected a function of",
        ),
    ],
)
def test_what_a_given_time_excludes(folder, run, arguments, message):
    assert message in run(code=2, **{"max_seconds": 9, **arguments})


def test_bits_per_byte():
    """A bit for every token, by the bytes of the text as it was: with capitals, accents, blanks and unknown characters."""
    tokenizer = train_tokenizer(["abc abc, de!"] * 9, vocab_size=60, model_max_length=32)
    text = "Abc, dé  \N{SNOWMAN} abc!"
    tokens = np.array(tokenizer(text).input_ids)  # with [CLS] and [SEP], which are not text
    assert tokenizer.unk_token_id in tokens
    found = run_pretraining.bits_per_byte(math.log(2), tokens, count_bytes([text]), tokenizer)
    assert len(tokens) - 2 == 6 and found == pytest.approx(6 / 18)


def test_bytes_are_those_of_the_evaluated_texts(folder, run):
    """Also of a folder of tokens that is used again; without them, of older folders, there are no bits."""
    extra = folder / "extra.txt"
    extra.write_text("The cat MEOWS; the dog barks.\n\n" * 40)
    given = {"max_steps": 1, "validation_file": extra, "prepared_dir": folder / "text"}
    found = []
    for number in range(3):
        run(**given, output_dir=folder / f"out-{number}")
        found.append(json.loads((folder / f"out-{number}" / "results.json").read_text()))
        if number == 1:
            contents = json.loads((folder / "text" / "text.json").read_text())
            assert contents["num_bytes"].keys() == {"train", "validation", "test"}
            del contents["num_bytes"]
            (folder / "text" / "text.json").write_text(json.dumps(contents))
    assert found[0]["bits_per_byte"] == found[1]["bits_per_byte"]
    assert found[1]["bits_per_byte"].keys() == {"validation", "test", "extra"} > found[2]["bits_per_byte"].keys()
    # Every document has 29 bytes.
    tokenizer = AutoTokenizer.from_pretrained(folder / "out-0")
    per_byte = len(tokenizer("The cat MEOWS; the dog barks.", add_special_tokens=False).input_ids) / 29
    expected = found[0]["losses"]["extra"]["1"] / math.log(2) * per_byte
    assert found[0]["bits_per_byte"]["extra"] == pytest.approx(expected)


def test_another_schedule_is_another_training(folder, run):
    run(max_steps=4)
    assert "differs in max_steps ('4', got '8'). Choose another folder" in run(code=2, max_steps=8)
    assert "differs in max_steps ('4', got '2'), seed ('42', got '43')" in run(code=2, max_steps=2, seed=43)


@pytest.mark.parametrize("architecture", ["genome", "model_type"])
def test_a_training_from_the_weights_of_a_model(folder, run, architecture):
    """With a learning rate of nearly 0 the loss is that of the model, whose tokenizer is used, too."""
    model = {"genome": "bert-small"} if architecture == "genome" else {"genome": None, "model_type": "bert"}
    sizes = SIZES if architecture == "genome" else SIZES + ",num_hidden_layers=2"
    run(**model, config_overrides=sizes, learning_rate=0.01)
    start = {"genome": None, "config_overrides": None, "model_name_or_path": folder / "out", "prepared_dir": None}
    run(**start, max_steps=1, learning_rate=1e-12, output_dir=folder / "next", vocab_size=999)
    losses = [json.loads((folder / name / "results.json").read_text())["losses"] for name in ("out", "next")]
    assert losses[1]["test"]["1"] == pytest.approx(losses[0]["test"]["1"], abs=1e-5)
    for name in ("weightless", "truncated", "bare"):
        shutil.copytree(folder / "out", folder / name, ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "weightless" / "model.safetensors").unlink()
    os.truncate(folder / "truncated" / "model.safetensors", 1000)
    AutoModelForMaskedLM.from_pretrained(folder / "out").base_model.save_pretrained(folder / "bare")
    for changed, message in (
        ({"genome": "bert-small"}, "genome: expected one of"),
        ({"config_overrides": "hidden_size=24"}, "config_overrides: expected none with --model_name_or_path"),
        ({"model_name_or_path": folder / "nowhere"}, "model_name_or_path: expected a model, got "),
        ({"model_name_or_path": folder / "weightless"}, "model_name_or_path: expected weights in "),
        ({"model_name_or_path": folder / "truncated"}, "model_name_or_path: expected weights in "),
        ({"model_name_or_path": folder / "bare"}, "got none for "),
    ):
        assert message in run(code=2, **{**start, "output_dir": folder / "other", **changed})


def test_a_model_without_a_genome(folder, run):
    BertConfig().save_pretrained(folder / "bert")
    assert "a model of type 'bert' has no genome" in run(code=2, genome=folder / "bert")


def test_a_training_that_diverges_is_reported(folder, run):
    options = {"learning_rate": 1e30, "max_grad_norm": 1e30, "save_strategy": "no"}
    for _ in range(2):  # also by the finished training
        assert "error: the training diverged" in run(code=3, **options)
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["losses"]["test"]["1"] is None and results["layer_importance"] is None


def test_losses_after_a_divergence_are_not_in_the_curve(folder, run):
    """Trainer would show losses of 0 there."""
    run(
        code=3,
        max_steps=4,
        learning_rate=1e30,
        max_grad_norm=1e30,
        warmup_steps=0,
        logging_steps=1,
        save_strategy="no",
    )
    [[step, loss]] = json.loads((folder / "out" / "results.json").read_text())["training_losses"]
    assert step == 1 and 3 < loss < 9


def test_a_finished_training_whose_model_is_lost_is_repeated(folder, run):
    run(max_steps=4)
    (folder / "out" / "model.safetensors").unlink()
    assert "test: loss" in run(max_steps=4)
    assert (folder / "out" / "model.safetensors").exists()


def test_the_best_checkpoint_is_by_the_validation_part(folder, run):
    run(max_steps=4, load_best_model_at_end="true", eval_steps=2, save_steps=2)
    state = json.loads((folder / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_metric"] == state["log_history"][-2]["eval_validation_loss"]


def test_reported_losses_are_of_the_weights_that_are_saved(folder, run):
    """A rate at which the second half of the training is harmful."""
    run(max_steps=4, learning_rate=1, load_best_model_at_end="true", eval_steps=2, save_steps=2)
    found = json.loads((folder / "out" / "results.json").read_text())
    log = json.loads((folder / "out" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["eval_validation_loss"] for entry in log if "eval_validation_loss" in entry}
    assert losses[2] < losses[4] - 0.01 and found["losses"]["validation"]["1"] == pytest.approx(losses[2], abs=1e-5)


@pytest.mark.parametrize(
    "model_type", sorted({"mpnet", *POSITIONS_AFTER_PADDING} - {"esm", "longformer", "luke", "xmod"})
)
def test_positions_after_that_of_padding(model_type):
    """RoBERTa's table of positions has rows that are not used."""
    model = run_pretraining.ModelArguments(model_type=model_type)
    model.config_overrides = "hidden_size=8,num_attention_heads=2,num_hidden_layers=1,intermediate_size=8"
    config = run_pretraining.make_config(model, vocab_size=99, pad_token_id=3, max_seq_length=600)
    assert config.max_position_embeddings == 600 + (2 if model_type == "mpnet" else 4)
    ids = torch.randint(4, 99, (1, 600))
    assert run_pretraining.make_model(config, "mlm")(ids).logits.shape == (1, 600, 99)
    model.config_overrides += f",max_position_embeddings={config.max_position_embeddings - 1}"
    with pytest.raises(ValueError, match=r"max_seq_length: expected at most 599, by max_position_embeddings, got 600"):
        run_pretraining.make_config(model, vocab_size=99, pad_token_id=3, max_seq_length=600)


def test_reported_losses_are_of_masked_language_modelling(folder, run):
    """Of models that are hardly trained, the loss is the same with and without sentence pairs."""
    for objective in ("mlm", "nsp", "sop"):
        run(objective=objective, max_steps=1, learning_rate=1e-9, output_dir=folder / objective)
    losses = [
        json.loads((folder / name / "results.json").read_text())["losses"]["test"]["1"]
        for name in ("mlm", "nsp", "sop")
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=0.1)  # the loss of the pair is 0.7


def test_helpers(tmp_path):
    assert last_checkpoint(tmp_path) is None
    log = [{"loss": 1.0, "step": 5}, {"eval_a_loss": 3.0, "step": 5}, {"eval_a_loss": 2.0, "step": 10}]
    assert losses_by_fraction(log, lambda step: step / 10) == {"a": {"0.5": 3.0, "1": 2.0}}


def test_the_loss_curve():
    log = [{"loss": float(step), "step": step} for step in range(1, 81)]
    points = run_pretraining.training_losses([*log, {"loss": math.nan, "step": 81}, {"eval_a_loss": 2.0, "step": 80}])
    assert len(points) == 40 and points[0] == (2, 1.5) and points[-1] == (80, 79.5)
    assert run_pretraining.training_losses([]) == []


def test_a_training_is_identified_by_changed_fields():
    """A training that was started with a version of fewer fields can be resumed."""

    class Later(AutoBertZeroConfig):
        later_field: float = 0.5

    for config_class in (AutoBertZeroConfig, Later):
        fields = run_pretraining.changed_fields(config_class(hidden_size=8, num_attention_heads=2))
        assert fields == {"hidden_size": 8, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "model_type", ["bert", "convbert", "roberta", "albert", "electra", "modernbert", "deberta-v2"]
)
def test_predicting_only_at_labels_changes_nothing(model_type):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20, "num_hidden_layers": 1}
    config = CONFIG_MAPPING[model_type](
        **sizes,
        embedding_size=16,
        vocab_size=40,
        pad_token_id=0,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    plain = AutoModelForMaskedLM.from_config(config).eval()
    sparse = run_pretraining.make_model(config, "mlm").eval()
    sparse.load_state_dict(plain.state_dict())
    ids = torch.randint(5, 40, (2, 12))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.7, -100)
    one, other = plain(input_ids=ids, labels=labels), sparse(input_ids=ids, labels=labels)
    assert torch.allclose(one.loss, other.loss, atol=1e-6)
    assert other.logits.shape == (1, (labels != -100).sum(), 40)
    one.loss.backward()
    other.loss.backward()
    for x, y in zip(plain.parameters(), sparse.parameters(), strict=True):
        assert (x.grad is None and y.grad is None) or torch.allclose(x.grad, y.grad, atol=1e-6)
    assert torch.allclose(plain(input_ids=ids).logits, sparse(input_ids=ids).logits, atol=1e-6)


def test_a_short_validation_file(folder, run):
    (folder / "short.txt").write_text("the cat meows")
    assert "validation_file short: expected 32 tokens or more, got " in run(
        code=2, validation_file=[folder / "short.txt"]
    )
