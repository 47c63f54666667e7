"""The super-network, its training, and the scores of candidates that inherit its weights."""

import copy
import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from autobert_zero.configuration_autobert_zero import (
    PAPER_OPERATIONS,
    ROTARY_ATTENTION,
    SELF_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.evaluation.proxy import MaskedLMProxy
from autobert_zero.search.evaluation.supernet import (
    NUM_SLOTS,
    PathSampler,
    SuperNetwork,
    train_supernet,
)
from autobert_zero.search.evaluation.training import Checkpoint
from autobert_zero.search.evolution.archive import Outcome
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.grammar import Grammar
from autobert_zero.search.stopping import Stop, Stopped
from autobert_zero.search.text.corpus import Corpus


GENOME = Genome([Convolution(3), SELF_ATTENTION])


@pytest.fixture
def problem(tiny_settings) -> Problem:
    return Problem.prepare(tiny_settings, torch.device("cpu"))


@pytest.fixture
def supernet(problem) -> SuperNetwork:
    return problem.new_supernet()


def genomes(space) -> list[Genome]:
    return [
        GENOME,
        Genome([Convolution(9), Convolution(5)]),
        *(space.random(random_stream(i, "path")) for i in range(30)),
    ]


def train(problem: Problem, supernet: SuperNetwork, sample_path=None, **arguments) -> None:
    """Train the super-network as the settings of the problem say."""
    settings = problem.settings
    paths = sample_path or problem.paths()
    train_supernet(supernet, paths, problem.corpus, settings.supernet, settings.training, **arguments)


def test_the_loss_without_a_mixer(problem):
    """Equal to that of a model whose mixer ends in a map to zeros; the model itself is unchanged."""
    for layer in range(len(GENOME)):
        model = problem.proxy.builder.model(GENOME)
        expected = problem.proxy.loss(model, "test")
        without = problem.proxy.loss_without_mixer(model, layer)
        assert problem.proxy.loss(model, "test") == expected != without
        mixer = model.base_model.encoder.layer[layer].mixer
        torch.nn.init.zeros_(mixer.dense.weight)
        torch.nn.init.zeros_(mixer.dense.bias)
        assert problem.proxy.loss(model, "test") == pytest.approx(without, abs=1e-6)


def test_the_loss_without_a_mixer_of_a_compiled_model(problem):
    plain = problem.proxy.builder.model(GENOME)
    compiled = copy.deepcopy(plain)
    for layer in compiled.base_model.encoder.layer:
        layer.compile(backend="eager")
    assert problem.proxy.loss(compiled, "test") == pytest.approx(problem.proxy.loss(plain, "test"))
    for layer in range(len(GENOME)):
        without = problem.proxy.loss_without_mixer(plain, layer)
        assert problem.proxy.loss_without_mixer(compiled, layer) == pytest.approx(without)


@pytest.mark.parametrize("operations", [["paper"], ["matmul", "transpose", "softmax"], ["all"]])
@pytest.mark.parametrize("positions", ["absolute", "none"])
def test_paths_of_any_operations(tiny_settings, operations, positions):
    settings = tiny_settings.replace(operations=operations, position_embedding_type=positions)
    problem = Problem.prepare(settings, torch.device("cpu"))
    supernet, batch = problem.new_supernet().eval(), problem.corpus.batch("test", 0, 4)
    for step in range(6):
        path = problem.paths()(step, 0)
        loss = supernet.candidate(path).eval()(batch[0], labels=batch[1]).loss
        torch.testing.assert_close(supernet(path, *batch), loss)


def test_a_candidate_equals_its_path(problem, supernet):
    """Loss and gradients of a model with copied weights equal those of the super-network on the path."""
    supernet.eval()
    batch = problem.corpus.batch("test", 0, problem.settings.training.batch_size)
    for genome in genomes(problem.space):
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
        if any(len(gene.expression.parameters()) > NUM_SLOTS for gene in genome if isinstance(gene, Attention)):
            continue  # several nodes may share a slot, where their gradients are added
        torch.testing.assert_close(store, total)  # the store has all gradients and no others


def test_a_candidate_has_a_copy_of_the_weights(supernet):
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    candidate = supernet.candidate(GENOME)
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())


