"""What the settings of a run determine, and its identity."""

import pytest
import torch

from autobert_zero.configuration_autobert_zero import Attention, Convolution, CustomLayer, Expression, Genome
from autobert_zero.search.evaluation.glue_proxy import GlueProxy
from autobert_zero.search.evolution.limits import LimitedSpace
from autobert_zero.search.genomes import read_genome
from autobert_zero.search.run.final import baseline_jobs
from autobert_zero.search.run.problem import Problem, text_source
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import SearchSettings, TextSettings
from tests.conftest import write_corpus
from tests.evaluation.glue_files import write_task


CUSTOM = """
import torch
from torch import nn


class Scaling(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_states, real):
        return self.weight * hidden_states


OPERATIONS = {"relu": ("ab->ab", torch.relu), "scaling": ("layer", Scaling)}
"""


def prepare(settings: SearchSettings) -> Problem:
    return Problem.prepare(settings, torch.device("cpu"))


@pytest.fixture
def problem(tiny_settings) -> Problem:
    return prepare(tiny_settings)


def test_replace_keeps_the_corpus_and_changes_the_space(problem):
    changed = problem.replace(min_attention_layers=0, max_attention_layers=0, kernel_sizes=[3])
    assert changed.corpus is problem.corpus and changed.proxy.corpus is problem.corpus
    assert changed.settings == problem.settings.replace(
        min_attention_layers=0, max_attention_layers=0, kernel_sizes=[3]
    )
    genomes = [changed.space.random(random_stream(i)) for i in range(20)]
    assert {str(gene) for genome in genomes for gene in genome} == {"convolution 3"}
    assert any(isinstance(gene, Attention) for record in problem.first for gene in record.genome)
    with pytest.raises(ValueError, match="max_attention_layers: expected at least min_attention_layers=1"):
        problem.replace(max_attention_layers=0)


def test_replace_changes_the_order_of_the_text_with_the_seed(problem, tiny_settings):
    changed = problem.replace(seed=7)
    expected = prepare(tiny_settings.replace(seed=7))
    assert changed.identity == expected.identity and changed.corpus.seed == 7
    ids, same, other = (each.corpus.batch("final", 0, 4)[0] for each in (changed, expected, problem))
    assert torch.equal(ids, same) and not torch.equal(ids, other)
    for name, value in {"sequence_length": 8, "vocab_size": 120}.items():
        with pytest.raises(ValueError, match=f"{name}|text: expected"):
            problem.replace(**{name: value})


def test_replace_changes_limits(problem):
    assert not isinstance(problem.space, LimitedSpace)
    sizes = sorted(problem.costs.parameters(problem.space.random(random_stream(i))) for i in range(50))
    limited = problem.replace(max_parameters=sizes[25])
    assert limited.space.limits == {"parameters": sizes[25]}
    assert all(limited.costs.parameters(record.genome) <= sizes[25] for record in limited.first)
    with pytest.raises(ValueError, match="max_parameters=10: expected limits that some genomes keep"):
        problem.replace(max_parameters=10)


def test_custom_operations_reach_all_parts(problem, tmp_path):
    file = tmp_path / "operations.py"
    file.write_text(CUSTOM)
    changed = problem.replace(custom_operations=str(file))
    genomes = [changed.space.random(random_stream(i)) for i in range(100)]
    assert "relu" in {name for genome in genomes for name in genome.operations()}
    [genome, *_] = [genome for genome in genomes if CustomLayer("scaling") in genome]
    supernet = changed.new_supernet()
    assert changed.costs.parameters(genome) == sum(p.numel() for p in supernet.candidate(genome).parameters())
    assert changed.proxy.score(genome, supernet).status == "ok"
    assert changed.data["custom_operations"] == changed.custom_operations.digest
    with pytest.raises(ValueError, match="unknown name 'relu'"):
        Expression.parse("relu(q)")
    missing = tmp_path / "missing.py"
    with pytest.raises(ValueError, match=rf"custom_operations: {missing}: expected a Python file, got none"):
        problem.replace(custom_operations=str(missing))


