"""What the layers of encoders do to tokens, and what the encoders cost: numbers, and a picture each.

    python examples/analyze.py --models runs/found/model runs/bert --trust_remote_code --text_file text.txt --output_dir analysis

- `token_uniformity.png`: mean cosine similarity of two tokens of a sequence, after each layer. Where it comes near 1, all tokens say
  the same; that stacked self-attention leads there is an argument of the paper for other layers.
- `singular_values.png`: of each layer's matrix of tokens, relative to the largest; the fewer are large, the less it holds.
- `costs.png`: parameters, operations of a forward pass, and its time.

Everything is in `analysis.json`, too. Models are any encoders of transformers.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")  # files only, wherever it runs

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from autobert_zero.search import own_operations, reporting
from autobert_zero.search.data import cut
from autobert_zero.search.settings import TextSettings
from autobert_zero.search.text import expect_vocabulary, stream_documents, tokenize


# Distinct also in print and to the colour-blind (Okabe and Ito's palette), and by their marks.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def backbone_flops(backbone: PreTrainedModel, tokens: int) -> int:
    """Operations of matrix products and convolutions in a forward pass over one sequence."""
    # By plain products: the counter does not know what fused attention on a CPU is made of.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone(torch.ones((1, tokens), dtype=torch.long, device=backbone.device))
    return counter.get_total_flops()


def token_similarity(states: torch.Tensor) -> float:
    """Mean cosine similarity of two different tokens of a sequence; `states` (sequences, tokens, width)."""
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    count = states.shape[1]
    # The sum of all products is the square of the sum; the products of tokens with themselves are 1 each.
    sums = unit.sum(1).square().sum(-1)
    return float(((sums - unit.square().sum((1, 2))) / (count * (count - 1))).mean())


def relative_singular_values(states: torch.Tensor) -> np.ndarray:
    """Of the matrices of tokens, relative to the largest of each, mean over sequences; (values,), descending."""
    values = torch.linalg.svdvals(states.double())
    return (values / values[:, :1]).mean(0).numpy()


def effective_rank(values: np.ndarray) -> float:
    """The exponential of the entropy of singular values as shares (Roy and Vetterli, 2007)."""
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@torch.no_grad()
def latencies(runs: Sequence[tuple[PreTrainedModel, torch.Tensor]], rounds: int) -> list[float]:
    """Median milliseconds of each model's forward pass, after three for warm-up; they take turns, so that what else the
    machine does hits all alike."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(3 + rounds):
        for (model, ids), times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            model(ids)
            if ids.device.type != "cpu":
                torch.accelerator.synchronize()
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times[3:]) for times in seconds]


def load(name: str, arguments: argparse.Namespace) -> tuple[PreTrainedModel, torch.Tensor]:
    """A model, and the sequences that it reads.

    Raises: ValueError for a text too short, and a model without so many positions; OSError for no model.
    """
    if arguments.trust_remote_code:
        own_operations.load_beside(AutoConfig.from_pretrained(name, trust_remote_code=True), name)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    expect_vocabulary(tokenizer, name)
    model = AutoModel.from_pretrained(name, trust_remote_code=arguments.trust_remote_code).eval()
    length = arguments.sequence_length
    if length > model.config.max_position_embeddings:
        raise ValueError(
            f"sequence_length: expected at most {model.config.max_position_embeddings}, the positions of {name!r}, got {length}"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"models: expected a tokenizer of at most {model.config.vocab_size} tokens, the vocabulary of {name!r}, "
            f"got one of {len(tokenizer)}"
        )
    documents = itertools.islice(stream_documents(TextSettings(train_file=[arguments.text_file])), 1000)
    rows = cut(tokenize(documents, tokenizer), tokenizer.cls_token_id, length)[: arguments.sequences]
    if len(rows) < arguments.sequences:
        raise ValueError(f"text_file: expected {arguments.sequences} sequences of {length} tokens, got {len(rows)}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model.to(device)
    ids = torch.from_numpy(rows.astype(np.int64)).to(device)
    return model, ids


@torch.no_grad()
def analyze(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, Any]:
    """What is in the pictures but times, for sequences (sequences, tokens)."""
    states = [state.float().cpu() for state in model(ids, output_hidden_states=True).hidden_states]
    spectra = [relative_singular_values(state) for state in states]
    return {
        "token_similarity": [round(token_similarity(state), 5) for state in states],
        "effective_rank": [round(effective_rank(values), 2) for values in spectra],
        "singular_values": [[round(float(v), 6) for v in values] for values in spectra],
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": backbone_flops(model, ids.shape[1]),
    }


def distinct_labels(names: list[str]) -> list[str]:
    """Names without the folders that all begin or end with, where they differ without; of a single one its last folder.

    Raises: ValueError for a name that comes twice.
    """
    parts = [Path(name).parts for name in names]
    if len(set(parts)) < len(parts):
        raise ValueError(f"models: expected each once, got {names}")
    if len(parts) == 1:
        return [parts[0][-1]]

    def shared(paths: list[tuple[str, ...]]) -> int:
        return sum(1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*paths, strict=False)))

    start = shared(parts)
    end = shared([path[start:][::-1] for path in parts])
    short = ["/".join(path[start : len(path) - end]) or path[-1] for path in parts]
    return short if len(set(short)) == len(short) else names