def test_a_smaller_kernel_is_the_center_of_the_largest(supernet):
    kernel = supernet.convolution[1].mixer.convolution.weight
    for size, margin in ((9, 0), (5, 2), (3, 3)):
        candidate = supernet.candidate(Genome([SELF_ATTENTION, Convolution(size)]))
        weight = candidate.autobert_zero.encoder.layer[1].mixer.convolution.weight
        assert torch.equal(weight, kernel[..., margin : 9 - margin])


def test_expressions_at_one_position_share_its_projections(supernet):
    one = supernet.candidate(Genome([SELF_ATTENTION, Convolution(3)])).autobert_zero.encoder.layer[0].mixer
    other = Genome([Attention(Expression.parse("add(q, p)")), Convolution(3)])
    mixer = supernet.candidate(other).autobert_zero.encoder.layer[0].mixer
    assert torch.equal(one.query.weight, mixer.query.weight)
    assert not torch.equal(one.query.weight, mixer.extra.weight)
    second = supernet.candidate(GENOME).autobert_zero.encoder.layer[1].mixer
    assert not torch.equal(one.query.weight, second.query.weight)


def test_no_weight_is_stored_twice_or_unused(supernet):
    """Every parameter of the store is part of some path, and shared parameters are stored once."""
    used = set()
    inputs = "add(add(q, k), add(v, p))"
    operations = "add(add(conv15(q), conv15(k)), add(conv15(v), mix(mix(mix(q, k), v), p)))"
    all_weights = Attention(Expression.parse(f"add({inputs}, {operations})"))
    for genome in (Genome([all_weights] * 2), Genome([Convolution(9)] * 2)):
        names = [name for name, _ in supernet.candidate(genome).named_parameters()]
        used |= {weight.data_ptr() for weight in supernet.path_weights(genome, names).values()}
    assert used == {parameter.data_ptr() for parameter in supernet.parameters()}


def test_paths_have_self_attention_and_sometimes_a_random_one(problem):
    settings, bounds = problem.settings.supernet, problem.space.bounds
    population = genomes(problem.space)[:3]

    def draw(number: int = 0, **changes) -> list[Genome]:
        changed = dataclasses.replace(settings, **changes)
        paths = PathSampler(problem.space, problem.settings.run.seed, changed, population)
        return [paths(step, number) for step in range(1000)]

    assert draw()[:5] == draw()[:5] != draw(number=1)[:5]
    assert bounds.self_attention == ROTARY_ATTENTION

    def count_random(path: Genome) -> int:
        return sum(isinstance(gene, Attention) and gene != ROTARY_ATTENTION for gene in path)

    paths = draw()
    wide = dataclasses.replace(bounds, max_nodes=10, min_attention_layers=0)  # self-attention has ten nodes
    assert bounds.max_nodes < 10 and all(wide.contains(path) for path in paths)
    assert {count_random(path) for path in paths} == {0, 1}
    assert sum(map(count_random, paths)) / 1000 == pytest.approx(settings.random_attention_paths, abs=0.05)
    known = draw(random_attention_paths=0.0)
    assert not any(map(count_random, known)) and all(map(count_random, draw(random_attention_paths=1.0)))
    counts = [sum(isinstance(gene, Attention) for gene in path) for path in known]
    for count in (0, 1, 2):  # equally often
        assert counts.count(count) / 1000 == pytest.approx(1 / 3, abs=0.05)
    random = draw(paths="space")
    assert max(map(count_random, random)) == 2 and all(bounds.contains(path) for path in random)


