"""Trainings in 16 bits, in parts of a batch, with activations computed again, and compiled."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Convolution, Genome
from autobert_zero.search.evaluation.glue_proxy import GlueProxy
from autobert_zero.search.evaluation.supernet import train_supernet
from autobert_zero.search.evaluation.training import Checkpoint, Precision, Schedule, train
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.text.masking import IGNORE_INDEX, micro_batches
from tests.evaluation.glue_files import write_task


GENOME = Genome([ROTARY_ATTENTION, Convolution(5)])
# Memory is saved; results are the same up to the order of sums.
FRUGAL = [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"gradient_checkpointing": True}]


@pytest.fixture
def problem(tiny_settings) -> Problem:
    return Problem.prepare(tiny_settings.replace(dropout=0.0, prune_after=0.5), torch.device("cpu"))


@pytest.fixture
def matmul_dtypes(monkeypatch) -> set[torch.dtype]:
    """Types of the operands of all linear maps, as they are called."""
    found = set()
    original = nn.functional.linear

    def spy(x, weight, bias=None):
        result = original(x, weight, bias)
        found.add(result.dtype)
        return result

    monkeypatch.setattr(nn.functional, "linear", spy)
    return found


@pytest.mark.parametrize(("name", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_every_phase_computes_in_the_precision_of_the_settings(problem, matmul_dtypes, tmp_path, name, dtype):
    write_task(tmp_path, "rte")
    glue = {"proxy": "glue", "proxy_tasks": ["rte"], "glue_dir": str(tmp_path), "glue_steps": 2}
    problem = problem.replace(mixed_precision=name, max_latency=1e9, **glue)
    assert isinstance(problem.proxy, GlueProxy)
    supernet = problem.new_supernet()
    phases = {
        "super-network": lambda: train_supernet(
            supernet, problem.paths(), problem.corpus, problem.settings.supernet, problem.settings.training
        ),
        "candidate": lambda: problem.proxy.score(GENOME, supernet, None),
        "from scratch": lambda: problem.proxy.train_from_scratch(GENOME, problem.proxy.schedule(2, 1e-3)),
        "test loss": lambda: problem.proxy.loss(problem.proxy.builder.model(GENOME), "test"),
        "latency": lambda: problem.proxy.latency(problem.proxy.builder.model(GENOME)),
    }
    for phase, run in phases.items():
        matmul_dtypes.clear()
        outcome = run()
        assert matmul_dtypes == {dtype}, phase
        assert phase != "candidate" or outcome.status == "ok", outcome
    assert all(parameter.dtype == torch.float32 for parameter in supernet.parameters())


def test_the_precision_is_part_of_the_identity(problem):
    assert problem.replace(mixed_precision="bf16").identity != problem.identity
    for change in (*FRUGAL, {"compile": True}):
        assert problem.replace(**change).full_identity == problem.full_identity


@pytest.mark.parametrize("change", FRUGAL)
def test_saving_memory_changes_no_result(problem, change):
    frugal = problem.replace(**change)
    supernets = []
    for each in (problem, frugal):
        supernets.append(each.new_supernet())
        train_supernet(supernets[-1], each.paths(), each.corpus, each.settings.supernet, each.settings.training)
    for one, other in zip(supernets[0].parameters(), supernets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    scores = [each.proxy.score(GENOME, supernets[0], None).score for each in (problem, frugal)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    one, other = (each.proxy.train_from_scratch(GENOME, each.proxy.schedule(4, 1e-2)) for each in (problem, frugal))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_activations_are_computed_again(problem):
    """Each layer runs twice per step."""
    calls = []
    for change, expected in (({}, 1), ({"gradient_checkpointing": True}, 2)):
        each = problem.replace(**change)
        model = each.proxy.builder.model(GENOME)
        calls.clear()
        model.base_model.encoder.layer[0].mixer.register_forward_hook(lambda *_: calls.append(1))
        each.proxy.train(model, each.proxy.schedule(1, 1e-3), "final")
        assert len(calls) == expected


def test_micro_batches_are_weighted_by_their_labels():
    labels = torch.full((5, 4), IGNORE_INDEX)
    labels[0, :3] = labels[3, 0] = 7
    ids = torch.arange(20).view(5, 4)
    parts = list(micro_batches(ids, labels, 2))
    assert [part.tolist() for part, _, _ in parts] == [ids[:2].tolist(), ids[2:4].tolist()]  # the last has no label
    assert [weight for *_, weight in parts] == [0.75, 0.25]
    for size in (None, 5, 9):
        [(whole, same, weight)] = micro_batches(ids, labels, size)
        assert whole is ids and same is labels and weight == 1.0


def test_a_micro_batch_of_glue(problem, tmp_path):
    write_task(tmp_path, "rte")
    glue = {"proxy": "glue", "proxy_tasks": ["rte"], "glue_dir": str(tmp_path), "glue_steps": 3}
    one, other = (problem.replace(**glue, micro_batch_size=size) for size in (None, 1))
    supernet = problem.new_supernet()
    assert one.proxy.score(GENOME, supernet, None).score == other.proxy.score(GENOME, supernet, None).score


@pytest.mark.parametrize(
    ("precision", "supported", "warns"),
    [
        (Precision("bf16", "cpu"), False, True),
        (Precision("bf16", "cpu"), True, False),
        (Precision("bf16", "cuda"), False, False),
        (Precision("no", "cpu"), False, False),
    ],
)
def test_bfloat16_without_instructions_for_it_is_warned_of(monkeypatch, caplog, precision, supported, warns):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    precision.warn_if_emulated()
    assert [record.message for record in caplog.records] == (
        ["bf16: this processor has no instructions for bfloat16: float32 is much faster"] if warns else []
    )


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))


def backward_of(module, overflow_at=None):
    def backward(step, propagate):
        torch.manual_seed(step)
        x = torch.randn(7, 3)
        with Precision("fp16").autocast():
            loss = (module(x).float() - x.sum(1, keepdim=True)).square().mean()
        propagate(loss * (1e38 if step == overflow_at else 1e-3))
        return loss.item()

    return backward


def test_losses_are_scaled_in_float16(tmp_path):
    """The gradients are those without a scale; an update that overflows is skipped, and the scale is halved; a resumed
    training equals an uninterrupted one."""
    schedule, precision = Schedule(6, 0.01), Precision("fp16")
    module = make()
    before = copy.deepcopy(module.state_dict())
    train(module, backward_of(module, 0), schedule, steps=1, precision=precision)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())

    expected = make()
    train(expected, backward_of(expected, 1), schedule, precision=precision)
    path = tmp_path / "c.safetensors"
    interrupted = make()
    train(interrupted, backward_of(interrupted, 1), schedule, Checkpoint(path, "", 0.0), steps=3, precision=precision)
    resumed = make()
    train(resumed, backward_of(resumed, 1), schedule, Checkpoint(path, "", 0.0), precision=precision)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), expected.parameters(), strict=True))
    scaler = precision.scaler()
    assert Checkpoint(path, "", 0.0).load(make(), torch.optim.AdamW(make().parameters()), scaler) == 6
    assert scaler.get_scale() == 2.0**15
    # Without the state of the scaler, the step after the overflow would overflow again or differ.
    other = make()
    train(other, backward_of(other), schedule, precision=precision)
    assert not all(torch.equal(a, b) for a, b in zip(other.parameters(), expected.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inside torch.compile
def test_compiled_layers(problem):
    """Models from scratch are compiled layer by layer, and equal layers once."""
    genome = Genome([ROTARY_ATTENTION, ROTARY_ATTENTION])
    one = problem.proxy.train_from_scratch(genome, problem.proxy.schedule(3, 1e-2))
    compiled = problem.replace(compile=True)
    counters.clear()
    other = compiled.proxy.train_from_scratch(genome, compiled.proxy.schedule(3, 1e-2))
    assert 1 <= counters["stats"]["unique_graphs"] <= 2 and sum(counters["graph_break"].values()) == 0
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    losses = [each.proxy.loss(model, "test") for each, model in ((problem, one), (compiled, other))]
    assert math.isclose(*losses, abs_tol=1e-4)
