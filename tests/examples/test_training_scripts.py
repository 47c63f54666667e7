"""What the training scripts share: bad command lines and models, folders and checkpoints that are damaged."""

import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import training_scripts
from training_scripts import (
    CheckpointDigests,
    FileArguments,
    FineTuningArguments,
    OrderedTrainer,
    claim_folder,
    last_checkpoint,
    load_model,
    load_parts,
    parse,
    steps_identity,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
)

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.text.tokens import train_tokenizer
from tests.conftest import tiny_config


@dataclass
class Options(FileArguments):
    max_seq_length: int | None = None


def parsed(monkeypatch, *arguments: str):
    files = ["--model_name_or_path", "m", "--train_file", "a.txt", "--validation_file", "~/b.txt"]
    monkeypatch.setattr(sys, "argv", ["script", *files, "--output_dir", "out", *arguments])
    return parse("", Options, FineTuningArguments)[1]


def test_a_command_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options, args = parsed(monkeypatch, "--output_dir", "~/out", "--seed", "3")
    assert options.validation_file == str(tmp_path / "b.txt") and args.output_dir == str(tmp_path / "out")
    assert args.seed == 3 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat 1; did you mean --learning_rate?"),
        (["more"], "unrecognized arguments: more"),
        (["--learning_rate", "nan"], "learning_rate: expected a positive number, got nan"),
        (["--learning_rate", "inf"], "learning_rate: expected a positive number, got inf"),
        (["--learning_rate", "-1"], "learning_rate: expected a positive number, got -1.0"),
        (["--seed", "-1"], "seed: expected 0 to 4294967295, got -1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size: expected at least 1, got 0"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps: expected at least 1, got 0"),
        (["--save_total_limit", "1"], "save_total_limit: expected at least 2, got 1"),
        (["--output_dir", "x" * 300], "output_dir: expected a folder that can be written"),
        (["--max_steps", "0"], "max_steps: expected a positive number, got 0"),
        (["--save_only_model", "true"], "save_only_model: expected false, because a training is resumed"),
        (["--prediction_loss_only", "true"], "prediction_loss_only: expected false, got true"),
        (["--resume_from_checkpoint", "x"], "resume_from_checkpoint: expected none, because the same command"),
        (["--num_train_epochs", "0"], "num_train_epochs: expected a positive number, got 0.0"),
        (["--output_dir", ""], "output_dir: expected a value, got ''"),
        (["--output_dir", "file"], "output_dir: expected a folder that can be written, got 'file'"),
        (["--output_dir", "file/out"], "output_dir: expected a folder that can be written, got 'file/out'"),
        (["--train_file", "caf\udce9"], "train_file: expected text that UTF-8 can encode"),
    ],
)
def test_bad_command_lines(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit, match="2"):
        parsed(monkeypatch, *arguments)
    assert f"script: error: {message}" in capsys.readouterr().err
    assert os.listdir() == ["file"]


