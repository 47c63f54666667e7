"""The commands `report` and `compare`."""

import copy
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autobert_zero.search.cli.main import main
from autobert_zero.search.report.comparison import comparison_table
from autobert_zero.search.report.model_card import model_card
from autobert_zero.search.report.page import page
from autobert_zero.search.report.recorded_run import RecordedRun
from tests.report.conftest import SETTINGS, summary_of, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "one & <only>", crossover_probability=0.4)


def damaged(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """A JSON value with each part of it missing, and replaced by values of other types; with the path of the part."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in parts:
        for other, changed in damaged(part, (*path, name)):
            copied = copy.copy(value)
            copied[name] = changed
            yield other, copied
        if isinstance(value, dict):
            yield (*path, name), {key: each for key, each in value.items() if key != name}
    if path:
        yield from ((path, bad) for bad in (None, "x", -1, 1e308, 10**400, [[]]))


@pytest.mark.parametrize("name", ["summary.json", "settings.json", "history.jsonl"])
def test_a_damaged_file_of_a_run_is_named_or_harmless(tmp_path, name):
    """Every part of the files missing or of another type: an error that names the file, or nothing happens."""
    run = write_run(tmp_path / "run", count=12)
    summary = summary_of(RecordedRun.read(run).best, count=12)
    files = {"summary.json": summary, "settings.json": SETTINGS.to_dict()}
    for file, content in files.items():
        (run / file).write_text(json.dumps(content), encoding="utf-8")
    header, _, records = (run / "history.jsonl").read_text(encoding="utf-8").partition("\n")
    file, refused = run / name, set()
    # A third of them, because each takes a while.
    for path, content in itertools.islice(damaged(files[name] if name in files else json.loads(header)), 0, None, 3):
        after = f"\n{records}" if name == "history.jsonl" else ""
        file.write_text(json.dumps(content) + after, encoding="utf-8")
        try:
            read = RecordedRun.read(run)
        except ValueError as error:
            assert str(file) in str(error) and len(str(error)) < 1000, path
            refused.add(path)
            continue
        if name != "settings.json" and path[0] != "settings":  # settings are checked as such, and few are shown
            page([read]), comparison_table([read])
            if read.summary:
                model_card(read.summary, {}, "name")
    assert len(refused) > {"summary.json": 20, "settings.json": 30, "history.jsonl": 30}[name]


def test_report_and_compare(capsys, folder, tmp_path):
    main(["report", str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text(encoding="utf-8") == page([RecordedRun.read(folder)])
    copy = shutil.copy(folder / "history.jsonl", tmp_path / "copy.jsonl")
    main(["report", str(folder), str(copy), "--output", str(tmp_path / "both.html")])
    assert "2 runs" in (tmp_path / "both.html").read_text(encoding="utf-8")
    finished = shutil.copytree(folder, tmp_path / "finished")
    history = RecordedRun.read(folder)
    other = next(r for r in history.records if r.score is not None and r.index != history.best.index)
    summary = summary_of(other)
    (finished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    html = page([RecordedRun.read(finished)])
    assert (
        f"Candidate #{other.index} and its ancestors" in html and f"#{other.index} was chosen among the 3 best" in html
    )
    assert "it was the best after their first 1,400 steps" in html
    assert (
        "best score so far" not in html
        and "(trained from scratch)" in html
        and "no more than token frequencies" in html
    )
    del summary["best"]["steps_from_scratch"]
    summary["finalists"] = [summary["best"]]  # a single one, or without a first part of the final training
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
        "bert": [None, None],  # it diverged
        "bert_rotary": None,
    }
    assert row["lead"] == [None, None]
    main(["compare", str(folder), str(finished)])
    assert re.search(r"^  finished +-\d\.\d{4} +3\.5000 +diverged +diverged$", capsys.readouterr().out, re.MULTILINE)
    main(["compare", str(finished)])
    out = capsys.readouterr().out.splitlines()
    assert re.search(r"finished +1 +-\d\.\d{4} +3\.5000 +diverged +diverged$", out[-1])
    # Ahead of the better baseline, by run.
    folders = []
    for number, (found, bert, rotary) in enumerate([(3.5, 4.0, 3.6), (3.0, 3.2, 3.4)]):
        folders.append(str(shutil.copytree(finished, tmp_path / f"run-{number}")))
        losses = {"AutoBERT-Zero (found)": found, "BERT": bert, "BERT, rotary positions": rotary, "unigram": 5.0}
        results = {name: {"loss": loss, "perplexity": 1.0} for name, loss in losses.items()}
        (Path(folders[-1]) / "summary.json").write_text(json.dumps({**summary_of(other), "results": results}))
    main(["compare", *folders])
    group, *single = capsys.readouterr().out.splitlines()[2:]
    assert group.endswith("3.5000 ± 0.1000  0.1500 ± 0.0500")
    assert [line.rsplit(maxsplit=1)[1] for line in single] == ["0.1000", "0.2000"]
    main(["report", *folders, "--output", str(tmp_path / "both.html")])
    assert '<td class="n">0.1500 ± 0.0500</td>' in (tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "runs: expected the folder of a run, or a history, got 'nowhere'"),
        (["compare", "."], "runs: expected the folder of a run"),
        (["report", "{folder}/history.jsonl"], "--output: expected a file"),
        (["report", "{folder}", "--output", ""], "argument --output: path: expected a value, got ''"),
        (["report", "{folder}", "--output", "caf\udce9.html"], "path: expected text that UTF-8 can encode"),
        (["report", "{folder}", "--output", "{folder}"], "--output: cannot write "),
        (["report", "{folder}", "--output", "nowhere/page.html"], "--output: cannot write"),
        (["report", "{folder}/torn"], "torn, line 1"),
        (["report", "x" * 300], "runs: "),
        (["report", "circle"], "runs: "),
    ],
)
def test_bad_input(capsys, folder, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (folder / "torn").write_text("{}\n", encoding="utf-8")
    Path("circle").symlink_to("circle")
    with pytest.raises(SystemExit) as stopped:
        main([argument.format(folder=folder) for argument in arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(folder.parent.glob("*.tmp"))


def test_a_run_that_is_named_twice_counts_once(capsys, folder, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    names = [str(folder), str(folder / "history.jsonl"), str(tmp_path / "link"), f"~/{folder.name}"]
    main(["compare", *names, "--json"])
    [row] = json.loads(capsys.readouterr().out)
    assert row["runs"] in ([folder.name], ["link"])
    finished = shutil.copytree(folder, tmp_path / "finished")
    summary = summary_of(RecordedRun.read(folder).best)
    (finished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for names in ([finished, finished / "history.jsonl"], [finished / "history.jsonl", finished]):
        main(["compare", *map(str, names), "--json"])
        [row] = json.loads(capsys.readouterr().out)
        assert row["runs"] == ["finished"] and row["losses"]["found"] == [3.5, None]  # that of the folder