def draw_similarity(results: dict[str, dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, result), color, marker in zip(results.items(), itertools.cycle(COLORS), itertools.cycle(MARKERS)):
        axes.plot(result["token_similarity"], color=color, marker=marker, label=name)
    axes.set(xlabel="layer (0: embeddings)", ylabel="mean cosine similarity of two tokens", ylim=(None, 1.02))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_singular_values(results: dict[str, dict[str, Any]], path: Path) -> None:
    figure, all_axes = plt.subplots(
        1, len(results), figsize=(1 + 4 * len(results), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (name, result) in zip(all_axes[0], results.items(), strict=True):
        layers = len(result["singular_values"])
        for layer, values in enumerate(result["singular_values"]):
            color = plt.get_cmap("viridis")(0.9 * layer / max(1, layers - 1))
            axes.plot(
                range(1, len(values) + 1), values, color=color, label=f"layer {layer}" if layer else "embeddings"
            )
        axes.set(title=name, xlabel="singular value", xscale="log", yscale="log", ylim=(1e-4, 1.5))
    all_axes[0][0].set_ylabel("relative to the largest")
    all_axes[0][-1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_costs(results: dict[str, dict[str, Any]], path: Path) -> None:
    panels = {"parameters": 1e6, "flops": 1e6, "milliseconds": 1}
    titles = ("million parameters", "million operations, one sequence", "milliseconds, one sequence")
    figure, all_axes = plt.subplots(1, 3, figsize=(11, 1 + 0.5 * len(results)), sharey=True, layout="constrained")
    for axes, (key, unit), title in zip(all_axes, panels.items(), titles, strict=True):
        bars = axes.barh(list(results), [r[key] / unit for r in results.values()], color=COLORS[0])
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.margins(x=0.2)
        axes.xaxis.set_major_locator(plt.MaxNLocator(4))
        axes.set_title(title, fontsize="medium")
    all_axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    commit = reporting.commit()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", required=True, help="Folders or Hub names.")
    parser.add_argument("--text_file", required=True, help="Text that the models read.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder for numbers and pictures.")
    parser.add_argument("--sequence_length", type=int, default=64, help="Tokens in a sequence (default: 64).")
    parser.add_argument("--sequences", type=int, default=64, help="Sequences (default: 64).")
    parser.add_argument("--rounds", type=int, default=21, help="Timed forward passes (default: 21).")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the code beside a model.")
    given = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        labels = distinct_labels(given.models)
        runs = [load(name, given) for name in given.models]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    times = latencies([(model, ids[:1]) for model, ids in runs], given.rounds)
    results = {
        label: {**analyze(*run), "milliseconds": round(milliseconds, 3)}
        for label, run, milliseconds in zip(labels, runs, times, strict=True)
    }
    given.output_dir.mkdir(parents=True, exist_ok=True)
    provenance = {
        "text": Path(given.text_file).name,
        "sequences": given.sequences,
        "sequence_length": given.sequence_length,
        **reporting.provenance(commit, "cuda" if torch.cuda.is_available() else "cpu"),
        "threads": torch.get_num_threads(),
    }
    reporting.write_json(given.output_dir / "analysis.json", {**provenance, "models": results})
    draw_similarity(results, given.output_dir / "token_uniformity.png")
    draw_singular_values(results, given.output_dir / "singular_values.png")
    draw_costs(results, given.output_dir / "costs.png")
    for name, result in results.items():
        shown = {
            key: result[key] for key in ("token_similarity", "effective_rank", "parameters", "flops", "milliseconds")
        }
        print(name, json.dumps(shown))


if __name__ == "__main__":
    main(sys.argv[1:])