def test_paths_in_a_space_with_other_bounds(problem):
    def draw(**changes) -> list[Genome]:
        bounds = dataclasses.replace(problem.space.bounds, max_nodes=10, **changes)
        settings = dataclasses.replace(problem.settings.supernet, random_attention_paths=0.5)
        sample = PathSampler(BackboneSpace(bounds), 0, settings, [])
        paths = [sample(step, 0) for step in range(100)]
        assert all(dataclasses.replace(bounds, min_attention_layers=0).contains(path) for path in paths)
        return paths

    convolutions = draw(min_attention_layers=0, max_attention_layers=0)
    assert all(isinstance(gene, Convolution) for path in convolutions for gene in path)
    attentions = draw(min_attention_layers=2)
    assert all(isinstance(gene, Attention) for path in attentions for gene in path)
    assert any(isinstance(gene, Convolution) for path in draw(max_attention_layers=1) for gene in path)
    counts = [sum(isinstance(gene, Attention) for gene in path) for path in draw(max_attention_layers=12)]
    assert counts.count(2) < 60  # of two layers: more attentions than layers are not drawn
    plain = draw(grammar=Grammar(PAPER_OPERATIONS))  # without positions every genome needs a convolution
    assert any(gene == SELF_ATTENTION for path in plain for gene in path)
    few = draw(grammar=Grammar(("softmax", "matmul", "transpose", "rotary")))
    assert len(set(few)) > 20  # no self-attention without scale: random genomes


