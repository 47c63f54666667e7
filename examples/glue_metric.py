"""The official numbers of GLUE, as a metric that needs no network: `evaluate.load("examples/glue_metric.py", "mrpc")`.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019.
"""

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics


_ACCURACY = ("sst2", "mnli", "qnli", "rte", "wnli", "ax")
_ACCURACY_AND_F1 = ("mrpc", "qqp")
TASKS = ("cola", "stsb", *_ACCURACY_AND_F1, *_ACCURACY)

_DESCRIPTION = (
    "Matthews correlation (cola), Pearson and Spearman (stsb), accuracy and F1 (mrpc, qqp), accuracy (others)."
)
_INPUTS = "predictions and references: integers; of stsb numbers. A correlation with a constant counts as 0."


def _correlation(function, predictions, references) -> float:
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(function(predictions, references).statistic)


class GlueMetric(evaluate.Metric):
    def _info(self):
        if self.config_name not in TASKS:
            raise ValueError(f"task: expected one of {sorted(TASKS)}, got {self.config_name!r}")
        kind = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": kind, "references": kind}),
            format="numpy",
        )

    def _compute(self, predictions, references):
        if self.config_name == "cola":
            return {"matthews_correlation": float(metrics.matthews_corrcoef(references, predictions))}
        if self.config_name == "stsb":
            return {
                "pearson": _correlation(stats.pearsonr, predictions, references),
                "spearmanr": _correlation(stats.spearmanr, predictions, references),
            }
        accuracy = {"accuracy": float(np.mean(predictions == references))}
        if self.config_name in _ACCURACY_AND_F1:
            return {**accuracy, "f1": float(metrics.f1_score(references, predictions, zero_division=0.0))}
        return accuracy
