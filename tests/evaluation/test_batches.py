"""Batches are built ahead, and a training step waits for the device once."""

import threading
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autobert_zero import modeling_autobert_zero
from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM, AutoBertZeroModel
from autobert_zero.search.evaluation.batches import AHEAD, Batches
from autobert_zero.search.evaluation.supernet import train_supernet
from autobert_zero.search.run.problem import Problem
from tests.conftest import BATCH, TOKENS, VOCAB, padding_mask, tiny_config


GENOME = Genome([ROTARY_ATTENTION, Convolution(5)])


class Synchronizations(TorchDispatchMode):
    """Counts what would wait for an accelerator: values of tensors that Python reads, and sizes that depend on values."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"):
            self.counts[name] += 1
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.counts["index by bool"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def synchronizations(monkeypatch):
    mode = Synchronizations()
    original = torch.Tensor.tolist

    def tolist(self):
        mode.counts["tolist"] += 1
        return original(self)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    return mode


def test_a_forward_pass(synchronizations, monkeypatch):
    """With a mask it reads once; without one, not at all where reading has a price."""
    model = AutoBertZeroModel(tiny_config(GENOME)).eval()
    ids = torch.randint(1, VOCAB, (BATCH, TOKENS))
    with synchronizations:
        model(ids, attention_mask=padding_mask(), token_type_ids=torch.zeros_like(ids))
    assert synchronizations.counts == {"tolist": 1}
    synchronizations.counts.clear()
    with synchronizations:
        model(ids)
    assert synchronizations.counts == {"tolist": 1}  # on a CPU, ids are checked
    synchronizations.counts.clear()
    monkeypatch.setattr(modeling_autobert_zero, "_readable", lambda tensor: False)  # as ids of another device
    with synchronizations:
        model(ids)
    assert not synchronizations.counts


def test_a_training_step(synchronizations, tiny_settings, monkeypatch):
    """It reads the loss. (The labels, of which the labelled ones are looked for, stay in main memory.)"""
    monkeypatch.setattr(modeling_autobert_zero, "_readable", lambda tensor: False)
    problem = Problem.prepare(tiny_settings.replace(dropout=0.0, supernet_steps=3), torch.device("cpu"))
    model = problem.proxy.builder.model(GENOME)
    with synchronizations:
        problem.proxy.train(model, problem.proxy.schedule(3, 1e-3), "candidate")
    assert synchronizations.counts == {"_local_scalar_dense": 3, "nonzero": 3}
    synchronizations.counts.clear()
    supernet = problem.new_supernet()
    with synchronizations:
        train_supernet(supernet, problem.paths(), problem.corpus, problem.settings.supernet, problem.settings.training)
    assert problem.settings.supernet.paths_per_step == 2
    assert synchronizations.counts == {"tolist": 3, "nonzero": 6}


def test_a_path_that_overflows_is_skipped(tiny_settings, monkeypatch):
    """The step is repeated without it: its gradients are those of the others."""
    problem = Problem.prepare(
        tiny_settings.replace(dropout=0.0, supernet_steps=1, paths_per_step=3), torch.device("cpu")
    )
    original = AutoBertZeroForMaskedLM.forward
    calls = []

    def gradients(factor):
        calls.clear()

        def forward(self, input_ids, labels):
            output = original(self, input_ids, labels=labels)
            calls.append(1)
            if len(calls) in (2, 5):  # the second path, also when the step is repeated
                output.loss = output.loss * factor
            return output

        monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", forward)
        supernet = problem.new_supernet()
        found = []
        monkeypatch.setattr(
            torch.nn.utils, "clip_grad_norm_", lambda parameters, _: found.extend(p.grad for p in parameters)
        )
        train_supernet(supernet, problem.paths(), problem.corpus, problem.settings.supernet, problem.settings.training)
        return [None if gradient is None else gradient.clone() for gradient in found]

    found = gradients(float("inf"))
    assert len(calls) == 6
    expected = gradients(0.0)  # the same sum, as a mean over three paths instead of two
    assert len(calls) == 3
    assert any(gradient is not None and gradient.any() for gradient in found)
    for two, three in zip(found, expected, strict=True):
        if two is not None:
            torch.testing.assert_close(two, three * 3 / 2)


def test_batches_are_built_ahead_and_depend_on_their_number_only():
    main, built, ready = threading.get_ident(), [], threading.Event()

    def build(number):
        assert threading.get_ident() != main
        built.append(number)
        if number == 1 + AHEAD:
            ready.set()
        return torch.tensor(number), torch.tensor(-number)

    with Batches(build, torch.device("cpu"), stop=5) as batches:
        assert batches(0) == (0, 0)
        assert batches(1) == (1, -1)
        assert ready.wait(10)  # without being asked for
        assert batches(7) == (7, -7) and batches(2) == (2, -2)
    assert built[: 2 + AHEAD] == list(range(2 + AHEAD)) and set(built) <= {0, 1, 2, 3, 4, 7}


def test_batches_are_built_in_the_given_order():
    """Also if one does not follow the other by a constant: three paths of a step in two processes."""
    order = [0, 2, 3, 5, 6, 8]
    built = []

    def build(number):
        built.append(number)
        return torch.tensor(number), torch.tensor(number)

    with Batches(build, torch.device("cpu"), 9, lambda number: order[(order.index(number) + 1) % 6]) as batches:
        for number in order[:4]:
            assert batches(number)[0] == number
    assert built == order[: len(built)] and len(built) >= 4


def test_an_error_of_a_batch_is_raised_where_it_is_needed():
    def build(number):
        if number == 2:
            raise ValueError("no batch")
        return torch.tensor(number), torch.tensor(number)

    with Batches(build, torch.device("cpu"), stop=5) as batches:
        batches(0)
        batches(1)
        with pytest.raises(ValueError, match="no batch"):
            batches(2)
