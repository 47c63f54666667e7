"""The official metrics of GLUE, without a network: `evaluate.load("examples/glue_metric.py", "mrpc")`."""

import datasets
import evaluate

from autobert_zero.search.evaluation.glue import TASKS, glue_metrics


class GlueMetric(evaluate.Metric):
    def _info(self):
        if self.config_name not in TASKS:
            raise ValueError(f"task: expected one of {sorted(TASKS)}, got {self.config_name!r}")
        kind = datasets.Value("int64" if TASKS[self.config_name].labels else "float64")
        return evaluate.MetricInfo(
            description=glue_metrics.__doc__,
            citation="",
            inputs_description="predictions and references: label ids; scores for stsb.",
            features=datasets.Features({"predictions": kind, "references": kind}),
            format="numpy",
        )

    def _compute(self, predictions, references):
        return glue_metrics(self.config_name, predictions, references)
