"""Counts of a conformance run, and the reasons of skipped tests.

python -m tests.conformance.report junit.xml [results.json]
"""

import json
import sys
import xml.etree.ElementTree as ET
from collections import Counter

from autobert_zero.search.provenance import commit, versions


def read(path: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Outcome and reason of each test of each class."""
    classes: dict[str, dict[str, tuple[str, str]]] = {}
    for case in ET.parse(path).iter("testcase"):
        tests = classes.setdefault(case.get("classname", "").split(".")[-1], {})
        outcome, reason = "passed", ""
        for tag in ("skipped", "failure", "error"):
            if (element := case.find(tag)) is not None:
                outcome, reason = tag.replace("failure", "failed"), element.get("message", "")
        tests[case.get("name", "")] = (outcome, reason)
    return classes


def main(junit: str, output: str | None = None) -> None:
    classes = read(junit)
    bert = classes["BertTest"]
    counts = {name: dict(Counter(outcome for outcome, _ in tests.values())) for name, tests in classes.items()}
    # Tests that BERT runs and one of our classes does not.
    more = {
        name: {
            test: reason
            for test, (outcome, reason) in tests.items()
            if outcome == "skipped" and bert[test][0] != "skipped"
        }
        for name, tests in classes.items()
    }
    for name, count in counts.items():
        print(f"{name:20} {count}")
        for test, reason in more[name].items():
            print(f"  skipped, though BERT runs it: {test}: {reason}")
    reasons = Counter(reason for outcome, reason in bert.values() if outcome == "skipped")
    if output:
        summary = {
            "command": "make conformance",
            "commit": commit(),
            "versions": versions(),
            "counts": counts,
            "skipped_beyond_bert": more,
            "bert_skips": dict(reasons),
        }
        with open(output, "w", encoding="utf-8") as file:
            json.dump(summary, file, indent=2, sort_keys=True)
            file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
