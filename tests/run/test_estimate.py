"""What a run is said to cost, against what it does."""

import pytest
import torch

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Convolution, Genome
from autobert_zero.search.cli.search import main
from autobert_zero.search.evaluation.measure import count_flops
from autobert_zero.search.run import estimate as module
from autobert_zero.search.run.errors import UsageError
from autobert_zero.search.run.estimate import (
    activation_bytes,
    estimate,
    memory_bytes,
    total_of,
    works,
)
from autobert_zero.search.run.problem import Problem
from tests.conftest import command_line
from tests.evaluation.glue_files import write_task


@pytest.fixture
def problem(tiny_settings) -> Problem:
    return Problem.prepare(tiny_settings, torch.device("cpu"))


def test_tokens_are_those_that_a_run_trains_on(problem, monkeypatch, tmp_path):
    """Counted in the batches of a whole run."""
    phases = {phase.name: phase for phase in estimate(problem)}
    settings = problem.settings
    batch = settings.training.batch_size * settings.model.sequence_length
    trained: dict[str, int] = {}
    original = type(problem.corpus).batch

    def count(self, name, step, size):
        trained[name] = trained.get(name, 0) + 1
        return original(self, name, step, size)

    monkeypatch.setattr(type(problem.corpus), "batch", count)
    main(command_line(settings.replace(output_dir=str(tmp_path / "run"))))
    final = sum(phase.tokens for name, phase in phases.items() if name.startswith("final"))
    assert phases["super-network"].tokens == trained["supernet"] * batch
    assert phases["candidates"].tokens == trained["candidate"] * batch
    assert final == trained["final"] * batch
    assert total_of(list(phases.values())).tokens == sum(trained.values()) * batch


def test_candidates_of_a_generation_are_shared_by_processes(problem):
    def parallel(**changes):
        return {work.name: work.parallel for work in works(problem.replace(**changes))}["candidates"]

    assert parallel(num_parents=2, num_children=3) == 6
    assert parallel(num_parents=2, num_children=3, lookahead=1) == 12
    assert parallel(num_parents=2, num_children=3, objectives=["score", "latency"]) == 6
    assert parallel(strategy="random", population_size=5, num_parents=3, num_children=4) == 5


def test_without_finalists(problem):
    phases = {phase.name: phase for phase in estimate(problem.replace(finalists=1))}
    assert phases["finalists"].tokens == 0 and phases["final: found"].steps == problem.settings.final.final_steps


def test_flops_of_a_training(problem):
    """Those of forward and backward passes, as a counter of torch counts them."""
    genome = Genome([ROTARY_ATTENTION, Convolution(5)])
    problem = problem.replace(supernet_steps=0, max_evaluations=1, finalists=1, final_steps=4, eval_sequences=4)
    first = problem.first[:1]
    first[0] = type(first[0])(0, "", genome, 0)
    problem = type(problem)(**{**vars(problem), "first": first})
    [phase] = [phase for phase in estimate(problem) if phase.name == "final: found"]
    model = problem.proxy.builder.model(genome)

    def run():
        problem.proxy.train(model, problem.proxy.schedule(4, 1e-3), "final")
        with torch.enable_grad():
            for _ in range(1 + len(genome)):
                for ids, labels in problem.corpus.evaluation_batches("test", 4, 4):
                    model(ids, labels=labels)

    assert phase.flops == pytest.approx(count_flops(run), rel=0.1)


