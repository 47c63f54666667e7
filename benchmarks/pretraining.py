"""Does the data pipeline slow down pre-training? Tokens per second of `run_pretraining.py` relative to a bare loop on
batches in memory.

    python benchmarks/pretraining.py --genome autobert-zero-small --train_file text.txt --max_steps 40 \\
        --per_device_train_batch_size 16 --output_dir runs/speed --results results/pretraining_speed.json

Accepts the arguments of `run_pretraining.py`. Both train the same model with AdamW and clipped gradients, in turn, several
times, in one process; the first fifth of the steps of each turn is not timed.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import HfArgumentParser, Trainer, TrainerCallback


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import run_pretraining

from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.settings import TextSettings
from autobert_zero.search.text.packing import join_blocks


# Number of batches that the bare loop cycles through.
BATCHES = 8


@dataclasses.dataclass
class SpeedSettings:
    rounds: int = dataclasses.field(default=5, metadata={"help": "Turns of each loop."})
    results: str | None = dataclasses.field(default=None, metadata={"help": "JSON file of the results."})


class Clock(TrainerCallback):
    """Seconds from the end of step `first` to the end of the last step."""

    def __init__(self, first: int):
        self.first = first
        self.start = self.end = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.end = time.perf_counter()
        if state.global_step == self.first:
            self.start = self.end


def bare(trainer: Trainer, model: torch.nn.Module, steps: int, first: int) -> float:
    args, size = trainer.args, trainer.args.per_device_train_batch_size
    batches = [
        join_blocks([trainer.train_dataset[i] for i in range(n * size, (n + 1) * size)])
        for n in range(min(BATCHES, steps))
    ]
    batches = [{name: tensor.to(args.device) for name, tensor in batch.items()} for batch in batches]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, fused=True)
    model.train()
    start = 0.0
    for step in range(steps):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == first:
            loss.item()  # waits for the device
            start = time.perf_counter()
    loss.item()
    return time.perf_counter() - start


def main() -> None:
    parser = HfArgumentParser(
        (
            run_pretraining.ModelArguments,
            TextSettings,
            run_pretraining.PretrainingArguments,
            run_pretraining.TrainingArguments,
            SpeedSettings,
        ),  # type: ignore[arg-type]
        description=__doc__,
    )
    model_arguments, text, options, args, speed = parser.parse_args_into_dataclasses()
    args.eval_strategy = args.save_strategy = "no"
    args.disable_tqdm = True
    first = max(1, args.max_steps // 5)
    commit = current_commit()
    rates: dict[str, list[float]] = {"bare loop": [], "run_pretraining.py": []}
    tokens = (args.max_steps - first) * args.per_device_train_batch_size * options.max_seq_length
    for _ in range(speed.rounds):
        with tempfile.TemporaryDirectory() as folder:
            args.output_dir = folder
            trainer = run_pretraining.Pretraining.set_up(model_arguments, text, options, args).trainer
            clock = Clock(first)
            trainer.add_callback(clock)
            weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            rates["bare loop"].append(tokens / bare(trainer, trainer.model, args.max_steps, first))
            trainer.model.load_state_dict(weights)
            trainer.train()
            rates["run_pretraining.py"].append(tokens / (clock.end - clock.start))
            print({name: round(values[-1]) for name, values in rates.items()}, flush=True)
    ratios = [a / b for a, b in zip(rates["run_pretraining.py"], rates["bare loop"], strict=True)]
    print(f"fraction of the bare loop: median {statistics.median(ratios):.3f} of {[round(r, 3) for r in ratios]}")
    if speed.results:
        result = {
            **provenance(commit, args.device.type),
            "threads": torch.get_num_threads(),
            "tokens_per_second": {name: [round(v, 1) for v in values] for name, values in rates.items()},
            "fraction": {"median": round(statistics.median(ratios), 4), "each": [round(r, 4) for r in ratios]},
        }
        write_json(Path(speed.results), result)


if __name__ == "__main__":
    main()
