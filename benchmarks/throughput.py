"""Speed of the published base architecture beside BERT, ConvBERT and ModernBERT of transformers, at random weights.

    python benchmarks/throughput.py --output results/throughput/cpu.json --num_threads 2
    python benchmarks/throughput.py --output results/throughput/cpu.json --texts sst2.jsonl --vocab_file vocab.txt

Within a row the models take turns, round after round, so that other load on the machine affects all alike; times are
medians. Rows that the output file contains are not measured again. Every row is one step: a forward pass without
gradients, or forward, loss and backward with dropout. Attention masks are given. Padding rows use whole files of real
texts, batch by batch, padded to the longest of a batch, and count real tokens only.
"""

import argparse
import functools
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, ConvBertConfig, ConvBertModel, ModernBertConfig, ModernBertModel

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel, DepthwiseConvolution
from autobert_zero.search.evaluation.measure import count_flops, default_device, synchronize
from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance


POSITIONS = 2048
OURS = "AutoBERT-Zero"
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    OURS: lambda: AutoBertZeroModel(
        AutoBertZeroConfig.preset("autobert-zero-base", max_position_embeddings=POSITIONS)
    ),
    "BERT": lambda: BertModel(BertConfig(max_position_embeddings=POSITIONS, attn_implementation="sdpa")),
    "ConvBERT": lambda: ConvBertModel(ConvBertConfig(max_position_embeddings=POSITIONS)),
    "ModernBERT": lambda: ModernBertModel(ModernBertConfig(attn_implementation="sdpa", reference_compile=False)),
    f"{OURS}, reference": lambda: AutoBertZeroModel(
        AutoBertZeroConfig.preset("autobert-zero-base", max_position_embeddings=POSITIONS, attn_implementation="eager")
    ),
}
BASES = [OURS, "BERT", "ConvBERT", "ModernBERT"]
EXECUTORS = [OURS, f"{OURS}, reference"]

# (models, mode, batch, tokens, dtype)
ROWS = {
    "cpu": [
        (BASES, "inference", 8, 128, "float32"),
        (BASES, "training", 8, 128, "float32"),
        (BASES, "inference", 2, 512, "float32"),
        (BASES, "training", 2, 512, "float32"),
        (BASES, "inference", 1, 2048, "float32"),
        (BASES, "inference", 8, 128, "bfloat16"),
        (EXECUTORS, "inference", 8, 128, "float32"),
        (EXECUTORS, "inference", 1, 2048, "float32"),
        (EXECUTORS, "training", 2, 512, "float32"),
    ],
    "cuda": [
        (BASES, mode, 32, tokens, dtype)
        for tokens in (128, 512)
        for mode in ("inference", "training", "compiled inference", "compiled training")
        for dtype in ("bfloat16",)
    ],
}


