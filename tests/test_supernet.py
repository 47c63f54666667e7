import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Attention, Convolution, Expression, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.data import Corpus
from autobert_zero.search.proxy import MaskedLMProxy
from autobert_zero.search.settings import SearchSettings, stream
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.stopping import Stop, Stopped
from autobert_zero.search.supernet import PathSampler, SuperNetwork, train_supernet
from autobert_zero.search.training import Checkpoint


@pytest.fixture
def parts(tiny_settings):
    corpus = Corpus.build(tiny_settings)
    space = BackboneSpace(
        tiny_settings.num_hidden_layers, tuple(tiny_settings.kernel_sizes), tiny_settings.max_nodes, 1
    )
    supernet = SuperNetwork(tiny_settings, len(corpus.tokenizer), corpus.tokenizer.pad_token_id)
    return tiny_settings, corpus, space, supernet


def genomes(space):
    return [
        Genome([Convolution(3), SELF_ATTENTION]),
        Genome([Convolution(9), Convolution(5)]),
        *(space.random(stream(i, "path")) for i in range(30)),
    ]


def test_a_candidate_says_what_its_path_says(parts):
    """First output and gradients of a model with copied weights equal those of the super-network on the path."""
    settings, corpus, space, supernet = parts
    supernet.eval()
    batch = corpus.batch("test", 0, settings.batch_size)
    for genome in genomes(space):
        supernet.zero_grad()
        loss = supernet(genome, *batch)
        loss.backward()
        candidate = supernet.candidate(genome).eval()
        output = candidate(batch[0], labels=batch[1])
        torch.testing.assert_close(output.loss, loss, atol=1e-6, rtol=0)
        output.loss.backward()
        gradients = {n: p.grad for n, p in candidate.named_parameters()}
        total = sum(g.square().sum() for g in gradients.values())
        store = sum(p.grad.square().sum() for p in supernet.parameters() if p.grad is not None)
        torch.testing.assert_close(store, total)  # every gradient has come to the store, and none that is not its


def test_a_candidate_owns_its_weights(parts):
    _, _, _, supernet = parts
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    candidate = supernet.candidate(Genome([Convolution(3), SELF_ATTENTION]))
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())


def test_a_smaller_kernel_is_the_centre_of_the_largest(parts):
    _, _, _, supernet = parts
    kernel = supernet.convolution[1].mixer.convolution.weight
    for size, margin in ((9, 0), (5, 2), (3, 3)):
        candidate = supernet.candidate(Genome([SELF_ATTENTION, Convolution(size)]))
        weight = candidate.autobert_zero.encoder.layer[1].mixer.convolution.weight
        assert torch.equal(weight, kernel[..., margin : 9 - margin])


def test_expressions_of_a_position_share_its_projections(parts):
    _, _, _, supernet = parts
    one = supernet.candidate(Genome([SELF_ATTENTION, Convolution(3)])).autobert_zero.encoder.layer[0].mixer
    other = Genome([Attention(Expression.parse("add(q, p)")), Convolution(3)])
    mixer = supernet.candidate(other).autobert_zero.encoder.layer[0].mixer
    assert torch.equal(one.query.weight, mixer.query.weight)
    assert not torch.equal(one.query.weight, mixer.extra.weight)
    second = supernet.candidate(Genome([Convolution(3), SELF_ATTENTION])).autobert_zero.encoder.layer[1].mixer
    assert not torch.equal(one.query.weight, second.query.weight)


def test_nothing_is_stored_twice_or_unused(parts):
    """Every parameter of the store is part of some path, and the shared ones are there once."""
    _, _, _, supernet = parts
    used = set()
    all_inputs = Attention(Expression.parse("add(add(q, k), add(v, p))"))
    for genome in (Genome([all_inputs] * 2), Genome([Convolution(9)] * 2)):
        names = [name for name, _ in supernet.candidate(genome).named_parameters()]
        used |= {weight.data_ptr() for weight in supernet.path_weights(genome, names).values()}
    assert used == {parameter.data_ptr() for parameter in supernet.parameters()}


