"""Operations and layer kinds of one's own: searched with, exported with the model, and loaded where this package is not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autobert_zero.configuration_autobert_zero import (
    SELF_ATTENTION,
    Attention,
    AutoBertZeroConfig,
    Convolution,
    Expression,
    Genome,
    OwnLayer,
)
from autobert_zero.modeling_autobert_zero import (
    AutoBertZeroForMaskedLM,
    AutoBertZeroModel,
    ExpressionProgram,
    Tokens,
    add_operation,
)
from autobert_zero.search import own_operations
from autobert_zero.search.commands import main
from autobert_zero.search.costs import Sizes
from autobert_zero.search.drawing import Box, draw_backbone
from autobert_zero.search.functional_key import expression_key, genome_key
from autobert_zero.search.notation import differences, genome_latex, genome_text
from autobert_zero.search.settings import flags
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.supernet import SuperNetwork

from .conftest import TINY_RUN, run_without_package, tiny_config, write_corpus
from .test_run_glue import write_task


FILE = Path(__file__).resolve().parent.parent / "examples" / "own_operations.py"


POOLING = OwnLayer("average_pooling")


@pytest.fixture
def loaded(language) -> dict[str, str]:
    return own_operations.load(FILE)


def own_space(num_layers: int) -> BackboneSpace:
    return BackboneSpace(num_layers, (3, 5), 12, 1, own_kinds=(POOLING.kind,))


def test_they_are_drawn_and_mutated(loaded):
    space = own_space(3)
    genomes = [space.random(np.random.default_rng(i)) for i in range(150)]
    assert set(loaded) == {name for genome in genomes for name in genome.own_operations()}
    children = [space.mutate(genome, np.random.default_rng(i)) for i, genome in enumerate(genomes)]
    assert all(space.contains(child) for child in children)
    born = [b.own_operations().keys() - a.own_operations().keys() for a, b in zip(genomes, children, strict=True)]
    assert {"relu", POOLING.kind} <= set().union(*born)
    assert not BackboneSpace(3, (3, 5), 12, 1).contains(Genome([SELF_ATTENTION, Convolution(3), POOLING]))


def test_they_compute_what_their_functions_do(loaded):
    expression = Expression.parse("multiply(relu(q), normalize(square(k)))")
    q, k = torch.randn(2, 1, 2, 5, 3).unbind(0)
    expected = torch.relu(q) * F.normalize(k**2, dim=-1)
    for lower in (True, False):
        result, _ = ExpressionProgram(expression, lower)([q, k], Tokens.from_mask(None, (1, 5)), 3)
        assert torch.equal(result, expected)
    assert not ExpressionProgram(expression).fits_half


def test_equal_functions_have_equal_keys(loaded):
    keys = [
        expression_key(Expression.parse(text)) for text in ("relu(relu(q))", "relu(q)", "square(q)", "square(neg(q))")
    ]
    assert keys[0] == keys[1] and keys[2] == keys[3] and keys[0] != keys[2]
    assert len({genome_key(Genome([SELF_ATTENTION, gene])) for gene in (POOLING, Convolution(3), Convolution(5))}) == 3


def test_rules_hold(loaded):
    assert Expression.parse("matmul(matmul(q, transpose(k)), normalize(v))").type == "nd"
    with pytest.raises(ValueError, match="normalize takes operands of type a×d, got n×n"):
        Expression.parse("matmul(normalize(matmul(q, transpose(k))), v)")


def test_pads_never_show(loaded):
    space = own_space(2)
    used = set()
    for number in range(60):
        genome = space.random(np.random.default_rng(number))
        used |= set(genome.own_operations())
        if not genome.own_operations():
            continue
        torch.manual_seed(0)
        model = AutoBertZeroModel(tiny_config(genome, initializer_range=0.1)).eval()
        ids = torch.randint(1, 90, (2, 7))
        with torch.no_grad():
            short = model(ids).last_hidden_state
            mask = torch.tensor([[1] * 7 + [0] * 4] * 2)
            for unpad in (True, False):
                model.config.unpad_inputs = unpad
                long = model(F.pad(ids, (0, 4)), mask).last_hidden_state[:, :7]
                assert torch.allclose(short, long, rtol=1e-3, atol=1e-4), genome
    assert set(loaded) == used


def test_a_layer_of_a_kind_of_ones_own_runs_its_module(loaded):
    model = AutoBertZeroModel(tiny_config(Genome([POOLING]))).eval()
    layer = model.encoder.layer[0]
    x = torch.randn(1, 6, model.config.hidden_size)
    mixed, _ = layer.mixer(x, Tokens())
    window = x[:, 0:5].mean(1)  # around the third token
    assert torch.allclose(mixed[:, 2], layer.mixer.module.dense(window - x[:, 2]), atol=1e-6)
    assert "average_pooling\n         AveragePooling" in model.describe()
    with pytest.raises(ValueError, match="layer 1, average_pooling, is of a kind that knows pads alone"):
        model(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, 3))


def test_costs_are_those_of_the_model(loaded):
    genome = Genome([POOLING, Convolution(3), POOLING])
    config = tiny_config(genome)
    sizes = Sizes(
        *(config.hidden_size, config.num_attention_heads, config.intermediate_size),
        *(config.vocab_size, config.max_position_embeddings),
        tokens=7,
    )
    model = AutoBertZeroForMaskedLM(config)
    assert sizes.parameters(genome) == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model.autobert_zero.encoder(torch.randn(1, 7, config.hidden_size), Tokens())
    assert sizes.flops(genome) == counter.get_total_flops()


def test_a_super_network_has_a_branch_for_each_kind(loaded, tiny_settings):
    torch.manual_seed(0)
    supernet = SuperNetwork(tiny_settings, 50, 0, [POOLING.kind]).eval()
    assert not list(SuperNetwork(tiny_settings, 50, 0).own)
    genome = Genome([POOLING, SELF_ATTENTION, *[Convolution(3)] * (tiny_settings.num_hidden_layers - 2)])
    ids, labels = torch.randint(1, 50, (2, 2, 8))
    loss = supernet(genome, ids, labels)
    assert torch.equal(supernet.candidate(genome).eval()(ids, labels=labels).loss, loss)
    loss.backward()
    first, *others = supernet.own[0]
    assert all(parameter.grad is not None for parameter in first.parameters())
    assert all(parameter.grad is None for layer in others for parameter in layer.parameters())


def test_they_can_be_shown(loaded):
    genome = Genome([Attention(Expression.parse("multiply(relu(q), k)")), POOLING, Convolution(3)])
    assert "multiply(relu(q), k)" in genome_text(genome) and "  2  average_pooling\n" in genome_text(genome)
    assert r"\operatorname{relu}\left(Q\right)" in genome_latex(genome)
    assert {"average_pooling", "conv 3", "A"} <= {b.text for b in draw_backbone(genome).shapes if isinstance(b, Box)}
    assert differences(genome, Genome([genome[0], Convolution(5), genome[2]])) == [
        "layer 2: average_pooling → convolution 5"
    ]


def test_the_configuration_says_what_it_needs(loaded):
    genome = Genome([Attention(Expression.parse("matmul(relu(matmul(q, transpose(k))), v)")), Convolution(3)])
    config = tiny_config(genome)
    assert config.own_operations == {"relu": "ab->ab"} and "own_operations" in config.to_dict()
    assert tiny_config(Genome([Convolution(3)])).own_operations is None
    config = tiny_config(Genome([POOLING, Convolution(3)]))
    assert config.own_operations == {"average_pooling": "layer"}
    assert Genome.from_list(config.genome) == Genome([POOLING, Convolution(3)])
    with pytest.raises(ValueError, match="layer 1: expected the field 'kind' alone"):
        Genome.from_list([{"kind": "average_pooling", "window": 3}])


def test_a_model_without_the_functions_is_an_error(language):
    genome = [{"kind": "attention", "expression": "matmul(gelu(matmul(q, transpose(k))), v)"}]
    config = AutoBertZeroConfig(
        genome=genome, own_operations={"gelu": "ab->ab"}, hidden_size=12, num_attention_heads=3
    )
    with pytest.raises(ValueError, match="own_operations: expected functions for gelu, got none"):
        AutoBertZeroModel(config)
    config = AutoBertZeroConfig(genome=[{"kind": "pool"}], own_operations={"pool": "layer"})
    with pytest.raises(ValueError, match="own_operations: expected functions for pool, got none"):
        AutoBertZeroModel(config)
    with pytest.raises(ValueError, match=r"kind: expected one of \['convolution', 'attention', 'pool'\], got 'mix'"):
        AutoBertZeroConfig(genome=[{"kind": "mix"}])
    with pytest.raises(ValueError, match="unknown name 'selu'"):
        AutoBertZeroConfig(genome=[{"kind": "attention", "expression": "selu(q)"}])


_LAYER = """
import torch

