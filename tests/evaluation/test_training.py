"""The training loop and its checkpoints."""

import copy
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from autobert_zero.search.evaluation.training import Checkpoint, Schedule, train
from autobert_zero.search.stopping import Stopped


class Interrupted(Exception):
    pass


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Dropout(0.2), nn.Linear(5, 1))


def backward_of(module, stop_at=None):
    def backward(step, propagate):
        if step == stop_at:
            raise Interrupted
        torch.manual_seed(step)
        x = torch.randn(7, 3)
        loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
        # Only some parameters have gradients in a step, as in a super-network.
        used = module[0].parameters() if step % 3 else module.parameters()
        loss.backward(inputs=list(used))
        return loss.item()

    return backward


def test_schedule():
    schedule = Schedule(steps=10, learning_rate=1.0, warmup_ratio=0.2)
    rates = [schedule.rate(step) for step in range(10)]
    assert rates[:2] == [0.5, 1.0] and rates[2] == pytest.approx(8 / 9) and rates[9] == pytest.approx(1 / 9)
    assert [Schedule(1, 2.0, 0.1).rate(0), Schedule(3, 2.0, 0.0).rate(0)] == [2.0, 2.0]


def test_training_learns():
    module = make()
    losses = []
    train(module, backward_of(module), Schedule(300, 0.03), progress=lambda done, loss: losses.append(loss))
    assert len(losses) == 300 and sum(losses[-20:]) < 0.3 * sum(losses[:20])


def test_a_stopped_training_writes_a_checkpoint(tmp_path):
    expected = make()
    train(expected, backward_of(expected), Schedule(12, 0.03))
    done = []

    def check():
        if len(done) in (5, 12):
            raise Stopped("enough", 0)

    path = tmp_path / "checkpoint.safetensors"
    module = make()
    arguments = (module, backward_of(module), Schedule(12, 0.03), Checkpoint(path, "this", 1e9))
    with pytest.raises(Stopped):
        train(*arguments, lambda step, loss: done.append(step), check)
    assert Checkpoint(path, "this", 0).step() == 5
    with pytest.raises(Stopped):
        train(*arguments, lambda step, loss: done.append(step), check)
    assert done == list(range(1, 13)) and Checkpoint(path, "this", 0).step() == 12
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("stops", [(1,), (5,), (3, 4, 11)])
def test_interrupted_training_gives_the_same_bits(tmp_path, stops):
    schedule = Schedule(12, 0.03)
    expected = make()
    train(expected, backward_of(expected), schedule)
    path = tmp_path / "checkpoint.safetensors"
    for stop in stops:
        module = make(seed=stop)  # its weights do not matter once there is a checkpoint
        if stop == stops[0]:
            module = make()
        with pytest.raises(Interrupted):
            train(module, backward_of(module, stop), schedule, Checkpoint(path, "this", 0.0))
        assert Checkpoint(path, "this", 0.0).step() == stop
    module = make(seed=99)
    train(module, backward_of(module), schedule, Checkpoint(path, "this", 0.0))
    for a, b in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    # A complete training is only loaded.
    module = make(seed=98)
    train(module, backward_of(module, 0), schedule, Checkpoint(path, "this", 0.0))
    assert torch.equal(module[0].weight, expected[0].weight)


def test_a_training_is_resumed_after_its_first_steps(tmp_path):
    schedule, path = Schedule(12, 0.03), tmp_path / "checkpoint.safetensors"
    expected = make()
    train(expected, backward_of(expected), schedule)
    module = make()
    train(module, backward_of(module), schedule, Checkpoint(path, "this", 1e9), steps=5)
    assert Checkpoint(path, "this", 0).step() == 5
    first = [parameter.clone() for parameter in module.parameters()]
    train(module := make(seed=99), backward_of(module, 0), schedule, Checkpoint(path, "this", 1e9), steps=5)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), first, strict=True))  # no step is repeated
    train(module := make(seed=98), backward_of(module), schedule, Checkpoint(path, "this", 1e9))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


def test_learning_rate_and_gradient_norm(monkeypatch):
    rates, norms = [], []
    module = make()
    original = torch.optim.AdamW.step

    def spy(optimizer, closure=None):
        rates.append(optimizer.param_groups[0]["lr"])
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])).item())
        decays = {group["weight_decay"]: [p.ndim for p in group["params"]] for group in optimizer.param_groups}
        assert decays == {0.25: [2, 2], 0.0: [1, 1, 1, 1]}
        return original(optimizer)

    def backward(step, propagate):
        (1000 * module(torch.ones(2, 3)).sum()).backward()
        return 1.0

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    schedule = Schedule(7, 0.5, 0.3, weight_decay=0.25)
    train(module, backward, schedule)
    assert rates == [schedule.rate(step) for step in range(7)] and len(set(rates)) > 4
    assert max(norms) < 1.001


