"""Accuracy on the minimal pairs of BLiMP, without a network: `evaluate.load("examples/blimp_metric.py")`.

Warstadt et al., "BLiMP: The Benchmark of Linguistic Minimal Pairs for English", TACL 2020.
"""

from collections import defaultdict

import datasets
import evaluate
from scipy.stats import binomtest


def accuracy(correct: list[bool]) -> dict[str, float]:
    """The percentage of correct pairs, with its 95 % confidence interval by Wilson."""
    result = binomtest(sum(correct), len(correct))
    interval = result.proportion_ci(method="wilson")
    percentages = {"accuracy": result.statistic, "low": interval.low, "high": interval.high}
    return {**{name: 100 * float(value) for name, value in percentages.items()}, "pairs": len(correct)}


class BlimpMetric(evaluate.Metric):
    def _info(self):
        score, name = datasets.Value("float64"), datasets.Value("string")
        return evaluate.MetricInfo(
            description="The percentage of pairs whose acceptable sentence has the higher score; equal scores are wrong.",
            citation="",
            inputs_description="predictions: scores of the two sentences, as `good` and `bad`; references: `UID` and `field`.",
            features=datasets.Features(
                {"predictions": {"good": score, "bad": score}, "references": {"UID": name, "field": name}}
            ),
        )

    def _compute(self, predictions, references):
        groups = {"fields": defaultdict(list), "sets": defaultdict(list)}
        correct = [pair["good"] > pair["bad"] for pair in predictions]
        for is_correct, reference in zip(correct, references, strict=True):
            # The data spell one field in two ways: `syntax_semantics`, and in one set `syntax/semantics`.
            groups["fields"][reference["field"].replace("/", "_")].append(is_correct)
            groups["sets"][reference["UID"]].append(is_correct)
        return {
            **accuracy(correct),
            **{kind: {name: accuracy(group[name]) for name in sorted(group)} for kind, group in groups.items()},
        }