def test_equal_settings_have_equal_identities(problem, tiny_settings):
    again = prepare(tiny_settings)
    assert (again.identity, again.full_identity) == (problem.identity, problem.full_identity)
    assert [record.genome for record in again.first] == [record.genome for record in problem.first]


@pytest.mark.parametrize("changed", [{"seed": 7}, {"candidate_steps": 4}, {"position_embedding_type": "absolute"}])
def test_another_setting_gives_another_identity(problem, changed):
    assert problem.replace(**changed).identity != problem.identity


def test_other_seed_genomes_give_another_identity(problem):
    absolute = problem.replace(position_embedding_type="absolute")
    assert absolute.replace(seed_genomes=["bert"]).identity != absolute.identity


@pytest.mark.parametrize("changed", [{"output_dir": "elsewhere"}, {"num_threads": 3}, {"max_seconds": 9.0}])
def test_the_place_of_a_run_is_not_part_of_its_identity(problem, changed):
    assert problem.replace(**changed).full_identity == problem.full_identity


@pytest.mark.parametrize("changed", [{"max_evaluations": 10}, {"final_steps": 7}])
def test_the_budget_is_only_part_of_the_full_identity(problem, changed):
    other = problem.replace(**changed)
    assert other.identity == problem.identity and other.full_identity != problem.full_identity


def test_text_and_custom_operations_are_part_of_the_identity(problem, tmp_path):
    """Of custom operations their content counts, not their path."""
    other = write_corpus(tmp_path / "other.txt", seed=1)
    assert prepare(problem.settings.replace(train_file=[other])).data["digest"] != problem.data["digest"]
    identities = []
    for name, text in (("a.py", CUSTOM), ("b.py", CUSTOM), ("c.py", CUSTOM.replace("torch.relu", "torch.sigmoid"))):
        (tmp_path / name).write_text(text)
        identities.append(problem.replace(custom_operations=str(tmp_path / name)).identity)
    assert identities[0] == identities[1] != identities[2] != problem.identity != identities[0]


def test_glue_as_the_proxy(problem, tmp_path):
    write_task(tmp_path, "rte")
    changed = problem.replace(proxy="glue", proxy_tasks=["rte"], glue_dir=str(tmp_path))
    assert isinstance(changed.proxy, GlueProxy) and changed.data["glue"] == changed.proxy.digest()
    assert changed.unigram_score() is None and problem.unigram_score() < 0


def test_settings_of_glue_without_glue(problem):
    with pytest.raises(ValueError, match="glue_steps: expected its default without --proxy glue"):
        problem.replace(glue_steps=5)


def test_sources_of_text():
    assert text_source(TextSettings(train_file=["texts/a.txt", "b.txt.xz"])) == "a.txt, b.txt.xz"
    assert text_source(TextSettings(dataset_name="user/name")) == "user/name"
    assert text_source(TextSettings()).startswith("the language reference of Python 3.")


@pytest.mark.parametrize("positions", ["none", "absolute"])
def test_baselines_have_as_many_parameters_as_the_winner(tiny_settings, positions):
    """But for half a column of all feed-forward layers, whichever positions the winner has."""
    problem = prepare(tiny_settings.replace(position_embedding_type=positions, intermediate_size=64))
    for genome in (read_genome("hybrid-rotary", 2), Genome([Convolution(3)] * 2)):
        wanted = problem.costs.parameters(genome)
        jobs = baseline_jobs(problem, wanted)
        assert len(jobs) == 2
        for job in jobs.values():
            changed = problem.replace(**job["model"])
            model = changed.proxy.builder.model(Genome.from_list(job["genome"]))
            column = len(genome) * (2 * tiny_settings.model.hidden_size + 1)
            assert abs(model.num_parameters() - wanted) <= column / 2
