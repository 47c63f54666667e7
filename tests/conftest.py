"""Small things that several tests need. Sizes are all different, so that a swapped axis cannot pass."""

import dataclasses
import json
import os
import random
import site
import subprocess
import sys
from pathlib import Path
from types import ModuleType


# Before anything that reads it: without it, what a test asks of the Hub is asked for again and again, for 20 seconds.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import Trainer

from autobert_zero.configuration_autobert_zero import PAPER_OPERATIONS, AutoBertZeroConfig, Genome
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.bounds import Bounds
from autobert_zero.search.space.grammar import Grammar


BATCH, TOKENS, VOCAB, HIDDEN, HEADS = 5, 7, 99, 24, 3

SPACE = BackboneSpace(Bounds(num_layers=3, kernel_sizes=(3, 5, 7), max_nodes=12, min_attention_layers=1))
# The same with the operations of the paper, as it was before there were others.
PAPER_SPACE = BackboneSpace(dataclasses.replace(SPACE.bounds, grammar=Grammar(PAPER_OPERATIONS)))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny_config(genome: Genome, **kwargs) -> AutoBertZeroConfig:
    return AutoBertZeroConfig(
        genome=genome.to_list(),
        **{
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "intermediate_size": 37,
            "max_position_embeddings": 32,
            # Larger than usual: with weights near 0 every model says the same, and a leak would not show.
            "initializer_range": 0.3,
            **kwargs,
        },
    )


def random_genome(number: int) -> Genome:
    return SPACE.random(random_stream(number, "test genome"))


def padding_mask() -> torch.Tensor:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, :3] = False
    mask[2, [0, 2, 6]] = False
    return mask


def run_without_package(code: str, *arguments: str, cwd) -> tuple[str, str]:
    """What `code` writes to standard output and error, in a process with the whole environment but this package."""
    path = f"import sys; sys.path[:0] = {site.getsitepackages()!r}\n"
    missing = "import importlib.util; assert importlib.util.find_spec('autobert_zero') is None\n"
    # -S: no site, so no trace of an editable install; -P: not the current folder.
    command = [sys.executable, "-S", "-P", "-c", path + missing + code, *arguments]
    environment = {**os.environ, "HF_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def count_steps(monkeypatch) -> list[int]:
    """A list that gets an entry for each micro-batch that a Trainer of transformers trains on."""
    steps: list[int] = []
    original = Trainer.training_step

    def training_step(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    return steps


def run_script(monkeypatch, script: ModuleType, *flags: str, **arguments) -> None:
    """What the script does with `--name value` for each argument, in this process."""
    given = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", [script.__name__, *given, *flags])
    script.main()


def fine_tune(monkeypatch, script: ModuleType, model: Path, folder: Path, file: str, **more) -> dict:
    """Run a script that trains and evaluates on one file of a folder. Returns its results."""
    arguments = {
        "model_name_or_path": model,
        "output_dir": folder / "out",
        "train_file": folder / file,
        "validation_file": folder / file,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "disable_tqdm": "true",
        "save_strategy": "no",
        **more,
    }
    run_script(monkeypatch, script, "--trust_remote_code", **arguments)
    return json.loads((folder / "out" / "results.json").read_text())


def write_corpus(path, documents: int = 30, seed: int = 0) -> str:
    """Text with something to learn: sentences whose words depend on each other."""
    rng = random.Random(seed)
    subjects = {"the cat": "meows", "the dog": "barks", "a bird": "sings", "the cow": "moos", "one lion": "roars"}
    lines = []
    for _ in range(documents):
        for _ in range(12):
            subject = rng.choice(list(subjects))
            lines.append(f"{subject} {subjects[subject]} near house {rng.randrange(40)} .")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


# A run of seconds. Dropout is on, so that its randomness is tested, too.
TINY_RUN = {
    "vocab_size": 150,
    "sequence_length": 16,
    "eval_sequences": 8,
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "dropout": 0.1,
    "kernel_sizes": [3, 5, 9],
    "max_nodes": 8,
    "max_evaluations": 9,
    "population_size": 4,
    "num_parents": 2,
    "num_children": 2,
    "batch_size": 4,
    "supernet_steps": 8,
    "candidate_steps": 3,
    "final_steps": 6,
    "num_threads": 1,
}


@pytest.fixture
def tiny_settings(tmp_path) -> SearchSettings:
    corpus = write_corpus(tmp_path / "corpus.txt")
    return SearchSettings.from_dict({"output_dir": str(tmp_path / "run"), "train_file": [corpus], **TINY_RUN})


def command_line(settings: SearchSettings) -> list[str]:
    """The arguments that give these settings."""
    arguments = []
    for name, value in settings.to_dict().items():
        if value is None or value == [] or value is False:
            continue
        arguments.append(f"--{name}")
        if value is not True:
            arguments += [str(v) for v in (value if isinstance(value, list) else [value])]
    return arguments