def step(model: torch.nn.Module, mode: str, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """One step, synchronized. Training keeps weights in float32 and uses autocast to `dtype`."""
    device = inputs["input_ids"].device
    if mode.endswith("inference"):
        with torch.inference_mode():
            model(**inputs)
    else:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            model(**inputs).last_hidden_state.float().square().mean().backward()
        model.zero_grad(set_to_none=True)
    synchronize()


def prepare(name: str, mode: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().to(device)
    if mode.endswith("inference"):
        model = model.eval().to(dtype)
    else:
        model.train()
    return torch.compile(model) if mode.startswith("compiled") else model


def random_inputs(batch: int, tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 30000, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def take_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round. The order rotates from round to round."""
    for run in steps.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float], baseline: list[float]) -> dict[str, float]:
    """Median, and the median and quartiles of the ratios to the baseline of the same round."""
    ratios = [b / s for s, b in zip(seconds, baseline, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "seconds": round(statistics.median(seconds), 5),
        "relative": round(statistics.median(ratios), 3),
        "relative_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
    }


def matmul_rate(tokens: int, dtype: torch.dtype, device: torch.device, width: int = 768) -> Callable[[], float]:
    """Measure the FLOP/s of the largest matrix product of the models: the practical peak of the machine."""
    a = torch.randn(tokens, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)

    def measure() -> float:
        repeats = 10
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        synchronize()
        return 2 * a.numel() * b.shape[1] * repeats / (time.perf_counter() - start)

    return measure


def peak_memory(name: str, mode: str, batch: int, tokens: int, dtype: str, device: torch.device) -> float:
    """Peak memory of a separate process, or of the GPU, in MiB."""
    command = [sys.executable, __file__, "--peak_memory", name, mode, str(batch), str(tokens), dtype, device.type]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def process_peak() -> int:
    """Bytes of the largest size of this process so far (on Linux)."""
    # Not `ru_maxrss`: it starts at the peak of the parent process.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def measure_peak(name, mode, batch, tokens, dtype, device) -> float:
    device = torch.device(device)
    model = prepare(name, mode, getattr(torch, dtype), device)
    step(model, mode, random_inputs(int(batch), int(tokens), device), getattr(torch, dtype))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return process_peak() / 2**20


def measure_row(row, rounds: int, device: torch.device) -> dict:
    names, mode, batch, tokens, dtype_name = row
    dtype = getattr(torch, dtype_name)
    inputs = random_inputs(batch, tokens, device)
    models = {name: prepare(name, mode, dtype, device) for name in names}
    rate = matmul_rate(batch * tokens, dtype, device)
    rates: list[float] = []

    def stepper(name: str) -> Callable[[], None]:
        return lambda: step(models[name], mode, inputs, dtype)

    seconds = take_turns({**{name: stepper(name) for name in names}, "matmul": lambda: rates.append(rate())}, rounds)
    baseline = seconds["BERT" if "BERT" in names else f"{OURS}, reference"]
    results = {}
    for name in names:
        result = summary(seconds[name], baseline)
        results[name] = {**result, "tokens_per_second": round(batch * tokens / result["seconds"])}
    return {"rounds": rounds, "matmul_gflops": round(statistics.median(rates) / 1e9, 1), "models": results}


def count_costs(row, device: torch.device) -> dict:
    """FLOPs and parameters of the models of a row.

    A backward pass is counted as twice the forward pass: torch's counter counts a depth-wise backward as a dense one.
    """
    names, mode, batch, tokens, _ = row
    costs = {}
    for name in names:
        model = prepare(name, "inference", torch.float32, device)
        flops = count_flops(
            functools.partial(step, model), "inference", random_inputs(batch, tokens, device), torch.float32
        )
        passes = 1 if mode.endswith("inference") else 3
        costs[name] = {
            "gflop": round(passes * flops / 1e9, 2),
            "parameters": model.num_parameters(),
        }
    return {"costs": costs}


def measure_memory(row, device: torch.device) -> dict:
    names, *given = row
    return {"peak_mib": {name: round(peak_memory(name, *given, device)) for name in names}}


def measure_padding(texts: Path, vocab_file: str, batch: int, rounds: int, device: torch.device) -> dict:
    """Real tokens per second on the texts of a file of JSON lines with one or two texts each."""
    from datasets import load_dataset
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast(vocab=vocab_file)
    rows = load_dataset("json", data_files=str(texts), split="train")
    columns = [name for name in ("sentence", "sentence1", "question1", "sentence2", "question2") if name in rows[0]]
    batches = [
        tokenizer(
            *(list(part[name]) for name in columns), padding=True, truncation=True, max_length=512, return_tensors="pt"
        ).to(device)
        for part in rows.iter(batch)
    ]
    names = [OURS, f"{OURS}, padded", "BERT"]
    models = {name: prepare(name.removesuffix(", padded"), "inference", torch.float32, device) for name in names}
    models[f"{OURS}, padded"].config.unpad_inputs = False
    real = sum(int(b["attention_mask"].sum()) for b in batches)
    results: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        total = dict.fromkeys(names, 0.0)
        for number, inputs in enumerate(batches):
            for name in names[number % 3 :] + names[: number % 3]:
                start = time.perf_counter()
                step(models[name], "inference", dict(inputs), torch.float32)
                total[name] += time.perf_counter() - start
        for name in names:
            results[name].append(total[name])
    return {
        "rounds": rounds,
        "sequences": len(rows),
        "real_tokens": real,
        "share_of_real_tokens": round(real / sum(b["input_ids"].numel() for b in batches), 3),
        "models": {
            name: {
                "seconds": round(statistics.median(seconds), 3),
                "useful_tokens_per_second": round(real / statistics.median(seconds)),
                "relative": round(statistics.median(b / s for s, b in zip(seconds, results["BERT"], strict=True)), 3),
            }
            for name, seconds in results.items()
        },
    }


def measure_convolutions(batch: int, tokens: int, rounds: int, device: torch.device, dtype: torch.dtype) -> dict:
    """Milliseconds of the depth-wise convolution alone, forward and with backward, beside a linear map of this width."""
    x = torch.randn(batch, tokens, 768, device=device, dtype=dtype, requires_grad=True)
    results = {}
    modules: dict[str, torch.nn.Module] = {
        f"convolution {k}": DepthwiseConvolution(768, 768, k, padding=k // 2, groups=768) for k in (3, 9, 31, 65)
    }
    modules["linear 768x768"] = torch.nn.Linear(768, 768)
    for name, module in modules.items():
        module = module.to(device, dtype)

        def forward(module=module):
            if isinstance(module, DepthwiseConvolution):  # of (batch, channels, tokens), as in a layer of the model
                return module(x.transpose(1, 2)).transpose(1, 2)
            return module(x)

        def inference(forward=forward):
            with torch.inference_mode():
                forward()
            synchronize()

        def training(forward=forward, module=module):
            y = forward()
            torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y))
            synchronize()

        seconds = take_turns({"inference": inference, "training": training}, rounds)
        results[name] = {mode: round(statistics.median(s) * 1e3, 3) for mode, s in seconds.items()}
    return {"rounds": rounds, "milliseconds": results}


def table(results: dict) -> str:
    rows = results["rows"]
    lines = ["| row | model | tokens/s | relative | of matmul rate | GFLOP | parameters | peak MiB |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for label, row in rows.items():
        costs = rows.get(f"{label}, costs", {}).get("costs", {})
        peaks = rows.get(f"{label}, memory", {}).get("peak_mib", {})
        for name, m in row.get("models", {}).items():
            speed = m.get("tokens_per_second", m.get("useful_tokens_per_second"))
            cells = ["", "", ""]
            if name in costs:
                cost = costs[name]
                fraction = cost["gflop"] / m["seconds"] / row["matmul_gflops"]
                cells = [f"{fraction:.0%}", f"{cost['gflop']:,.0f}", f"{cost['parameters']:,}"]
            cells.append(f"{peaks[name]:,}" if name in peaks else "")
            lines.append(f"| {label} | {name} | {speed:,} | {m['relative']:.2f} | {' | '.join(cells)} |")
    lines += ["", "| row | module | inference ms | with backward ms |", "| --- | --- | ---: | ---: |"]
    for label, row in rows.items():
        for name, m in row.get("milliseconds", {}).items():
            lines.append(f"| {label} | {name} | {m['inference']:.2f} | {m['training']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file that rows are added to")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num_threads", type=int, default=None)
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="JSON lines for the padding rows")
    parser.add_argument("--vocab_file", help="WordPiece vocabulary for --texts")
    parser.add_argument("--peak_memory", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory:
        print(measure_peak(*args.peak_memory))
        return
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    device = default_device()
    commit = current_commit()  # before the output file changes
    results = {"rows": {}}
    if args.output and args.output.exists():
        results = json.loads(args.output.read_text(encoding="utf-8"))
    jobs: dict[str, Callable[[], dict]] = {}
    for row in ROWS[device.type]:
        names, mode, batch, tokens, dtype = row
        label = f"{mode} {batch}×{tokens} {dtype}" + (", executors" if names is EXECUTORS else "")
        jobs[label] = lambda row=row: measure_row(row, args.rounds, device)
        jobs[f"{label}, costs"] = lambda row=row: count_costs(row, device)
        jobs[f"{label}, memory"] = lambda row=row: measure_memory(row, device)
    for dtype in ("float32",) if device.type == "cpu" else ("bfloat16",):
        jobs[f"convolution 8×128 {dtype}"] = lambda dtype=dtype: measure_convolutions(
            8, 128, 20 * args.rounds, device, getattr(torch, dtype)
        )
    for path in args.texts:
        jobs[f"inference {path.stem} validation, batch 32, padded to the longest, float32"] = lambda path=path: (
            measure_padding(path, args.vocab_file, 32, min(args.rounds, 3), device)
        )
    for label, job in jobs.items():
        if label in results["rows"]:
            continue
        start = time.perf_counter()
        measured = job()
        gc.collect()
        results["rows"][label] = {
            **measured,
            **provenance(commit, device.type),
            "num_threads": torch.get_num_threads(),
            "measured_in_seconds": round(time.perf_counter() - start),
        }
        print(label, results["rows"][label]["measured_in_seconds"], "s", flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.output, results)
    print(table(results))


if __name__ == "__main__":
    main()