def test_training_the_super_network(problem, supernet, tmp_path):
    problem = problem.replace(supernet_steps=60, learning_rate=5e-3)
    losses = []
    checkpoint = Checkpoint(tmp_path / "supernet.safetensors", "test", 1e9)
    arguments = {"accelerator": Accelerator(cpu=True), "checkpoint": checkpoint}
    train(problem, supernet, **arguments, progress=lambda done, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    # A reloaded store gives the same outputs.
    reloaded = SuperNetwork(problem.proxy.builder, supernet.max_kernel_size)
    train(problem, reloaded, **arguments)
    batch = problem.corpus.batch("test", 0, 4)
    for genome in genomes(problem.space)[:5]:
        assert torch.equal(supernet.eval()(genome, *batch), reloaded.eval()(genome, *batch))


def test_a_step_is_the_mean_over_its_paths(problem, monkeypatch):
    """The gradients of one step equal the mean of those of plain models, path by path."""
    problem = problem.replace(paths_per_step=3, dropout=0.0)
    supernet = problem.new_supernet()
    expected = torch.zeros_like(supernet.attention.get_input_embeddings().weight)
    for number in range(3):
        model = supernet.candidate(problem.paths()(0, number)).train()
        batch = problem.corpus.batch("supernet", number, problem.settings.training.batch_size)
        model(batch[0], labels=batch[1]).loss.backward()
        expected += model.get_input_embeddings().weight.grad / 3
    clipped = []

    def clip(parameters, norm):
        clipped.append(supernet.attention.get_input_embeddings().weight.grad.clone())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    train(problem, supernet)
    torch.testing.assert_close(clipped[0], expected)


# The proxy


def test_scores_are_repeatable_and_above_those_without_training(problem, supernet):
    proxy = problem.replace(candidate_steps=60, candidate_learning_rate=0.02).proxy
    untrained = -proxy.loss(supernet.candidate(GENOME), "validation")
    one, other = proxy.score(GENOME, supernet), proxy.score(GENOME, supernet)
    assert one.score == other.score > untrained + 0.3
    assert one.reason is None and one.seconds > 0


def test_candidates_have_a_separate_learning_rate_and_are_scored_on_the_validation_part(
    problem, supernet, monkeypatch
):
    proxy, settings = problem.proxy, problem.settings.candidates
    schedules = []
    monkeypatch.setattr(
        "autobert_zero.search.evaluation.proxy.train",
        lambda module, backward, schedule, *a, **k: schedules.append(schedule),
    )
    outcome = proxy.score(GENOME, supernet)
    [schedule] = schedules
    assert (schedule.steps, schedule.learning_rate) == (settings.candidate_steps, settings.candidate_learning_rate)
    assert outcome.score == -proxy.loss(supernet.candidate(GENOME), "validation")
    assert outcome.score != -proxy.loss(supernet.candidate(GENOME), "test")


def test_attentions_are_looked_at_by_layer(problem):
    """Of layers that have weights: not of convolutions, nor of an attention without a value of tokens by tokens."""
    linear = Attention(Expression.parse("matmul(softmax(q), matmul(transpose(k), v))"))
    for genome, layers in (
        (Genome([Convolution(3), SELF_ATTENTION]), {"2"}),
        (Genome([ROTARY_ATTENTION, linear]), {"1"}),
        (Genome([Convolution(3), linear]), set()),
    ):
        found = problem.proxy.attention_by_distance(problem.proxy.builder.model(genome))
        assert set(found) == layers and all(len(heads) == 3 for heads in found.values())
    # The shortest sequences that are legal have no distance of 8.
    short = Problem.prepare(problem.settings.replace(sequence_length=8), torch.device("cpu")).proxy
    found = short.attention_by_distance(short.builder.model(Genome([ROTARY_ATTENTION, ROTARY_ATTENTION])))
    assert torch.tensor(found["1"]).isfinite().all() and torch.tensor(found["1"]).shape == (3, 15)


def test_loss_is_the_mean_over_labels(problem, supernet):
    model = supernet.candidate(GENOME).eval()
    batches = list(problem.corpus.evaluation_batches("test", problem.settings.training.eval_sequences, 100))
    [(inputs, labels)] = batches
    with torch.no_grad():
        expected = model(inputs, labels=labels).loss.item()
    assert problem.proxy.loss(model.train(), "test") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "FloatingPointError: loss: expected a finite number, got nan"),
        (torch.OutOfMemoryError("of 8 GiB"), "OutOfMemoryError: of 8 GiB"),
        (MemoryError("no"), "MemoryError: no"),
    ],
)
def test_failures_are_outcomes(problem, supernet, monkeypatch, error, reason):
    def forward(self, *args, **kwargs):
        if error is not None:
            raise error
        output = original(self, *args, **kwargs)
        output.loss = output.loss * math.nan
        return output

    original = AutoBertZeroForMaskedLM.forward
    monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", forward)
    outcome = problem.proxy.score(GENOME, supernet)
    assert outcome.status == "failed" and outcome.score is None and outcome.reason.startswith(reason)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("of 8 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
)
def test_a_candidate_that_needs_too_much_memory_is_trained_in_smaller_micro_batches(
    problem, supernet, monkeypatch, caplog, error
):
    assert problem.settings.training.batch_size == 4
    sizes = []

    def forward(self, input_ids, *args, **kwargs):
        sizes.append(len(input_ids))
        if self.training and len(input_ids) > 1:
            raise error
        return original(self, input_ids, *args, **kwargs)

    original = AutoBertZeroForMaskedLM.forward
    monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", forward)
    outcome = problem.proxy.score(GENOME, supernet)
    assert outcome.status == "ok" and "micro_batch_size 1" in caplog.text and {1, 2, 4} == set(sizes)
    assert outcome.score == pytest.approx(score(problem, supernet, micro_batch_size=1).score, abs=0)
    assert problem.proxy.training.micro_batch_size is None  # the next candidate may need less


def score(
    problem: Problem,
    supernet: SuperNetwork,
    *,
    threshold: float | None = None,
    stop: Stop | None = None,
    **changes,
) -> Outcome:
    """The outcome of a candidate with some settings changed."""
    proxy = problem.replace(**changes).proxy
    proxy.stop = stop or proxy.stop
    return proxy.score(GENOME, supernet, threshold)


def test_a_defect_is_an_outcome_and_logged(problem, supernet, monkeypatch, caplog):
    monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", lambda *a, **k: 1 / 0)
    outcome = score(problem, supernet)
    assert outcome.score is None and outcome.reason == "ZeroDivisionError: division by zero"
    assert "Traceback" in caplog.text


def test_a_stop_is_not_an_outcome(problem, supernet):
    with pytest.raises(Stopped, match="max_seconds have passed"):
        score(problem, supernet, stop=Stop(max_seconds=0))


