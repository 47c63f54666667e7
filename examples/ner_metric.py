"""Precision, recall and F1 of entities, without a network: `evaluate.load("examples/ner_metric.py")`.

Counted by seqeval as the official script of CoNLL does: an entity is correct if its first word, last word and type are.
"""

import datasets
import evaluate
from seqeval.metrics import accuracy_score, classification_report


class NerMetric(evaluate.Metric):
    def _info(self):
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Precision, recall and F1 of entities, accuracy of tags, and F1 of each type, in points.",
            citation="",
            inputs_description="predictions and references: for each sentence its tags, as O, B-TYPE, I-TYPE, E-TYPE, S-TYPE.",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references):
        report = {"micro avg": {"precision": 0.0, "recall": 0.0, "f1-score": 0.0}}
        # Without an entity on either side, seqeval would average nothing.
        if any(tag != "O" for tags in (*references, *predictions) for tag in tags):
            report = classification_report(references, predictions, output_dict=True, zero_division=0)
        types = sorted(name for name in report if not name.endswith(" avg"))
        all_types = report["micro avg"]
        found = {
            "precision": all_types["precision"],
            "recall": all_types["recall"],
            "f1": all_types["f1-score"],
            "accuracy": accuracy_score(references, predictions),
            **{f"{name}_f1": report[name]["f1-score"] for name in types},
        }
        return {name: 100 * float(value) for name, value in found.items()}