class Plain(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function

def layer(function):
    return lambda config: Plain(function)

def only_whole(x, real):
    if not real.all():
        raise NotImplementedError
    return x

class Mean(torch.nn.Module):  # of all positions, and hidden at first by a 0
    def __init__(self):
        super().__init__()
        self.share = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, real):
        return self.share * x.mean(1, keepdim=True).expand_as(x)

class Buffer(torch.nn.Module):
    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("scale", torch.full((12,), 0.5), persistent)

    def forward(self, x, real):
        return self.scale * x

class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(12, 12), torch.nn.Linear(12, 12)
        self.one.weight = self.other.weight

    def forward(self, x, real):
        return self.one(self.other(x))

SHARED = torch.nn.Linear(12, 12)
"""


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{}", "expected a table OPERATIONS"),
        ("{'relu': torch.relu}", "operation 'relu': expected a rule and a function"),
        ("{'neg': ('ab->ab', torch.neg)}", "operation 'neg': expected a new name"),
        ("{'Q': ('ab->ab', torch.neg)}", "expected a lower-case identifier"),
        ("{'f': ('ab->ac', torch.neg)}", "operation 'f': expected axes of the operands in the result, got 'ab->ac'"),
        ("{'f': ('ab', torch.neg)}", "operation 'f': expected a rule such as"),
        ("{'f': ('ab->ba', torch.neg)}", "expected torch.float64 (2, 2, 3, 5) for operands nd, got torch.float64 (2, 2, 5, 3)"),
        ("{'f': ('ab->ab', lambda x: x.sum())}", "got torch.float64 ()"),
        ("{'f': ('ab->ab', torch.log)}", "operation 'f': expected finite numbers"),
        ("{'f': ('ab->ab', torch.rand_like)}", "expected the same result every time"),
        ("{'f': ('ab->ab', torch.Tensor.relu_)}", "expected operands left as they are"),
        ("{'f': ('ab->ab', lambda x: x.softmax(-1))}", "to depend on it alone (pads would show) for operands nn"),
        ("{'f': ('nd->nd', lambda x: x - x.mean(-2, keepdim=True))}", "to depend on it alone"),
        ("{'f': ('ab->ab', lambda x: x - x.mean(0))}", "expected sentences kept apart"),
        ("{'f': ('ab,ab->ab', torch.relu)}", "operation 'f': expected a tensor (2, 2, 5, 5) for operands nn, nn"),
        ("{'attention': ('layer', torch.nn.Identity)}", "operation 'attention': expected a new name"),
        ("{'f': ('ab->ab', torch.neg), **{'relu': ('layer', Plain)}}", "operation 'relu': expected the rule 'ab->ab'"),
        ("{'f': ('layer', torch.relu)}", "layer kind 'f': expected a function that makes a module"),
        ("{'f': ('layer', lambda config: torch.relu)}", "got builtin_function_or_method"),
        ("{'f': ('layer', lambda config: torch.nn.Linear(12, 12))}", "layer kind 'f': expected a tensor (2, 5, 12), got TypeError"),
        ("{'f': ('layer', layer(lambda x, real: x[..., :3]))}", "got torch.float64 (2, 5, 3)"),
        ("{'f': ('layer', layer(lambda x, real: x.add_(1)))}", "expected operands left as they are"),
        ("{'f': ('layer', layer(lambda x, real: torch.rand_like(x)))}", "expected the same result every time"),
        ("{'f': ('layer', layer(lambda x, real: x - x.mean(1, keepdim=True)))}", "something else with pads on the right"),
        ("{'f': ('layer', layer(lambda x, real: x * torch.arange(x.shape[1])[:, None]))}", "with pads on the left"),
        ("{'f': ('layer', layer(lambda x, real: x - x.mean(0)))}", "expected sentences kept apart"),
        ("{'f': ('layer', layer(only_whole))}", "layer kind 'f': expected no state but parameters, and calls with pads"),
        ("{'f': ('layer', lambda config: Mean())}", "something else with pads on the right"),
        ("{'f': ('layer', lambda config: Buffer(True))}", "expected no state but parameters"),
        ("{'f': ('layer', lambda config: Buffer(False))}", "expected no state but parameters"),
        ("{'f': ('layer', lambda config: Tied())}", "expected every parameter under one name, got one under two"),
        ("{'f': ('layer', lambda config: SHARED)}", "expected parameters of its own in each layer"),
        ("{'f': ('layer', lambda config: Plain(torch.ones(1).item()))}", "also without memory"),
        ("nothing", "it cannot be run: NameError"),
    ],
)  # fmt: skip
def test_bad_operations(loaded, tmp_path, table, message):
    file = tmp_path / "operations.py"
    file.write_text(f"{_LAYER}OPERATIONS = {table}\n")
    with pytest.raises(ValueError) as error:
        own_operations.load(file)
    assert message in str(error.value)
    with pytest.raises(ValueError, match="expected a Python file, got none"):
        own_operations.load(tmp_path / "nowhere.py")


_LOAD = """
import sys
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, pipeline