def test_paths_are_of_convolutions_alone_or_as_the_settings_say(parts):
    settings, _, space, _ = parts
    population = genomes(space)[:3]

    def draw(number: int = 0, **changes) -> list[Genome]:
        paths = PathSampler(space, dataclasses.replace(settings, **changes), population)
        return [paths(step, number) for step in range(1000)]

    def share(paths: list[Genome], kind: type) -> float:
        return sum(all(isinstance(gene, kind) for gene in path) for path in paths) / len(paths)

    assert share(draw(), Convolution) == pytest.approx(settings.convolution_paths, abs=0.05)
    assert draw()[:5] == draw()[:5] != draw(number=1)[:5]
    apart = draw(convolution_paths=0.5, other_paths="attentions")
    assert share(apart, Convolution) + share(apart, Attention) == 1
    assert share(apart, Convolution) == pytest.approx(0.5, abs=0.05)
    assert set(draw(convolution_paths=0.0, other_paths="population")) == set(population)


def test_training_the_super_network(parts, tmp_path):
    settings, corpus, space, supernet = parts
    settings = SearchSettings(**{**settings.to_dict(), "supernet_steps": 60, "learning_rate": 5e-3})
    losses = []
    paths = PathSampler(space, settings)
    checkpoint = Checkpoint(tmp_path / "supernet.safetensors", "test", 1e9)
    train_supernet(
        supernet, paths, corpus, settings, Accelerator(cpu=True), checkpoint, lambda done, loss: losses.append(loss)
    )
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    # A reloaded store gives the same outputs.
    reloaded = SuperNetwork(settings, len(corpus.tokenizer), corpus.tokenizer.pad_token_id)
    train_supernet(reloaded, paths, corpus, settings, Accelerator(cpu=True), checkpoint)
    batch = corpus.batch("test", 0, 4)
    for genome in genomes(space)[:5]:
        assert torch.equal(supernet.eval()(genome, *batch), reloaded.eval()(genome, *batch))


def test_a_step_is_the_mean_over_its_paths(parts, monkeypatch):
    """One update with plain models, path by path, equals the super-network's."""
    settings, corpus, space, supernet = parts
    settings = SearchSettings(**{**settings.to_dict(), "paths_per_step": 3, "dropout": 0.0})
    supernet = SuperNetwork(settings, len(corpus.tokenizer), corpus.tokenizer.pad_token_id)
    expected = torch.zeros_like(supernet.attention.get_input_embeddings().weight)
    for number in range(3):
        model = supernet.candidate(PathSampler(space, settings)(0, number)).train()
        batch = corpus.batch("supernet", number, settings.batch_size)
        model(batch[0], labels=batch[1]).loss.backward()
        expected += model.get_input_embeddings().weight.grad / 3
    seen_by_optimizer = []

    def clip(parameters, norm):
        seen_by_optimizer.append(supernet.attention.get_input_embeddings().weight.grad.clone())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    train_supernet(supernet, PathSampler(space, settings), corpus, settings, Accelerator(cpu=True))
    torch.testing.assert_close(seen_by_optimizer[0], expected)


# The proxy


def test_score_is_repeatable_and_above_what_is_untrained(parts):
    settings, corpus, _, supernet = parts
    settings = SearchSettings(**{**settings.to_dict(), "candidate_steps": 60, "candidate_learning_rate": 0.02})
    proxy = MaskedLMProxy(settings, corpus, torch.device("cpu"))
    genome = Genome([Convolution(3), SELF_ATTENTION])
    untrained = -proxy.loss(supernet.candidate(genome), "select")
    one, other = proxy.score(genome, supernet), proxy.score(genome, supernet)
    assert one["score"] == other["score"] > untrained + 0.3
    assert one["reason"] is None and one["seconds"] > 0