def test_checkpoints_are_synced_before_they_replace_the_last(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: calls.append("sync") or fsync(*a))
    monkeypatch.setattr(os, "replace", lambda *a: calls.append("replace") or replace(*a))
    train(module := make(), backward_of(module), Schedule(2, 0.1), Checkpoint(tmp_path / "c.safetensors", "this", 0.0))
    assert calls == ["sync", "replace"] * 2


def test_a_checkpoint_of_another_training_is_not_resumed(tmp_path):
    module = make()
    train(module, backward_of(module), Schedule(2, 0.1), Checkpoint(tmp_path / "c.safetensors", "this", 0.0))
    other = Checkpoint(tmp_path / "c.safetensors", "other", 0.0)
    assert other.step() == 0 and other.load(make(), torch.optim.AdamW(make().parameters())) == 0


def _rewrite(path, change):
    """Write a checkpoint again with other tensors or metadata."""
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (not a dict)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def _overwrite(path, position, content):
    with open(path, "r+b") as file:
        file.seek(position, os.SEEK_END)
        file.write(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "garbled": lambda path: path.write_bytes(os.urandom(1000)),
    "another format": lambda path: path.write_text('{"step": 3}'),
    "a flipped bit": lambda path: _overwrite(path, -5, bytes([path.read_bytes()[-5] ^ 1])),
    "a zeroed page": lambda path: _overwrite(path, -64, bytes(64)),
    "another step": lambda path: _rewrite(path, lambda tensors, metadata: metadata.update(step="7")),
    "no number as step": lambda path: _rewrite(path, lambda tensors, metadata: metadata.update(step="x")),
    "no digest": lambda path: _rewrite(path, lambda tensors, metadata: metadata.pop("digest")),
    "a missing tensor": lambda path: _rewrite(path, lambda tensors, metadata: tensors.pop("weight:0.bias")),
    "another tensor": lambda path: _rewrite(path, lambda tensors, metadata: tensors.update(more=torch.ones(2))),
    "another shape": lambda path: _rewrite(path, lambda t, metadata: t.update({"weight:0.bias": torch.ones(2)})),
    "another type": lambda path: _rewrite(
        path, lambda t, metadata: t.update({"weight:0.bias": t["weight:0.bias"].view(torch.int32)})
    ),
    "exchanged names": lambda path: _rewrite(
        path, lambda t, m: t.update({"weight:1.bias": t["weight:1.weight"], "weight:1.weight": t["weight:1.bias"]})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_its_training_repeated(tmp_path, damage, caplog):
    path, schedule = tmp_path / "c.safetensors", Schedule(6, 0.03)
    expected = make()
    train(expected, backward_of(expected), schedule)
    module = make()
    train(module, backward_of(module), schedule, Checkpoint(path, "this", 0.0), steps=4)
    DAMAGES[damage](path)
    content = path.read_bytes()
    reader = Checkpoint(path, "this", 0.0, writes=False)
    assert reader.step() == 0 and path.read_bytes() == content and not caplog.records
    module = make()
    train(module, backward_of(module), schedule, Checkpoint(path, "this", 0.0))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))
    assert (tmp_path / "c.safetensors.damaged").read_bytes() == content
    [record] = caplog.records
    assert str(path) in record.getMessage() and "renamed to c.safetensors.damaged" in record.getMessage()
    assert Checkpoint(path, "this", 0.0).step() == 6


def test_a_checkpoint_of_another_model_is_set_aside(tmp_path, caplog):
    """One whose digest and identity are right, but not its names or shapes."""
    for other in (nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)), nn.Linear(4, 1)):
        checkpoint = Checkpoint(tmp_path / "c.safetensors", "this", 0.0)
        checkpoint.save(other, torch.optim.AdamW(other.parameters()), 3)
        module = make()
        before = copy.deepcopy(module.state_dict())
        assert checkpoint.load(module, torch.optim.AdamW(module.parameters())) == 0
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        assert "its weights are not those of the model" in caplog.text
        (tmp_path / "c.safetensors.damaged").unlink()


def test_only_one_process_writes(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.safetensors", "this", 0.0)
    checkpoint.writes = False
    module = make()
    train(module, backward_of(module), Schedule(2, 0.1), checkpoint)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_the_training():
    module = make()
    with pytest.raises(FloatingPointError, match="expected a finite number, got nan at step 2"):
        train(module, lambda step, propagate: float("nan") if step == 2 else 1.0, Schedule(9, 0.1))