def test_a_candidate_out_of_time(problem, supernet):
    outcome = score(problem, supernet, candidate_seconds=1e-9)
    assert outcome.score is None and outcome.reason == "TimeoutError: candidate_seconds: expected at most 1e-09"
    assert score(problem, supernet, candidate_seconds=100.0).reason is None
    untrained = score(problem, supernet, candidate_seconds=1e-9, candidate_steps=0)
    assert untrained.reason == outcome.reason


def test_a_slow_candidate_is_not_trained(problem, supernet, monkeypatch):
    assert score(problem, supernet).costs == {}
    assert score(problem, supernet, max_latency=1e6).costs["latency"] > 0
    assert score(problem, supernet, objectives=["score", "latency"]).costs["latency"] > 0
    monkeypatch.setattr(MaskedLMProxy, "train", lambda *a: pytest.fail("trained"))
    outcome = score(problem, supernet, max_latency=1e-6)
    assert outcome.score is None and outcome.reason.startswith("LatencyExceeded: expected at most 1e-06 ms, got")


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_pruning(problem, supernet, fraction, monkeypatch):
    steps = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: steps.append(a) or original(self, *a))
    without = score(problem, supernet, candidate_steps=4)
    assert without.intermediate_score is None
    settings = {"prune_after": fraction, "candidate_steps": 4}
    first = score(problem, supernet, **settings)  # without a threshold: there are no earlier candidates
    assert first.score == without.score and math.isfinite(first.intermediate_score)
    threshold = first.intermediate_score
    assert score(problem, supernet, **settings, threshold=threshold).score == without.score
    steps.clear()
    pruned = score(problem, supernet, **settings, threshold=threshold + 1e-6)
    assert pruned.status == "pruned" and pruned.score is None and pruned.intermediate_score == threshold
    assert f"after {round(4 * fraction)} steps, expected at least" in pruned.reason
    assert len(steps) == 4 * fraction


def test_all_candidates_train_on_the_same_batches(problem, supernet, monkeypatch):
    batches = []
    original = Corpus.batch
    monkeypatch.setattr(Corpus, "batch", lambda self, *a: batches.append(a) or original(self, *a))
    for i in range(2):
        problem.proxy.score(problem.space.random(random_stream(i)), supernet)
    assert batches[: len(batches) // 2] == batches[len(batches) // 2 :]


# Two processes

_TWO = """
import sys, torch
from accelerate import Accelerator
from autobert_zero.search.evaluation.supernet import train_supernet
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.settings import SearchSettings
import json
torch.set_num_threads(1)
settings = SearchSettings.from_dict(json.loads(sys.argv[1]))
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(sys.argv[2]), accelerator.num_processes
problem = Problem.prepare(settings, torch.device("cpu"))
supernet = problem.new_supernet()
train_supernet(supernet, problem.paths(), problem.corpus, settings.supernet, settings.training, accelerator)
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


def test_gradients_that_are_not_finite_change_nothing(problem, supernet):
    """A finite loss may have them: the square of the square of a product is infinite, and the norm after it turns that
    into zeros."""
    squares = "matmul(q, transpose(k))"
    for _ in range(3):
        squares = f"matmul({squares}, {squares})"
    bad = Genome([Attention(Expression.parse(f"matmul({squares}, v)")), Convolution(3)])
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(60.0)
    batch = problem.corpus.batch("supernet", 0, problem.settings.training.batch_size)
    loss = supernet(bad, *batch)
    loss.backward()
    assert loss.isfinite() and not all(p.grad.isfinite().all() for p in supernet.parameters() if p.grad is not None)
    supernet.zero_grad()
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    good = Genome([Convolution(3), Convolution(3)])
    problem = problem.replace(paths_per_step=1, supernet_steps=1, weight_decay=0.0)
    train(problem, supernet, lambda *_: bad)
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    train(problem, supernet, lambda *_: good)
    assert not all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    assert all(p.isfinite().all() for p in supernet.parameters())
