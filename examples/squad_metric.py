"""Exact match and F1 of SQuAD 1.1 and 2.0, without a network: `evaluate.load("examples/squad_metric.py")`.

Answers are compared by their words, in lower case, without punctuation and articles (Rajpurkar et al. 2016 and 2018). If a
question has no answer, only the empty prediction is correct.
"""

import collections
import re
import statistics
import string

import datasets
import evaluate


_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(answer: str) -> list[str]:
    return _ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split()


def exact(prediction: str, answer: str) -> float:
    return float(words(prediction) == words(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words; without words on one side, whether both have none."""
    found, expected = words(prediction), words(answer)
    if not found or not expected:
        return float(found == expected)
    common = sum((collections.Counter(found) & collections.Counter(expected)).values())
    return 2 * common / (len(found) + len(expected))


class SquadMetric(evaluate.Metric):
    def _info(self):
        texts = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Exact match and F1 in points; also for questions with and without an answer, if there are both.",
            citation="",
            inputs_description="predictions: texts; references: for each a list of correct answers, empty if there is none.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": texts}),
        )

    def _compute(self, predictions, references):
        scores = {"exact": [], "f1": []}
        for prediction, answers in zip(predictions, references, strict=True):
            answers = [answer for answer in answers if words(answer)] or [""]
            scores["exact"].append(max(exact(prediction, answer) for answer in answers))
            scores["f1"].append(max(f1(prediction, answer) for answer in answers))
        has_answer = [bool(answers) for answers in references]
        groups = {"": [True] * len(has_answer)}
        if len(set(has_answer)) == 2:
            groups |= {"HasAns_": has_answer, "NoAns_": [not has for has in has_answer]}
        return {
            group + name: 100 * statistics.fmean(v for v, is_member in zip(values, members, strict=True) if is_member)
            for group, members in groups.items()
            for name, values in scores.items()
        }
