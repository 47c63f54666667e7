"""A model of the tables of trained backbones, so that strategies can be compared on genomes that they do not contain.

    python benchmarks/surrogate.py --tables results/space_table/random.jsonl results/space_table/known.jsonl

prints how well it predicts: Kendall's tau of losses that were predicted without the genome itself (10-fold
cross-validation), over all genomes, over the random ones, and over the better half.
"""

import argparse
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.model_selection import KFold

from autobert_zero.configuration_autobert_zero import Attention, Convolution, Genome
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evolution.archive import Record
from autobert_zero.search.evolution.history import read_history
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.run.factory import make_space
from autobert_zero.search.settings import GROUP_OF, SearchSettings


TREES = 200
FOLDS = 10


def describe(genome: Genome) -> dict[str, float]:
    """Numbers that a regression can use: by layer and over all layers, kinds, kernel sizes, operations, and pairs of an
    operation and its operand."""
    found: Counter[str] = Counter()
    for layer, gene in enumerate(genome):
        names = [gene.kind]
        if isinstance(gene, Convolution):
            found[f"{layer} kernel size"] = gene.kernel_size
        elif isinstance(gene, Attention):
            nodes = gene.expression.nodes()
            names += [node.name for node in nodes]
            names += [f"{node.name}({operand.name})" for node in nodes for operand in node.operands]
            # A product that is normalized, and one that depends on positions, may be far apart in an expression.
            names += [f"attends, {name}" for name in ("softmax", "rotary") if name in {n.name for n in nodes}]
        for name in names:
            found[name] += 1
            found[f"{layer} {name}"] += 1
    return dict(found)


def read_tables(paths: Sequence[Path]) -> tuple[SearchSettings, list[Record]]:
    """The settings of the first of some tables, and the scored records of all.

    Raises: ValueError if the genomes of one were trained in another way, or on other text, than those of the first.
    """
    headers, histories = zip(*(read_history(path, decode_genome) for path in paths), strict=True)
    trainings = [
        {"text": header["data"]}
        | {
            name: value
            for name, value in header["settings"].items()
            if GROUP_OF[name] in ("model", "training", "final")
        }
        for header in headers
    ]
    for path, training in zip(paths, trainings, strict=True):
        if differing := [name for name, value in training.items() if value != trainings[0][name]]:
            raise ValueError(f"tables: expected equal trainings, got another {differing[0]} in {path}")
    records = [record for history in histories for record in history if record.score is not None]
    return SearchSettings.from_dict(headers[0]["settings"]), records


class BackboneTable:
    """The space of tables of trained backbones, with scores by a regression: trees on `describe`.

    Args:
        paths: of the tables.

    Raises: ValueError if their trainings differ.
    """

    def __init__(self, paths: Sequence[Path]):
        settings, self.records = read_tables(paths)
        self.space = make_space(settings.space, settings.strategy, settings.model, CustomOperations())
        self.regression, self.columns = self._fit(self.records)
        self.best = max(record.score for record in self.records)
        self.scores = self  # by genome
        for name in ("random", "mutate", "crossover", "operations", "features", "size", "key"):
            setattr(self, name, getattr(self.space, name))

    @staticmethod
    def _fit(records: Sequence[Record]) -> tuple[ExtraTreesRegressor, DictVectorizer]:
        columns = DictVectorizer(sparse=False)
        inputs = columns.fit_transform([describe(record.genome) for record in records])
        regression = ExtraTreesRegressor(TREES, min_samples_leaf=2, max_features=0.3, random_state=0)
        return regression.fit(inputs, [record.score for record in records]), columns

    @functools.lru_cache(maxsize=1_000_000)  # noqa: B019 (one object for the whole process)
    def __getitem__(self, genome: Genome) -> float:
        """The predicted score of a genome."""
        return float(self.regression.predict(self.columns.transform([describe(genome)]))[0])

    def cross_validated(self) -> np.ndarray:
        """For each record its score as predicted without it."""
        predicted = np.empty(len(self.records))
        for train, rest in KFold(FOLDS, shuffle=True, random_state=0).split(self.records):
            regression, columns = self._fit([self.records[i] for i in train])
            predicted[rest] = regression.predict(columns.transform([describe(self.records[i].genome) for i in rest]))
        return predicted

    def quality(self) -> dict[str, Any]:
        """Numbers of genomes, and tau of cross-validated predictions."""
        scores, predicted = np.array([record.score for record in self.records]), self.cross_validated()
        parts = {
            "all": np.arange(len(scores)),
            "random": np.flatnonzero([record.generation == 0 for record in self.records]),
            "better half": np.argsort(-scores)[: len(scores) // 2],
        }
        return {
            name: {
                "genomes": len(part),
                "tau": round(float(kendalltau(scores[part], predicted[part]).statistic), 3),
                "best score": round(float(scores[part].max()), 4),
                "standard deviation": round(float(scores[part].std()), 4),
                "root mean square error": round(float(np.sqrt(np.mean((scores - predicted)[part] ** 2))), 4),
            }
            for name, part in parts.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, nargs="+", required=True)
    for name, values in BackboneTable(parser.parse_args().tables).quality().items():
        print(f"{name:12}", values)


if __name__ == "__main__":
    main()
