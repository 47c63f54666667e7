"""The page of a search: it agrees with the history, and a real browser shows it correctly."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import statistics
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from autobert_zero.configuration_autobert_zero import Attention
from autobert_zero.search.evolution.archive import Outcome, pareto_front
from autobert_zero.search.evolution.history import History, read_history
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.report import charts, figures
from autobert_zero.search.report.figures import _feature_label
from autobert_zero.search.report.page import mean_lead, mean_test_losses, page, summarize
from autobert_zero.search.report.recorded_run import RecordedRun, groups_of
from autobert_zero.search.run.progress import LivePage
from tests.conftest import random_genome
from tests.report.conftest import SETTINGS, summary_of, write_run


@pytest.fixture(scope="module")
def run(folder) -> RecordedRun:
    return RecordedRun.read(folder)


def figure(html: str, label: str) -> ElementTree.Element:
    [svg] = re.findall(rf'<svg class="chart"[^>]*aria-label="{label}">.*?</svg>', html)
    return ElementTree.fromstring(svg)


def test_the_page_says_what_the_history_says(run):
    html = page([run])
    assert html == page([run])  # nothing of the day or the machine that writes it
    scores = [record.score for record in run.records if record.score is not None]
    assert f"<b>−{-max(scores):.4f}</b> best score" in html
    failed = sum(record.result.status == "failed" for record in run.records)
    assert f"<b>{failed}</b> failed" in html and f'<td>FloatingPointError</td><td class="n">{failed}</td>' in html
    assert "<b>60</b> candidates" in html and "12,345" in html and "c0ffee" in html
    assert "one &amp; &lt;only&gt;" in html and "<only>" not in html and "search &lt;here&gt;" in html
    assert (
        "crossover_probability"
        in html.partition("Settings that differ from the defaults")[2].partition("All settings")[0]
    )
    assert "<script" not in html and not re.search(r'(?:src|href)="(?!#|data:)', html)


def test_the_curve_of_the_best_so_far(run):
    svg = figure(page([run]), "Best score so far by time")
    space = "{http://www.w3.org/2000/svg}"
    [line] = svg.iter(f"{space}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    # The scales from the ticks: y from the grid lines, x from the labels below.
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
        seconds += record.result.seconds
        if record.score is not None and record.score > best:
            best = record.score
            curve.append((seconds, best))
    curve.append((seconds, best))
    shown = [(read(times, x), read(levels, y)) for x, y in points]
    corners = [curve[0], *itertools.chain(*([(b[0], a[1]), b] for a, b in itertools.pairwise(curve)))]
    assert np.allclose(shown, corners, atol=0.2, rtol=0.002)


def test_the_random_baseline_is_the_mean_over_all_subsets(run):
    scores = [r.score for r in run.records if r.generation == 0 and r.score is not None]
    expected = [statistics.fmean(map(max, itertools.combinations(scores, n))) for n in range(1, len(scores) + 1)]
    assert run.random_baseline() == pytest.approx(expected)
    many = [
        dataclasses.replace(run.records[0], index=i, outcome=Outcome(score=float(i)), key=str(i)) for i in range(5000)
    ]
    baseline = RecordedRun("many", run.header, many).random_baseline()
    # The best of n out of 0, 1, …, N - 1 is n (N + 1) / (n + 1) - 1 on average.
    assert baseline == pytest.approx([n * 5001 / (n + 1) - 1 for n in range(1, 201)])


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
    # In the chart, or at its edge.
    on_front = [mark for mark in marks if mark.attrib.get("class") in ("mark s0", "mark s4")]
    assert len(on_front) == len(pareto_front(run.records, ["parameters", "score"]))


def test_near_baselines_are_drawn_and_far_ones_mentioned(run):
    near = RecordedRun(run.name, {**run.header, "unigram_score": run.best.score - 0.01}, run.records)
    far = RecordedRun(run.name, {**run.header, "unigram_score": -60.0}, run.records)
    assert ">unigram</text>" in page([near])
    assert ">unigram</text>" not in page([far]) and "Not drawn, far away: unigram −60.0000." in page([far])


def test_pages_of_little(run, tmp_path):
    for count in (0, 1, 4):
        html = page([RecordedRun("early", run.header, run.records[:count])])
        assert f"<b>{count}</b> candidates" in html
    failed = [record for record in run.records if record.result.status == "failed"][:1]
    alone = [dataclasses.replace(failed[0], index=0, generation=0, parents=())]
    assert "No candidate has a score yet." in page([RecordedRun("failed", run.header, alone)])
    assert "No candidate" not in page([run, RecordedRun("failed", run.header, alone)])
    assert 'http-equiv="refresh" content="30"' in page([run], refresh_seconds=30) and "http-equiv" not in page([run])


def test_the_page_of_a_running_search_is_written_periodically(folder, tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shutil.copy(folder / "history.jsonl", tmp_path)
    header, records = read_history(tmp_path / "history.jsonl", decode_genome)
    live = LivePage(tmp_path)
    with History(tmp_path / "history.jsonl", header, (), decode_genome) as history:
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
    html = page([RecordedRun("long", run.header, records)])
    assert "<b>6000</b> candidates" in html and len(html) < 3_000_000


def test_a_mean_with_a_training_that_diverged(tmp_path):
    runs = []
    for seed in (1, 2):
        run = RecordedRun.read(write_run(tmp_path / str(seed), seed, 30))
        summary = summary_of(run.best, 30)
        summary["results"]["BERT"] = {"loss": 4.0}
        runs.append(dataclasses.replace(run, summary=summary))
    assert mean_test_losses(runs)["bert"] == (4.0, 0.0) and mean_lead(runs) == (0.5, 0.0)
    runs[1].summary["results"]["BERT"]["loss"] = None
    assert mean_test_losses(runs) == {"found": (3.5, 0.0), "bert": (None, None), "bert_rotary": None}
    assert mean_lead(runs) == (None, None) and "diverged" in page(runs)


def test_runs_that_differ_in_their_seeds_are_one_group(tmp_path):
    runs = [RecordedRun.read(write_run(tmp_path / f"a{seed}", seed, 30)) for seed in (1, 2, 3)]
    runs += [RecordedRun.read(write_run(tmp_path / "b", 1, 30, strategy="random"))]
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
    assert html.count('<svg class="genome"') == 4 and "used different texts" not in html
    other = RecordedRun("other", {**runs[0].header, "text_digest": "other"}, runs[0].records)
    assert "used different texts" in page([runs[0], other])
    for changed in ({"vocab_size": 77}, {"split_seed": 1}, {"sequence_length": 32}, {"test_fraction": 0.2}):
        settings = {**runs[0].header["settings"], **changed}
        other = RecordedRun("other", {**runs[0].header, "settings": settings}, runs[0].records)
        assert "used different texts" in page([runs[0], other]), changed
    # The budget is not part of a history, but of what is compared.
    for run in runs[:3]:
        longer = SETTINGS.replace(max_evaluations=30 if run.name == "a1" else 60)
        (tmp_path / run.name / "settings.json").write_text(json.dumps(longer.to_dict()))
    runs = [RecordedRun.read(tmp_path / name) for name in ("a1", "a2", "a3")]
    assert {label: len(members) for label, members in groups_of(runs).items()} == {
        "max_evaluations=30": 1,
        "max_evaluations=60": 2,
    }


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
    runs = [run, RecordedRun("b" * 80, {**run.header, "text_digest": "other"}, run.records[:30])] if several else [run]
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
        assert len(boxes) >= (5 if several else 8) and all(box["width"] > 5 and box["right"] <= width for box in boxes)
        # Text in figures stays within them.
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
        view.emulate_media(media="print")  # on paper, also of who prefers dark screens
        assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        view.emulate_media(media="screen")
        assert len(view.pdf()) > 10_000
        view.close()
    assert len(backgrounds) == 2


def test_styles_of_pictures_affect_only_pictures(run):
    """No rule of a picture of a genome applies to a chart."""
    records = [dataclasses.replace(run.records[0], index=i, genome=random_genome(i), key=str(i)) for i in range(3)]
    html = page([RecordedRun("random", run.header, records)])
    for style in re.findall(r"<style>(\.genome.*?)</style>", html):
        rules = re.sub(r"@media[^{]*\{(.*)\}", r"\1", style)
        assert all(rule.strip().startswith(".genome ") for rule in re.findall(r"([^{}]+)\{", rules))


def test_long_labels_of_groups_are_names(run):
    other = RecordedRun(
        "other", run.header | {"settings": run.header["settings"] | {"train_file": ["long" * 20]}}, run.records
    )
    first, second = groups_of([run, other])
    assert first.startswith("train_file=") and second == "other"


def test_effects_that_cannot_be_told_from_zero_are_not_drawn(run, monkeypatch):
    monkeypatch.setattr(figures, "DISTINGUISHED", 0.0)
    assert "can be told from zero" not in page([run])
    monkeypatch.setattr(figures, "DISTINGUISHED", 1e9)
    assert "can be told from zero" in page([run])


def test_custom_operations_keep_their_names():
    labels = [_feature_label(name) for name in ("0 soft_mix", "0 soft_gate", "1 cosine_similarity", "2 convolution 7")]
    assert labels == ["layer 1 soft_mix", "layer 1 soft_gate", "layer 2 cosine", "layer 3 conv 7"]