def test_activations_on_the_meta_device_are_those_on_a_cpu(problem):
    """Also: their size is proportional to the batch."""
    genome = Genome([ROTARY_ATTENTION, Convolution(5)])
    model = problem.proxy.builder.model(genome)
    stored: dict[int, torch.UntypedStorage] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def store(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in parameters:
            stored[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros((4, 16), dtype=torch.long)
    labels = torch.full((4, 16), -100)
    labels[:, :2] = 0
    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        model.train()(ids, labels=labels)
    on_meta = activation_bytes(model.to("meta"), 4, 16)
    assert on_meta == pytest.approx(sum(s.nbytes() for s in stored.values()), rel=0.1)
    assert activation_bytes(model, 40, 16) == pytest.approx(10 * on_meta, rel=0.1)


def test_memory(problem):
    """The super-network, or for small ones a candidate with its activations, which micro-batches reduce."""
    supernet = problem.new_supernet()
    store = sum(parameter.numel() for parameter in supernet.parameters())
    assert memory_bytes(problem, supernet) > 16 * store
    larger = problem.replace(batch_size=32)
    assert memory_bytes(larger, supernet) > memory_bytes(problem, supernet)
    assert memory_bytes(larger.replace(micro_batch_size=4), supernet) == memory_bytes(problem, supernet)
    deep = problem.replace(batch_size=32, num_hidden_layers=12)
    store = 16 * sum(parameter.numel() for parameter in deep.new_supernet().parameters())
    plain, checkpointed = (
        memory_bytes(deep.replace(gradient_checkpointing=given), deep.new_supernet()) - store
        for given in (False, True)
    )
    assert 0 < checkpointed < plain / 3


def test_durations(problem, monkeypatch):
    """Each is the number of its steps times that of a step, divided by the processes that share them."""

    class OneProcess:
        num_processes = 1

    class FourProcesses:
        num_processes = 4

    timing = module.Timing(start=0.5, step=2.0, sequence=0.25)
    monkeypatch.setattr(module, "_timings", lambda problem: dict.fromkeys(("super-network", "candidates"), timing))
    problem = problem.replace(max_evaluations=8, candidate_steps=3, eval_sequences=8, supernet_steps=5, finalists=1)
    one, four = (
        {phase.name: phase.seconds for phase in estimate(problem, accelerator())}
        for accelerator in (OneProcess, FourProcesses)
    )
    assert one["candidates"] == 8 * (0.5 + 3 * 2.0 + 8 * 0.25) and four["candidates"] == one["candidates"] / 4
    assert one["super-network"] == 0.5 + 5 * 2.0 and four["super-network"] == one["super-network"] / 2  # two paths
    assert four["final: found"] == one["final: found"]


def test_a_model_that_diverges_is_not_timed(problem, monkeypatch):
    original, calls = type(problem.proxy).train, []

    def train(self, *arguments, **more):
        calls.append(1)
        if len(calls) % 3 == 1:
            raise FloatingPointError("loss: expected a finite number, got nan at step 0")
        return original(self, *arguments, **more)

    class OneProcess:
        num_processes = 1

    monkeypatch.setattr(type(problem.proxy), "train", train)
    assert all(phase.seconds for phase in estimate(problem, OneProcess()) if phase.steps)

    def diverges(*arguments, **more):
        raise FloatingPointError("loss: expected a finite number, got nan at step 0")

    monkeypatch.setattr(type(problem.proxy), "train", diverges)
    with pytest.raises(UsageError, match="expected a model that can be trained, got none: loss: expected a finite"):
        estimate(problem, OneProcess())


def test_fine_tuning_on_glue(problem, tmp_path):
    """It costs what its steps cost."""
    write_task(tmp_path, "rte", rows=40)
    glue = {"proxy": "glue", "proxy_tasks": ["rte"], "glue_dir": str(tmp_path), "max_evaluations": 10, "finalists": 1}

    class OneProcess:
        num_processes = 1

    few, many = (
        {phase.name: phase for phase in estimate(problem.replace(**glue, glue_steps=steps), OneProcess())}
        for steps in (5, 5000)
    )
    few, many = few["fine-tuning on GLUE"], many["fine-tuning on GLUE"]
    batch = problem.settings.training.batch_size * problem.settings.model.sequence_length
    assert few.steps == 10 * 5 and few.tokens == 10 * 5 * batch and many.steps == 1000 * few.steps
    assert 100 * few.seconds < many.seconds and 300 * few.flops < many.flops < 1000 * few.flops


def test_the_command(tiny_settings, capsys, tmp_path):
    settings = tiny_settings.replace(output_dir=str(tmp_path / "run"))
    main([*command_line(settings), "--estimate"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in lines]
    for name in ("super-network", "candidates", "finalists", "final: found", "final: baselines", "all"):
        assert name in names
    assert lines[-1].startswith("Memory: ") and not (tmp_path / "run").exists()


def test_a_run_says_what_it_costs(tiny_settings, capsys, tmp_path):
    main(command_line(tiny_settings.replace(output_dir=str(tmp_path / "run"))))
    assert "FLOPs" in capsys.readouterr().out
