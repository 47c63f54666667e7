"""What the layers of encoders do to tokens, and what the encoders cost, as numbers and pictures.

    python examples/analyze.py --models runs/found/model runs/bert --trust_remote_code --text_file text.txt --output_dir analysis

- `token_uniformity.png`: mean cosine similarity of two tokens of a sequence, after each layer. Near 1 all tokens are alike;
  that stacked self-attention leads there is an argument of the paper for other layers.
- `singular_values.png`: singular values of each layer's matrix of tokens, relative to the largest: the faster they fall, the
  less the matrix holds.
- `attention_by_distance.png`: where each head of each attention looks, as the mean fraction of a token's weights that is so many
  tokens to its left or right. The attentions of a model are counted without its convolutions and without attentions that have
  no weights for pairs of tokens.
- `costs.png`: parameters, FLOPs of a forward pass, and its duration.

All numbers are in `analysis.json`. Models are any encoders of transformers.
"""

import argparse
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")  # writes files, needs no display

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from autobert_zero.search import custom_operations
from autobert_zero.search.evaluation.measure import (
    REACH,
    attention_by_distance,
    count_backbone_flops,
    default_device,
    median_latencies,
)
from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.settings import TextSettings
from autobert_zero.search.text.corpus import cut
from autobert_zero.search.text.documents import stream_documents
from autobert_zero.search.text.tokens import check_fit, expect_vocabulary, tokenize


# Distinct for colour-blind readers (Okabe and Ito's palette) and, with the markers, in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# Sequences whose attentions are in memory at the same time.
BATCH = 16


def token_similarity(states: torch.Tensor) -> float:
    """Mean cosine similarity of two different tokens of a sequence; `states` (sequences, tokens, width)."""
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    count = states.shape[1]
    # The sum of all products is the squared norm of the sum, minus 1 for each token with itself.
    sums = unit.sum(1).square().sum(-1)
    return float(((sums - unit.square().sum((1, 2))) / (count * (count - 1))).mean())


def relative_singular_values(states: torch.Tensor) -> np.ndarray:
    """Singular values of the matrices of tokens, relative to the largest, as a mean over sequences; (values,)."""
    values = torch.linalg.svdvals(states.double())
    return (values / values[:, :1]).mean(0).numpy()


def effective_rank(values: np.ndarray) -> float:
    """The exponential of the entropy of the normalized singular values (Roy and Vetterli, 2007)."""
    fractions = values[values > 0] / values.sum()
    return float(np.exp(-(fractions * np.log(fractions)).sum()))


def load(name: str, arguments: argparse.Namespace) -> tuple[PreTrainedModel, torch.Tensor]:
    """A model, and its input: (sequences, tokens) ids.

    Raises: ValueError if the text is too short or the model has too few positions; OSError for no model.
    """
    if arguments.trust_remote_code:
        custom_operations.load_for_model(AutoConfig.from_pretrained(name, trust_remote_code=True), name)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    expect_vocabulary(tokenizer, name)
    model = AutoModel.from_pretrained(name, trust_remote_code=arguments.trust_remote_code).eval()
    length = arguments.sequence_length
    try:
        check_fit(model.config, tokenizer, length, "sequence_length")
    except ValueError as error:
        raise ValueError(f"models: {name!r}: {error}") from None
    documents = itertools.islice(stream_documents(TextSettings(train_file=[arguments.text_file])), 1000)
    rows = cut(tokenize(documents, tokenizer), tokenizer.cls_token_id, length)[: arguments.sequences]
    if len(rows) < arguments.sequences:
        raise ValueError(f"text_file: expected {arguments.sequences} sequences of {length} tokens, got {len(rows)}")
    device = default_device()
    model.to(device)
    ids = torch.from_numpy(rows.astype(np.int64)).to(device)
    return model, ids