def test_candidates_train_at_their_own_rate_and_are_scored_on_select(parts, monkeypatch):
    settings, corpus, _, supernet = parts
    proxy = MaskedLMProxy(settings, corpus, torch.device("cpu"))
    genome = Genome([Convolution(3), SELF_ATTENTION])
    seen = []
    monkeypatch.setattr(
        "autobert_zero.search.proxy.train", lambda module, backward, schedule, *a, **k: seen.append(schedule)
    )
    outcome = proxy.score(genome, supernet)
    [schedule] = seen
    assert (schedule.steps, schedule.learning_rate) == (settings.candidate_steps, settings.candidate_learning_rate)
    assert outcome["score"] == -proxy.loss(supernet.candidate(genome), "select")
    assert outcome["score"] != -proxy.loss(supernet.candidate(genome), "report")


def test_loss_is_the_mean_over_labels(parts):
    settings, corpus, _, supernet = parts
    proxy = MaskedLMProxy(settings, corpus, torch.device("cpu"))
    model = supernet.candidate(Genome([Convolution(3), SELF_ATTENTION])).eval()
    batches = list(corpus.evaluation_batches("report", settings.eval_sequences, 100))
    [(inputs, labels)] = batches
    with torch.no_grad():
        expected = model(inputs, labels=labels).loss.item()
    assert proxy.loss(model.train(), "report") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "FloatingPointError: loss: expected a finite number, got nan"),
        (torch.OutOfMemoryError("of 8 GiB"), "OutOfMemoryError: of 8 GiB"),
        (MemoryError("no"), "MemoryError: no"),
    ],
)
def test_failures_are_outcomes(parts, monkeypatch, error, reason):
    settings, corpus, _, supernet = parts
    proxy = MaskedLMProxy(settings, corpus, torch.device("cpu"))

    def forward(self, *args, **kwargs):
        if error is not None:
            raise error
        output = original(self, *args, **kwargs)
        output.loss = output.loss * math.nan
        return output

    original = AutoBertZeroForMaskedLM.forward
    monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", forward)
    outcome = proxy.score(Genome([Convolution(3), SELF_ATTENTION]), supernet)
    assert outcome["score"] is None and outcome["reason"].startswith(reason)


def score(parts, supernet_genome=None, *, hurdle=None, stop=None, **changes):
    settings, corpus, _, supernet = parts
    settings = dataclasses.replace(settings, **changes)
    genome = supernet_genome or Genome([Convolution(3), SELF_ATTENTION])
    return MaskedLMProxy(settings, corpus, torch.device("cpu"), stop).score(genome, supernet, hurdle)