first, again = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(first, trust_remote_code=True).eval()
assert model.config.own_operations, model.config
model.save_pretrained(again)
ids = torch.tensor([[5, 6, 7, 8]])
twice = AutoModelForMaskedLM.from_pretrained(again, trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(model(ids).logits, twice(ids).logits)
for auto_class in (AutoModel, AutoModelForSequenceClassification):
    auto_class.from_pretrained(again, trust_remote_code=True)
print(len(pipeline("fill-mask", model=first, trust_remote_code=True)("the cat [MASK] .")))
"""


def test_from_a_search_to_a_process_without_the_package(tmp_path, capsys, language):
    """One candidate, given from the start, so that the winner has operations of its own."""
    expression = "matmul(relu(matmul(q, transpose(k))), normalize(v))"
    seed = [{"kind": "attention", "expression": expression}, {"kind": "average_pooling"}]
    (tmp_path / "seed.json").write_text(json.dumps(seed))
    folder = tmp_path / "run"
    values = {**TINY_RUN, "train_file": [write_corpus(tmp_path / "text.txt")], "output_dir": str(folder)}
    values |= {"max_evaluations": 1, "seed_genomes": [str(tmp_path / "seed.json")], "own_operations": str(FILE)}
    (tmp_path / "settings.json").write_text(json.dumps(values))
    search = [sys.executable, "-m", "autobert_zero.search", "--config", str(tmp_path / "settings.json")]
    done = subprocess.run(search, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "summary.json").read_text())["best"]["genome"] == seed
    assert ">average_pooling<" in (folder / "report.html").read_text()
    # To look at the run takes no functions.
    exported = tmp_path / "exported"
    look = "import json, sys; from autobert_zero.search.commands import main; [main(each) for each in json.loads(sys.argv[1])]"
    each = [["show", str(folder)], ["report", str(folder)], ["export", str(folder), "--output", str(exported)]]
    done = subprocess.run([sys.executable, "-c", look, json.dumps(each)], capture_output=True, text=True)
    assert done.returncode == 0 and "normalize" in done.stdout, done.stderr
    assert (exported / "operations_autobert_zero.py").read_bytes() == FILE.read_bytes()
    assert "operations_autobert_zero.py`: `" in (exported / "README.md").read_text()
    out, _ = run_without_package(_LOAD, str(exported), str(tmp_path / "again"), cwd=tmp_path)
    assert out.split()[-1] == "5"
    # A file that is another one belongs to another run.
    other = tmp_path / "other.py"
    other.write_text(FILE.read_text() + "\n")
    with pytest.raises(SystemExit):
        main(["search", "--config", str(tmp_path / "settings.json"), "--own_operations", str(other)])
    assert "is the history of another run: expected own_operations=" in capsys.readouterr().err


def test_a_model_takes_along_what_was_loaded(language, tmp_path):
    """And not what the file has become while a search ran."""
    file = tmp_path / "operations.py"
    file.write_text("import torch\nOPERATIONS = {'f': ('ab->ab', torch.relu)}\n")
    before = file.read_bytes()
    own_operations.load(file)
    file.write_text("nothing")
    AutoBertZeroModel(tiny_config(Genome([Attention(Expression.parse("f(q)"))]))).save_pretrained(tmp_path / "model")
    own_operations.carry(tmp_path / "model")
    assert (tmp_path / "model" / own_operations.TABLE).read_bytes() == before
    other = tmp_path / "other.py"
    other.write_text("import torch\nOPERATIONS = {'g': ('ab->ab', torch.tanh)}\n")
    own_operations.load(other)
    genome = Genome([Attention(Expression.parse("add(f(q), g(k))"))])
    AutoBertZeroModel(tiny_config(genome)).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="own_operations: expected f, g of one file, got them of 2"):
        own_operations.carry(tmp_path / "two")


class Depth(torch.nn.Module):
    """Knows the depth of its model, begins as the identity, and attends by what torch has."""

    def __init__(self, config):
        super().__init__()
        self.factor = config.num_hidden_layers
        self.map = torch.nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        torch.nn.init.eye_(self.map.weight)
        self.attention = torch.nn.MultiheadAttention(config.hidden_size, 2, batch_first=True)

    def forward(self, x, real):
        x = self.map(x)
        return self.factor * self.attention(x, x, x, key_padding_mask=~real, need_weights=False)[0]


def test_a_layer_kind_is_what_it_says_in_every_place(language, tiny_settings):
    """In the super-network as in the candidate; its first weights are its own; what it attends by is counted; a model in
    half precision takes what it gives."""
    add_operation("deep", "layer", Depth)
    genome = Genome([OwnLayer("deep")] * tiny_settings.num_hidden_layers)
    supernet = SuperNetwork(tiny_settings, 50, 0, ["deep"]).eval()
    layer = supernet.candidate(genome).autobert_zero.encoder.layer[0]
    assert torch.equal(layer.mixer.module.map.weight, torch.eye(tiny_settings.hidden_size))
    ids, labels = torch.randint(1, 50, (2, 2, 8))
    assert torch.equal(supernet(genome, ids, labels), supernet.candidate(genome).eval()(ids, labels=labels).loss)
    width, tokens = 24, 7
    sizes = Sizes(width, 2, 48, 50, 16, tokens=tokens)
    of_mixer = own_operations._costs_of(Depth)(sizes)[1]
    assert of_mixer == 2 * tokens * width * (5 * width + 2 * tokens)
    model = supernet.candidate(genome).to(torch.bfloat16).eval()
    layer = model.autobert_zero.encoder.layer[0].mixer
    layer.module.forward = lambda x, real: x.float()
    assert (
        layer(torch.randn(1, 4, tiny_settings.hidden_size, dtype=torch.bfloat16), Tokens())[0].dtype == torch.bfloat16
    )


def test_what_one_run_has_loaded_is_not_of_the_next(language, tmp_path, capsys):
    """And the genome of a run with operations of its own that it does not use is a seed for a run without them."""
    corpus = write_corpus(tmp_path / "text.txt")
    own_operations.load(FILE)
    relu = {"kind": "attention", "expression": "matmul(relu(q), matmul(transpose(k), v))"}
    for name, gene in {"operation.json": relu, "layer.json": {"kind": "average_pooling"}}.items():
        (tmp_path / name).write_text(json.dumps([SELF_ATTENTION.to_dict(), gene]))
    other = [{"kind": "convolution", "kernel_size": 3}, SELF_ATTENTION.to_dict()]
    summary = {"genome": other, "own_operations": {"relu": "ab->ab", "average_pooling": "layer"}}
    (tmp_path / "unused.json").write_text(json.dumps(summary))
    values = {**TINY_RUN, "train_file": [corpus], "max_evaluations": 8, "output_dir": str(tmp_path / "run")}
    for name in ("operation.json", "layer.json"):
        with pytest.raises(SystemExit):
            main(["search", *flags({**values, "seed_genomes": [str(tmp_path / name)]})])
        assert "seed_genomes: expected genomes of the space of this run" in capsys.readouterr().err
    main(["search", *flags({**values, "seed_genomes": [str(tmp_path / "unused.json")]})])
    records = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()[1:]]
    assert len(records) == 8
    assert not any(Genome.from_list(record["genome"]).own_operations() for record in records)


@pytest.mark.slow
def test_pre_trained_and_fine_tuned_a_model_still_has_them(tmp_path):
    genome = [{"kind": "attention", "expression": "matmul(relu(matmul(q, transpose(k))), v)"}]
    (tmp_path / "genome.json").write_text(json.dumps({"genome": genome, "own_operations": {"relu": "ab->ab"}}))
    values = {"max_seq_length": 16, "per_device_train_batch_size": 4, "report_to": "none", "max_steps": 2}
    pretraining = {"train_file": write_corpus(tmp_path / "text.txt"), "own_operations": FILE, "vocab_size": 150}
    pretraining |= {"genome": tmp_path / "genome.json", "output_dir": tmp_path / "pretrained"}
    pretraining |= {"config_overrides": "hidden_size=12,num_attention_heads=3"}
    tuning = {"model": tmp_path / "pretrained", "trust_remote_code": True, "output_dir": tmp_path / "tuned"}
    tuning |= {"task_name": "rte", "data_dir": write_task(tmp_path / "glue", "rte"), "seeds": 1, "save_models": True}
    for script, own in (("run_pretraining.py", pretraining), ("run_glue.py", tuning)):
        command = [sys.executable, str(FILE.with_name(script)), *flags({**values, **own})]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    tables = list(tmp_path.glob("pretrained/operations_*.py")) + list(tmp_path.glob("tuned/**/operations_*.py"))
    assert len(tables) == 2 and all(table.read_bytes() == FILE.read_bytes() for table in tables)


def test_a_bad_file_ends_a_search_at_once(tmp_path, capsys, language):
    with pytest.raises(SystemExit) as stopped:
        main(["search", "--output_dir", str(tmp_path / "run"), "--own_operations", "nowhere.py"])
    assert (
        stopped.value.code == 2
        and "own_operations: nowhere.py: expected a Python file, got none" in capsys.readouterr().err
    )


_KINDS = """
import torch
from torch import nn

class Gate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(1.0))
    def forward(self, x, real):
        return self.strength * x

