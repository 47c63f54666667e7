"""The page of a search: what it says is true of the history, and a real browser shows it as it should."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import statistics
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Attention, Convolution, Expression, Genome
from autobert_zero.search import charts, reporting
from autobert_zero.search.charts import Bar, Series
from autobert_zero.search.commands import main
from autobert_zero.search.costs import Sizes
from autobert_zero.search.evolution import evolve
from autobert_zero.search.factory import make_space, make_strategy
from autobert_zero.search.history import History, read_history
from autobert_zero.search.notation import differences
from autobert_zero.search.progress import LivePage
from autobert_zero.search.records import Record, pareto_front
from autobert_zero.search.report import RunHistory, _feature_label, duration, groups_of, page, summarize
from autobert_zero.search.settings import SearchSettings

from .conftest import random_genome


SETTINGS = SearchSettings(population_size=16, hidden_size=16)
SIZES = Sizes(16, 2, 32, 100, 16, 16)


def write_run(folder: Path, seed: int = 0, count: int = 60, **changes) -> Path:
    """A search that is quick: the score is made up, every seventh candidate fails."""
    settings = dataclasses.replace(SETTINGS, seed=seed, max_evaluations=count, **changes)
    rng = np.random.default_rng(seed)

    def evaluate(record: Record) -> Record:
        if record.index % 7 == 3:
            return record.evaluated(reason=f"FloatingPointError: step {record.index}", seconds=0.5)
        convolutions = sum(isinstance(gene, Convolution) for gene in record.genome)
        return record.evaluated(
            score=-6 + 0.3 * convolutions + 0.1 * rng.random(), costs=SIZES.of(record.genome), seconds=1.5
        )

    folder.mkdir(parents=True)
    header = {"settings": settings.identity(), "data": {"tokens": {"search": 12345}}, "seed_genomes": [], "seed": seed}
    header["data"]["digest"] = f"of seed {seed}"  # the split of the text depends on it
    header |= {
        "text_digest": "0123",
        "unigram_score": -6.4,
        "versions": {"torch": "0"},
        "commit": "c0ffee",
        "command": "search <here>",
    }
    with History(folder / "history.jsonl", header, ()) as history:
        space = make_space(settings, SIZES)
        strategy = make_strategy(settings, space)
        evolve(space, strategy, lambda r, _: lambda: evaluate(r), history, seed, count)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one & <only>", crossover_probability=0.4)


@pytest.fixture(scope="module")
def run(folder) -> RunHistory:
    return RunHistory.read(folder)


def figure(html: str, label: str) -> ElementTree.Element:
    [svg] = re.findall(rf'<svg class="chart"[^>]*aria-label="{label}">.*?</svg>', html)
    return ElementTree.fromstring(svg)


def test_the_page_says_what_the_history_says(run):
    html = page([run])
    assert html == page([run])  # nothing of the day or the machine that makes it
    scores = [record.score for record in run.records if record.score is not None]
    assert f"<b>−{-max(scores):.4f}</b> best score" in html
    failed = sum(record.status == "failed" for record in run.records)
    assert f"<b>{failed}</b> failed" in html and f'<td>FloatingPointError</td><td class="n">{failed}</td>' in html
    assert "<b>60</b> candidates" in html and "12,345" in html and "c0ffee" in html
    assert "one &amp; &lt;only&gt;" in html and "<only>" not in html and "search &lt;here&gt;" in html
    assert (
        "crossover_probability" in html.partition("Settings that are not the default")[2].partition("All settings")[0]
    )
    assert "<script" not in html and not re.search(r'(?:src|href)="(?!#|data:)', html)


def test_best_so_far_is_drawn_where_it_is(run):
    svg = figure(page([run]), "Best score so far by time")
    space = "{http://www.w3.org/2000/svg}"
    [line] = svg.iter(f"{space}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    # The scales, from the ticks: y by the grid lines, x by the labels below.
    grid = [float(each.attrib["y1"]) for each in svg.iter(f"{space}line") if each.attrib["class"] == "grid"]
    texts = [
        (float(t.attrib["x"]), float(t.attrib["y"]), (t.text or "").replace("−", "-"))
        for t in svg.iter(f"{space}text")
    ]
    levels = sorted((y, float(text)) for x, y, text in texts if y in grid)
    times = sorted((x, float(text)) for x, y, text in texts if y > max(grid) and re.fullmatch(r"[\d.]+", text))

    def read(ticks, place):
        (a, low), (b, high) = ticks[0], ticks[-1]
        return low + (place - a) / (b - a) * (high - low)

    best, curve, seconds = -math.inf, [], 0.0
    for record in run.records:
        seconds += record.seconds
        if record.score is not None and record.score > best:
            best = record.score
            curve.append((seconds, best))
    curve.append((seconds, best))
    shown = [(read(times, x), read(levels, y)) for x, y in points]
    corners = [curve[0], *itertools.chain(*([(b[0], a[1]), b] for a, b in itertools.pairwise(curve)))]
    assert np.allclose(shown, corners, atol=0.2, rtol=0.002)


def test_ticks_are_round_and_within():
    assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts.ticks(-5.33, -5.02) == [-5.3, -5.25, -5.2, -5.15, -5.1, -5.05]
    assert charts.ticks(3, 3) == [3]
    assert charts.number(-0.25) == "−0.25" and charts.number(1.5e7) == "15M" and charts.number(9000) == "9000"


def test_charts_of_little():
    assert charts.plot("none", [Series("none", [], [])], "x", "y") == ""
    for chart in (
        charts.plot("one", [Series("<one>", [1], [2.0], band=[0.0])], "x", "y", {"level": 2.0}),
        charts.bars("zero", [Bar("zero")]),
        charts.bars("nothing", []),
        charts.shares("half", [Bar("half", parts=[("k0", 0.5, "a"), ("attention", 0.5, "b")])]),
    ):
        assert "nan" not in chart and ElementTree.fromstring(chart).attrib["role"] == "img"


def test_the_random_baseline_is_the_mean_over_all_draws(run):
    scores = [r.score for r in run.records if r.generation == 0 and r.score is not None]
    expected = [statistics.fmean(map(max, itertools.combinations(scores, n))) for n in range(1, len(scores) + 1)]
    assert run.random_baseline() == pytest.approx(expected)
    many = [dataclasses.replace(run.records[0], index=i, score=float(i), key=str(i)) for i in range(5000)]
    baseline = RunHistory("many", run.header, many).random_baseline()
    # The best of n out of 0, 1, …, N - 1 is n (N + 1) / (n + 1) - 1 on average.
    assert baseline == pytest.approx([n * 5001 / (n + 1) - 1 for n in range(1, 201)])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("add(softmax(q), v)", "add(softmax(k), v)", "q → k"),
        ("add(softmax(q), v)", "add(q, v)", "softmax(q) → q"),
        ("add(softmax(q), neg(softmax(q)))", "add(softmax(k), neg(softmax(k)))", "q → k"),
        (
            "add(softmax(q), neg(softmax(q)))",
            "add(softmax(k), softmax(q))",
            "add(softmax(q), neg(softmax(q))) → add(softmax(k), softmax(q))",
        ),
    ],
)
def test_a_change_in_an_attention_is_told_as_small_as_it_is(old, new, said):
    old, new = (Genome([Convolution(3), Attention(Expression.parse(text))]) for text in (old, new))
    assert differences(old, new) == [f"layer 2: {said}"]
    assert differences(old, old) == []


def test_changes_between_layers():
    genome = Genome([Convolution(3), SELF_ATTENTION, Convolution(5)])
    assert differences(genome, Genome([SELF_ATTENTION, Convolution(3), Convolution(5)])) == ["layers 1 and 2 swapped"]
    assert differences(genome, Genome([Convolution(9), SELF_ATTENTION, SELF_ATTENTION])) == [
        "layer 1: convolution 3 → convolution 9",
        "layer 3: convolution 5 → attention",
    ]


def test_the_family_is_all_ancestors_with_their_edges(run):
    html = page([run]).partition("How it came about")[2].partition("</ol>")[0]
    ancestors, waiting = set(), [run.best.index]
    while waiting:
        index = waiting.pop()
        ancestors.add(index)
        waiting += run.records[index].parents
    assert {int(i) for i in re.findall(r'id="candidate-(\d+)"', html)} == ancestors
    edges = {(parent, index) for index in ancestors for parent in run.records[index].parents}
    members = re.split(r"<li ", html)[1:]
    shown = {
        (int(parent), int(re.match(r'id="candidate-(\d+)"', member)[1]))
        for member in members
        for parent in re.findall(r'href="#candidate-(\d+)"', member)
    }
    assert shown == edges and len(edges) >= 1
    assert any(len(run.records[index].parents) == 2 for index in ancestors) == ('class="branch"' in html)


def test_shares_of_layers_and_the_front_are_counted(run):
    html = page([run])
    svg = figure(html, "In the first generation")
    space = "{http://www.w3.org/2000/svg}"
    first = [record for record in run.records if record.generation == 0]
    attention = [
        float(rect.attrib["width"]) / (charts.WIDTH - charts.LABEL_WIDTH)
        for rect in svg.iter(f"{space}rect")
        if rect.attrib["class"] == "attention"
    ]
    counted = [
        share
        for layer in range(len(first[0].genome))
        if (share := statistics.fmean(isinstance(record.genome[layer], Attention) for record in first))
    ]
    assert attention == pytest.approx(counted, abs=1e-3)
    marks = figure(html, "parameters").iter(f"{space}text")
    on_front = [mark for mark in marks if mark.attrib.get("class") == "mark s0"]
    assert len(on_front) == len(pareto_front(run.records, ["parameters", "score"]))


def test_baselines_near_are_drawn_and_those_far_are_told(run):
    near = RunHistory(run.name, {**run.header, "unigram_score": run.best.score - 0.01}, run.records)
    far = RunHistory(run.name, {**run.header, "unigram_score": -60.0}, run.records)
    assert ">unigram</text>" in page([near])
    assert ">unigram</text>" not in page([far]) and "Not drawn, far away: unigram −60.0000." in page([far])


def test_pages_of_little(run, tmp_path):
    for count in (0, 1, 4):
        html = page([RunHistory("early", run.header, run.records[:count])])
        assert f"<b>{count}</b> candidates" in html
    failed = [record for record in run.records if record.status == "failed"][:1]
    lonely = [dataclasses.replace(failed[0], index=0, generation=0, parents=())]
    assert "No candidate has a score yet." in page([RunHistory("failed", run.header, lonely)])
    assert "No candidate" not in page([run, RunHistory("failed", run.header, lonely)])
    assert 'http-equiv="refresh" content="30"' in page([run], refresh_seconds=30) and "http-equiv" not in page([run])


def test_the_page_of_a_search_that_goes_on_is_written_now_and_then(folder, tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shutil.copy(folder / "history.jsonl", tmp_path)
    header, records = read_history(tmp_path / "history.jsonl")
    live = LivePage(tmp_path)
    with History(tmp_path / "history.jsonl", header, ()) as history:
        for seconds, count, expected in ((0, 5, 5), (29, 20, 5), (31, 30, 30), (60, 40, 30), (62, 50, 50)):
            now = float(seconds)
            history[:] = records[:count]
            live.write(history)
            html = (tmp_path / "report.html").read_text(encoding="utf-8")
            assert f"<b>{expected}</b> candidates" in html and 'http-equiv="refresh" content="30"' in html


def test_a_page_of_many_candidates_stays_small(run):
    records = [
        dataclasses.replace(run.records[i % 60], index=i, generation=i // 20, parents=(max(0, i - 20),) if i else ())
        for i in range(6_000)
    ]
    html = page([RunHistory("long", run.header, records)])
    assert "<b>6000</b> candidates" in html and len(html) < 3_000_000


def test_runs_that_differ_in_their_seeds_are_one_group(tmp_path):
    runs = [RunHistory.read(write_run(tmp_path / f"a{seed}", seed, 30)) for seed in (1, 2, 3)]
    runs += [RunHistory.read(write_run(tmp_path / "b", 1, 30, strategy="random"))]
    assert {label: [r.name for r in members] for label, members in groups_of(runs).items()} == {
        "strategy=thompson_op_nas": ["a1", "a2", "a3"],
        "strategy=random": ["b"],
    }
    [several, single] = summarize(runs)
    scores = [run.best.score for run in runs[:3]]
    assert several["mean"] == pytest.approx(np.mean(scores))
    assert several["error"] == pytest.approx(np.std(scores, ddof=1) / math.sqrt(3))
    assert single["mean"] == runs[3].best.score and single["error"] is None
    html = page(runs)
    assert f"{several['mean']:.4f} ± {several['error']:.4f}".replace("-", "−") in html
    assert html.count('<svg class="genome"') == 4 and "not of the same text" not in html
    other = RunHistory("other", {**runs[0].header, "text_digest": "other"}, runs[0].records)
    assert "not of the same text" in page([runs[0], other])
    # The budget is no part of a history, but of what is compared.
    for run in runs[:3]:
        longer = dataclasses.replace(SETTINGS, max_evaluations=30 if run.name == "a1" else 60)
        (tmp_path / run.name / "settings.json").write_text(json.dumps(longer.to_dict()))
    runs = [RunHistory.read(tmp_path / name) for name in ("a1", "a2", "a3")]
    assert {label: len(members) for label, members in groups_of(runs).items()} == {
        "max_evaluations=30": 1,
        "max_evaluations=60": 2,
    }


def test_durations():
    assert [duration(s) for s in (0.51, 9.96, 59.6, 61, 7384)] == [
        "0.5 s",
        "10.0 s",
        "1 min 0 s",
        "1 min 1 s",
        "2 h 3 min",
    ]


def test_the_commands(capsys, folder, tmp_path):
    main(["report", str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text(encoding="utf-8") == page([RunHistory.read(folder)])
    main(["report", str(folder), str(folder / "history.jsonl"), "--output", str(tmp_path / "both.html")])
    assert "2 runs" in (tmp_path / "both.html").read_text(encoding="utf-8")
    losses = {
        "AutoBERT-Zero (found)": {"loss": 3.5, "perplexity": 33.1},
        "BERT": {"loss": None},
        "unigram": {"loss": 3.4},
    }
    losses["unigram"]["perplexity"] = 30.0
    finished = shutil.copytree(folder, tmp_path / "finished")
    history = RunHistory.read(folder)
    other = next(r for r in history.records if r.score is not None and r.index != history.best.index)
    summary = {
        "results": losses,
        "settings": SETTINGS.to_dict(),
        "finalists": [{"steps_from_scratch": 1400}] * 3,
        "counts": {"evaluated": 60},
    }
    summary["best"] = {"index": other.index}
    (finished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    html = page([RunHistory.read(finished)])
    assert (
        f"Candidate #{other.index} and its ancestors" in html and f"#{other.index} was chosen among the 3 best" in html
    )
    assert "it was ahead after their first 1,400 updates" in html
    assert f"<b>−{-history.best.score:.4f}</b> best score" in html and "no more than token frequencies" in html
    summary["finalists"] = [{}]  # of one finalist, or a run of before they began the final training
    (finished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert "among the 1 best by score." in page([RunHistory.read(finished)])
    # A summary of before the search went on says nothing of what has come since.
    summary["counts"]["evaluated"] = 59
    (tmp_path / "older").mkdir()
    shutil.copy(folder / "history.jsonl", tmp_path / "older")
    (tmp_path / "older" / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert RunHistory.read(tmp_path / "older").winner == history.best
    capsys.readouterr()
    main(["compare", str(folder), str(finished), "--json"])
    [row] = json.loads(capsys.readouterr().out)
    assert row["runs"] == [folder.name, "finished"] and row["losses"] == {"found": [3.5, None], "bert": [None, None]}
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


# In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs Chromium or Chrome")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("several", [False, True], ids=["one run", "several"])
def test_in_a_browser(browser, run, tmp_path, several):
    runs = [run, RunHistory("b" * 80, {**run.header, "text_digest": "other"}, run.records[:30])] if several else [run]
    file = tmp_path / "page.html"
    file.write_text(page(runs), encoding="utf-8")
    backgrounds = set()
    complaints = []
    for width, scheme in ((360, "light"), (1280, "dark")):
        view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on(
            "request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url)
        )
        view.goto(file.as_uri())
        view.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        boxes = view.eval_on_selector_all("svg", "all => all.map(svg => svg.getBoundingClientRect().toJSON())")
        assert len(boxes) >= 8 and all(box["width"] > 5 and box["right"] <= width for box in boxes)
        # Text in figures stays within them, and large enough to be read.
        outside = view.eval_on_selector_all(
            "figure svg text",
            """all => all.filter(text => {
                const a = text.getBoundingClientRect(), b = text.ownerSVGElement.getBoundingClientRect();
                return a.left < b.left - 1 || a.right > b.right + 1;
            }).map(text => text.textContent)""",
        )
        assert outside == []
        backgrounds.add(view.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert complaints == []
        assert len(view.pdf()) > 10_000
        view.close()
    assert len(backgrounds) == 2


def test_pictures_of_random_genomes_in_a_page_do_not_disturb_each_other(run):
    """Classes of drawings and of charts are apart: no rule of a drawing reaches a chart."""
    records = [dataclasses.replace(run.records[0], index=i, genome=random_genome(i), key=str(i)) for i in range(3)]
    html = page([RunHistory("random", run.header, records)])
    for style in re.findall(r"<style>(\.genome.*?)</style>", html):
        rules = re.sub(r"@media[^{]*\{(.*)\}", r"\1", style)
        assert all(rule.strip().startswith(".genome ") for rule in re.findall(r"([^{}]+)\{", rules))


def test_own_operations_keep_their_names():
    labels = [_feature_label(name) for name in ("0 soft_mix", "0 soft_gate", "1 cosine_similarity", "2 convolution 7")]
    assert labels == ["layer 1 soft_mix", "layer 1 soft_gate", "layer 2 cosine", "layer 3 conv 7"]


def test_losses_too_large_for_a_perplexity():
    assert reporting.perplexity(1.0) == math.e and reporting.perplexity(None) is reporting.perplexity(1e4) is None
    results = {
        name: {"loss": loss, "perplexity": reporting.perplexity(loss)} for name, loss in (("a", 1e4), ("b", None))
    }
    assert reporting.result_rows({"results": results}) == [("a", "", "10000.0000", ""), ("b", "", "diverged", "")]