def test_the_precision_of_the_launcher_is_recorded(monkeypatch):
    """As `accelerate launch --mixed_precision bf16` sets it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = parsed(monkeypatch)[-1]
    assert args.bf16 and steps_identity(args)["bf16"] == "True"


@pytest.mark.parametrize(
    "option", [{"train_sampling_strategy": "group_by_length"}, {"dataloader_drop_last": True}], ids=str
)
def test_predictions_are_of_all_rows_in_their_order(model, tmp_path, option):
    rows = datasets.Dataset.from_dict({"input_ids": [[5] * length for length in (3, 9, 2, 7, 5, 8, 4, 6, 1, 10)]})
    args = TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, use_cpu=True, report_to="none", **option)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = load(model)
    trainer = OrderedTrainer(network, args, DataCollatorWithPadding(tokenizer), processing_class=tokenizer)
    with torch.no_grad():
        expected = torch.cat([network(torch.tensor([ids])).logits for ids in rows["input_ids"]])
    assert torch.tensor(trainer.predict(rows).predictions).allclose(expected, atol=1e-5)
    assert {name: getattr(args, name) for name in option} == option  # as it was


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["the cat meows"] * 3, vocab_size=64, model_max_length=32)
    tokenizer.save_pretrained(folder)
    config = tiny_config(Genome([Convolution(3), SELF_ATTENTION]), vocab_size=len(tokenizer))
    AutoBertZeroForMaskedLM(config).save_pretrained(folder)
    return folder


def load(folder: Path, max_seq_length: int | None = None, pairs: bool = False, attn_implementation: str | None = None):
    options = SimpleNamespace(
        model_name_or_path=str(folder),
        model_revision="main",
        trust_remote_code=True,
        max_seq_length=max_seq_length,
        attn_implementation=attn_implementation,
    )
    return load_model(AutoModelForSequenceClassification, options, load_parts(options, pairs))


def _change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def _without_a_layer(folder: Path) -> None:
    model = AutoBertZeroForMaskedLM.from_pretrained(folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".layer.1." not in name}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


DAMAGES = {
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a list": lambda folder: (folder / "config.json").write_text("[]"),
    "a field of another type": lambda folder: _change_config(folder, hidden_size="x"),
    "another genome": lambda folder: _change_config(folder, genome=3),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "half of the weights": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "empty weights": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "weights without a layer": _without_a_layer,
    "weights of another size": lambda folder: _change_config(folder, hidden_size=48),
    "an empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_named_before_anything_is_trained(model, tmp_path, damage):
    folder = shutil.copytree(model, tmp_path / "model")
    load(folder)  # a new head and pooler are no damage
    DAMAGES[damage](folder)
    with pytest.raises(ValueError, match=r"^model: |^expected a tokenizer|weights: expected"):
        load(folder)


def test_the_implementation_of_attention(model):
    assert load(model).config._attn_implementation == "sdpa"
    assert load(model, attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"^attn_implementation: .*foo"):
        load(model, attn_implementation="foo")


def test_lengths_without_room_for_a_token(model):
    for length, pairs, least in ((2, False, 3), (0, False, 3), (-1, False, 3), (4, True, 5)):
        with pytest.raises(ValueError, match=rf"max_seq_length: expected at least {least}.*, got {length}$"):
            load(model, length, pairs)
    load(model, 3)
    load(model, 5, pairs=True)


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"):
        (checkpoint / name).write_text(f"{name} of step {step}")
    args = SimpleNamespace(output_dir=str(folder), should_save=True)
    CheckpointDigests().on_save(args, SimpleNamespace(global_step=step), None)
    return checkpoint


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_is_not_resumed(tmp_path, caplog, name):
    checkpoints = {step: write_checkpoint(tmp_path, step) for step in (9, 10, 100)}
    (tmp_path / "checkpoint-best").mkdir()
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == str(checkpoints[100]) and not caplog.records
        (checkpoints[100] / name).unlink()
        (checkpoints[10] / name).write_text("other")
        assert last_checkpoint(tmp_path) == str(checkpoints[9])
    assert len(caplog.records) == 2 and f"{name}: not what was written" in caplog.text
    # Trainer would count them, and remove others.
    assert {path.name for path in tmp_path.iterdir()} == {
        *("checkpoint-100.damaged", "checkpoint-10.damaged", "checkpoint-9", "checkpoint-best")
    }


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"model.safetensors": 3}'])
def test_damaged_digests(tmp_path, content):
    checkpoint = write_checkpoint(tmp_path, 9)
    (checkpoint / CheckpointDigests.FILE).write_text(content)
    assert last_checkpoint(tmp_path) is None


def test_folders_in_a_checkpoint(tmp_path):
    """Sharded models have some."""
    (tmp_path / "checkpoint-9" / "optimizer").mkdir(parents=True)
    (tmp_path / "checkpoint-9" / "optimizer" / "shard").write_text("1")
    args = SimpleNamespace(output_dir=str(tmp_path), should_save=True)
    (tmp_path / "checkpoint-9" / "trainer_state.json").touch()
    CheckpointDigests().on_save(args, SimpleNamespace(global_step=9), None)
    assert last_checkpoint(tmp_path) is not None
    (tmp_path / "checkpoint-9" / "optimizer" / "shard").write_text("2")
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
def test_a_damaged_record_of_what_a_folder_holds(tmp_path, content):
    args = FineTuningArguments(output_dir=str(tmp_path))
    claim_folder(args, {"a": 1})
    claim_folder(args, {"a": 1})
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ValueError, match=r"training\.json: "):
        claim_folder(args, {"a": 1})


def test_a_training_that_diverged_has_an_exit_code_of_its_own(capsys):
    with pytest.raises(SystemExit) as ended:
        training_scripts.end_diverged()
    assert ended.value.code == training_scripts.DIVERGED not in (0, 1, 2)
    assert "error: the training diverged" in capsys.readouterr().err