def test_a_defect_is_an_outcome_and_logged(parts, monkeypatch, caplog):
    monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", lambda *a, **k: 1 / 0)
    outcome = score(parts)
    assert outcome["score"] is None and outcome["reason"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in caplog.text


def test_a_stop_is_no_outcome(parts):
    with pytest.raises(Stopped, match="max_seconds are over"):
        score(parts, stop=Stop(max_seconds=0))


def test_a_candidate_out_of_time(parts):
    outcome = score(parts, candidate_seconds=1e-9)
    assert outcome["score"] is None and outcome["reason"] == "TimeoutError: candidate_seconds: expected at most 1e-09"
    assert score(parts, candidate_seconds=100.0)["reason"] is None


def test_a_slow_candidate_is_not_trained(parts, monkeypatch):
    assert score(parts)["costs"] == {}
    assert score(parts, max_latency=1e6)["costs"]["latency"] > 0
    assert score(parts, objectives=["score", "latency"])["costs"]["latency"] > 0
    monkeypatch.setattr(MaskedLMProxy, "train", lambda *a: pytest.fail("trained"))
    outcome = score(parts, max_latency=1e-6)
    assert outcome["score"] is None and outcome["reason"].startswith("LatencyExceeded: expected at most 1e-06 ms, got")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_hurdle(parts, share, monkeypatch):
    steps = []
    original = Corpus.batch
    monkeypatch.setattr(Corpus, "batch", lambda self, *a: steps.append(a) or original(self, *a))
    without = score(parts, candidate_steps=4)
    assert without["hurdle"] is None
    parts = (dataclasses.replace(parts[0], hurdle=share, candidate_steps=4), *parts[1:])
    first = score(parts)  # nobody came there before
    assert first["score"] == without["score"] and math.isfinite(first["hurdle"])
    assert score(parts, hurdle=first["hurdle"])["score"] == without["score"]
    steps.clear()
    dropped = score(parts, hurdle=first["hurdle"] + 1e-6)
    assert dropped["status"] == "dropped" and dropped["score"] is None and dropped["hurdle"] == first["hurdle"]
    assert "at the hurdle, expected at least" in dropped["reason"]
    assert len(steps) == 4 * share


def test_all_candidates_see_the_same_batches(parts, monkeypatch):
    settings, corpus, space, supernet = parts
    proxy = MaskedLMProxy(settings, corpus, torch.device("cpu"))
    seen = []
    original = Corpus.batch
    monkeypatch.setattr(Corpus, "batch", lambda self, *a: seen.append(a) or original(self, *a))
    for i in range(2):
        proxy.score(space.random(stream(i)), supernet)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


# Two processes

_TWO = """
import sys, torch
from accelerate import Accelerator
from autobert_zero.search.data import Corpus
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.supernet import PathSampler, SuperNetwork, train_supernet
import json
torch.set_num_threads(1)
settings = SearchSettings(**json.loads(sys.argv[1]))
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(sys.argv[2]), accelerator.num_processes
corpus = Corpus.build(settings)
space = BackboneSpace(settings.num_hidden_layers, tuple(settings.kernel_sizes), settings.max_nodes, 1)
torch.manual_seed(0)
supernet = SuperNetwork(settings, len(corpus.tokenizer), 0)
train_supernet(supernet, PathSampler(space, settings), corpus, settings, accelerator)
torch.save(dict(supernet.named_parameters()), f"{sys.argv[3]}{accelerator.process_index}.pt")
accelerator.end_training()
"""


def test_two_processes_train_the_same_super_network(tiny_settings, tmp_path):
    settings = {**tiny_settings.to_dict(), "paths_per_step": 3, "supernet_steps": 5}
    script = tmp_path / "train.py"
    script.write_text(_TWO)
    for count in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command = [*launch, str(script), json.dumps(settings), str(count), str(tmp_path / f"of{count}-")]
        subprocess.run(command, check=True, capture_output=True)
    one, first, second = (torch.load(tmp_path / name) for name in ("of1-0.pt", "of2-0.pt", "of2-1.pt"))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_gradients_that_are_not_finite_change_nothing(parts):
    """Of a finite loss: the square of the square of a product is infinite, and the norm after it makes zeros of that."""
    settings, corpus, _, supernet = parts
    squares = "matmul(q, transpose(k))"
    for _ in range(3):
        squares = f"matmul({squares}, {squares})"
    bad = Genome([Attention(Expression.parse(f"matmul({squares}, v)")), Convolution(3)])
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(60.0)
    batch = corpus.batch("supernet", 0, settings.batch_size)
    loss = supernet(bad, *batch)
    loss.backward()
    assert loss.isfinite() and not all(p.grad.isfinite().all() for p in supernet.parameters() if p.grad is not None)
    supernet.zero_grad()
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    good = Genome([Convolution(3), Convolution(3)])
    settings = dataclasses.replace(settings, paths_per_step=1, supernet_steps=1, weight_decay=0.0)
    train_supernet(supernet, lambda *_: bad, corpus, settings, Accelerator(cpu=True))
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    train_supernet(supernet, lambda *_: good, corpus, settings, Accelerator(cpu=True))
    assert not all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    assert all(p.isfinite().all() for p in supernet.parameters())
