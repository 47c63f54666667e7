"""Muon with AdamW: those of torch, under one schedule, resumed exactly."""

import copy

import pytest
import torch
from muon import MuonWithAdamW, orthogonalized
from transformers import BertConfig, BertForMaskedLM, get_scheduler


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            initializer_range=0.5,
        )
    )


def train(model, optimizers, steps=3):
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: 1 / (1 + step)) for each in optimizers]
    model.train(False)
    for step in range(steps):
        ids = torch.arange(12).view(2, 6) + step
        model(input_ids=ids, labels=ids).loss.backward()
        for each in (*optimizers, *schedules):
            each.step()
        model.zero_grad()


@pytest.mark.parametrize(("bfloat16", "tolerance"), [(True, 0.02), (False, 0.1)])
def test_matrices_of_layers_are_trained_by_muon_and_the_rest_by_adamw(model, monkeypatch, bfloat16, tolerance):
    """Like torch's, which iterates in bfloat16, and nearly so in float32."""
    monkeypatch.setattr("muon.has_bfloat16", lambda device_type: bfloat16)
    other = copy.deepcopy(model)
    decayed = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    train(model, [MuonWithAdamW.of_model(model, decayed, 0.1, lr=0.01, betas=(0.8, 0.9))])

    is_matrix = {
        name: parameter.ndim == 2 and "embeddings" not in name and "decoder" not in name
        for name, parameter in other.named_parameters()
    }
    assert sum(is_matrix.values()) == 7  # four of attention, two of the feed-forward network, one before the logits
    parts = [[p for name, p in other.named_parameters() if is_matrix[name] == which] for which in (True, False)]
    decays = [[p for p in parts[1] if (p.ndim > 1) == which] for which in (True, False)]
    groups = [{"params": decays[0], "weight_decay": 0.1}, {"params": decays[1], "weight_decay": 0.0}]
    muon = torch.optim.Muon(parts[0], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = copy.deepcopy(other)
    train(other, [muon, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))])
    for (name, one), two, three in zip(model.named_parameters(), other.parameters(), before.parameters(), strict=True):
        if not name.endswith("key.bias"):  # whose gradients are rounding errors
            assert (one - two).norm() <= tolerance * (two - three).norm(), name


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (5, 9), (9, 5)])
def test_singular_values_are_near_one_and_vectors_are_kept(rows, columns):
    matrices = torch.randn(3, rows, columns)
    found = orthogonalized(matrices, torch.float32)
    for matrix, each in zip(matrices, found, strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ each @ v.T
        assert (values.diag() > 0.6).all() and (values.diag() < 1.3).all()
        torch.testing.assert_close(values, torch.diag(values.diag()), atol=1e-4, rtol=0)
    assert orthogonalized(torch.zeros(1, rows, columns), torch.float32).isfinite().all()


def test_its_state_is_restored_and_follows_the_schedule(model):
    other = copy.deepcopy(model)
    optimizer = MuonWithAdamW.of_model(model, {"a"}, 0.1, lr=0.01)
    train(model, [optimizer])
    restored = MuonWithAdamW.of_model(other, {"a"}, 0.1, lr=0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    assert {group["lr"] for group in restored.param_groups} == {0.01 / 4}
    train(model, [optimizer])
    train(other, [restored])
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("name", ["polynomial", "cosine_with_min_lr"])
def test_schedules_that_read_the_default_rate(model, name):
    optimizer = MuonWithAdamW.of_model(model, set(), 0.0, lr=0.01)
    more = {"min_lr": 1e-3} if name == "cosine_with_min_lr" else {}
    schedule = get_scheduler(name, optimizer, 0, 4, more)
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append({group["lr"] for group in optimizer.param_groups})
    assert all(len(each) == 1 for each in rates) and max(rates[-1]) < 0.002


def test_frozen_parameters_are_left_out(model):
    model.bert.requires_grad_(False)
    optimizer = MuonWithAdamW.of_model(model, set(), 0.0, lr=0.01)
    found = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert found == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