@torch.no_grad()
def analyze(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, Any]:
    """All measurements but latency, for ids (sequences, tokens)."""
    flops = count_backbone_flops(model, ids.shape[1])
    states = [state.float().cpu() for state in model(ids, output_hidden_states=True).hidden_states]
    spectra = [relative_singular_values(state) for state in states]
    model.set_attn_implementation("eager")  # fused attentions have no weights to return
    attentions = attention_by_distance(model, ids.split(BATCH), min(REACH, ids.shape[1] - 1))
    return {
        "token_similarity": [round(token_similarity(state), 5) for state in states],
        "effective_rank": [round(effective_rank(values), 2) for values in spectra],
        "singular_values": [[round(float(v), 6) for v in values] for values in spectra],
        "attention_by_distance": [heads.round(4).tolist() for heads in attentions],
        "parameters": model.num_parameters(),
        "flops": flops,
    }


def distinct_labels(names: list[str]) -> list[str]:
    """Names without the leading and trailing folders that all have, if they remain distinct; the last folder of a single
    name.

    Raises: ValueError for a repeated name.
    """
    parts = [Path(name).absolute().parts for name in names]  # `.` has a name, too
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


def draw_attentions(results: dict[str, dict[str, Any]], path: Path) -> None:
    """A row of panels for each model, a panel for each attention, a curve for each head."""
    columns = max(len(result["attention_by_distance"]) for result in results.values())
    if not columns:
        return
    figure, all_axes = plt.subplots(
        len(results),
        columns,
        figsize=(1 + 2.5 * columns, 0.5 + 2.2 * len(results)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (name, result) in zip(all_axes, results.items(), strict=True):
        row[0].set_ylabel(f"{name}\nfraction of the weight")
        for number, (axes, heads) in enumerate(itertools.zip_longest(row, result["attention_by_distance"]), start=1):
            if heads is None:
                axes.set_axis_off()
                continue
            reach = len(heads[0]) // 2
            for head, color in zip(heads, itertools.cycle(COLORS)):
                axes.plot(range(-reach, reach + 1), head, color=color, linewidth=1)
            axes.set(title=f"attention {number}", xlabel="tokens to the right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_costs(results: dict[str, dict[str, Any]], path: Path) -> None:
    panels = {"parameters": 1e6, "flops": 1e6, "milliseconds": 1}
    titles = ("million parameters", "MFLOPs, one sequence", "milliseconds, one sequence")
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
    commit = current_commit()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", required=True, help="Folders or Hub names.")
    parser.add_argument("--text_file", required=True, help="Text to analyze the models on.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder for numbers and pictures.")
    parser.add_argument("--sequence_length", type=int, default=64, help="Tokens in a sequence (default: 64).")
    parser.add_argument("--sequences", type=int, default=64, help="Sequences (default: 64).")
    parser.add_argument("--rounds", type=int, default=21, help="Timed forward passes (default: 21).")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the code saved with a model.")
    given = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        for name, least in (("sequences", 1), ("sequence_length", 3), ("rounds", 1)):
            if getattr(given, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(given, name)}")
        given.output_dir.mkdir(parents=True, exist_ok=True)
        labels = distinct_labels(given.models)
        runs = [load(name, given) for name in given.models]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    calls = [functools.partial(model, ids[:1]) for model, ids in runs]
    times = median_latencies(calls, runs[0][1].device, given.rounds)
    results = {
        label: {**analyze(*run), "milliseconds": round(milliseconds, 3)}
        for label, run, milliseconds in zip(labels, runs, times, strict=True)
    }
    facts = {
        "text": Path(given.text_file).name,
        "sequences": given.sequences,
        "sequence_length": given.sequence_length,
        **provenance(commit, default_device().type),
        "threads": torch.get_num_threads(),
    }
    write_json(given.output_dir / "analysis.json", {**facts, "models": results})
    draw_similarity(results, given.output_dir / "token_uniformity.png")
    draw_singular_values(results, given.output_dir / "singular_values.png")
    draw_attentions(results, given.output_dir / "attention_by_distance.png")
    draw_costs(results, given.output_dir / "costs.png")
    for name, result in results.items():
        shown = {
            key: result[key] for key in ("token_similarity", "effective_rank", "parameters", "flops", "milliseconds")
        }
        print(name, json.dumps(shown))


if __name__ == "__main__":
    main(sys.argv[1:])
