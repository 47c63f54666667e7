"""A model of the tables of trained backbones, so that strategies can be compared on genomes that they do not contain.

    python benchmarks/surrogate.py --tables results/space_table/random.jsonl results/space_table/known.jsonl \\
        --against results/space_table/longer.jsonl --output results/space_table/quality.json

says how good it and the tables are: Kendall's tau of the scores with those that are predicted without the genome itself
(10-fold cross-validation), with the losses after a part of the training, and with the scores of the same genomes in other
tables, `--against`, which trained them longer or with another seed. Intervals are those of a bootstrap over genomes.
"""

import argparse
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rank_fidelity import tau
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.model_selection import KFold

from autobert_zero.configuration_autobert_zero import Attention, Convolution, Genome
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evolution.archive import Record
from autobert_zero.search.evolution.history import read_history
from autobert_zero.search.files import write_json
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
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


def read_tables(paths: Sequence[Path]) -> tuple[dict[str, Any], list[list[Record]]]:
    """The header of the first of some tables, and the scored records of each.

    Raises: ValueError if the genomes of one were trained in another way, or on other text, than those of the first.
    """
    headers, histories = zip(*(read_history(path, decode_genome) for path in paths), strict=True)
    trainings = [
        {"text": header["data"]}
        | {
            name: value
            for name, value in SearchSettings.from_dict(header["settings"]).to_dict().items()
            if GROUP_OF[name] in ("model", "training", "final")
        }
        for header in headers
    ]
    for path, training in zip(paths, trainings, strict=True):
        if differing := [name for name, value in training.items() if value != trainings[0][name]]:
            raise ValueError(f"tables: expected equal trainings, got another {differing[0]} in {path}")
    return headers[0], [[record for record in history if record.score is not None] for history in histories]


def earlier_losses(records: Sequence[Record]) -> list[str]:
    """Names of the costs that are losses after a part of the training; none in the history of a search."""
    return [name for name in records[0].result.costs if name.startswith("validation_")][:-1]


class BackboneTable:
    """The space of tables of trained backbones, with scores by a regression: trees on `describe`.

    Args:
        paths: of the tables.

    Raises: ValueError if their trainings differ.
    """

    def __init__(self, paths: Sequence[Path]):
        header, tables = read_tables(paths)
        self.records = [record for table in tables for record in table]
        settings = SearchSettings.from_dict(header["settings"])
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
        inputs = self.columns.transform([describe(genome)]).astype(np.float32)
        # What the regression's own method does, without its overhead for one row: twenty times as fast.
        return float(np.mean([tree.tree_.predict(inputs)[0, 0] for tree in self.regression.estimators_]))

    def cross_validated(self) -> np.ndarray:
        """For each record its score as predicted without it."""
        predicted = np.empty(len(self.records))
        for train, rest in KFold(FOLDS, shuffle=True, random_state=0).split(self.records):
            regression, columns = self._fit([self.records[i] for i in train])
            predicted[rest] = regression.predict(columns.transform([describe(self.records[i].genome) for i in rest]))
        return predicted


def compared(scores: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Two scores of the same genomes: tau, over all and over the better half by the first, and how much they differ by."""
    a, b = np.array(scores), np.array(others)
    better = np.argsort(-a, kind="stable")[: len(a) // 2]
    return {
        "genomes": len(a),
        "tau": tau(a, b),
        "tau, better half": tau(a[better], b[better]),
        "standard deviation of the difference, better half": round(float((a - b)[better].std(ddof=1)), 4),
    }


def quality(table: BackboneTable, against: dict[str, Sequence[Record]]) -> dict[str, Any]:
    """How well scores agree with predicted ones, with earlier losses, and with those of other tables."""
    scores = [record.score for record in table.records]
    found = {"predicted without the genome": compared(scores, table.cross_validated().tolist())}
    for name in earlier_losses(table.records):
        found[name] = compared(scores, [-record.result.costs[name] for record in table.records])
    by_key = {record.key: record.score for record in table.records}
    for name, records in against.items():
        pairs = [(record.score, by_key[record.key]) for record in records if record.key in by_key]
        if len(pairs) < 4:
            raise ValueError(f"against: expected at least 4 genomes of the tables, got {len(pairs)} in {name}")
        found[name] = compared(*zip(*pairs, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, nargs="+", required=True)
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="Tables of some of these genomes.")
    parser.add_argument("--output", type=Path, help="JSON file.")
    arguments = parser.parse_args()
    commit = current_commit()
    try:
        table = BackboneTable(arguments.tables)
        found = quality(table, {path.stem: read_tables([path])[1][0] for path in arguments.against})
    except ValueError as error:
        parser.error(str(error))
    for name, values in found.items():
        print(f"{name:30}", values)
    if arguments.output:
        write_json(arguments.output, {**provenance(commit), "results": found})


if __name__ == "__main__":
    main()