class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.GroupNorm(3, config.hidden_size)
    def forward(self, x, real):
        return self.norm(x.reshape(-1, x.shape[-1])).view_as(x)

OPERATIONS = {"KIND": ("layer", CLASS)}
"""


def test_kinds_at_the_sizes_of_a_run(tmp_path, capsys, language):
    """A parameter may be a single number; a kind that cannot be made at these sizes is an error before anything is trained."""
    file = tmp_path / "kinds.py"
    tiny = {**TINY_RUN, "hidden_size": 16, "num_attention_heads": 2, "max_evaluations": 4}
    settings = {**tiny, "train_file": write_corpus(tmp_path / "c.txt"), "own_operations": str(file)}
    file.write_text(_KINDS.replace("KIND", "gate").replace("CLASS", "Gate"))
    main(["search", *flags({**settings, "output_dir": str(tmp_path / "run")})])
    assert (tmp_path / "run" / "summary.json").exists()
    file.write_text(_KINDS.replace("KIND", "norm").replace("CLASS", "Norm"))
    with pytest.raises(SystemExit, match="2"):
        main(["search", *flags({**settings, "output_dir": str(tmp_path / "other")})])
    said = capsys.readouterr().err
    assert "own_operations: 'norm' makes no layer of hidden_size=16, num_attention_heads=2: ValueError" in said
    assert not (tmp_path / "other" / "supernet.safetensors").exists()
