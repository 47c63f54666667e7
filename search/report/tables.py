"""Numbers as text: means with standard errors, durations, tables of results and genomes."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autobert_zero.configuration_autobert_zero import Genome


# Names of the models of a finished run, by their keys in JSON.
MODELS = {"found": "AutoBERT-Zero (found)", "bert": "BERT", "bert_rotary": "BERT, rotary positions"}


# Arithmetic of a run, by its mixed_precision.
PRECISIONS = {"no": "float32", "bf16": "bfloat16, by autocast", "fp16": "float16, by autocast with scaled losses"}


def mean(values: Sequence[float | None]) -> float | None:
    """None if a value is None: a training that diverged has no mean."""
    return None if None in values else statistics.fmean(values)  # type: ignore[arg-type]


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def mean_and_error(values: Sequence[float | None], digits: int = 4) -> tuple[float | None, float | None]:
    """Mean and standard error, rounded. Both None if a value is None; the error None for a single value."""
    average = mean(values)
    if average is None:
        return None, None
    error = standard_error(values)  # type: ignore[arg-type]
    return round(average, digits), None if error is None else round(error, digits)


def with_error(value: Sequence[float | None] | None, digits: int = 4) -> str:
    """`3.6120 ± 0.0095`; empty for None, `diverged` for a mean of None."""
    if value is None:
        return ""
    average, error = value
    if average is None:
        return "diverged"
    return f"{average:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def perplexity(loss: float | None) -> float | None:
    """Of a loss in nats; None if it overflows."""
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def machine_text(machine: dict[str, Any]) -> str:
    """The machine of a run in words."""
    count, threads = machine["processes"], machine["threads"]
    return f"{machine['device']}, {count} process{'es'[: 2 * (count > 1)]} of {threads} thread{'s'[: threads > 1]}"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first row being the head: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * sum([*widths, 2 * len(widths) - 2]), *lines[1:]])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with a left-aligned first column."""
    divider = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, divider, *rows))


def result_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, parameters, test loss and perplexity of the found model and of all baselines."""
    rows = []
    for name, result in summary["results"].items():
        parameters = "" if result.get("parameters") is None else f"{result['parameters']:,}"
        loss = "diverged" if result["loss"] is None else f"{result['loss']:.4f}"
        value = result.get("perplexity")
        rows.append((name, parameters, loss, "" if value is None else f"{value:,.1f}"))
    return rows


def results_table(summary: Mapping[str, Any]) -> str:
    """The final table of a run."""
    return text_table([("model", "parameters", "test loss", "perplexity"), *result_rows(summary)])


def headline(summary: Mapping[str, Any]) -> str:
    """The result in a sentence; empty if the found model has no perplexity."""
    (_, found), *others = summary["results"].items()
    if found.get("perplexity") is None:
        return ""
    known = [(name, result["perplexity"]) for name, result in others if result.get("perplexity") is not None]
    text = f"On unseen text, the found backbone has a perplexity of {found['perplexity']:,.1f}"
    compared = [f"{value:,.1f} for {name.replace(', ', ' with ')}" for name, value in known if name != "unigram"]
    if compared:
        text += f", against {' and '.join(compared)}, of the same size and trained on the same tokens"
    return f"{text}."


def learning_note(summary: Mapping[str, Any]) -> str:
    """A warning if the found model, or most candidates, are no better than token frequencies, else nothing."""
    found, unigram, counts = next(iter(summary["results"].values())), summary["results"]["unigram"], summary["counts"]
    if found["loss"] is None or found["loss"] >= unigram["loss"]:
        return "The found model has learned no more than token frequencies: train it longer (final_steps)."
    better = counts.get("better_than_unigram")
    if better is not None and 2 * better < counts["evaluated"]:
        return (
            f"Only {better} of the {counts['evaluated']} candidates scored better than token frequencies, so scores tell little "
            "about them: train longer (supernet_steps, candidate_steps)."
        )
    return ""


def attention_text(heads: Sequence[Sequence[float]]) -> str:
    """Where an attention looks, in words, of the mean weight of each head at each distance, from left to right."""
    reach = len(heads[0]) // 2
    average = [statistics.fmean(weights) for weights in zip(*heads, strict=True)]
    parts = {"to the left": average[:reach], "itself": [average[reach]], "to the right": average[reach + 1 :]}
    text = ", ".join(f"{name} {math.fsum(part):.0%}" for name, part in parts.items())
    return f"{text}, more than {reach} tokens away {max(0.0, 1 - math.fsum(average)):.0%}"


def summary_genome(summary: Mapping[str, Any]) -> Genome:
    """The genome of the winner of a run."""
    return Genome.from_list(summary["best"]["genome"], summary.get("custom_operations"))


def layer_importance(summary: Mapping[str, Any]) -> dict[str, list[float]]:
    """For the models that were measured the rises of the test loss, in nats, without the mixer of each layer. Empty
    unless the found model is among them."""
    found = next(iter(summary["results"]))
    layers = len(summary["best"]["genome"])
    measured = {
        name: result["layer_importance"]
        for name, result in summary["results"].items()
        if len(result.get("layer_importance", ())) == layers
    }
    return measured if found in measured else {}


def layer_rows(summary: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, ...]]:
    """For each layer of the found model its number, its name, and its importance in the models of `layer_importance`."""
    columns = layer_importance(summary).values()
    return [
        (str(number), name, *(f"{rises[number - 1]:+.3f}" for rises in columns))
        for number, name in enumerate(names, start=1)
    ]


def layers_note(summary: Mapping[str, Any], names: Sequence[str]) -> str:
    """Which layer of the found model matters most and which least, in words; empty if that was not measured.

    Args:
        names: of its layers, in order.
    """
    importance = layer_importance(summary)
    if not importance:
        return ""
    rises = next(iter(importance.values()))
    most, least = rises.index(max(rises)), rises.index(min(rises))
    text = f"Layer {most + 1}, {names[most]}, matters most: without it the test loss rises by {rises[most]:.3f} nats."
    return text if most == least else f"{text} Layer {least + 1}, {names[least]}, matters least: {rises[least]:+.3f}."


def unweighted_note(summary: Mapping[str, Any], names: Sequence[str]) -> str:
    """The attentions of the found model that have no weight for each pair of tokens, in words; empty if there are none, or
    the weights were not measured.

    Args:
        names: of its layers, in order.
    """
    weights = next(iter(summary["results"].values())).get("attention_by_distance")
    if weights is None:
        return ""
    genome = enumerate(zip(summary_genome(summary), names, strict=True), start=1)
    missing = [
        f"{name} (layer {i})" for i, (gene, name) in genome if gene.kind == "attention" and str(i) not in weights
    ]
    return f"No weights between pairs of tokens are computed by {', '.join(missing)}." if missing else ""


def layers_text(summary: Mapping[str, Any]) -> str:
    """One line per layer of the found model: its number, its importance if it was measured, and its gene."""
    lines = []
    for number, gene, *rises in layer_rows(summary, map(str, summary_genome(summary))):
        importance = f"{rises[0]:>7}  " if rises else ""
        lines.append(f"{number:>3}  {importance}{gene}")
    return "\n".join(lines)
