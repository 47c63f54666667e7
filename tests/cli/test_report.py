"""The commands `report` and `compare`."""

import json
import re
import shutil

import pytest

from autobert_zero.search.cli.main import main
from autobert_zero.search.report.page import page
from autobert_zero.search.report.recorded_run import RecordedRun
from tests.report.conftest import SETTINGS, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "one & <only>", crossover_probability=0.4)


def test_report_and_compare(capsys, folder, tmp_path):
    main(["report", str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text(encoding="utf-8") == page([RecordedRun.read(folder)])
    main(["report", str(folder), str(folder / "history.jsonl"), "--output", str(tmp_path / "both.html")])
    assert "2 runs" in (tmp_path / "both.html").read_text(encoding="utf-8")
    losses = {
        "AutoBERT-Zero (found)": {"loss": 3.5, "perplexity": 33.1},
        "BERT": {"loss": None},
        "unigram": {"loss": 3.4},
    }
    losses["unigram"]["perplexity"] = 30.0
    finished = shutil.copytree(folder, tmp_path / "finished")
    history = RecordedRun.read(folder)
    other = next(r for r in history.records if r.score is not None and r.index != history.best.index)
    summary = {
        "results": losses,
        "settings": SETTINGS.to_dict(),
        "finalists": [{"steps_from_scratch": 1400}] * 3,
        "counts": {"evaluated": 60},
        "tokens": {"train": 12345},
    }
    summary["best"] = {"index": other.index}
    (finished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    html = page([RecordedRun.read(finished)])
    assert (
        f"Candidate #{other.index} and its ancestors" in html and f"#{other.index} was chosen among the 3 best" in html
    )
    assert "it was the best after their first 1,400 steps" in html
    assert f"<b>−{-history.best.score:.4f}</b> best score" in html and "no more than token frequencies" in html
    summary["finalists"] = [{}]  # a single one, or without a first part of the final training
    (finished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert "among the 1 best by score." in page([RecordedRun.read(finished)])
    # A summary from before the search was extended is ignored.
    summary["counts"]["evaluated"] = 59
    (tmp_path / "older").mkdir()
    shutil.copy(folder / "history.jsonl", tmp_path / "older")
    (tmp_path / "older" / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert RecordedRun.read(tmp_path / "older").winner == history.best
    capsys.readouterr()
    main(["compare", str(folder), str(finished), "--json"])
    [row] = json.loads(capsys.readouterr().out)
    assert row["runs"] == [folder.name, "finished"] and row["losses"] == {
        "found": [3.5, None],
        "bert": [None, None],
        "bert_rotary": [None, None],
    }
    main(["compare", str(folder), str(finished)])
    assert re.search(r"^  finished +-\d\.\d{4} +3\.5000$", capsys.readouterr().out, re.MULTILINE)
    main(["compare", str(finished)])
    out = capsys.readouterr().out.splitlines()
    assert re.search(r"finished +1 +-\d\.\d{4} +3\.5000$", out[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "runs: expected the folder of a run, or a history, got 'nowhere'"),
        (["compare", "."], "runs: expected the folder of a run"),
        (["report", "{folder}", "{folder}"], "--output: expected a file"),
        (["report", "{folder}", "--output", "nowhere/page.html"], "--output: cannot write"),
        (["report", "{folder}/torn"], "torn, line 1"),
    ],
)
def test_bad_input(capsys, folder, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (folder / "torn").write_text("{}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main([argument.format(folder=folder) for argument in arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
